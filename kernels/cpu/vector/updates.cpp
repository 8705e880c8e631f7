// Optimizer steps: everything that a step reads and writes goes through memory once.

#include "kernels/cpu/vector/chunks.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

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
  TESSERA_INLINE void apply(T* p, const T* grad, T* m, T* v, std::int64_t n) const {
    const AdamStep c = *this;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * c.grad_scale + c.l2 * p[i];
      const T mean = c.beta1 * m[i] + c.one_minus_beta1 * g;
      const T square = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
      m[i] = mean;
      v[i] = square;
      p[i] = c.keep * p[i] - c.step_size * mean / (vsqrt(square) * c.inv_sqrt_correction2 + c.epsilon);
    }
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

/// Calls step(first, parameters, gradients, n) for the tiles of elements [begin, end) of an item, where
/// `first` is the tile's first element, and writes the rounded copy of what it leaves.
template <class T, class Step>
TESSERA_INLINE void update_tiles(const UpdateItem& item, std::int64_t begin, std::int64_t end,
                                 const Step& step) {
  const bool copies = item.low_precision.data != nullptr;
  const ConstView copy = copies ? item.low_precision : item.parameter;
  const Loop loop = make_loop(LoopOrder::kRowMajor, item.parameter, &item.grad, &copy);
  T* parameters = static_cast<T*>(item.parameter.data);
  TileInput<T> gradients(loop, 1);
  std::int64_t first = begin;
  for_each_tile(loop, begin, end, [&](const Tile& tile) {
    step(first, parameters + first, gradients.load(tile), tile.size);
    if (copies) store_tile<T>(loop, 2, tile, parameters + first);
    first += tile.size;
  });
}

template <class T>
[[gnu::noinline]] void adam_chunk(const UpdateItem& item, const AdamOptions& options, std::int64_t begin,
                                  std::int64_t end) {
  const AdamStep<T> step(options);
  T* m = static_cast<T*>(item.moment1.data);
  T* v = static_cast<T*>(item.moment2.data);
  update_tiles<T>(item, begin, end, [&](std::int64_t first, T* p, const T* grad, std::int64_t n) {
    step.apply(p, grad, m + first, v + first, n);
  });
}

template <class T>
[[gnu::noinline]] void sgd_chunk(const UpdateItem& item, const SgdOptions& options, std::int64_t begin,
                                 std::int64_t end) {
  const SgdStep<T> step(options);
  T* velocity = static_cast<T*>(item.moment1.data);
  update_tiles<T>(item, begin, end, [&](std::int64_t first, T* p, const T* grad, std::int64_t n) {
    if (options.momentum == 0.0) return step.plain(p, grad, n);
    step.with_velocity(p, grad, velocity + first, options.first_step, n);
  });
}

class CpuUpdates final : public Updates {
 public:
  void adam(std::span<const UpdateItem> items, const AdamOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      item.parameter.dtype == DType::kF64 ? adam_chunk<double>(item, options, begin, end)
                                          : adam_chunk<float>(item, options, begin, end);
    });
  }

  void sgd(std::span<const UpdateItem> items, const SgdOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      item.parameter.dtype == DType::kF64 ? sgd_chunk<double>(item, options, begin, end)
                                          : sgd_chunk<float>(item, options, begin, end);
    });
  }

 private:
  template <class F>
  TESSERA_INLINE static void for_each_chunk(std::span<const UpdateItem> items, const F& f) {
    const UpdateItem* first = items.data();
    const auto size_of = [first](std::int64_t i) { return first[i].parameter.num_elements(); };
    const Chunks chunks(static_cast<std::int64_t>(items.size()), kGrain, size_of);
    chunks.for_each([&](std::int64_t, std::int64_t item, std::int64_t begin, std::int64_t end) {
      f(first[item], begin, end);
    });
  }
};

constinit const CpuUpdates instance{};

}  // namespace

const Updates& updates() noexcept { return instance; }

}  // namespace tessera::kernels::TESSERA_ISA
