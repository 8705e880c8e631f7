#pragma once

#include "tensor/tensor.h"

namespace tessera {

/// Matrix product over the last two dimensions; leading dimensions broadcast. A 1-D operand is a row (left)
/// or a column (right) whose extra dimension disappears again.
///
/// Shapes    a [..., M, K], b [..., K, N] → [..., M, N]
/// Gradient  da = dy·bᵀ, db = aᵀ·dy, summed over broadcast dimensions
/// Errors    ShapeError if the inner sizes differ; DTypeError if the dtypes differ or are not floating.
[[nodiscard]] Tensor matmul(const Tensor& a, const Tensor& b);

/// y = x·weightᵀ + bias: the layer that all others are made of.
///
/// Shapes    x [..., I], weight [O, I], bias [O] or undefined → [..., O]
/// Gradient  dx = dy·weight, dweight = dyᵀ·x and dbias = Σ dy; the last two in f32 for 16-bit weights, so
///           that accumulation over micro-batches loses nothing.
[[nodiscard]] Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

}  // namespace tessera
