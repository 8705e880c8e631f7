// The index of the largest or smallest element along a dimension.

#include "kernels/cpu/reduction_plan.h"
#include "kernels/cpu/vector/coordinates.h"
#include "kernels/cpu/vector/reduce.h"
#include "kernels/cpu/vector/reduce_ops.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Whether x comes before the best so far. A NaN beats all but another NaN; of equals the first stays.
template <class T, int kSign>
TESSERA_INLINE bool beats(T x, T best) {
  const bool better = kSign > 0 ? x > best : x < best;
  return better | ((x != x) & (best == best));
}

template <class T, int kSign>
void arg_rows(const ReductionPlan& plan, const Tile& outputs, std::int64_t first_output,
              std::int64_t* indices) {
  Loop elements = plan.reduced;
  char* const data = elements.operands[0].data;
  const std::int64_t element_size = static_cast<std::int64_t>(size_bytes(elements.operands[0].dtype));
  Walker walker(plan.kept, 1, first_output);
  for (std::int64_t i = 0; i < outputs.size; ++i, walker.next()) {
    elements.operands[0].data = data + walker.offset() * element_size;
    TileInput<T> input(elements, 0);
    std::int64_t position = 0, index = 0;
    T best = worst<T, kSign>();
    for_each_tile(elements, 0, elements.size, [&](const Tile& tile) {
      const T* x = input.load(tile);
      const T tile_best = reduce_run<ExtremeOp<T, kSign>>(x, tile.size);
      if (beats<T, kSign>(tile_best, best)) {
        best = tile_best;
        std::int64_t j = 0;
        while (x[j] != best && (x[j] == x[j] || best == best)) ++j;
        index = position + j;
      }
      position += tile.size;
    });
    indices[i] = index;
  }
}

template <class T, int kSign>
void arg_columns(const ReductionPlan& plan, const Tile& outputs, std::int64_t* indices) {
  Loop kept = plan.kept;
  const std::int64_t step = plan.reduced.operands[0].strides[plan.reduced.dims - 1] *
                            static_cast<std::int64_t>(size_bytes(kept.operands[1].dtype));
  TileInput<T> input(kept, 1);
  alignas(64) T best[kTileSize];
  for (std::int64_t i = 0; i < outputs.size; ++i) {
    best[i] = worst<T, kSign>();
    indices[i] = 0;
  }
  for (std::int64_t element = 0; element < plan.reduced.size; ++element) {
    const T* x = input.load_anew(outputs);
#pragma omp simd
    for (std::int64_t i = 0; i < outputs.size; ++i) {
      const bool better = beats<T, kSign>(x[i], best[i]);
      best[i] = better ? x[i] : best[i];
      indices[i] = better ? element : indices[i];
    }
    kept.operands[1].data += step;
  }
}

template <class T, int kSign>
void arg_reduce_as(const ReductionPlan& plan) {
  const std::int64_t grain = kGrain / (plan.reduced.size + 1) + 1;
  parallel_for(plan.kept.size, grain, [&](std::int64_t begin, std::int64_t end) {
    TileOutput<std::int64_t> y(plan.kept, 0);
    std::int64_t output = begin;
    for_each_tile(plan.kept, begin, end, [&](const Tile& tile) {
      std::int64_t* indices = y.begin(tile);
      if (plan.by_rows) {
        arg_rows<T, kSign>(plan, tile, output, indices);
      } else {
        arg_columns<T, kSign>(plan, tile, indices);
      }
      y.end(tile, indices);
      output += tile.size;
    });
  });
}

template <class T>
void arg_reduce_as(bool largest, const ReductionPlan& plan) {
  largest ? arg_reduce_as<T, 1>(plan) : arg_reduce_as<T, -1>(plan);
}

}  // namespace

void arg_reduce_elements(bool largest, const ConstView& x, int dim, const View& y) {
  const ReductionPlan plan = make_reduction_plan(x, y, dim);
  switch (compute_type(x.dtype)) {
    case ComputeType::kF32:
      return arg_reduce_as<float>(largest, plan);
    case ComputeType::kF64:
      return arg_reduce_as<double>(largest, plan);
    case ComputeType::kI64:
      return arg_reduce_as<std::int64_t>(largest, plan);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
