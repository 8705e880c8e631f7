// Optimizer steps: everything that a step reads and writes goes through memory once.

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
