// Copies, conversions, constants and selections: kernels that move elements and compute nothing.

#include <cstring>

#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Calls f with a value of the unsigned integer that has the size of an element.
template <class F>
TESSERA_INLINE void with_bits(DType dtype, const F& f) {
  switch (size_bytes(dtype)) {
    case 1:
      return f(std::uint8_t{});
    case 2:
      return f(std::uint16_t{});
    case 4:
      return f(std::uint32_t{});
    default:
      return f(std::uint64_t{});
  }
}

/// The dimension, other than the innermost, along which x lies contiguous while y does along the innermost:
/// the pair makes the loop a transposition. -1 if there is none, or it is too small to pay.
int transposed_dimension(const Loop& loop) {
  const int inner = loop.dims - 1;
  if (loop.operands[0].strides[inner] != 1 || loop.operands[1].strides[inner] <= 1 || loop.shape[inner] < 8)
    return -1;
  for (int d = 0; d < inner; ++d) {
    if (loop.operands[1].strides[d] == 1 && loop.shape[d] >= 8) return d;
  }
  return -1;
}

/// Transposes in square blocks: whole cache lines are read and written, though each walks another way through
/// memory.
template <class T>
void copy_transposed(const Loop& loop, int other) {
  constexpr std::int64_t kBlock = sizeof(T) >= 4 ? 16 : 32;
  const int inner = loop.dims - 1;
  const std::int64_t* y_strides = loop.operands[0].strides;
  const std::int64_t* x_strides = loop.operands[1].strides;
  const std::int64_t columns = loop.shape[inner], rows = loop.shape[other];
  const std::int64_t strips = (columns + kBlock - 1) / kBlock;
  const std::int64_t outer = loop.size / (columns * rows);
  const std::int64_t strip_size = kBlock * rows;

  parallel_for(outer * strips, (kGrain + strip_size - 1) / strip_size,
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t unit = begin; unit < end; ++unit) {
                   std::int64_t rest = unit / strips;
                   const std::int64_t column = (unit - rest * strips) * kBlock;
                   const std::int64_t width = columns - column < kBlock ? columns - column : kBlock;
                   const T* x = reinterpret_cast<const T*>(loop.operands[1].data) + column * x_strides[inner];
                   T* y = reinterpret_cast<T*>(loop.operands[0].data) + column;
                   for (int d = inner - 1; d >= 0; --d) {
                     if (d == other) continue;
                     const std::int64_t quotient = rest / loop.shape[d];
                     x += (rest - quotient * loop.shape[d]) * x_strides[d];
                     y += (rest - quotient * loop.shape[d]) * y_strides[d];
                     rest = quotient;
                   }
                   for (std::int64_t row = 0; row < rows; row += kBlock) {
                     const std::int64_t height = rows - row < kBlock ? rows - row : kBlock;
                     // Through a buffer: rows whose distance is a power of two would evict each other from
                     // the cache.
                     alignas(64) T block[kBlock][kBlock];
                     if (width == kBlock && height == kBlock) {
                       for (int i = 0; i < kBlock; ++i)
                         std::memcpy(block[i], x + i * x_strides[inner] + row, kBlock * sizeof(T));
                       for (int j = 0; j < kBlock; ++j) {
                         T* to = y + (row + j) * y_strides[other];
                         for (int i = 0; i < kBlock; ++i) to[i] = block[i][j];
                       }
                     } else {
                       for (std::int64_t i = 0; i < width; ++i) {
                         for (std::int64_t j = 0; j < height; ++j)
                           block[i][j] = x[i * x_strides[inner] + row + j];
                       }
                       for (std::int64_t j = 0; j < height; ++j) {
                         for (std::int64_t i = 0; i < width; ++i)
                           y[(row + j) * y_strides[other] + i] = block[i][j];
                       }
                     }
                   }
                 }
               });
}

/// Equal dtypes: the bits are moved.
void copy_bits(const Loop& loop) {
  if (loop.dims == 1 && loop.operands[0].strides[0] == 1 && loop.operands[1].strides[0] == 1) {
    const std::int64_t size = static_cast<std::int64_t>(size_bytes(loop.operands[0].dtype));
    parallel_for(loop.size * size, kGrain * 4, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(loop.operands[0].data + begin, loop.operands[1].data + begin,
                  static_cast<std::size_t>(end - begin));
    });
    return;
  }
  const int other = transposed_dimension(loop);
  with_bits(loop.operands[0].dtype, [&]<class T>(T) {
    if (other >= 0) return copy_transposed<T>(loop, other);
    parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
      TileInput<T> x(loop, 1);
      TileOutput<T> y(loop, 0);
      for_each_tile(loop, begin, end, [&](const Tile& tile) {
        T* to = y.begin(tile);
        const T* from = x.load(tile);
        std::memcpy(to, from, static_cast<std::size_t>(tile.size) * sizeof(T));
        y.end(tile, to);
      });
    });
  });
}

