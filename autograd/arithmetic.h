#pragma once

#include "tensor/tensor.h"

// Arithmetic, element by element. Shapes broadcast by the usual rules (tensor/broadcast.h), dtypes promote (a
// float wins over an integer, the wider wins); a number takes the tensor's dtype. All of these are
// differentiable but for the comparisons.
//
// Errors    ShapeError if the shapes do not broadcast; DeviceError if the devices differ.

namespace tessera {

[[nodiscard]] Tensor add(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor subtract(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor multiply(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor divide(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor add(const Tensor& a, double b);
[[nodiscard]] Tensor multiply(const Tensor& a, double b);
/// As in C++, integers over (or under) a whole number stay integers and truncate; over 2.5 they become f32.
[[nodiscard]] Tensor divide(const Tensor& a, double b);
[[nodiscard]] Tensor divide(double a, const Tensor& b);
/// x^exponent; NaN for negative x with a fractional exponent. Integers stay so if it is whole.
[[nodiscard]] Tensor pow(const Tensor& x, double exponent);
/// The larger (smaller) of each pair; where both are equal, each gets half of the gradient.
[[nodiscard]] Tensor maximum(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor minimum(const Tensor& a, const Tensor& b);
/// x cut to [low, high]; the gradient passes where x lies inside. A fraction makes integers f32.
[[nodiscard]] Tensor clamp(const Tensor& x, double low, double high);

[[nodiscard]] inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
[[nodiscard]] inline Tensor operator-(const Tensor& a, const Tensor& b) { return subtract(a, b); }
[[nodiscard]] inline Tensor operator*(const Tensor& a, const Tensor& b) { return multiply(a, b); }
[[nodiscard]] inline Tensor operator/(const Tensor& a, const Tensor& b) { return divide(a, b); }
[[nodiscard]] inline Tensor operator+(const Tensor& a, double b) { return add(a, b); }
[[nodiscard]] inline Tensor operator+(double a, const Tensor& b) { return add(b, a); }
[[nodiscard]] inline Tensor operator-(const Tensor& a, double b) { return add(a, -b); }
[[nodiscard]] inline Tensor operator*(const Tensor& a, double b) { return multiply(a, b); }
[[nodiscard]] inline Tensor operator*(double a, const Tensor& b) { return multiply(b, a); }
[[nodiscard]] inline Tensor operator/(const Tensor& a, double b) { return divide(a, b); }
[[nodiscard]] inline Tensor operator/(double a, const Tensor& b) { return divide(a, b); }
[[nodiscard]] inline Tensor operator-(const Tensor& x) { return multiply(x, -1.0); }
[[nodiscard]] inline Tensor operator-(double a, const Tensor& b) { return add(-b, a); }

/// Comparisons: bool tensors, no gradients.
[[nodiscard]] Tensor equal(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor less(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor less_equal(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor equal(const Tensor& a, double b);
[[nodiscard]] Tensor less(const Tensor& a, double b);
[[nodiscard]] Tensor less_equal(const Tensor& a, double b);
[[nodiscard]] Tensor greater(const Tensor& a, double b);
[[nodiscard]] Tensor greater_equal(const Tensor& a, double b);
[[nodiscard]] Tensor logical_not(const Tensor& x);
[[nodiscard]] Tensor logical_and(const Tensor& a, const Tensor& b);
[[nodiscard]] Tensor logical_or(const Tensor& a, const Tensor& b);

/// condition ? a : b, element by element, all three broadcast. Gradients go where the value came from.
[[nodiscard]] Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);

}  // namespace tessera
