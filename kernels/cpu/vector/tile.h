#pragma once

// Elementwise work goes in tiles: operands that are contiguous and have the type of the computation are used
// where they lie, all others are loaded into (stored from) a buffer of that type that fits the first-level
// cache. So operations are compiled for f32, f64 and i64 only, and know nothing of strides.

#include <cstdint>

#include "kernels/cpu/loop.h"
#include "kernels/cpu/parallel.h"

namespace tessera::kernels::TESSERA_ISA {

inline constexpr std::int64_t kTileSize = 1024;

// Elements below which a loop is not worth a second thread.
inline constexpr std::int64_t kGrain = 32 * kTileSize;
inline constexpr std::int64_t kCostlyGrain = 4 * kTileSize;  // exp, tanh, ...

/// The type in which elements of a dtype are computed.
enum class ComputeType { kF32, kF64, kI64 };

[[nodiscard]] TESSERA_INLINE ComputeType compute_type(DType dtype) {
  if (dtype == DType::kF64) return ComputeType::kF64;
  return is_floating(dtype) ? ComputeType::kF32 : ComputeType::kI64;
}

/// Consecutive elements of a loop.
struct Tile {
  std::int64_t coordinates[kMaxDims];  ///< of the first
  std::int64_t size;
  bool one_run;  ///< all lie along the innermost dimension

  [[nodiscard]] TESSERA_INLINE std::int64_t offset(const Loop& loop, int operand) const {
    std::int64_t sum = 0;
    for (int d = 0; d < loop.dims; ++d) sum += coordinates[d] * loop.operands[operand].strides[d];
    return sum;
  }
};

/// Elements of one operand, converted to T. T is float for every dtype but f64, double for every dtype,
/// std::int64_t for integers and bool.
template <class T>
void load_tile(const Loop& loop, int operand, const Tile& tile, T* out);
/// The way back. To integers: truncates; to bool: x ≠ 0.
template <class T>
void store_tile(const Loop& loop, int operand, const Tile& tile, const T* values);
/// The same for elements of sizeof(T) bytes whatever they mean; T is an unsigned integer.
template <class T>
void load_tile_bits(const Loop& loop, int operand, const Tile& tile, T* out);
template <class T>
void store_tile_bits(const Loop& loop, int operand, const Tile& tile, const T* values);

/// Calls f(tile) for the elements [begin, end) of the loop in order.
template <class F>
TESSERA_INLINE void for_each_tile(const Loop& loop, std::int64_t begin, std::int64_t end, const F& f) {
  // Long rows: no tile reaches over an end of a row, so that operands can be used in place. Short rows: a
  // tile takes many of them.
  const std::int64_t row = loop.shape[loop.dims - 1];
  const bool whole_rows = loop.dims > 1 && row < 32;
  for (std::int64_t position = begin; position < end;) {
    Tile tile;
    std::int64_t rest = position;
    for (int d = loop.dims - 1; d > 0; --d) {
      const std::int64_t quotient = rest / loop.shape[d];
      tile.coordinates[d] = rest - quotient * loop.shape[d];
      rest = quotient;
    }
    tile.coordinates[0] = rest;
    const std::int64_t left_in_row = row - tile.coordinates[loop.dims - 1];
    tile.size = end - position < kTileSize ? end - position : kTileSize;
    if (!whole_rows && tile.size > left_in_row) tile.size = left_in_row;
    tile.one_run = tile.size <= left_in_row;
    f(static_cast<const Tile&>(tile));
    position += tile.size;
  }
}

template <class T>
inline constexpr bool kIsBits = false;
template <>
inline constexpr bool kIsBits<std::uint8_t> = true;
template <>
inline constexpr bool kIsBits<std::uint16_t> = true;
template <>
inline constexpr bool kIsBits<std::uint32_t> = true;
template <>
inline constexpr bool kIsBits<std::uint64_t> = true;

/// One operand that is read in tiles of T: a compute type, or an unsigned integer of the element's size for
/// bits.
template <class T>
class TileInput {
 public:
  TESSERA_INLINE TileInput(const Loop& loop, int operand) : loop_(loop), operand_(operand) {
    const Loop::Operand& o = loop.operands[operand];
    direct_ = (kIsBits<T> || o.dtype == dtype_of<T>)&&o.strides[loop.dims - 1] == 1;
    constant_ = true;
    for (int d = 0; d < loop.dims; ++d) constant_ = constant_ && o.strides[d] == 0;
  }

  [[nodiscard]] TESSERA_INLINE const T* load(const Tile& tile) {
    if (direct_ && tile.one_run) {
      return reinterpret_cast<const T*>(loop_.operands[operand_].data) + tile.offset(loop_, operand_);
    }
    if (constant_) {  // the buffer is still full of it
      if (filled_ >= tile.size) return buffer_;
      filled_ = tile.size;
    }
    return load_buffer(tile);
  }

  /// The same, after the loop's data pointer has moved.
  [[nodiscard]] TESSERA_INLINE const T* load_anew(const Tile& tile) {
    filled_ = 0;
    return load(tile);
  }

 private:
  TESSERA_INLINE const T* load_buffer(const Tile& tile) {
    if constexpr (kIsBits<T>) {
      load_tile_bits<T>(loop_, operand_, tile, buffer_);
    } else {
      load_tile<T>(loop_, operand_, tile, buffer_);
    }
    return buffer_;
  }

  const Loop& loop_;
  int operand_;
  bool direct_;
  bool constant_;
  std::int64_t filled_ = 0;
  alignas(64) T buffer_[kTileSize];
};

/// The operand that is written: `begin` says where to, `end` takes it from there.
template <class T>
class TileOutput {
 public:
  TESSERA_INLINE TileOutput(const Loop& loop, int operand) : loop_(loop), operand_(operand) {
    const Loop::Operand& o = loop.operands[operand];
    direct_ = (kIsBits<T> || o.dtype == dtype_of<T>)&&o.strides[loop.dims - 1] == 1;
  }

  [[nodiscard]] TESSERA_INLINE T* begin(const Tile& tile) {
    if (!direct_ || !tile.one_run) return buffer_;
    return reinterpret_cast<T*>(loop_.operands[operand_].data) + tile.offset(loop_, operand_);
  }

  TESSERA_INLINE void end(const Tile& tile, const T* written) {
    if (written != buffer_) return;
    if constexpr (kIsBits<T>) {
      store_tile_bits<T>(loop_, operand_, tile, buffer_);
    } else {
      store_tile<T>(loop_, operand_, tile, buffer_);
    }
  }

 private:
  const Loop& loop_;
  int operand_;
  bool direct_;
  alignas(64) T buffer_[kTileSize];
};

}  // namespace tessera::kernels::TESSERA_ISA
