#pragma once

// Private to autograd/: the memory layouts that kernels over rows ask for.

#include "tensor/tensor.h"

namespace tessera::detail {

/// Product of all sizes but the last one: the number of rows, right also where a size is 0.
[[nodiscard]] std::int64_t num_rows(const Shape& shape);

/// Itself if the elements of the last dimension lie side by side, else a contiguous copy. Not recorded.
[[nodiscard]] Tensor with_unit_stride(const Tensor& x);

/// x as a contiguous [rows, width]. Not recorded.
[[nodiscard]] Tensor as_rows(const Tensor& x);

}  // namespace tessera::detail
