#pragma once

// Vectors of the instruction set's width, for the loops that a compiler may not vectorise by itself: sums,
// whose order must be the same wherever a row lies in memory, and register-blocked products.

#include <cstdint>
#include <utility>

#include "kernels/dtype.h"

namespace tessera::kernels::TESSERA_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

TESSERA_INLINE float widen(float x) { return x; }
TESSERA_INLINE double widen(double x) { return x; }
TESSERA_INLINE float widen(Float16 x) { return f32_from_f16_bits(x.bits); }
TESSERA_INLINE float widen(BFloat16 x) { return f32_from_bf16_bits(x.bits); }
TESSERA_INLINE void narrow(float x, float& y) { y = x; }
TESSERA_INLINE void narrow(double x, double& y) { y = x; }
TESSERA_INLINE void narrow(double x, float& y) { y = static_cast<float>(x); }
TESSERA_INLINE void narrow(float x, Float16& y) { y.bits = f16_bits_from_f32(x); }
TESSERA_INLINE void narrow(float x, BFloat16& y) { y.bits = bf16_bits_from_f32(x); }

TESSERA_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
TESSERA_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
TESSERA_INLINE std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
TESSERA_INLINE std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// The type in which elements of type In are computed: f64 for f64, f32 for all others.
template <class In>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class In>
using Compute = typename ComputeOf<In>::Type;

template <class T>
struct LanesOf {
  static constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(T));
  // Of unaligned memory: rows begin anywhere.
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <>
struct LanesOf<std::uint16_t> {
  typedef std::uint16_t Vector __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
};

/// A vector of T.
template <class T>
using Lanes = typename LanesOf<T>::Vector;
template <class T>
inline constexpr int kLanes = LanesOf<T>::kCount;

/// Which lanes a step of a loop uses: all of them, or the first `count`.
struct AllLanes {};
struct FirstLanes {
  std::int64_t count;
};

TESSERA_INLINE Lanes<float> load(const float* x, AllLanes) {
  return *reinterpret_cast<const Lanes<float>*>(x);
}
TESSERA_INLINE Lanes<double> load(const double* x, AllLanes) {
  return *reinterpret_cast<const Lanes<double>*>(x);
}
TESSERA_INLINE Lanes<float> load(const BFloat16* x, AllLanes) {
  const auto half = *reinterpret_cast<const Lanes<std::uint16_t>*>(x);
  return reinterpret_cast<Lanes<float>>(__builtin_convertvector(half, Lanes<std::uint32_t>) << 16);
}
TESSERA_INLINE Lanes<float> load(const Float16* x, AllLanes) {
  // f32_from_f16_bits, lane by lane.
  using Bits = Lanes<std::uint32_t>;
  const Bits half = __builtin_convertvector(*reinterpret_cast<const Lanes<std::uint16_t>*>(x), Bits);
  const Bits sign = (half & 0x8000u) << 16;
  const Bits magnitude = (half & 0x7FFFu) << 13;
  const Lanes<float> scaled = reinterpret_cast<Lanes<float>>(magnitude) * 0x1p112f;
  const Bits is_special = reinterpret_cast<Bits>(magnitude >= 0x0F800000u);
  return reinterpret_cast<Lanes<float>>(sign | (is_special & (magnitude | 0x7F800000u)) |
                                        (~is_special & reinterpret_cast<Bits>(scaled)));
}
/// The lanes that are used, and `fill` in the others.
template <class In>
TESSERA_INLINE Lanes<Compute<In>> load_or(const In* x, AllLanes lanes, Compute<In>) {
  return load(x, lanes);
}
template <class In>
TESSERA_INLINE Lanes<Compute<In>> load_or(const In* x, FirstLanes lanes, Compute<In> fill) {
  Compute<In> values[kLanes<Compute<In>>];
  for (Compute<In>& value : values) value = fill;
  for (std::int64_t i = 0; i < lanes.count; ++i) values[i] = widen(x[i]);
  return load(values, AllLanes{});
}
template <class In>
TESSERA_INLINE Lanes<Compute<In>> load(const In* x, FirstLanes lanes) {
  return load_or(x, lanes, Compute<In>(0));
}

