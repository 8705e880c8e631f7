#include "dist/gather_texts.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace tessera::dist {

std::vector<std::string> gather_texts(const std::string& text, Communicator& group) {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(group.size()));
  const std::vector<std::int64_t> own{static_cast<std::int64_t>(text.size())};
  group.all_gather(buffer_of(own), buffer_of(sizes));
  const auto longest = static_cast<std::size_t>(std::ranges::max(sizes));
  std::vector<std::uint8_t> mine(longest), all(longest * sizes.size());
  std::ranges::copy(text, mine.begin());
  group.all_gather(buffer_of(std::as_const(mine)), buffer_of(all));
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(r * longest);
    texts.emplace_back(begin, begin + sizes[r]);
  }
  return texts;
}

}  // namespace tessera::dist
