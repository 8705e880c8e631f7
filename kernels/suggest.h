#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tessera {

/// The candidate with the smallest edit distance (Levenshtein, 1966) to `word`: for "did you mean ...?".
/// Empty if there is no candidate.
[[nodiscard]] std::string nearest_name(std::string_view word, std::span<const std::string> candidates);

}  // namespace tessera
