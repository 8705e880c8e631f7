#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/dtype.h"
#include "kernels/view.h"

namespace tessera::kernels {

/// Names one stream of random numbers. A value is a pure function of (seed, stream, step, global index), so
/// it is the same on every device, under every layout, and when it is computed a second time.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;  ///< stream_id("h.0.attn.dropout")
  std::uint64_t step = 0;
};

/// 64-bit FNV-1a of a stream's name.
[[nodiscard]] constexpr std::uint64_t stream_id(std::string_view name) noexcept {
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

/// Where the elements of a view lie in their logical tensor: element (i0, i1, ...) of the view has the global
/// index base + Σ i_d · strides[d]. A whole contiguous tensor has base 0 and its own row-major strides.
struct GlobalIndex {
  std::int64_t base = 0;
  std::int64_t strides[kMaxDims] = {};

  /// Row-major index of a whole tensor of `view`'s shape that starts at global index `base`.
  template <class Pointer>
  [[nodiscard]] TESSERA_INLINE static GlobalIndex row_major(const BasicView<Pointer>& view,
                                                            std::int64_t base = 0) {
    GlobalIndex index;
    index.base = base;
    std::int64_t stride = 1;
    for (int d = view.dims - 1; d >= 0; --d) {
      index.strides[d] = stride;
      stride *= view.shape[d];
    }
    return index;
  }
};

struct Philox4 {
  std::uint32_t x[4];
};

/// Philox 4×32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
TESSERA_INLINE Philox4 philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                              std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Seed and stream, mixed into the 64 bits of a Philox key.
TESSERA_INLINE std::uint64_t random_key_bits(const RandomKey& key) {
  std::uint64_t mixed = key.seed * 0x9E3779B97F4A7C15ull + key.stream;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBull;
  return mixed ^ (mixed >> 31);
}

/// The four words that belong to global indices 4·block .. 4·block + 3 of the stream `key`. The step is the
/// high half of the counter.
TESSERA_INLINE Philox4 random_block(const RandomKey& key, std::uint64_t block) {
  const std::uint64_t bits = random_key_bits(key);
  return philox(static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                static_cast<std::uint32_t>(key.step), static_cast<std::uint32_t>(key.step >> 32),
                static_cast<std::uint32_t>(bits), static_cast<std::uint32_t>(bits >> 32));
}

/// The 32-bit word of one global index.
TESSERA_INLINE std::uint32_t random_word(const RandomKey& key, std::uint64_t index) {
  const Philox4 block = random_block(key, index >> 2);
  return block.x[index & 3u];
}

/// 24 random bits → [0, 1), exact in f32.
TESSERA_INLINE float uniform_from_word(std::uint32_t word) {
  return static_cast<float>(word >> 8) * (1.0f / 16777216.0f);
}

/// True if dropout with probability `p` keeps the element whose word is `word`. Integers, so equal on every
/// device.
TESSERA_INLINE bool dropout_keeps(std::uint32_t word, std::uint32_t threshold) { return word >= threshold; }

/// p → the threshold for `dropout_keeps`.
TESSERA_INLINE std::uint32_t dropout_threshold(double p) {
  return p >= 1.0 ? 0xFFFFFFFFu : static_cast<std::uint32_t>(p * 4294967296.0);
}

}  // namespace tessera::kernels
