#pragma once

// The formulas of the optimizers, for the elements of one tile. T is the parameter's type, float or double.

#include <cstdint>

#include "kernels/cpu/vector/math.h"
#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

/// Adam's constants of one step, in the parameter's type.
template <class T>
struct AdamStep {
  T grad_scale, l2, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_sqrt_correction2,
      epsilon;

  TESSERA_INLINE explicit AdamStep(const AdamOptions& o) {
    const double correction1 = 1.0 - __builtin_pow(o.beta1, static_cast<double>(o.step));
    const double correction2 = 1.0 - __builtin_pow(o.beta2, static_cast<double>(o.step));
    grad_scale = static_cast<T>(o.grad_scale);
    l2 = static_cast<T>(o.decoupled ? 0.0 : o.weight_decay);
    keep = static_cast<T>(o.decoupled ? 1.0 - o.lr * o.weight_decay : 1.0);
    beta1 = static_cast<T>(o.beta1);
    one_minus_beta1 = static_cast<T>(1.0 - o.beta1);
    beta2 = static_cast<T>(o.beta2);
    one_minus_beta2 = static_cast<T>(1.0 - o.beta2);
    step_size = static_cast<T>(o.lr / correction1);
    inv_sqrt_correction2 = static_cast<T>(1.0 / __builtin_sqrt(correction2));
    epsilon = static_cast<T>(o.epsilon);
  }

  /// m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  p ← (1 − lr λ) p − lr m̂ / (√v̂ + ε),
  /// with m̂ = m / (1 − β₁^t) and v̂ = v / (1 − β₂^t).
  TESSERA_INLINE void apply_to(T& p, T grad, T& m, T& v) const {
    const T g = grad * grad_scale + l2 * p;
    const T mean = beta1 * m + one_minus_beta1 * g;
    const T square = beta2 * v + one_minus_beta2 * g * g;
    m = mean;
    v = square;
    p = keep * p - step_size * mean / (vsqrt(square) * inv_sqrt_correction2 + epsilon);
  }

  TESSERA_INLINE void apply(T* p, const T* grad, T* m, T* v, std::int64_t n) const {
    const AdamStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) c.apply_to(p[i], grad[i], m[i], v[i]);
  }
};

template <class T>
struct SgdStep {
  T grad_scale, weight_decay, momentum, add, lr;
  bool nesterov;

  TESSERA_INLINE explicit SgdStep(const SgdOptions& o) {
    grad_scale = static_cast<T>(o.grad_scale);
    weight_decay = static_cast<T>(o.weight_decay);
    // The first velocity is the gradient itself, whatever the velocity holds.
    momentum = static_cast<T>(o.momentum);
    add = static_cast<T>(o.first_step ? 1.0 : 1.0 - o.dampening);
    lr = static_cast<T>(o.lr);
    nesterov = o.nesterov;
  }

  TESSERA_INLINE void plain(T* p, const T* grad, std::int64_t n) const {
    const SgdStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) p[i] -= c.lr * (grad[i] * c.grad_scale + c.weight_decay * p[i]);
  }

  /// u ← μ u + (1 − τ) g,  p ← p − lr u, or p ← p − lr (g + μ u) with Nesterov's momentum.
  TESSERA_INLINE void with_velocity(T* p, const T* grad, T* velocity, bool first_step, std::int64_t n) const {
    const SgdStep c = *this;
    const T of_gradient = c.nesterov ? T(1) : T(0), of_velocity = c.nesterov ? c.momentum : T(1);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * c.grad_scale + c.weight_decay * p[i];
      const T before = first_step ? T(0) : c.momentum * velocity[i];
      const T u = before + c.add * g;
      velocity[i] = u;
      p[i] -= c.lr * (of_gradient * g + of_velocity * u);
    }
  }
};

template <class T>
struct AdagradStep {
  T grad_scale, weight_decay, lr, epsilon;

  TESSERA_INLINE explicit AdagradStep(const AdagradOptions& o) {
    grad_scale = static_cast<T>(o.grad_scale);
    weight_decay = static_cast<T>(o.weight_decay);
    lr = static_cast<T>(o.lr);
    epsilon = static_cast<T>(o.epsilon);
  }

