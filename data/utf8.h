#pragma once

#include <cstdint>
#include <string_view>

// Private to data/.
namespace tessera::data::detail {

/// Number of bytes that a UTF-8 sequence with this first byte has; 0 for a byte that starts none.
[[nodiscard]] constexpr int utf8_sequence_length(unsigned char first) noexcept {
  if (first < 0x80) return 1;
  if (first < 0xC2) return 0;  // continuation bytes, and C0 and C1, which only overlong forms use
  if (first < 0xE0) return 2;
  if (first < 0xF0) return 3;
  return first < 0xF5 ? 4 : 0;
}

/// True if `byte` may be the second of a sequence that starts with `first`: rules out overlong forms,
/// surrogates and code points above U+10FFFF (Unicode 15, table 3-7).
[[nodiscard]] constexpr bool utf8_second_byte(unsigned char first, unsigned char byte) noexcept {
  const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return low <= byte && byte <= high;
}

[[nodiscard]] constexpr bool utf8_continuation(unsigned char byte) noexcept { return (byte & 0xC0) == 0x80; }

struct CodePoint {
  std::int32_t value;  ///< -1 for a byte that is not part of valid UTF-8
  int length;          ///< bytes; 1 for an invalid byte
};

/// The code point at the start of `text`, which is not empty.
[[nodiscard]] constexpr CodePoint utf8_decode(std::string_view text) noexcept {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return {first, 1};
  const int length = utf8_sequence_length(first);
  if (length == 0 || text.size() < static_cast<std::size_t>(length)) return {-1, 1};
  if (!utf8_second_byte(first, static_cast<unsigned char>(text[1]))) return {-1, 1};
  std::int32_t value = first & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(text[static_cast<std::size_t>(i)]);
    if (!utf8_continuation(byte)) return {-1, 1};
    value = value << 6 | (byte & 0x3F);
  }
  return {value, length};
}

/// Unicode's property White_Space.
[[nodiscard]] constexpr bool is_white_space(std::int32_t c) noexcept {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace tessera::data::detail
