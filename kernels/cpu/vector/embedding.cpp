// Rows of a table by id, and the sum of gradients back into them. N ids, V rows of D. Id −1 stands for a row
// of zeros that no table holds.

#include <cstring>

#include "kernels/context.h"
#include "kernels/cpu/ordering.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/indexing.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Row `row` of a matrix as a 1-D view.
template <class Matrix>
TESSERA_INLINE Matrix row_of(const Matrix& matrix, std::int64_t row) {
  Matrix view = matrix;
  using Byte = decltype(+"");
  const std::int64_t offset = row * matrix.strides[0] * static_cast<std::int64_t>(size_bytes(matrix.dtype));
  view.data = const_cast<char*>(static_cast<Byte>(static_cast<const void*>(matrix.data)) + offset);
  view.dims = 1;
  view.shape[0] = matrix.shape[1];
  view.strides[0] = matrix.strides[1];
  return view;
}

/// dtable[id] += Σ dy[n] over the positions n of one id: in T, rounded once. The sum comes first: the result
/// is that of adding a table with these rows, and zeros elsewhere, to dtable.
template <class T>
void add_rows(const ConstView& dy, const std::int64_t* positions, std::int64_t num_positions,
              const View& table_row) {
  const ConstView first_row = row_of(dy, positions[0]);
  Loop loop = make_loop(LoopOrder::kRowMajor, table_row, &first_row);
  const std::int64_t row_bytes = dy.strides[0] * static_cast<std::int64_t>(size_bytes(dy.dtype));
  const char* data = static_cast<const char*>(dy.data);
  TileInput<T> before(loop, 0), gradient(loop, 1);
  TileOutput<T> output(loop, 0);
  alignas(64) T sums[kTileSize];
  for_each_tile(loop, 0, loop.size, [&](const Tile& tile) {
    for (std::int64_t i = 0; i < tile.size; ++i) sums[i] = 0;
    for (std::int64_t p = 0; p < num_positions; ++p) {
      loop.operands[1].data = const_cast<char*>(data + positions[p] * row_bytes);
      const T* row = gradient.load_anew(tile);
#pragma omp simd
      for (std::int64_t i = 0; i < tile.size; ++i) sums[i] += row[i];
    }
    const T* start = before.load_anew(tile);
#pragma omp simd
    for (std::int64_t i = 0; i < tile.size; ++i) sums[i] += start[i];
    T* to = output.begin(tile);
    for (std::int64_t i = 0; i < tile.size; ++i) to[i] = sums[i];
    output.end(tile, to);
  });
}

}  // namespace

void embedding_rows(const ConstView& table, const ConstView& ids, const View& y) {
  check_indices("embedding", "id", ids, table.shape[0], -1);
  const std::int64_t* id = static_cast<const std::int64_t*>(ids.data);
  const std::int64_t width = y.shape[1];
  const bool plain_rows =
      table.dtype == y.dtype && (width <= 1 || (table.strides[1] == 1 && y.strides[1] == 1));
  const std::int64_t element = static_cast<std::int64_t>(size_bytes(y.dtype));
  parallel_for(y.shape[0], kGrain / (width + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t row = id[n * ids.strides[0]];
      if (row < 0) {
        fill_elements(row_of(y, n), 0.0);
        continue;
      }
      if (!plain_rows) {
        copy_elements(row_of(table, row), row_of(y, n));
        continue;
      }
      std::memcpy(static_cast<char*>(y.data) + n * y.strides[0] * element,
                  static_cast<const char*>(table.data) + row * table.strides[0] * element,
                  static_cast<std::size_t>(width * element));
    }
  });
}

void embedding_backward_rows(const ConstView& dy, const ConstView& ids, const View& dtable) {
  check_indices("embedding_backward", "id", ids, dtable.shape[0], -1);
  const std::int64_t n = dy.shape[0], width = dy.shape[1];
  if (n == 0 || width == 0) return;
  // Positions by id: a row of the table has one thread, which adds in the order of positions.
  const Workspace workspace(static_cast<std::size_t>(n) * sizeof(std::int64_t));
  std::int64_t* order = static_cast<std::int64_t*>(workspace.data());
  const std::int64_t* id = static_cast<const std::int64_t*>(ids.data);
  const std::int64_t stride = ids.strides[0];
  stable_order(id, stride, n, dtable.shape[0], order);
  const bool in_f64 = dy.dtype == DType::kF64 || dtable.dtype == DType::kF64;

  parallel_for(n, kGrain / (width + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    const auto id_at = [=](std::int64_t i) { return id[order[i] * stride]; };
    // An id belongs to the range that holds its first position.
    while (begin < end && begin > 0 && id_at(begin) == id_at(begin - 1)) ++begin;
    while (begin < end) {
      const std::int64_t row = id_at(begin);
      std::int64_t last = begin + 1;
      while (last < n && id_at(last) == row) ++last;
      if (row < 0) {
        begin = last;
        continue;
      }
      const View table_row = row_of(dtable, row);
      in_f64 ? add_rows<double>(dy, order + begin, last - begin, table_row)
             : add_rows<float>(dy, order + begin, last - begin, table_row);
      begin = last;
    }
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