  TESSERA_INLINE void apply(T* p, const T* grad, T* sum_of_squares, std::int64_t n) const {
    const AdagradStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * c.grad_scale + c.weight_decay * p[i];
      const T sum = sum_of_squares[i] + g * g;
      sum_of_squares[i] = sum;
      p[i] -= c.lr * g / (vsqrt(sum) + c.epsilon);
    }
  }
};

template <class T>
struct LionStep {
  T grad_scale, keep, lr, beta1, one_minus_beta1, beta2, one_minus_beta2;

  TESSERA_INLINE explicit LionStep(const LionOptions& o) {
    grad_scale = static_cast<T>(o.grad_scale);
    keep = static_cast<T>(1.0 - o.lr * o.weight_decay);
    lr = static_cast<T>(o.lr);
    beta1 = static_cast<T>(o.beta1);
    one_minus_beta1 = static_cast<T>(1.0 - o.beta1);
    beta2 = static_cast<T>(o.beta2);
    one_minus_beta2 = static_cast<T>(1.0 - o.beta2);
  }

  TESSERA_INLINE void apply(T* p, const T* grad, T* m, std::int64_t n) const {
    const LionStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * c.grad_scale;
      const T blend = c.beta1 * m[i] + c.one_minus_beta1 * g;
      // 0 of 0, and NaN of NaN: a gradient gone wrong must not pass for one of −1 or 1.
      const T sign = blend > T(0) ? T(1) : (blend < T(0) ? T(-1) : blend);
      m[i] = c.beta2 * m[i] + c.one_minus_beta2 * g;
      p[i] = c.keep * p[i] - c.lr * sign;
    }
  }
};

/// LAMB's direction u = m̂ / (√v̂ + ε) + λ p, in the two places where it is needed.
template <class T>
struct LambStep {
  T grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, inv_correction1, inv_sqrt_correction2,
      epsilon, weight_decay;

  TESSERA_INLINE explicit LambStep(const AdamOptions& o) {
    grad_scale = static_cast<T>(o.grad_scale);
    beta1 = static_cast<T>(o.beta1);
    one_minus_beta1 = static_cast<T>(1.0 - o.beta1);
    beta2 = static_cast<T>(o.beta2);
    one_minus_beta2 = static_cast<T>(1.0 - o.beta2);
    inv_correction1 = static_cast<T>(1.0 / (1.0 - __builtin_pow(o.beta1, static_cast<double>(o.step))));
    inv_sqrt_correction2 =
        static_cast<T>(1.0 / __builtin_sqrt(1.0 - __builtin_pow(o.beta2, static_cast<double>(o.step))));
    epsilon = static_cast<T>(o.epsilon);
    weight_decay = static_cast<T>(o.weight_decay);
  }

  TESSERA_INLINE T direction(T p, T mean, T square) const {
    return mean * inv_correction1 / (vsqrt(square) * inv_sqrt_correction2 + epsilon) + weight_decay * p;
  }

  TESSERA_INLINE LambSquares moments(const T* p, const T* grad, T* m, T* v, std::int64_t n) const {
    const LambStep c = *this;
    double of_parameter = 0, of_direction = 0;
#pragma omp simd reduction(+ : of_parameter, of_direction)
    for (std::int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * c.grad_scale;
      const T mean = c.beta1 * m[i] + c.one_minus_beta1 * g;
      const T square = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
      m[i] = mean;
      v[i] = square;
      const double x = static_cast<double>(p[i]), u = static_cast<double>(c.direction(p[i], mean, square));
      of_parameter += x * x;
      of_direction += u * u;
    }
    return {of_parameter, of_direction};
  }

  TESSERA_INLINE void apply(T* p, const T* m, const T* v, T step_size, std::int64_t n) const {
    const LambStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) p[i] -= step_size * c.direction(p[i], m[i], v[i]);
  }
};

}  // namespace tessera::kernels::TESSERA_ISA
