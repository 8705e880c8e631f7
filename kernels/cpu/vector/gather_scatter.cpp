// Elements chosen by an index along one dimension, and the sum back into their places.

#include "kernels/context.h"
#include "kernels/cpu/vector/coordinates.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/indexing.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// A view of `indexed` in the shape of `index`: along `dim` it stays in place, since the index says how far
/// to go.
ConstView without_dim(const ConstView& indexed, int dim, const ConstView& index) {
  ConstView view = indexed;
  for (int d = 0; d < index.dims; ++d) view.shape[d] = index.shape[d];
  view.strides[dim] = 0;
  return view;
}

/// Calls row(tile, index, offset) for tiles that lie along one row and share one index, and
/// element(i, index, offset) for the elements of others. `offset` counts elements of operand 2, index
/// included.
template <class Row, class Element>
TESSERA_INLINE void visit(const Loop& loop, const Tile& tile, std::int64_t position,
                          const std::int64_t* indices, std::int64_t dim_stride, const Row& row,
                          const Element& element) {
  if (tile.one_run && loop.operands[1].strides[loop.dims - 1] == 0) {
    return row(tile.offset(loop, 2) + indices[0] * dim_stride);
  }
  if (tile.one_run) {
    const std::int64_t first = tile.offset(loop, 2), stride = loop.operands[2].strides[loop.dims - 1];
    for (std::int64_t i = 0; i < tile.size; ++i) element(i, first + i * stride + indices[i] * dim_stride);
    return;
  }
  Walker walker(loop, 2, position);
  for (std::int64_t i = 0; i < tile.size; ++i, walker.next())
    element(i, walker.offset() + indices[i] * dim_stride);
}

template <class T>
void gather_bits(const Loop& loop, std::int64_t dim_stride) {
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<std::int64_t> index_input(loop, 1);
    TileOutput<T> output(loop, 0);
    const T* x = reinterpret_cast<const T*>(loop.operands[2].data);
    const std::int64_t stride = loop.operands[2].strides[loop.dims - 1];
    std::int64_t position = begin;
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const std::int64_t* indices = index_input.load(tile);
      T* y = output.begin(tile);
      visit(
          loop, tile, position, indices, dim_stride,
          [&](std::int64_t offset) {
            if (stride == 1) {
              __builtin_memcpy(y, x + offset, static_cast<std::size_t>(tile.size) * sizeof(T));
            } else {
              for (std::int64_t i = 0; i < tile.size; ++i) y[i] = x[offset + i * stride];
            }
          },
          [&](std::int64_t i, std::int64_t offset) { y[i] = x[offset]; });
      output.end(tile, y);
      position += tile.size;
    });
  });
}

/// One range of a dimension that is not the indexed one: no other range writes to the same elements.
template <class T>
void scatter_range(const Loop& loop, std::int64_t dim_stride) {
  TileInput<T> source(loop, 0);
  TileInput<std::int64_t> index_input(loop, 1);
  T* y = reinterpret_cast<T*>(loop.operands[2].data);
  const std::int64_t stride = loop.operands[2].strides[loop.dims - 1];
  std::int64_t position = 0;
  for_each_tile(loop, 0, loop.size, [&](const Tile& tile) {
    const T* values = source.load(tile);
    const std::int64_t* indices = index_input.load(tile);
    visit(
        loop, tile, position, indices, dim_stride,
        [&](std::int64_t offset) {
          T* to = y + offset;
          if (stride == 1) {
#pragma omp simd
            for (std::int64_t i = 0; i < tile.size; ++i) to[i] += values[i];
          } else {
            for (std::int64_t i = 0; i < tile.size; ++i) to[i * stride] += values[i];
          }
        },
        [&](std::int64_t i, std::int64_t offset) { y[offset] += values[i]; });
    position += tile.size;
  });
}

template <class T>
void scatter_add(const View& y, int dim, const ConstView& index, const ConstView& src) {
  // Threads share the largest of the other dimensions.
  int shared = -1;
  for (int d = 0; d < index.dims; ++d) {
    if (d != dim && (shared < 0 || index.shape[d] > index.shape[shared])) shared = d;
  }
  const ConstView places = without_dim(y, dim, index);
  const std::int64_t ranges = shared < 0 ? 1 : index.shape[shared];
  const std::int64_t work_per_step = ranges == 0 ? 1 : src.num_elements() / ranges + 1;
  parallel_for(ranges, kGrain / work_per_step + 1, [&](std::int64_t begin, std::int64_t end) {
    ConstView views[3] = {src, index, places};
    for (ConstView& view : views) {
      if (shared < 0) break;
      const std::int64_t offset =
          begin * view.strides[shared] * static_cast<std::int64_t>(size_bytes(view.dtype));
      view.shape[shared] = end - begin;
      view.data = static_cast<const char*>(view.data) + offset;
    }
    scatter_range<T>(make_loop(LoopOrder::kRowMajor, views[0], &views[1], &views[2]), y.strides[dim]);
  });
}

/// For element types that are not computed in: through a copy of y in T, rounded once at the end.
template <class T>
void scatter_add_through(const View& y, int dim, const ConstView& index, const ConstView& src) {
  const Workspace workspace(static_cast<std::size_t>(y.num_elements()) * sizeof(T));
  View sums = y;
  sums.data = workspace.data();
  sums.dtype = dtype_of<T>;
  std::int64_t stride = 1;
  for (int d = y.dims - 1; d >= 0; --d) {
    sums.strides[d] = stride;
    stride *= y.shape[d];
  }
  copy_elements(y, sums);
  scatter_add<T>(sums, dim, index, src);
  copy_elements(sums, y);
}

}  // namespace

void gather_elements(const ConstView& x, int dim, const ConstView& index, const View& y) {
  check_indices("gather", "index", index, x.shape[dim]);
  const ConstView places = without_dim(x, dim, index);
  const Loop loop = make_loop(LoopOrder::kRowMajor, y, &index, &places);
  switch (size_bytes(y.dtype)) {
    case 1:
      return gather_bits<std::uint8_t>(loop, x.strides[dim]);
    case 2:
      return gather_bits<std::uint16_t>(loop, x.strides[dim]);
    case 4:
      return gather_bits<std::uint32_t>(loop, x.strides[dim]);
    default:
      return gather_bits<std::uint64_t>(loop, x.strides[dim]);
  }
}

void scatter_add_elements(const View& y, int dim, const ConstView& index, const ConstView& src) {
  check_indices("scatter_add", "index", index, y.shape[dim]);
  if (y.num_elements() == 0 || src.num_elements() == 0) return;
  switch (y.dtype) {
    case DType::kF64:
      return scatter_add<double>(y, dim, index, src);
    case DType::kF32:
      return scatter_add<float>(y, dim, index, src);
    case DType::kI64:
      return scatter_add<std::int64_t>(y, dim, index, src);
    case DType::kF16:
    case DType::kBF16:
      return scatter_add_through<float>(y, dim, index, src);
    default:
      return scatter_add_through<std::int64_t>(y, dim, index, src);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
