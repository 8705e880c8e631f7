// Optimizer steps: everything that a step reads and writes goes through memory once.

#include "kernels/bf16_state.h"
#include "kernels/context.h"
#include "kernels/cpu/vector/chunks.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/tile.h"
#include "kernels/cpu/vector/update_steps.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

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

TESSERA_INLINE void join_halves(const std::uint16_t* high, const std::int16_t* low, float* masters,
                                std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) masters[i] = join_f32(high[i], low[i]);
}

TESSERA_INLINE void split_halves(const float* masters, std::uint16_t* high, std::int16_t* low,
                                 std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const SplitF32 halves = split_f32(masters[i]);
    high[i] = halves.high;
    low[i] = halves.low;
  }
}

/// State in 16-bit numbers, from some element on.
struct Bf16State {
  std::uint16_t* weights;
  std::int16_t* lows;
  std::uint16_t* means;
  std::uint16_t* squares;
};

constexpr std::int64_t kBf16Block = 256;

/// The update of f32 state, which is made of the short one, in the first-level cache, for a few elements. A
/// few at a time: memory comes in five streams, and one that is left for long begins anew and has to be
/// waited for.
TESSERA_INLINE void adam_bf16_block(const AdamStep<float>& step, const UpdateNoise& noise_of,
                                    const Bf16State& state, const float* grad, std::int64_t n) {
  const auto [weights, lows, means, squares] = state;
  alignas(64) float p[kBf16Block], m[kBf16Block], v[kBf16Block];
  alignas(64) std::uint32_t noise[kBf16Block];
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    noise[i] = noise_of.bits(weights[i], means[i], squares[i]);
    m[i] = f32_from_bf16_bits(means[i]);
    v[i] = f32_from_bf16_bits(squares[i]);
  }
  join_halves(weights, lows, p, n);
  step.apply(p, grad, m, v, n);
  split_halves(p, weights, lows, n);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    means[i] = round_with_noise(m[i], noise[i] >> 16);
    squares[i] = round_with_noise(v[i], noise[i] & 0xFFFFu);
  }
}

