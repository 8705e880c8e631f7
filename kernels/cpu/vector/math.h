#pragma once

// Elementary functions for loops: no branches and no calls, so that a loop over them vectorises. Relative
// error at most 2 ulp in f32 and 4 ulp in f64; infinities, NaN, overflow and underflow as in <cmath>.
//
// The polynomials were fitted for these intervals by weighted least squares with Lawson's reweighting (near
// minimax); each comment states the error of the polynomial alone.

#include <cstdint>

#include "kernels/dtype.h"

namespace tessera::kernels::TESSERA_ISA {

// The bits of a floating type, and the constants that take it apart.
template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Int = std::int32_t;
  using Unsigned = std::uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kBias = 127;
  static constexpr Int kMantissaMask = 0x007FFFFF;
  static constexpr Int kSignMask = INT32_MIN;
  static constexpr Int kSqrtHalf = 0x3F3504F3;  // bits of sqrt(1/2)
  static constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer in the low bits
  static constexpr float kInfinity = __builtin_huge_valf();
  static constexpr float kSmallestNormal = 1.17549435e-38f;
  static constexpr float kSubnormalScale = 33554432.0f;  // 2^25
  static constexpr float kSubnormalShift = 25.0f;
  // ln 2 in two parts; the first has trailing zeros, so that its product with an exponent is exact.
  static constexpr float kLn2High = 0.693145751953125f;
  static constexpr float kLn2Low = 1.42860677e-6f;
  static constexpr float kExpMin = -104.0f, kExpMax = 89.0f;
};

template <>
struct FloatFormat<double> {
  using Int = std::int64_t;
  using Unsigned = std::uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kBias = 1023;
  static constexpr Int kMantissaMask = 0x000FFFFFFFFFFFFF;
  static constexpr Int kSignMask = INT64_MIN;
  static constexpr Int kSqrtHalf = 0x3FE6A09E667F3BCD;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 · 2^52
  static constexpr double kInfinity = __builtin_huge_val();
  static constexpr double kSmallestNormal = 2.2250738585072014e-308;
  static constexpr double kSubnormalScale = 18014398509481984.0;  // 2^54
  static constexpr double kSubnormalShift = 54.0;
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kExpMin = -746.0, kExpMax = 710.0;
};

template <class T>
using BitsOf = typename FloatFormat<T>::Int;

template <class T>
TESSERA_INLINE BitsOf<T> bits_of(T x) {
  return __builtin_bit_cast(BitsOf<T>, x);
}
template <class T>
TESSERA_INLINE T from_bits(BitsOf<T> bits) {
  return __builtin_bit_cast(T, bits);
}
TESSERA_INLINE float vabs(float x) { return __builtin_fabsf(x); }
TESSERA_INLINE double vabs(double x) { return __builtin_fabs(x); }
TESSERA_INLINE float vsqrt(float x) { return __builtin_sqrtf(x); }
TESSERA_INLINE double vsqrt(double x) { return __builtin_sqrt(x); }
template <class T>
TESSERA_INLINE T vcopysign(T magnitude, T sign) {
  return from_bits<T>((bits_of(magnitude) & ~FloatFormat<T>::kSignMask) |
                      (bits_of(sign) & FloatFormat<T>::kSignMask));
}

/// c[0] + x · (c[1] + x · (...)).
template <class T, int N>
TESSERA_INLINE T horner(T x, const T (&c)[N]) {
  T sum = c[N - 1];
  for (int i = N - 2; i >= 0; --i) sum = sum * x + c[i];
  return sum;
}

// (e^r − 1 − r) / r² for |r| <= ln2/2: 3e-9 and 4e-18 of e^r.
inline constexpr float kExpPoly32[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e0p-7f,
                                       0x1.6a23dep-10f};
inline constexpr double kExpPoly64[] = {0x1.000000000000ap-1,  0x1.55555555554fap-3,  0x1.555555555087dp-5,
                                        0x1.1111111127b8cp-7,  0x1.6c16c184293c8p-10, 0x1.a01a012a781f9p-13,
                                        0x1.a0199a101b2b4p-16, 0x1.71df250c3d425p-19, 0x1.28ad6e4a22155p-22,
                                        0x1.ad7fd3444cb84p-26};
TESSERA_INLINE float exp_polynomial(float r) { return horner(r, kExpPoly32); }
TESSERA_INLINE double exp_polynomial(double r) { return horner(r, kExpPoly64); }

