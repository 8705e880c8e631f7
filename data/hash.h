#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

// Private to data/ and dist/.
namespace tessera::data::detail {

/// 64-bit FNV-1a over what is added. Finds accidents (a bit flipped, another vocabulary), not forgery.
class Fnv1a {
 public:
  Fnv1a() = default;
  /// Goes on from the value() of an earlier one.
  explicit Fnv1a(std::uint64_t value) noexcept : hash_(value) {}

  void add(std::span<const std::byte> bytes) noexcept {
    for (const std::byte b : bytes) hash_ = (hash_ ^ static_cast<std::uint64_t>(b)) * 0x100000001B3ull;
  }
  /// The length first, so that "ab", "c" differs from "a", "bc".
  void add(std::string_view text) noexcept {
    add(static_cast<std::uint64_t>(text.size()));
    add(std::as_bytes(std::span(text.data(), text.size())));
  }
  /// Eight bytes, little-endian.
  void add(std::uint64_t value) noexcept {
    for (int shift = 0; shift < 64; shift += 8)
      hash_ = (hash_ ^ ((value >> shift) & 0xFFu)) * 0x100000001B3ull;
  }
  [[nodiscard]] std::uint64_t value() const noexcept { return hash_; }

 private:
  std::uint64_t hash_ = 0xCBF29CE484222325ull;
};

}  // namespace tessera::data::detail
