#pragma once

// An optimizer's state in 16-bit numbers: an f32 master as a bf16 weight and the 16 bits that it lacks, which
// loses nothing, and moments in bf16, rounded up or down at random so that small changes add up. On every
// device and in every instruction set the same integers. Private to kernels/ and its tests.

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/random_key.h"

namespace tessera::kernels {

/// An f32 number x in two halves: `high`, the bits of the nearest bf16 number, and `low`, the low 16 bits of
/// x. Taken as a signed number, `low` is how far x lies from `high`, in units of x's last place:
///
///     bits(x) = high · 2¹⁶ + low,   −2¹⁵ ≤ low < 2¹⁵
///
/// A number half-way between two of bf16 has low = −2¹⁵, so that of the two `high` is the one farther from 0,
/// where bf16_bits_from_f32 takes the even one; in all else the two agree, down to finite numbers beyond
/// bf16's largest, whose `high` is infinity and whose pair still is the number. The halves of a NaN are a
/// NaN of the same sign and 0: the end of its payload is all that is lost.
struct SplitF32 {
  std::uint16_t high = 0;
  std::int16_t low = 0;
};

/// x is no signalling NaN: no result of arithmetic is one.
TESSERA_INLINE SplitF32 split_f32(float x) {
  const std::uint32_t bits = detail::float_bits(x);
  const std::uint32_t is_number = x == x ? 0xFFFFFFFFu : 0u;
  return {static_cast<std::uint16_t>((bits + (is_number & 0x8000u)) >> 16),
          static_cast<std::int16_t>(static_cast<std::uint16_t>(bits & is_number))};
}

/// x, as a quiet NaN if it is one.
TESSERA_INLINE float without_signal(float x) {
  return detail::bits_float(detail::float_bits(x) | (x == x ? 0u : 0x400000u));
}

TESSERA_INLINE float join_f32(std::uint16_t high, std::int16_t low) {
  return detail::bits_float((static_cast<std::uint32_t>(high) << 16) + static_cast<std::uint32_t>(low));
}

/// One of the two bf16 numbers around x: with `noise` uniform in [0, 2¹⁶) the one farther from 0 with the
/// probability by which x is on the way to it, so that the mean is x. Exact numbers, infinities included,
/// stay, a quiet NaN stays NaN. A finite x beyond bf16's largest number may become infinity, which
/// nearest-even would round it to as well, or to that largest number.
TESSERA_INLINE std::uint16_t round_with_noise(float x, std::uint32_t noise) {
  const std::uint32_t is_number = x == x ? 0xFFFFFFFFu : 0u;
  return static_cast<std::uint16_t>((detail::float_bits(x) + (noise & is_number)) >> 16);
}

/// Noise of an update by Adam: a function of the step and of what the element was before it. So it needs no
/// index and no memory, and is the same however a tensor is cut over ranks. It does not look at the gradient:
/// of two layouts whose sums differ in the last bit, nearly all elements round alike.
class UpdateNoise {
 public:
  TESSERA_INLINE explicit UpdateNoise(std::int64_t step) {
    const RandomKey key{
        .seed = 0, .stream = stream_id("optim.bf16_state"), .step = static_cast<std::uint64_t>(step)};
    key_ = static_cast<std::uint32_t>(random_block(key, 0).x[0]);
  }

  /// 32 bits from a weight and its moments: the high half for the first moment, the low for the second. The
  /// last rounds are the finaliser of MurmurHash3 (Appleby, 2011), each of whose output bits depends on all
  /// of the input's.
  [[nodiscard]] TESSERA_INLINE std::uint32_t bits(std::uint16_t weight, std::uint16_t moment1,
                                                  std::uint16_t moment2) const {
    std::uint32_t h = (static_cast<std::uint32_t>(moment1) << 16) | moment2;
    h = (h + weight * 0x9E3779B1u) ^ key_;
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
  }

 private:
  std::uint32_t key_ = 0;
};

}  // namespace tessera::kernels
