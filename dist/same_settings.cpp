#include "dist/same_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>
#include <span>
#include <utility>

#include "data/hash.h"
#include "dist/gather_texts.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

constexpr char kEnd = '\0';  // of a name and of a value, which may be a path with anything else in it

std::string to_text(const Settings& settings) {
  std::string text;
  for (const auto& [name, value] : settings) {
    for (const std::string& part : {name, value}) {
      text += part;
      text += kEnd;
    }
  }
  return text;
}

Settings from_text(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = text.find(kEnd, begin);
    parts.push_back(text.substr(begin, end - begin));
  }
  Settings settings;
  for (std::size_t i = 0; i + 1 < parts.size(); i += 2) settings[parts[i]] = parts[i + 1];
  return settings;
}

std::string describe_ranks(const std::vector<int>& ranks) {
  constexpr std::size_t kMost = 4;
  const auto shown = std::span(ranks).first(std::min(ranks.size(), kMost));
  return fmt::format("rank{} {}{}", ranks.size() == 1 ? "" : "s", fmt::join(shown, ", "),
                     ranks.size() > kMost ? fmt::format(" and {} more", ranks.size() - kMost) : "");
}

// "batch is 8 on rank 0, 16 on ranks 1, 2"; empty if it is the same everywhere.
std::string describe_difference(const std::string& name, const std::vector<Settings>& all) {
  std::vector<std::pair<std::string, std::vector<int>>> values;  // in the order of the ranks
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const auto found = all[rank].find(name);
    const std::string value = found == all[rank].end() ? "not there" : found->second;
    auto same = std::ranges::find(values, value, &std::pair<std::string, std::vector<int>>::first);
    if (same == values.end()) same = values.insert(values.end(), {value, {}});
    same->second.push_back(static_cast<int>(rank));
  }
  if (values.size() == 1) return "";
  std::vector<std::string> parts;
  for (const auto& [value, ranks] : values)
    parts.push_back(fmt::format("{} on {}", value, describe_ranks(ranks)));
  return fmt::format("{} is {}", name, fmt::join(parts, ", "));
}

}  // namespace

void require_same_settings(const Settings& mine, Communicator& group) {
  if (group.size() == 1 || !group.moves_data()) return;
  const std::string text = to_text(mine);
  data::detail::Fnv1a hash;
  hash.add(std::as_bytes(std::span(text)));
  const std::vector<std::int64_t> own{static_cast<std::int64_t>(hash.value())};
  std::vector<std::int64_t> hashes(static_cast<std::size_t>(group.size()));
  group.all_gather(buffer_of(own), buffer_of(hashes));
  if (std::ranges::adjacent_find(hashes, std::not_equal_to<>()) == hashes.end()) return;

  std::vector<Settings> all;
  std::set<std::string> names;
  for (const std::string& other : gather_texts(text, group)) {
    all.push_back(from_text(other));
    for (const auto& [name, value] : all.back()) names.insert(name);
  }
  std::vector<std::string> differences;
  for (const std::string& name : names) {
    if (const std::string difference = describe_difference(name, all); !difference.empty())
      differences.push_back(difference);
  }
  throw ConfigError(fmt::format(
      "settings differ between ranks: {}; start all of them with the same flags, config file and data",
      fmt::join(differences, "; ")));
}

}  // namespace tessera::dist