/// Converts through T, which holds every value of one of the two dtypes (f64 only the integers below 2^53).
template <class T>
void convert_elements(const Loop& loop) {
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> x(loop, 1);
    const bool direct = loop.operands[0].dtype == dtype_of<T> && loop.operands[0].strides[loop.dims - 1] == 1;
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      if (direct && tile.one_run) {
        load_tile<T>(loop, 1, tile, reinterpret_cast<T*>(loop.operands[0].data) + tile.offset(loop, 0));
      } else {
        store_tile<T>(loop, 0, tile, x.load(tile));
      }
    });
  });
}

}  // namespace

void copy_elements(const ConstView& x, const View& y) {
  const Loop loop = make_loop(LoopOrder::kFastest, y, &x);
  if (x.dtype == y.dtype) return copy_bits(loop);
  if (x.dtype == DType::kF64 || y.dtype == DType::kF64) return convert_elements<double>(loop);
  // An integer becomes a 16-bit float in one rounding, so not through f32.
  if (!is_floating(x.dtype) && is_floating(y.dtype) && size_bytes(y.dtype) == 2)
    return convert_elements<double>(loop);
  if (is_floating(x.dtype) || is_floating(y.dtype)) return convert_elements<float>(loop);
  convert_elements<std::int64_t>(loop);
}

void fill_elements(const View& y, double value) {
  const Loop loop = make_loop(LoopOrder::kFastest, y);
  // The value as one element of y's dtype, then its bits everywhere.
  alignas(8) char element[8] = {};
  Loop one = loop;
  one.dims = 1;
  one.shape[0] = 1;
  one.operands[0].data = element;
  const Tile first = {.coordinates = {}, .size = 1, .one_run = true};
  if (compute_type(y.dtype) == ComputeType::kI64 && y.dtype != DType::kBool) {
    const std::int64_t integer = static_cast<std::int64_t>(value);
    store_tile<std::int64_t>(one, 0, first, &integer);
  } else {
    store_tile<double>(one, 0, first, &value);
  }
  with_bits(y.dtype, [&]<class T>(T) {
    T bits;
    std::memcpy(&bits, element, sizeof bits);
    const std::int64_t stride = loop.operands[0].strides[loop.dims - 1];
    parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
      alignas(64) T values[kTileSize];
      if (stride != 1) {
        for (T& v : values) v = bits;
      }
      for_each_tile(loop, begin, end, [&](const Tile& tile) {
        if (stride != 1) return store_tile_bits<T>(loop, 0, tile, values);
        T* to = reinterpret_cast<T*>(loop.operands[0].data) + tile.offset(loop, 0);
        if (tile.one_run) {
          for (std::int64_t i = 0; i < tile.size; ++i) to[i] = bits;
        } else {
          for (std::int64_t i = 0; i < tile.size; ++i) values[i] = bits;
          store_tile_bits<T>(loop, 0, tile, values);
        }
      });
    });
  });
}

void arange_elements(const View& y, double start, double step) {
  const Loop loop = make_loop(LoopOrder::kRowMajor, y);
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileOutput<double> output(loop, 0);
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      double* to = output.begin(tile);
      const double first = static_cast<double>(tile.coordinates[0]);
      for (std::int64_t i = 0; i < tile.size; ++i) to[i] = start + (first + static_cast<double>(i)) * step;
      output.end(tile, to);
    });
  });
}

void select_elements(const ConstView& condition, const ConstView& a, const ConstView& b, const View& y) {
  const Loop loop = make_loop(LoopOrder::kFastest, y, &condition, &a, &b);
  with_bits(y.dtype, [&]<class T>(T) {
    parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
      TileInput<std::uint8_t> condition_input(loop, 1);
      TileInput<T> a_input(loop, 2), b_input(loop, 3);
      TileOutput<T> output(loop, 0);
      for_each_tile(loop, begin, end, [&](const Tile& tile) {
        const std::uint8_t* c = condition_input.load(tile);
        const T* if_true = a_input.load(tile);
        const T* if_false = b_input.load(tile);
        T* to = output.begin(tile);
#pragma omp simd
        for (std::int64_t i = 0; i < tile.size; ++i) to[i] = c[i] != 0 ? if_true[i] : if_false[i];
        output.end(tile, to);
      });
    });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
