#pragma once

// The order in which reductions are promised to be combined, written a second way: a binary counter that
// takes one summand after the other. dist/reduce.cpp cuts the row of summands in two instead, and works on
// blocks.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "dist/reduce.h"

namespace tessera::dist::testing {

/// The type in which elements of T are combined.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>, float, T>;

template <class A>
[[nodiscard]] A combine(A a, A b, ReduceOp op) {
  if (op == ReduceOp::kSum) return a + b;
  if constexpr (std::is_floating_point_v<A>) {
    if (std::isnan(a)) return a;
    if (std::isnan(b)) return b;
  }
  return op == ReduceOp::kMax ? std::max(a, b) : std::min(a, b);
}

/// One element of a reduction over `summands.size()` ranks.
template <class T>
[[nodiscard]] T tree_reference(const std::vector<T>& summands, ReduceOp op) {
  using A = Accumulator<T>;
  struct Entry {
    std::size_t count;  // of summands
    A sum;
  };
  Entry counter[64];  // the largest first
  std::size_t size = 0;
  for (const T& summand : summands) {
    counter[size++] = {1, static_cast<A>(summand)};
    while (size > 1 && counter[size - 2].count == counter[size - 1].count) {
      --size;
      counter[size - 1] = {2 * counter[size].count, combine(counter[size - 1].sum, counter[size].sum, op)};
    }
  }
  A result = counter[size - 1].sum;
  for (std::size_t i = size - 1; i-- > 0;) result = combine(counter[i].sum, result, op);
  return static_cast<T>(result);
}

}  // namespace tessera::dist::testing