/// e^x.
template <class T>
TESSERA_INLINE T vexp(T x) {
  using F = FloatFormat<T>;
  // Comparisons this way round let NaN through.
  T bounded = x > F::kExpMax ? F::kExpMax : x;
  bounded = bounded < F::kExpMin ? F::kExpMin : bounded;
  // x = n · ln2 + r
  const T shifted = bounded * static_cast<T>(1.4426950408889634074) + F::kRound;
  const T n = shifted - F::kRound;
  const BitsOf<T> exponent = bits_of(shifted) - bits_of(F::kRound);
  const T r = (bounded - n * F::kLn2High) - n * F::kLn2Low;
  const T mantissa = T(1) + (r + r * r * exp_polynomial(r));
  // 2^n in two factors: one alone would overflow before the product does, and lose subnormal results.
  const BitsOf<T> half = exponent >> 1;
  const T scale1 = from_bits<T>((half + F::kBias) << F::kMantissaBits);
  const T scale2 = from_bits<T>((exponent - half + F::kBias) << F::kMantissaBits);
  return mantissa * scale1 * scale2;
}

// (log((1+s)/(1−s)) − 2s) / s³ for |s| <= 0.1716, in powers of s²: 1e-11 and 2e-20.
inline constexpr float kLogPoly32[] = {0x1.555554p-1f, 0x1.999a7ap-2f, 0x1.2438c6p-2f, 0x1.e2f916p-3f};
inline constexpr double kLogPoly64[] = {0x1.5555555555555p-1, 0x1.9999999999e01p-2, 0x1.249249242b1ccp-2,
                                        0x1.c71c7259288c7p-3, 0x1.745cde28365eap-3, 0x1.3b20addafa4e4p-3,
                                        0x1.0f5c95230c62cp-3, 0x1.0f64eb38532ecp-3};
TESSERA_INLINE float log_polynomial(float z) { return horner(z, kLogPoly32); }
TESSERA_INLINE double log_polynomial(double z) { return horner(z, kLogPoly64); }

/// Natural logarithm: −∞ at 0, NaN below.
template <class T>
TESSERA_INLINE T vlog(T x) {
  using F = FloatFormat<T>;
  const bool subnormal = x < F::kSmallestNormal;
  const BitsOf<T> bits = bits_of(subnormal ? x * F::kSubnormalScale : x);
  // x = 2^k · m with m in [sqrt(1/2), sqrt(2))
  using Unsigned = typename F::Unsigned;  // wraps for negative x, which is not used then
  const BitsOf<T> offset =
      static_cast<BitsOf<T>>(static_cast<Unsigned>(bits) - static_cast<Unsigned>(F::kSqrtHalf));
  const BitsOf<T> exponent = offset >> F::kMantissaBits;
  const T m = from_bits<T>((offset & F::kMantissaMask) + F::kSqrtHalf);
  // An integer to T through the low mantissa bits: AVX2 has no conversion from 64-bit integers.
  T k = from_bits<T>(exponent + bits_of(F::kRound)) - F::kRound;
  k = subnormal ? k - F::kSubnormalShift : k;
  // log m = f − (f²/2 − s · (f²/2 + s² R)) with f = m − 1, s = f / (2 + f): what is rounded is small beside
  // f.
  const T f = m - T(1);
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T half_square = T(0.5) * f * f;
  const T r = z * log_polynomial(z);
  const T result = k * F::kLn2High - ((half_square - (s * (half_square + r) + k * F::kLn2Low)) - f);
  T special = x == T(0) ? -F::kInfinity
                        : from_bits<T>(bits_of(F::kInfinity) | (BitsOf<T>(1) << (F::kMantissaBits - 1)));
  special = x == F::kInfinity ? x : special;
  return ((x > T(0)) & (x < F::kInfinity)) ? result : special;
}

/// log(1 + e) for e >= 0, exact to the last bits for small e (Kahan's correction of the rounding of 1 + e).
template <class T>
TESSERA_INLINE T vlog1p(T e) {
  const T u = T(1) + e;
  const T correction = (e - (u - T(1))) / u;
  const T result = vlog(u) + correction;
  return e < FloatFormat<T>::kInfinity ? result : e;
}

/// 1 / (1 + e^−x).
template <class T>
TESSERA_INLINE T vsigmoid(T x) {
  return T(1) / (T(1) + vexp(-x));
}

// (tanh(x)/x − 1) / x² for |x| <= 0.625, in powers of x²: 4e-9 and 4e-19 of tanh.
inline constexpr float kTanhPoly32[] = {-0x1.555532p-2f, 0x1.110726p-3f, -0x1.b83c50p-5f, 0x1.522668p-6f,
                                        -0x1.75e0fap-8f};
