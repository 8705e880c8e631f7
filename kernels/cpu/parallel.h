#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace tessera::kernels {

/// One range of a parallel loop.
using RangeBody = void (*)(void* state, std::int64_t begin, std::int64_t end);

/// Calls body(state, begin, end) on disjoint ranges that cover [0, n), on `kernel_context().num_threads`
/// threads.
///
/// Every range begins at a multiple of `grain`; how many ranges there are depends on the number of threads,
/// so a result that must not depend on it (a sum) is kept per `grain`, not per range. Runs in the calling
/// thread when n <= grain, when the context has one thread, or inside another parallel loop. Worker threads
/// see the default kernel context: take a Workspace before the loop, not inside.
///
/// Errors: the exception of the first range (by `begin`) that throws reaches the caller, after all ranges
/// ended.
void parallel_ranges(std::int64_t n, std::int64_t grain, RangeBody body, void* state);

/// The same with a callable f(begin, end). Always inline: the loops of vector/ must not leave copies of it
/// for the linker to share between instruction sets.
template <class F>
TESSERA_INLINE void parallel_for(std::int64_t n, std::int64_t grain, const F& f) {
  parallel_ranges(
      n, grain,
      [](void* state, std::int64_t begin, std::int64_t end) { (*static_cast<const F*>(state))(begin, end); },
      const_cast<F*>(&f));
}

}  // namespace tessera::kernels
