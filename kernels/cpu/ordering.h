#pragma once

#include "kernels/view.h"

namespace tessera::kernels {

// Sorting compares and branches: nothing in it is for vectors, so it is compiled once.

/// Indexing::sort.
void sort_rows(const ConstView& x, bool descending, const View& values, const View& indices);

/// Indexing::top_k.
void top_k_rows(const ConstView& x, std::int64_t k, const View& values, const View& indices);

/// order[0 .. n) ← the positions of ids, equal ids next to each other and in the order of their positions,
/// small ids first. −1 <= ids[i] < limit; `stride` steps through ids.
void stable_order(const std::int64_t* ids, std::int64_t stride, std::int64_t n, std::int64_t limit,
                  std::int64_t* order);

}  // namespace tessera::kernels
