#pragma once

#include <cstdint>

#include "kernels/random_key.h"

namespace tessera::kernels::TESSERA_ISA {

/// words[i] ← random_word(key, first + i) for i in [0, n), one Philox block per four words.
TESSERA_INLINE void random_words(const RandomKey& key, std::uint64_t first, std::int64_t n,
                                 std::uint32_t* words) {
  // Blocks that lie whole inside the range; eight at a time, so that the rounds run in vector lanes.
  constexpr int kBlocks = 8;
  std::int64_t i = 0;
  for (; i < n && ((first + static_cast<std::uint64_t>(i)) & 3u) != 0; ++i) {
    words[i] = random_word(key, first + static_cast<std::uint64_t>(i));
  }
  const std::uint64_t mixed = random_key_bits(key);
  for (; i + 4 * kBlocks <= n; i += 4 * kBlocks) {
    const std::uint64_t block = (first + static_cast<std::uint64_t>(i)) >> 2;
    // Counters and products as 64-bit lanes: a 32 x 32 -> 64 bit product is one instruction there.
    std::uint64_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      const std::uint64_t counter = block + static_cast<std::uint64_t>(b);
      c0[b] = counter & 0xFFFFFFFFu;
      c1[b] = counter >> 32;
      c2[b] = key.step & 0xFFFFFFFFu;
      c3[b] = key.step >> 32;
    }
    std::uint32_t k0 = static_cast<std::uint32_t>(mixed);
    std::uint32_t k1 = static_cast<std::uint32_t>(mixed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int b = 0; b < kBlocks; ++b) {
        const std::uint64_t p0 = 0xD2511F53u * c0[b];
        const std::uint64_t p1 = 0xCD9E8D57u * c2[b];
        c0[b] = (p1 >> 32) ^ c1[b] ^ k0;
        c2[b] = (p0 >> 32) ^ c3[b] ^ k1;
        c1[b] = p1 & 0xFFFFFFFFu;
        c3[b] = p0 & 0xFFFFFFFFu;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int b = 0; b < kBlocks; ++b) {
      words[i + 4 * b + 0] = static_cast<std::uint32_t>(c0[b]);
      words[i + 4 * b + 1] = static_cast<std::uint32_t>(c1[b]);
      words[i + 4 * b + 2] = static_cast<std::uint32_t>(c2[b]);
      words[i + 4 * b + 3] = static_cast<std::uint32_t>(c3[b]);
    }
  }
  for (; i < n; ++i) words[i] = random_word(key, first + static_cast<std::uint64_t>(i));
}

}  // namespace tessera::kernels::TESSERA_ISA
