#pragma once

#include "tensor/tensor.h"

namespace tessera {

/// The shape that both broadcast to: aligned at the last dimension, sizes equal or 1.
/// Errors   ShapeError that names `operation` and shows both shapes.
[[nodiscard]] Shape broadcast_shapes(const char* operation, const Shape& a, const Shape& b);

/// Errors   DeviceError that names `operation` if a and b lie on different devices.
void check_same_device(const char* operation, const Tensor& a, const Tensor& b);

/// The dtype of a op b: the wider one; a float wins over an integer, an integer over bool; f16 with bf16
/// gives f32.
[[nodiscard]] DType promote(DType a, DType b);

/// Sums over the dimensions along which `shape` was broadcast to x's shape: the adjoint of `expand`. Not
/// recorded.
[[nodiscard]] Tensor sum_to_shape(const Tensor& x, const Shape& shape);

}  // namespace tessera
