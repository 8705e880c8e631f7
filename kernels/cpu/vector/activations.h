#pragma once

// Activation functions and their derivatives, for loops that vectorise.

#include "kernels/cpu/vector/math.h"

namespace tessera::kernels::TESSERA_ISA {

/// −1, 0 or 1; NaN stays NaN.
template <class T>
TESSERA_INLINE T sign(T x) {
  const T positive = x > T(0) ? T(1) : x;
  return x < T(0) ? T(-1) : positive;
}

// GELU, tanh approximation: x/2 · (1 + tanh(u)) = x · sigmoid(2u) with u = √(2/π) (x + 0.044715 x³). The
// right-hand side keeps its relative accuracy for negative x, where 1 + tanh(u) cancels.
template <class T>
inline constexpr T kGeluScale = static_cast<T>(1.5957691216057307);  // 2 √(2/π)
template <class T>
inline constexpr T kGeluCubic = static_cast<T>(0.044715);

template <class T>
TESSERA_INLINE T gelu_tanh(T x) {
  return x * vsigmoid(kGeluScale<T> * x * (T(1) + kGeluCubic<T> * x * x));
}

/// d gelu_tanh / dx = s + x · s (1 − s) · d(2u)/dx with s = sigmoid(2u).
template <class T>
TESSERA_INLINE T gelu_tanh_slope(T x) {
  // Beyond ±30 the slope is 0 or 1; bounded there, so that no x² overflows into ∞ · 0.
  T bounded = x > T(30) ? T(30) : x;
  bounded = bounded < T(-30) ? T(-30) : bounded;
  const T square = bounded * bounded;
  const T s = vsigmoid(kGeluScale<T> * bounded * (T(1) + kGeluCubic<T> * square));
  return s + bounded * s * (T(1) - s) * kGeluScale<T> * (T(1) + T(3) * kGeluCubic<T> * square);
}

/// x Φ(x).
template <class T>
TESSERA_INLINE T gelu_erf(T x) {
  return T(0.5) * x * (T(1) + verf(x * static_cast<T>(0.70710678118654752)));
}

/// Φ(x) + x φ(x).
template <class T>
TESSERA_INLINE T gelu_erf_slope(T x) {
  const T cumulative = T(0.5) * (T(1) + verf(x * static_cast<T>(0.70710678118654752)));
  const T density = static_cast<T>(0.39894228040143268) * vexp(T(-0.5) * x * x);
  // Where the density is 0, x may be infinite.
  return density > T(0) ? cumulative + x * density : cumulative;
}

template <class T>
TESSERA_INLINE T silu(T x) {
  return x * vsigmoid(x);
}

/// s + x · s (1 − s) with s = sigmoid(x).
template <class T>
TESSERA_INLINE T silu_slope(T x) {
  const T s = vsigmoid(x);
  return s + x * s * (T(1) - s);
}

/// log(1 + e^x) = max(x, 0) + log(1 + e^−|x|).
template <class T>
TESSERA_INLINE T softplus(T x) {
  return (x < T(0) ? T(0) : x) + vlog1p(vexp(-vabs(x)));
}

/// sigmoid(x) (1 − sigmoid(x)) without the cancellation of 1 − s.
template <class T>
TESSERA_INLINE T sigmoid_slope(T x) {
  const T e = vexp(-vabs(x));
  return e / ((T(1) + e) * (T(1) + e));
}

/// 1 − tanh²(x) = 4 e / (1 + e)² with e = exp(−2|x|).
template <class T>
TESSERA_INLINE T tanh_slope(T x) {
  return T(4) * sigmoid_slope(T(2) * x);
}

}  // namespace tessera::kernels::TESSERA_ISA