inline constexpr double kTanhPoly64[] = {
    -0x1.5555555555552p-2,  0x1.1111111110c01p-3,  -0x1.ba1ba1b9ce4d4p-5,  0x1.664f487032b38p-6,
    -0x1.226e32c0ab4ecp-7,  0x1.d6d3583b6de18p-9,  -0x1.7d9c1c79960f6p-10, 0x1.350ada9108690p-11,
    -0x1.f10c69f497149p-13, 0x1.80051fb3a90fap-14, -0x1.fa715f516382ap-16, 0x1.957a78892f80bp-18};
TESSERA_INLINE float tanh_polynomial(float z) { return horner(z, kTanhPoly32); }
TESSERA_INLINE double tanh_polynomial(double z) { return horner(z, kTanhPoly64); }

template <class T>
TESSERA_INLINE T vtanh(T x) {
  const T magnitude = vabs(x);
  const T z = x * x;
  const T small = x + x * z * tanh_polynomial(z);
  const T large = T(1) - T(2) / (vexp(T(2) * magnitude) + T(1));
  return magnitude < T(0.625) ? small : vcopysign(large, x);
}

// erf(x)/x − 1 for |x| <= 0.9375 in powers of x²: 2e-8; log erfc(x) for x in [0.9375, 4]: 4e-11 of erf.
inline constexpr float kErfSmall32[] = {0x1.06eba6p-3f,  -0x1.8126d4p-2f, 0x1.ce17a6p-4f,
                                        -0x1.b66320p-6f, 0x1.464fe4p-8f,  -0x1.3658e4p-11f};
inline constexpr float kErfLarge32[] = {0x1.7805d8p-13f, -0x1.212956p+0f, -0x1.444036p-1f, -0x1.bbb720p-4f,
                                        0x1.9c129ep-6f,  -0x1.1222f8p-8f, 0x1.ca24a4p-12f, -0x1.65798ap-16f};

TESSERA_INLINE float verf(float x) {
  const float magnitude = vabs(x);
  const float bounded = magnitude > 4.0f ? 4.0f : magnitude;  // erf(4) rounds to 1
  const float small = x + x * horner(x * x, kErfSmall32);
  const float large = 1.0f - vexp(horner(bounded, kErfLarge32));
  return magnitude < 0.9375f ? small : vcopysign(large, x);
}
// f64 is there for gradient checks: the C library's is exact and fast enough.
TESSERA_INLINE double verf(double x) { return __builtin_erf(x); }

// Rarely used: calls of the C library.
TESSERA_INLINE float vsin(float x) { return __builtin_sinf(x); }
TESSERA_INLINE double vsin(double x) { return __builtin_sin(x); }
TESSERA_INLINE float vcos(float x) { return __builtin_cosf(x); }
TESSERA_INLINE double vcos(double x) { return __builtin_cos(x); }
TESSERA_INLINE float vpow(float x, float y) { return __builtin_powf(x, y); }
TESSERA_INLINE double vpow(double x, double y) { return __builtin_pow(x, y); }

// cos(π/2 · r) in powers of r² and sin(π/2 · r)/r for |r| <= 1/2: 4e-20 and 2e-21.
inline constexpr double kCosPoly64[] = {0x1.0000000000000p+0,  -0x1.3bd3cc9be45dep+0, 0x1.03c1f081b5aaap-2,
                                        -0x1.55d3c7e3c8d5bp-6, 0x1.e1f5068303e8dp-11, -0x1.a6d1ec3d41a47p-16,
                                        0x1.f9cc15d0abd98p-22, -0x1.b2586a5edf3b3p-28};
inline constexpr double kSinPoly64[] = {0x1.921fb54442d18p+0,  -0x1.4abbce625be53p-1, 0x1.466bc6775aad9p-4,
                                        -0x1.32d2cce62abbdp-8, 0x1.50783485c2da3p-13, -0x1.e3074b42c9c1ap-19,
                                        0x1.e8eec7a0cc2cbp-25, -0x1.6c58cd8717e99p-31};

/// cos(2π · turns) for turns in [0, 1]: an exact argument, so nothing is lost in reduction.
TESSERA_INLINE double vcos_turns(double turns) {
  using F = FloatFormat<double>;
  const double quarters = turns * 4.0;
  const double shifted = quarters + F::kRound;
  const std::int64_t quarter = bits_of(shifted);  // the low bits hold the number of quarter turns
  const double r = quarters - (shifted - F::kRound);
  const double z = r * r;
  const double cosine = horner(z, kCosPoly64);
  const double sine = r * horner(z, kSinPoly64);
  const double value = (quarter & 1) != 0 ? sine : cosine;
  // cos, −sin, −cos, sin for quarters 0, 1, 2, 3
  return ((quarter + 1) & 2) != 0 ? -value : value;
}

}  // namespace tessera::kernels::TESSERA_ISA
