#include "kernels/cpu/vector/tile.h"

#include <cstring>

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// The nearest float on the side of 0, its last bit set if it is not x itself ("round to odd"). Rounded once
/// more, to half the digits, it gives what x would give: the last bit keeps what nearest-even must know of
/// the digits cut off.
TESSERA_INLINE float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = nearest;
  std::uint32_t bits = tessera::detail::float_bits(nearest);
  bits -= __builtin_fabs(back) > __builtin_fabs(x) ? 1u : 0u;
  bits |= back != x ? 1u : 0u;  // NaN stays NaN
  return tessera::detail::bits_float(bits);
}

template <class To, class From>
TESSERA_INLINE To convert(From x) {
  if constexpr (dtype_of<From> == DType::kF16 || dtype_of<From> == DType::kBF16) {
    return convert<To>(static_cast<float>(x));
  } else if constexpr (dtype_of<To> == DType::kF16 || dtype_of<To> == DType::kBF16) {
    if constexpr (dtype_of<From> == DType::kF64) {
      return To(round_to_odd(x));
    } else {
      return To(static_cast<float>(x));
    }
  } else if constexpr (dtype_of<To> == DType::kBool) {
    return x != From(0);
  } else if constexpr (dtype_of<To> == DType::kU8 && is_floating(dtype_of<From>)) {
    return static_cast<To>(static_cast<std::int64_t>(x));  // modulo 256, as from integers
  } else {
    return static_cast<To>(x);
  }
}

/// Calls f(offset, start, n) for the parts of a tile that lie along the innermost dimension: n elements of
/// the operand from `offset` on, which are elements start ... of the tile.
template <class F>
TESSERA_INLINE void for_each_run(const Loop& loop, int operand, const Tile& tile, const F& f) {
  std::int64_t offset = tile.offset(loop, operand);
  if (tile.one_run) return f(offset, std::int64_t{0}, tile.size);

  const std::int64_t* strides = loop.operands[operand].strides;
  const int inner = loop.dims - 1;
  std::int64_t coordinates[kMaxDims];
  for (int d = 0; d < loop.dims; ++d) coordinates[d] = tile.coordinates[d];
  for (std::int64_t start = 0; start < tile.size;) {
    std::int64_t n = loop.shape[inner] - coordinates[inner];
    n = n < tile.size - start ? n : tile.size - start;
    f(offset, start, n);
    start += n;
    offset += n * strides[inner];
    coordinates[inner] += n;
    for (int d = inner; d > 0 && coordinates[d] == loop.shape[d]; --d) {
      offset += strides[d - 1] - loop.shape[d] * strides[d];
      coordinates[d] = 0;
      ++coordinates[d - 1];
    }
  }
}

// The loops below are compiled once per type or pair of types: functions, not inline.

template <class To, class From>
[[gnu::noinline]] void convert_run(const From* from, To* to, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) to[i] = convert<To>(from[i]);
}

template <class T>
[[gnu::noinline]] void fill_run(T value, T* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = value;
}

/// to[i · to_stride] = from[i · from_stride] for elements of kSize bytes.
template <int kSize>
[[gnu::noinline]] void move_run(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                                std::int64_t n) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  for (; n > 0; --n, source += from_stride * kSize, target += to_stride * kSize) {
    __builtin_memcpy(target, source, kSize);
  }
}

// Strided elements are gathered first and converted then, this many at a time.
constexpr std::int64_t kPacked = 128;

template <class T, class Stored>
void load_as(const Loop& loop, int operand, const Tile& tile, T* out) {
  const Stored* data = reinterpret_cast<const Stored*>(loop.operands[operand].data);
  const std::int64_t stride = loop.operands[operand].strides[loop.dims - 1];
  for_each_run(loop, operand, tile, [=](std::int64_t offset, std::int64_t start, std::int64_t n) {
    const Stored* from = data + offset;
    T* to = out + start;
    if (stride == 1) return convert_run<T, Stored>(from, to, n);
    if (stride == 0) return fill_run<T>(convert<T>(*from), to, n);
    if constexpr (dtype_of<T> == dtype_of<Stored>) {
      move_run<sizeof(T)>(from, stride, to, 1, n);
    } else {
      for (std::int64_t i = 0; i < n; i += kPacked) {
        const std::int64_t m = n - i < kPacked ? n - i : kPacked;
        Stored packed[kPacked];
        move_run<sizeof(Stored)>(from + i * stride, stride, packed, 1, m);
        convert_run<T, Stored>(packed, to + i, m);
      }
    }
  });
}

