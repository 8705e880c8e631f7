#pragma once

// The operations of reduce.cpp and arg_reduce.cpp. Each has
//   T                    the type in which elements are read
//   Total                the type in which many of them are gathered
//   start()              the reduction of nothing
//   step(a, x)           a with one element more, in T
//   join(a, b)           of two totals, the first in order first
//   kStepsPerTotal       how many steps may go between two joins

#include "kernels/cpu/vector/math.h"

namespace tessera::kernels::TESSERA_ISA {

/// The type of a sum over many blocks: f64 for both floats, so that 10^7 f32 elements lose nothing but the
/// rounding inside a block.
template <class T>
struct TotalOf {
  using Type = double;
};
template <>
struct TotalOf<std::int64_t> {
  using Type = std::int64_t;
};

template <class Element>
struct SumOp {
  using T = Element;
  using Total = typename TotalOf<T>::Type;
  static constexpr std::int64_t kStepsPerTotal = 128;
  TESSERA_INLINE static T start() { return T(0); }
  TESSERA_INLINE static T step(T a, T x) {
    if constexpr (dtype_of<T> == DType::kI64) {
      return static_cast<T>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(x));  // wraps around
    } else {
      return a + x;
    }
  }
  TESSERA_INLINE static Total join(Total a, Total b) {
    if constexpr (dtype_of<T> == DType::kI64) {
      return step(a, b);
    } else {
      return a + b;
    }
  }
};

/// What loses against everything: the start of a maximum (kSign 1) or minimum (−1).
template <class T, int kSign>
TESSERA_INLINE T worst() {
  if constexpr (dtype_of<T> == DType::kI64) {
    return kSign > 0 ? INT64_MIN : INT64_MAX;
  } else {
    return kSign > 0 ? -FloatFormat<T>::kInfinity : FloatFormat<T>::kInfinity;
  }
}

/// Maximum or minimum. A NaN wins.
template <class Element, int kSign>
struct ExtremeOp {
  using T = Element;
  using Total = T;
  static constexpr std::int64_t kStepsPerTotal = INT64_MAX;
  TESSERA_INLINE static T start() { return worst<T, kSign>(); }
  TESSERA_INLINE static T step(T a, T x) {
    const bool better = kSign > 0 ? x > a : x < a;
    return (better | (x != x)) ? x : a;
  }
  TESSERA_INLINE static Total join(Total a, Total b) { return step(a, b); }
};

/// Of elements that are 0 or 1.
struct AnyOp {
  using T = std::int64_t;
  using Total = T;
  static constexpr std::int64_t kStepsPerTotal = INT64_MAX;
  TESSERA_INLINE static T start() { return 0; }
  TESSERA_INLINE static T step(T a, T x) { return a | x; }
  TESSERA_INLINE static Total join(Total a, Total b) { return a | b; }
};

struct AllOp {
  using T = std::int64_t;
  using Total = T;
  static constexpr std::int64_t kStepsPerTotal = INT64_MAX;
  TESSERA_INLINE static T start() { return 1; }
  TESSERA_INLINE static T step(T a, T x) { return a & x; }
  TESSERA_INLINE static Total join(Total a, Total b) { return a & b; }
};

/// Reduces a run of at most kTileSize elements. The steps go in lanes, which is an order of its own: fixed
/// for a length and an instruction set.
template <class Op>
TESSERA_INLINE typename Op::T reduce_run(const typename Op::T* x, std::int64_t n) {
  using T = typename Op::T;
  constexpr int kLanes = 128 / sizeof(T);
  T lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = Op::start();
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = Op::step(lanes[lane], x[i + lane]);
  }
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] = Op::step(lanes[lane], x[i]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] = Op::step(lanes[lane], lanes[lane + width]);
  }
  return lanes[0];
}

}  // namespace tessera::kernels::TESSERA_ISA
