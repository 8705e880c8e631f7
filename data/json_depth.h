#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// Private to data/ and dist/.
namespace tessera::data::detail {

/// More levels than any file that is read here has.
inline constexpr std::size_t kMostJsonLevels = 100;

/// True if brackets of `json` stand in more than kMostJsonLevels others. To be asked before parsing: the
/// parser takes any depth, but copying or printing such a value calls itself once for each level, and a
/// megabyte of brackets ends the program.
[[nodiscard]] constexpr bool nests_too_deep(std::string_view json) noexcept {
  std::size_t depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_text) {
      if (c == '\\') ++i;  // what follows it ends no text
      if (c == '"') in_text = false;
    } else if (c == '"') {
      in_text = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMostJsonLevels) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

/// What to say of it, behind the name of the file.
[[nodiscard]] inline std::string too_deep() {
  return "its brackets stand in more than " + std::to_string(kMostJsonLevels) + " others";
}

}  // namespace tessera::data::detail
