#pragma once

#include <cstdint>

#include "kernels/view.h"

namespace tessera::kernels {

/// A nest of loops over the elements of up to four views of one shape, with as few dimensions as possible:
/// those of size 1 are gone, neighbours that every operand steps through evenly are one. Never without a
/// dimension.
struct Loop {
  static constexpr int kMaxOperands = 4;

  struct Operand {
    char* data;
    DType dtype;
    std::int64_t strides[kMaxDims];
  };

  int dims;
  int num_operands;
  std::int64_t size;  ///< product of shape
  std::int64_t shape[kMaxDims];
  Operand operands[kMaxOperands];
};

enum class LoopOrder {
  kFastest,   ///< the first operand's smallest stride innermost
  kRowMajor,  ///< as the views have it; element i of the loop is element i of the views
};

/// `first` gives the shape (an output, as a rule); the others have it too, with strides of 0 where they
/// repeat.
[[nodiscard]] Loop make_loop(LoopOrder order, const ConstView& first, const ConstView* second = nullptr,
                             const ConstView* third = nullptr, const ConstView* fourth = nullptr) noexcept;

}  // namespace tessera::kernels
