#pragma once

#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/math.h"

namespace tessera::kernels::TESSERA_ISA {

/// Elements of a row whose exponentials are held at a time: they stay in L1, and a buffer of one's own never
/// overlaps the input, so the loop vectorises even where a kernel works in place.
inline constexpr std::int64_t kExpChunk = 512;

/// buffer[i] ← exp(x[i] − shift), n <= kExpChunk.
template <class In>
TESSERA_INLINE void exp_chunk(const In* x, std::int64_t n, Compute<In> shift,
                              Compute<In>* __restrict__ buffer) {
  for (std::int64_t i = 0; i < n; ++i) buffer[i] = vexp(widen(x[i]) - shift);
}

/// Σ buffer[i].
template <class T>
TESSERA_INLINE T sum_chunk(const T* buffer, std::int64_t n) {
  return sum_lanes<T>(
      n, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) { return load(buffer + i, lanes); });
}

}  // namespace tessera::kernels::TESSERA_ISA
