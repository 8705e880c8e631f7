#include "optim/parameter_groups.h"

#include <algorithm>

namespace tessera::optim {

bool matches(std::string_view pattern, std::string_view name) noexcept {
  // Greedy with one point to return to: if what follows the last `*` does not fit here, that `*` takes one
  // character more. Earlier stars never have to change, so the cost is at most |pattern| · |name|.
  std::size_t p = 0, n = 0;
  std::size_t after_star = std::string_view::npos, retry = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      after_star = ++p;
      retry = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (after_star != std::string_view::npos) {
      p = after_star;
      n = ++retry;
    } else {
      return false;
    }
  }
  return std::all_of(pattern.begin() + static_cast<std::ptrdiff_t>(p), pattern.end(),
                     [](char c) { return c == '*'; });
}

std::size_t group_index(std::span<const ParameterGroup> groups, std::string_view name) noexcept {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (const std::string& pattern : groups[g].patterns) {
      if (matches(pattern, name)) return g;
    }
  }
  return kNoGroup;
}

std::vector<ParameterGroup> no_decay_for_biases_and_norms() {
  // Each at the start of a name component, so that `kiln_feed.weight` is not taken for a LayerNorm.
  return {{.patterns = {"bias", "*.bias", "gain", "*.gain", "ln*", "*.ln*", "norm*", "*.norm*", "*norm.*"},
           .weight_decay = 0.0}};
}

}  // namespace tessera::optim