TESSERA_INLINE void store(Lanes<float> v, float* y, AllLanes) { *reinterpret_cast<Lanes<float>*>(y) = v; }
TESSERA_INLINE void store(Lanes<double> v, double* y, AllLanes) { *reinterpret_cast<Lanes<double>*>(y) = v; }
TESSERA_INLINE void store(Lanes<float> v, BFloat16* y, AllLanes) {
  // bf16_bits_from_f32, lane by lane.
  using Bits = Lanes<std::uint32_t>;
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Bits is_nan = reinterpret_cast<Bits>((bits & 0x7FFFFFFFu) > 0x7F800000u);
  const Bits result = (is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded);
  *reinterpret_cast<Lanes<std::uint16_t>*>(y) = __builtin_convertvector(result, Lanes<std::uint16_t>);
}
TESSERA_INLINE void store(Lanes<float> v, Float16* y, AllLanes) {
  float values[kLanes<float>];
  store(v, values, AllLanes{});
  for (int i = 0; i < kLanes<float>; ++i) y[i].bits = f16_bits_from_f32(values[i]);
}
template <class T, class Out>
TESSERA_INLINE void store_first(Lanes<T> v, Out* y, FirstLanes lanes) {
  T values[kLanes<T>];
  store(v, values, AllLanes{});
  for (std::int64_t i = 0; i < lanes.count; ++i) narrow(values[i], y[i]);
}
template <class Out>
TESSERA_INLINE void store(Lanes<float> v, Out* y, FirstLanes lanes) {
  store_first<float>(v, y, lanes);
}
TESSERA_INLINE void store(Lanes<double> v, double* y, FirstLanes lanes) { store_first<double>(v, y, lanes); }

/// v + (v moved down by Half lanes). Lanes from Half on get sums too, of what comes round: nobody reads them.
template <int Half, class Vector, int... Lane>
TESSERA_INLINE Vector add_upper(Vector v, std::integer_sequence<int, Lane...>) {
  return v + __builtin_shufflevector(v, v, (Lane + Half) % static_cast<int>(sizeof...(Lane))...);
}

/// Sum over the lanes, in the order of a binary tree. By shuffles: of a loop over an array of lanes g++ makes
/// one through memory.
template <class T>
TESSERA_INLINE T sum_of_lanes(Lanes<T> v) {
  constexpr int kCount = kLanes<T>;
  constexpr std::make_integer_sequence<int, kCount> kEach{};
  if constexpr (kCount > 8) v = add_upper<8>(v, kEach);
  if constexpr (kCount > 4) v = add_upper<4>(v, kEach);
  if constexpr (kCount > 2) v = add_upper<2>(v, kEach);
  return add_upper<1>(v, kEach)[0];
}

/// Calls step(i, lanes) for i = 0, kLanes, 2·kLanes, ... below n; only the last call may get FirstLanes.
template <class T, class Step>
TESSERA_INLINE void for_lanes(std::int64_t n, const Step& step) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) step(i, AllLanes{});
  if (i < n) step(i, FirstLanes{n - i});
}

/// Σ over [0, n) of the vectors that term(i, lanes) gives (0 in unused lanes). Four running sums, so that the
/// adder's latency does not count; the order depends on n alone.
template <class T, class Term>
TESSERA_INLINE T sum_lanes(std::int64_t n, const Term& term) {
  constexpr int kStep = kLanes<T>;
  Lanes<T> sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  std::int64_t i = 0;
  for (; i + 4 * kStep <= n; i += 4 * kStep) {
    sum0 += term(i, AllLanes{});
    sum1 += term(i + kStep, AllLanes{});
    sum2 += term(i + 2 * kStep, AllLanes{});
    sum3 += term(i + 3 * kStep, AllLanes{});
  }
  for (; i + kStep <= n; i += kStep) sum0 += term(i, AllLanes{});
  if (i < n) sum1 += term(i, FirstLanes{n - i});
  return sum_of_lanes<T>((sum0 + sum1) + (sum2 + sum3));
}

/// The largest of n > 0 elements. NaN may be passed over: who needs it meets it again in the sum that
/// follows.
template <class In>
TESSERA_INLINE Compute<In> max_lanes(const In* x, std::int64_t n) {
  using T = Compute<In>;
  const T first = widen(x[0]);
  Lanes<T> largest = Lanes<T>{} + first;
  for_lanes<T>(
      n, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const Lanes<T> v = load_or(x + i, lanes, first);
        largest = v > largest ? v : largest;
      });
  T values[kLanes<T>];
  store(largest, values, AllLanes{});
  T result = values[0];
  for (const T value : values) result = value > result ? value : result;
  return result;
}

template <class T>
struct TypeTag {
  using Type = T;
};

/// Calls f(TypeTag<T>) with the C++ type of a float dtype.
template <class F>
TESSERA_INLINE void with_float_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kF64:
      return f(TypeTag<double>{});
    case DType::kF32:
      return f(TypeTag<float>{});
    case DType::kF16:
      return f(TypeTag<Float16>{});
    case DType::kBF16:
      return f(TypeTag<BFloat16>{});
    default:
      return;  // the caller of the kernel has checked
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
