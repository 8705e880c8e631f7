// Random tensors: each element from its own Philox words, so that any part can be made anywhere.

#include "kernels/cpu/vector/coordinates.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/philox.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// A loop over y and the global indices of its elements: an operand whose offset is the index.
Loop index_loop(const View& y, const GlobalIndex& index) {
  ConstView indices = y;
  for (int d = 0; d < y.dims; ++d) indices.strides[d] = index.strides[d];
  return make_loop(LoopOrder::kFastest, y, &indices);
}

/// words[i · per_element + j] ← word number g · per_element + j of the stream, g the global index of the
/// tile's element i, j in [0, per_element).
TESSERA_INLINE void tile_words(const Loop& loop, const Tile& tile, std::int64_t position,
                               const RandomKey& key, std::int64_t base, int per_element,
                               std::uint32_t* words) {
  const std::uint64_t scale = static_cast<std::uint64_t>(per_element);
  if (tile.one_run && loop.operands[1].strides[loop.dims - 1] == 1) {
    const std::uint64_t first = static_cast<std::uint64_t>(base + tile.offset(loop, 1));
    return random_words(key, first * scale, tile.size * per_element, words);
  }
  Walker walker(loop, 1, position);
  for (std::int64_t i = 0; i < tile.size; ++i, walker.next()) {
    const std::uint64_t first = static_cast<std::uint64_t>(base + walker.offset()) * scale;
    for (int j = 0; j < per_element; ++j) {
      words[i * per_element + j] = random_word(key, first + static_cast<std::uint64_t>(j));
    }
  }
}

/// Calls f(words, values, n) for the tiles of y: values (f64) from words, per_element of these for each.
template <class F>
TESSERA_INLINE void fill_from_words(const View& y, const RandomKey& key, const GlobalIndex& index,
                                    int per_element, const F& f) {
  const Loop loop = index_loop(y, index);
  parallel_for(loop.size, kCostlyGrain, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) std::uint32_t words[2 * kTileSize];
    TileOutput<double> output(loop, 0);
    std::int64_t position = begin;
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      tile_words(loop, tile, position, key, index.base, per_element, words);
      double* values = output.begin(tile);
      f(static_cast<const std::uint32_t*>(words), values, tile.size);
      output.end(tile, values);
      position += tile.size;
    });
  });
}

/// The neighbour of `bits`, a float's bits in sign-magnitude form, on the side of −∞.
template <class Bits>
TESSERA_INLINE Bits bits_below(Bits bits) {
  constexpr Bits kSign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1));
  if (static_cast<Bits>(bits & ~kSign) == 0) return static_cast<Bits>(kSign | 1);
  return static_cast<Bits>((bits & kSign) != 0 ? bits + 1 : bits - 1);
}

/// The largest value of a dtype that is below `high`.
double largest_below(double high, DType dtype) {
  double rounded = high, below = high;
  switch (dtype) {
    case DType::kF64:
      below = __builtin_bit_cast(double, bits_below(__builtin_bit_cast(std::uint64_t, high)));
      break;
    case DType::kF32: {
      const float value = static_cast<float>(high);
      rounded = static_cast<double>(value);
      below = static_cast<double>(detail::bits_float(bits_below(detail::float_bits(value))));
      break;
    }
    case DType::kBF16: {
      const std::uint16_t bits = bf16_bits_from_f32(static_cast<float>(high));
      rounded = static_cast<double>(f32_from_bf16_bits(bits));
      below = static_cast<double>(f32_from_bf16_bits(bits_below(bits)));
      break;
    }
    case DType::kF16: {
      const std::uint16_t bits = f16_bits_from_f32(static_cast<float>(high));
      rounded = static_cast<double>(f32_from_f16_bits(bits));
      below = static_cast<double>(f32_from_f16_bits(bits_below(bits)));
      break;
    }
    default:
      break;
  }
  return rounded < high ? rounded : below;
}

class CpuRandom final : public Random {
 public:
  void uniform(const View& y, double low, double high, const RandomKey& key,
               const GlobalIndex& index) const override {
    // Rounding to y's dtype must not reach `high`, which is not part of the interval.
    double limit = largest_below(high, y.dtype);
    if (limit < low) limit = low;
    const double width = high - low;
    const bool integral = !is_floating(y.dtype);
    fill_from_words(y, key, index, 1, [=](const std::uint32_t* words, double* values, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i) {
        const double value = low + width * static_cast<double>(uniform_from_word(words[i]));
        values[i] = value > limit ? limit : value;
      }
      if (integral) {
        for (std::int64_t i = 0; i < n; ++i) values[i] = __builtin_floor(values[i]);
      }
    });
  }

  void normal(const View& y, double mean, double stddev, const RandomKey& key,
              const GlobalIndex& index) const override {
    constexpr double kUnit = 1.0 / 4294967296.0;
    fill_from_words(y, key, index, 2, [=](const std::uint32_t* words, double* values, std::int64_t n) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) {
        const double u =
            (static_cast<double>(words[2 * i]) + 1.0) * kUnit;  // (0, 1]: its logarithm is finite
        const double radius = vsqrt(-2.0 * vlog(u));
        values[i] = mean + stddev * (radius * vcos_turns(static_cast<double>(words[2 * i + 1]) * kUnit));
      }
    });
  }
};

constinit const CpuRandom instance{};

}  // namespace

const Random& random() noexcept { return instance; }

}  // namespace tessera::kernels::TESSERA_ISA