[[gnu::noinline]] void adam_bf16_chunk(const UpdateItem& item, const AdamOptions& options, std::int64_t begin,
                                       std::int64_t end) {
  const AdamStep<float> step(options);
  const UpdateNoise noise(options.step);
  Bf16State state{static_cast<std::uint16_t*>(item.parameter.data) + begin,
                  static_cast<std::int16_t*>(item.master_low.data) + begin,
                  static_cast<std::uint16_t*>(item.moment1.data) + begin,
                  static_cast<std::uint16_t*>(item.moment2.data) + begin};
  const Loop loop = make_loop(LoopOrder::kRowMajor, item.parameter, &item.grad);
  TileInput<float> gradients(loop, 1);
  for_each_tile(loop, begin, end, [&](const Tile& tile) {
    const float* grad = gradients.load(tile);
    for (std::int64_t i = 0; i < tile.size; i += kBf16Block) {
      const std::int64_t n = tile.size - i < kBf16Block ? tile.size - i : kBf16Block;
      adam_bf16_block(step, noise, state, grad + i, n);
      state = {state.weights + n, state.lows + n, state.means + n, state.squares + n};
    }
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

template <class T>
[[gnu::noinline]] void adagrad_chunk(const UpdateItem& item, const AdagradOptions& options,
                                     std::int64_t begin, std::int64_t end) {
  const AdagradStep<T> step(options);
  T* sum_of_squares = static_cast<T*>(item.moment1.data);
  update_tiles<T>(item, begin, end, [&](std::int64_t first, T* p, const T* grad, std::int64_t n) {
    step.apply(p, grad, sum_of_squares + first, n);
  });
}

template <class T>
[[gnu::noinline]] void lion_chunk(const UpdateItem& item, const LionOptions& options, std::int64_t begin,
                                  std::int64_t end) {
  const LionStep<T> step(options);
  T* m = static_cast<T*>(item.moment1.data);
  update_tiles<T>(item, begin, end, [&](std::int64_t first, T* p, const T* grad, std::int64_t n) {
    step.apply(p, grad, m + first, n);
  });
}

template <class T>
[[gnu::noinline]] LambSquares lamb_moments_chunk(const UpdateItem& item, const AdamOptions& options,
                                                 std::int64_t begin, std::int64_t end) {
  const LambStep<T> step(options);
  T* m = static_cast<T*>(item.moment1.data);
  T* v = static_cast<T*>(item.moment2.data);
  UpdateItem unrounded = item;  // the parameter does not change, so neither does its rounded copy
  unrounded.low_precision.data = nullptr;
  LambSquares sums;
  update_tiles<T>(unrounded, begin, end, [&](std::int64_t first, T* p, const T* grad, std::int64_t n) {
    const LambSquares of_tile = step.moments(p, grad, m + first, v + first, n);
    sums.parameter += of_tile.parameter;
    sums.direction += of_tile.direction;
  });
  return sums;
}

template <class T>
[[gnu::noinline]] void lamb_chunk(const UpdateItem& item, const AdamOptions& options, double trust,
                                  std::int64_t begin, std::int64_t end) {
  const LambStep<T> step(options);
  const T* m = static_cast<const T*>(item.moment1.data);
  const T* v = static_cast<const T*>(item.moment2.data);
  UpdateItem ungraded = item;  // the gradient is in the moments already: read nothing in its place
  ungraded.grad = item.parameter;
  update_tiles<T>(ungraded, begin, end, [&](std::int64_t first, T* p, const T* /*grad*/, std::int64_t n) {
    step.apply(p, m + first, v + first, static_cast<T>(options.lr * trust), n);
  });
}

class CpuUpdates final : public Updates {
 public:
  void adam(std::span<const UpdateItem> items, const AdamOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      switch (item.parameter.dtype) {
        case DType::kF64:
          return adam_chunk<double>(item, options, begin, end);
        case DType::kBF16:
          return adam_bf16_chunk(item, options, begin, end);
        default:
          return adam_chunk<float>(item, options, begin, end);
      }
    });
  }

  void sgd(std::span<const UpdateItem> items, const SgdOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      item.parameter.dtype == DType::kF64 ? sgd_chunk<double>(item, options, begin, end)
                                          : sgd_chunk<float>(item, options, begin, end);
    });
  }

  void adagrad(std::span<const UpdateItem> items, const AdagradOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      item.parameter.dtype == DType::kF64 ? adagrad_chunk<double>(item, options, begin, end)
                                          : adagrad_chunk<float>(item, options, begin, end);
    });
  }

  void lion(std::span<const UpdateItem> items, const LionOptions& options) const override {
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      item.parameter.dtype == DType::kF64 ? lion_chunk<double>(item, options, begin, end)
                                          : lion_chunk<float>(item, options, begin, end);
    });
  }

  void lamb_moments(std::span<const UpdateItem> items, const AdamOptions& options,
                    std::span<LambSquares> squares) const override {
    const UpdateItem* all = items.data();
    const auto size_of = [all](std::int64_t i) { return all[i].parameter.num_elements(); };
    const Chunks chunks(static_cast<std::int64_t>(items.size()), kGrain, size_of);
    const Workspace workspace(static_cast<std::size_t>(chunks.num_chunks()) * sizeof(LambSquares));
    LambSquares* partial = static_cast<LambSquares*>(workspace.data());
    chunks.for_each([&](std::int64_t chunk, std::int64_t item, std::int64_t begin, std::int64_t end) {
      partial[chunk] = all[item].parameter.dtype == DType::kF64
                           ? lamb_moments_chunk<double>(all[item], options, begin, end)
                           : lamb_moments_chunk<float>(all[item], options, begin, end);
    });

    for (std::size_t i = 0; i < items.size(); ++i) {
      squares.data()[i] = {};
      const std::int64_t size = all[i].parameter.num_elements();
      for (std::int64_t begin = 0; begin < size; begin += kGrain, ++partial) {
        squares.data()[i].parameter += partial->parameter;
        squares.data()[i].direction += partial->direction;
      }
    }
  }

  void lamb(std::span<const UpdateItem> items, const AdamOptions& options,
            std::span<const double> trust) const override {
    const UpdateItem* first = items.data();
    const double* ratios = trust.data();
    for_each_chunk(items, [&](const UpdateItem& item, std::int64_t begin, std::int64_t end) {
      const double ratio = ratios[&item - first];
      item.parameter.dtype == DType::kF64 ? lamb_chunk<double>(item, options, ratio, begin, end)
                                          : lamb_chunk<float>(item, options, ratio, begin, end);
    });
  }

  void split_masters(const ConstView& master, const View& high, const View& low) const override {
    const float* masters = static_cast<const float*>(master.data);
    auto* to_high = static_cast<std::uint16_t*>(high.data);
    auto* to_low = static_cast<std::int16_t*>(low.data);
    parallel_for(master.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t first = begin; first < end; first += kTileSize) {
        const std::int64_t n = end - first < kTileSize ? end - first : kTileSize;
        alignas(64) float quiet[kTileSize];  // masters that come from elsewhere
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) quiet[i] = without_signal(masters[first + i]);
        split_halves(quiet, to_high + first, to_low + first, n);
      }
    });
  }

  void join_masters(const ConstView& high, const ConstView& low, const View& master) const override {
    const auto* from_high = static_cast<const std::uint16_t*>(high.data);
    const auto* from_low = static_cast<const std::int16_t*>(low.data);
    float* masters = static_cast<float*>(master.data);
    parallel_for(master.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      join_halves(from_high + begin, from_low + begin, masters + begin, end - begin);
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
