// The family, and the reductions of whole tensors to one number.

#include "kernels/context.h"
#include "kernels/cpu/vector/chunks.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/reduce.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Σ x² of elements [begin, end): a product of two f32 is exact in f64, and cannot overflow.
template <class T>
double squares(const Loop& loop, std::int64_t begin, std::int64_t end) {
  TileInput<T> input(loop, 0);
  double total = 0;
  for_each_tile(loop, begin, end, [&](const Tile& tile) {
    const T* x = input.load(tile);
    double sum0 = 0, sum1 = 0;
    const std::int64_t half = tile.size / 2;
#pragma omp simd reduction(+ : sum0, sum1)
    for (std::int64_t i = 0; i < half; ++i) {
      sum0 += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      sum1 += static_cast<double>(x[half + i]) * static_cast<double>(x[half + i]);
    }
    if (tile.size % 2 != 0) {
      const double last = static_cast<double>(x[tile.size - 1]);
      sum0 += last * last;
    }
    total += sum0 + sum1;
  });
  return total;
}

template <class T>
TESSERA_INLINE bool is_finite(T x) {
  return vabs(x) < FloatFormat<T>::kInfinity;  // false for NaN
}

template <class T>
std::int64_t first_non_finite_element(const Loop& loop) {
  std::int64_t first = loop.size;  // written by any thread
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> input(loop, 0);
    std::int64_t position = begin;
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const std::int64_t start = position;
      position += tile.size;
      if (start >= __atomic_load_n(&first, __ATOMIC_RELAXED)) return;
      const T* x = input.load(tile);
      int bad = 0;
#pragma omp simd reduction(| : bad)
      for (std::int64_t i = 0; i < tile.size; ++i) bad |= is_finite(x[i]) ? 0 : 1;
      if (bad == 0) return;
      std::int64_t found = start;
      while (is_finite(x[found - start])) ++found;
      std::int64_t known = __atomic_load_n(&first, __ATOMIC_RELAXED);
      while (found < known &&
             !__atomic_compare_exchange_n(&first, &known, found, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
    });
  });
  return first == loop.size ? -1 : first;
}

class CpuReductions final : public Reductions {
 public:
  void reduce(ReduceOp op, const ConstView& x, const View& y) const override { reduce_elements(op, x, y); }
  void arg_reduce(bool largest, const ConstView& x, int dim, const View& y) const override {
    arg_reduce_elements(largest, x, dim, y);
  }
  void cumulative_sum(const ConstView& x, bool reverse, const View& y) const override {
    cumulative_sum_rows(x, reverse, y);
  }

  double sum_of_squares(std::span<const ConstView> xs) const override {
    const ConstView* views = xs.data();
    const auto size_of = [views](std::int64_t v) { return views[v].num_elements(); };
    const Chunks chunks(static_cast<std::int64_t>(xs.size()), kGrain, size_of);
    const std::int64_t num_chunks = chunks.num_chunks();
    const Workspace workspace(static_cast<std::size_t>(num_chunks) * sizeof(double));
    double* partial = static_cast<double*>(workspace.data());
    chunks.for_each([&](std::int64_t chunk, std::int64_t view, std::int64_t begin, std::int64_t end) {
      const Loop loop = make_loop(LoopOrder::kFastest, views[view]);
      const bool in_f32 = compute_type(views[view].dtype) == ComputeType::kF32;
      partial[chunk] = in_f32 ? squares<float>(loop, begin, end) : squares<double>(loop, begin, end);
    });

    double total = 0;
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) total += partial[chunk];
    return total;
  }

  std::int64_t first_non_finite(const ConstView& x) const override {
    const Loop loop = make_loop(LoopOrder::kRowMajor, x);
    return x.dtype == DType::kF64 ? first_non_finite_element<double>(loop)
                                  : first_non_finite_element<float>(loop);
  }
};

constinit const CpuReductions instance{};

}  // namespace

const Reductions& reductions() noexcept { return instance; }

}  // namespace tessera::kernels::TESSERA_ISA
