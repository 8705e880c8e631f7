#include "data/byte_characters.h"

#include <fmt/format.h>

#include "data/utf8.h"
#include "kernels/error.h"

namespace tessera::data::detail {
namespace {

bool prints(int byte) { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD); }

}  // namespace

ByteCharacters::ByteCharacters() {
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = prints(byte) ? byte : next++;
    std::string& character = characters_[static_cast<std::size_t>(byte)];
    if (code_point < 0x80) {
      character = static_cast<char>(code_point);
    } else {  // all are below U+0800: two bytes
      character = {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
    }
    byte_of_.emplace(code_point, static_cast<char>(byte));
  }
}

std::string ByteCharacters::to_characters(std::string_view bytes) const {
  std::string text;
  for (const char c : bytes) text += characters_[static_cast<unsigned char>(c)];
  return text;
}

std::string ByteCharacters::to_bytes(std::string_view characters, std::int64_t id) const {
  std::string bytes;
  while (!characters.empty()) {
    const CodePoint code_point = utf8_decode(characters);
    const auto found = byte_of_.find(code_point.value);
    if (found == byte_of_.end()) {
      throw DataError(
          fmt::format("token {} has the character U+{:04X}, which stands for no byte", id, code_point.value));
    }
    bytes += found->second;
    characters.remove_prefix(static_cast<std::size_t>(code_point.length));
  }
  return bytes;
}

}  // namespace tessera::data::detail
