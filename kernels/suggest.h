#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tessera {

/// The candidate with the smallest edit distance (Levenshtein, 1966; two swapped neighbours count as one
/// edit) to `word`: for "did you mean ...?".
/// Empty if there is no candidate.
[[nodiscard]] std::string nearest_name(std::string_view word, std::span<const std::string> candidates);

/// The nearest, if it can be what was meant: no more than a third of the word's letters (at least one) are
/// others. Else empty: a guess that is far off sends the reader the wrong way.
[[nodiscard]] std::string near_name(std::string_view word, std::span<const std::string> candidates);

}  // namespace tessera
