#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

// Private to data/.
namespace tessera::data::detail {

/// JSON holds Unicode, tokens are bytes. GPT-2's way: bytes that print stand for the code point of the same
/// number, the other 68 for U+0100 to U+0143, so that a space reads "Ġ" and a line feed "Ċ".
class ByteCharacters {
 public:
  ByteCharacters();

  [[nodiscard]] std::string to_characters(std::string_view bytes) const;
  /// Errors    DataError, naming token `id`, for a character that stands for no byte.
  [[nodiscard]] std::string to_bytes(std::string_view characters, std::int64_t id) const;

 private:
  std::array<std::string, 256> characters_;
  std::unordered_map<std::int32_t, char> byte_of_;  // by code point
};

}  // namespace tessera::data::detail
