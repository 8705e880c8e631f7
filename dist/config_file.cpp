#include "dist/config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/json_depth.h"
#include "kernels/error.h"
#include "kernels/suggest.h"

namespace tessera::dist {

using Json = nlohmann::ordered_json;
using data::detail::kMostJsonLevels;

struct ConfigFile::Object {
  Json json = Json::object();
  std::string place;  // "config.json" or "config.json: optimizer.params", for messages
  std::vector<std::string> known;
  std::map<std::string, std::shared_ptr<Object>> sections;
  std::map<std::string, std::string> explained;
  bool is_root = true;

  // The value of `key`; none if it is absent, "auto" or null.
  const Json* find(const std::string& key) {
    if (std::ranges::find(known, key) == known.end()) known.push_back(key);
    const auto found = json.find(key);
    return found == json.end() || *found == "auto" || found->is_null() ? nullptr : &*found;
  }

  // Paths of the sections below, "optimizer.params" say, in which `key` is known.
  void find_known(const std::string& key, const std::string& path, std::vector<std::string>& paths) const {
    if (std::ranges::find(known, key) != known.end()) paths.push_back(path + key);
    for (const auto& [name, section] : sections) section->find_known(key, path + name + ".", paths);
  }

  [[noreturn]] void reject(const std::string& key, const char* expected, const Json& value) const {
    throw ConfigError(fmt::format("{}: '{}' must be {}, but it is {}", place, key, expected, value.dump()));
  }
};

ConfigFile::ConfigFile() : object_(std::make_shared<Object>()) {}
ConfigFile::ConfigFile(std::shared_ptr<Object> object) : object_(std::move(object)) {}

ConfigFile ConfigFile::load(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in || std::filesystem::is_directory(path)) {
    throw ConfigError(fmt::format("config: {} cannot be opened", path.string()));
  }
  return parse({std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()}, path.string());
}

ConfigFile ConfigFile::parse(const std::string& json, const std::string& origin) {
  auto object = std::make_shared<Object>();
  object->place = origin;
  std::vector<std::set<std::string>> keys;  // of the objects around the place that is read
  const auto refuse = [&](int depth, Json::parse_event_t event, Json& parsed) {
    // Asked here and not by nests_too_deep, which knows no comments: a configuration may have some.
    if (static_cast<std::size_t>(depth) > kMostJsonLevels) {
      throw ConfigError(fmt::format("{}: brackets stand in more than {} others", origin, kMostJsonLevels));
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw ConfigError(fmt::format("{}: key {} is given twice", origin, parsed.dump()));
    }
    return true;
  };
  try {
    object->json = Json::parse(json, refuse, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::exception& error) {
    throw ConfigError(fmt::format("{}: is not valid JSON: {}", origin, error.what()));
  }
  if (!object->json.is_object()) throw ConfigError(fmt::format("{}: must be a JSON object {{...}}", origin));
  return ConfigFile(std::move(object));
}

std::optional<std::int64_t> ConfigFile::integer(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > kLargest) {
    object_->reject(key, "an integer below 2^63", *value);
  }
  if (value->is_number_integer()) return value->get<std::int64_t>();
  if (value->is_number_float()) {
    const double number = value->get<double>();
    if (number == std::trunc(number) && std::fabs(number) < 9e15) return static_cast<std::int64_t>(number);
  }
  object_->reject(key, "an integer", *value);
}

std::optional<double> ConfigFile::number(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) object_->reject(key, "a number", *value);
  return value->get<double>();
}

std::optional<bool> ConfigFile::boolean(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) object_->reject(key, "true or false", *value);
  return value->get<bool>();
}

std::optional<std::string> ConfigFile::text(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) object_->reject(key, "a string", *value);
  return value->get<std::string>();
}

std::optional<std::vector<double>> ConfigFile::numbers(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  const bool all_numbers =
      value->is_array() && std::ranges::all_of(*value, [](const Json& v) { return v.is_number(); });
  if (!all_numbers) object_->reject(key, "an array of numbers", *value);
  return value->get<std::vector<double>>();
}

std::optional<std::string> ConfigFile::json(const std::string& key) {
  const Json* value = object_->find(key);
  if (value == nullptr) return std::nullopt;
  return value->dump();
}

ConfigFile ConfigFile::section(const std::string& key) {
  const Json* value = object_->find(key);
  if (const auto known = object_->sections.find(key); known != object_->sections.end()) {
    return ConfigFile(known->second);
  }
  auto section = std::make_shared<Object>();
  section->is_root = false;
  section->place = fmt::format("{}{}{}", object_->place, object_->is_root ? ": " : ".", key);
  if (value != nullptr) {
    if (!value->is_object()) object_->reject(key, "an object {...}", *value);
    section->json = *value;
  }
  object_->sections.emplace(key, section);
  return ConfigFile(std::move(section));
}

bool ConfigFile::contains(const std::string& key) const { return object_->json.contains(key); }

std::vector<std::string> ConfigFile::keys() const {
  std::vector<std::string> result;
  for (const auto& [key, value] : object_->json.items()) result.push_back(key);
  return result;
}

void ConfigFile::explain(const std::string& key, const std::string& advice) {
  object_->explained[key] = advice;
}

void ConfigFile::refuse_unknown(std::string_view reason) const { refuse_unknown(*object_, reason); }

void ConfigFile::refuse_unknown(const Object& root, std::string_view reason) const {
  const auto advice = [&](const std::string& key) -> std::string {
    if (!reason.empty()) return std::string(reason);
    if (const auto found = object_->explained.find(key); found != object_->explained.end())
      return found->second;
    if (const std::string near = near_name(key, object_->known); !near.empty())
      return fmt::format("did you mean '{}'?", near);
    std::vector<std::string> paths;
    root.find_known(key, "", paths);
    // A word like "enabled" is known everywhere, and says nothing.
    if (!paths.empty() && paths.size() <= 3)
      return fmt::format("there is {}; did you mean that?", fmt::join(paths, " and "));
    return "docs/config.md has all keys";
  };
  for (const auto& [key, value] : object_->json.items()) {
    if (std::ranges::find(object_->known, key) != object_->known.end()) continue;
    throw ConfigError(fmt::format("{}: unknown key '{}'; {}", object_->place, key, advice(key)));
  }
  for (const auto& [key, section] : object_->sections) ConfigFile(section).refuse_unknown(root, {});
}

void ConfigFile::ignore_rest() {
  for (const auto& [key, value] : object_->json.items()) object_->known.push_back(key);
}

void ConfigFile::refuse(const std::string& key, std::string_view reason) const {
  const auto found = object_->json.find(key);
  throw ConfigError(fmt::format("{}: '{}' is {}: {}", object_->place, key,
                                found == object_->json.end() ? "left out" : found->dump(), reason));
}

std::string ConfigFile::dump() const { return object_->json.dump(2); }

}  // namespace tessera::dist