template <class T, class Stored>
void store_as(const Loop& loop, int operand, const Tile& tile, const T* values) {
  Stored* data = reinterpret_cast<Stored*>(loop.operands[operand].data);
  const std::int64_t stride = loop.operands[operand].strides[loop.dims - 1];
  for_each_run(loop, operand, tile, [=](std::int64_t offset, std::int64_t start, std::int64_t n) {
    Stored* to = data + offset;
    const T* from = values + start;
    if (stride == 1) return convert_run<Stored, T>(from, to, n);
    if constexpr (dtype_of<T> == dtype_of<Stored>) {
      move_run<sizeof(T)>(from, 1, to, stride, n);
    } else {
      for (std::int64_t i = 0; i < n; i += kPacked) {
        const std::int64_t m = n - i < kPacked ? n - i : kPacked;
        Stored packed[kPacked];
        convert_run<Stored, T>(from + i, packed, m);
        move_run<sizeof(Stored)>(packed, 1, to + i * stride, stride, m);
      }
    }
  });
}

/// Calls f with an element of the C++ type that `dtype` is stored in, if T stands for such elements.
template <class T, class F>
TESSERA_INLINE void with_stored_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kI64:
      return f(std::int64_t{});
    case DType::kI32:
      return f(std::int32_t{});
    case DType::kU8:
      return f(std::uint8_t{});
    case DType::kBool:
      return f(bool{});
    default:
      break;
  }
  if constexpr (is_floating(dtype_of<T>)) {
    switch (dtype) {
      case DType::kF32:
        return f(float{});
      case DType::kF16:
        return f(Float16{});
      case DType::kBF16:
        return f(BFloat16{});
      default:
        break;
    }
  }
  if constexpr (dtype_of<T> == DType::kF64) f(double{});
}

}  // namespace

template <class T>
void load_tile(const Loop& loop, int operand, const Tile& tile, T* out) {
  with_stored_type<T>(loop.operands[operand].dtype,
                      [&]<class Stored>(Stored) { load_as<T, Stored>(loop, operand, tile, out); });
}

template <class T>
void store_tile(const Loop& loop, int operand, const Tile& tile, const T* values) {
  with_stored_type<T>(loop.operands[operand].dtype,
                      [&]<class Stored>(Stored) { store_as<T, Stored>(loop, operand, tile, values); });
}

template <class T>
void load_tile_bits(const Loop& loop, int operand, const Tile& tile, T* out) {
  load_as<T, T>(loop, operand, tile, out);
}

template <class T>
void store_tile_bits(const Loop& loop, int operand, const Tile& tile, const T* values) {
  store_as<T, T>(loop, operand, tile, values);
}

template void load_tile(const Loop&, int, const Tile&, float*);
template void load_tile(const Loop&, int, const Tile&, double*);
template void load_tile(const Loop&, int, const Tile&, std::int64_t*);
template void store_tile(const Loop&, int, const Tile&, const float*);
template void store_tile(const Loop&, int, const Tile&, const double*);
template void store_tile(const Loop&, int, const Tile&, const std::int64_t*);
template void load_tile_bits(const Loop&, int, const Tile&, std::uint8_t*);
template void load_tile_bits(const Loop&, int, const Tile&, std::uint16_t*);
template void load_tile_bits(const Loop&, int, const Tile&, std::uint32_t*);
template void load_tile_bits(const Loop&, int, const Tile&, std::uint64_t*);
template void store_tile_bits(const Loop&, int, const Tile&, const std::uint8_t*);
template void store_tile_bits(const Loop&, int, const Tile&, const std::uint16_t*);
template void store_tile_bits(const Loop&, int, const Tile&, const std::uint32_t*);
template void store_tile_bits(const Loop&, int, const Tile&, const std::uint64_t*);

}  // namespace tessera::kernels::TESSERA_ISA
