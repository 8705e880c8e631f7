#include "kernels/suggest.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace tessera {
namespace {

// Levenshtein's, in which two neighbours that were swapped are one edit (Damerau, 1964): the commonest.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the usual table: row[j] is the distance of a's first i letters to b's first j.
  std::vector<std::size_t> row(b.size() + 1), last(row.size()), before_last(row.size());
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before_last, last);
    std::swap(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view word, std::span<const std::string> candidates) {
  std::string best;
  std::size_t best_distance = std::numeric_limits<std::size_t>::max();
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string near_name(std::string_view word, std::span<const std::string> candidates) {
  std::string nearest = nearest_name(word, candidates);
  const std::size_t most = std::max<std::size_t>((word.size() + 1) / 3, 1);
  return edit_distance(word, nearest) <= most ? nearest : std::string();
}

}  // namespace tessera
