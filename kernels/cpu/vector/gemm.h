#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace tessera::kernels {

/// One matrix product c [M, N] ← a [M, K] · b [K, N], or a batch of them. Strides count elements.
///
/// a and b have the same float dtype; c has it too, or is f32 with 16-bit a and b. All strides are allowed.
struct GemmProblem {
  std::int64_t m = 0, n = 0, k = 0;
  DType input = DType::kF32, output = DType::kF32;
  const void* a = nullptr;
  std::int64_t a_row = 0, a_column = 0;
  const void* b = nullptr;
  std::int64_t b_row = 0, b_column = 0;
  void* c = nullptr;
  std::int64_t c_row = 0, c_column = 0;
  const void* bias = nullptr;  ///< [N] in the dtype of a, added to every row of c; may be null
  std::int64_t bias_stride = 0;
  bool accumulate = false;  ///< c ← c + a·b

  /// Matrices of the batch; matrix i starts at the offsets of its index, counted row-major over batch_shape.
  static constexpr int kMaxBatchDims = 6;
  int batch_dims = 0;
  std::int64_t batch_shape[kMaxBatchDims] = {};
  std::int64_t a_batch[kMaxBatchDims] = {}, b_batch[kMaxBatchDims] = {}, c_batch[kMaxBatchDims] = {};
};

/// c ← a·b (+ bias) (+ c) by Tessera's own loops, in the build for one instruction set. An element of c
/// depends on its row of a, its column of b and K alone: neither the number of threads nor a cut of the rows
/// or columns changes it.
#define TESSERA_DECLARE_GEMM(isa)  \
  namespace isa {                  \
  void gemm(const GemmProblem& p); \
  }
TESSERA_DECLARE_GEMM(baseline)
TESSERA_DECLARE_GEMM(avx2)
TESSERA_DECLARE_GEMM(avx512)
#undef TESSERA_DECLARE_GEMM

}  // namespace tessera::kernels
