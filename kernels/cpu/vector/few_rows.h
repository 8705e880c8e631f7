#pragma once

#include "kernels/cpu/vector/gemm.h"

namespace tessera::kernels {

/// c ← a·b (+ bias) (+ c) for a few rows of a, in the build for one instruction set: b is read once, from
/// where it lies. False, with nothing done, for a problem of another kind: more than kMostFewRows rows, a
/// batch, f64, or factors of which one is not contiguous along K (as a linear layer's weight [N, K] is).
///
/// An element of c depends on its row of a, its column of b and K alone: neither the number of threads nor
/// the other rows change it. But it is summed in another order than gemm's, so the two differ in last bits.
#define TESSERA_DECLARE_FEW_ROWS(isa)                \
  namespace isa {                                    \
  [[nodiscard]] bool few_rows(const GemmProblem& p); \
  }
TESSERA_DECLARE_FEW_ROWS(baseline)
TESSERA_DECLARE_FEW_ROWS(avx2)
TESSERA_DECLARE_FEW_ROWS(avx512)
#undef TESSERA_DECLARE_FEW_ROWS

inline constexpr std::int64_t kMostFewRows = 8;

}  // namespace tessera::kernels
