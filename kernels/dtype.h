#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

/// Element types. 16-bit floats are storage types: kernels compute in f32 and round once on the way out.
enum class DType : std::uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kU8, kBool };

inline constexpr DType kF64 = DType::kF64;
inline constexpr DType kF32 = DType::kF32;
inline constexpr DType kF16 = DType::kF16;
inline constexpr DType kBF16 = DType::kBF16;
inline constexpr DType kI64 = DType::kI64;
inline constexpr DType kI32 = DType::kI32;
inline constexpr DType kU8 = DType::kU8;
inline constexpr DType kBool = DType::kBool;

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

[[nodiscard]] constexpr bool is_floating(DType dtype) noexcept {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

/// "f32", "bf16", ...: the spelling of messages, options and files.
[[nodiscard]] constexpr const char* name(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF64:
      return "f64";
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI64:
      return "i64";
    case DType::kI32:
      return "i32";
    case DType::kU8:
      return "u8";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

/// The type in which sums over `dtype` are held: f64 stays f64, every other float becomes f32.
[[nodiscard]] constexpr DType accumulation_dtype(DType dtype) noexcept {
  return dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

// Always inline: these bodies are also compiled for instruction sets that the linker must not spread.
#define TESSERA_INLINE [[gnu::always_inline]] inline

namespace detail {
TESSERA_INLINE std::uint32_t float_bits(float x) { return __builtin_bit_cast(std::uint32_t, x); }
TESSERA_INLINE float bits_float(std::uint32_t x) { return __builtin_bit_cast(float, x); }
}  // namespace detail

/// f32 → bf16 bits, round to nearest even; NaN stays NaN.
TESSERA_INLINE std::uint16_t bf16_bits_from_f32(float x) {
  const std::uint32_t bits = detail::float_bits(x);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

TESSERA_INLINE float f32_from_bf16_bits(std::uint16_t bits) {
  return detail::bits_float(static_cast<std::uint32_t>(bits) << 16);
}

/// f32 → IEEE half bits, round to nearest even; overflow becomes infinity, tiny values become subnormal.
/// Branch-free, so that loops over it vectorise.
TESSERA_INLINE std::uint16_t f16_bits_from_f32(float x) {
  const std::uint32_t bits = detail::float_bits(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Normal halves: rebias the exponent and round the 13 dropped bits to even.
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 aligns the mantissa so that the float adder does the rounding.
  const std::uint32_t subnormal = detail::float_bits(detail::bits_float(magnitude) + 0.5f) - 0x3F000000u;
  const std::uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<std::uint16_t>(sign | (magnitude >= 0x477FF000u ? special : finite));
}

TESSERA_INLINE float f32_from_f16_bits(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7FFFu) << 13;
  // Scaling by 2^112 rebiases the exponent and normalises subnormals in one exact product.
  const float scaled = detail::bits_float(magnitude) * detail::bits_float(0x77800000u);
  const std::uint32_t special = magnitude | 0x7F800000u;
  return detail::bits_float(sign | (magnitude >= 0x0F800000u ? special : detail::float_bits(scaled)));
}

/// A 16-bit brain float: 8 exponent bits, 7 mantissa bits.
struct BFloat16 {
  std::uint16_t bits = 0;
  BFloat16() = default;
  TESSERA_INLINE explicit BFloat16(float x) : bits(bf16_bits_from_f32(x)) {}
  TESSERA_INLINE explicit operator float() const { return f32_from_bf16_bits(bits); }
};

/// An IEEE 754 half: 5 exponent bits, 10 mantissa bits.
struct Float16 {
  std::uint16_t bits = 0;
  Float16() = default;
  TESSERA_INLINE explicit Float16(float x) : bits(f16_bits_from_f32(x)) {}
  TESSERA_INLINE explicit operator float() const { return f32_from_f16_bits(bits); }
};

/// DType of a C++ element type: `dtype_of<float> == kF32`.
template <class T>
inline constexpr DType dtype_of = static_cast<DType>(255);
template <>
inline constexpr DType dtype_of<double> = DType::kF64;
template <>
inline constexpr DType dtype_of<float> = DType::kF32;
template <>
inline constexpr DType dtype_of<Float16> = DType::kF16;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::kBF16;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::kI64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::kI32;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::kU8;
template <>
inline constexpr DType dtype_of<bool> = DType::kBool;

}  // namespace tessera
