#include "nn/model_factory.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include "kernels/error.h"
#include "kernels/suggest.h"
#include "nn/gpt2.h"
#include "nn/llama.h"

namespace tessera::nn {
namespace {

constexpr std::int64_t kDefaultContext = 1024;  // as GPT-2's

std::string trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t") - first + 1));
}

// "gpt2,context=256" taken apart: a name, if there is one, and keys with values.
class Specification {
 public:
  explicit Specification(std::string_view text) : text_(text) {
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      const std::string part = trimmed(text.substr(begin, end - begin));
      const std::size_t equals = part.find('=');
      if (equals != std::string::npos) {
        const std::string key = trimmed(std::string_view(part).substr(0, equals));
        if (!values_.emplace(key, trimmed(std::string_view(part).substr(equals + 1))).second) {
          throw ConfigError(fmt::format("model '{}': {} is given twice", text, key));
        }
      } else if (begin == 0 && !part.empty()) {
        name_ = part;
      } else {
        throw ConfigError(fmt::format("model '{}': '{}' is not of the form key=value", text, part));
      }
      begin = end + 1;
    }
  }

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] bool has(const std::string& key) const { return values_.contains(key); }

  [[nodiscard]] std::string get(const std::string& key, const std::string& fallback) const {
    const auto found = values_.find(key);
    return found == values_.end() ? fallback : found->second;
  }

  // The following leave `target` as it is if the key is not there.

  void read(const std::string& key, std::int64_t& target, std::int64_t least = 1) const {
    if (!has(key)) return;
    const std::string& value = values_.at(key);
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), target);
    if (error != std::errc() || end != value.data() + value.size() || target < least) {
      throw ConfigError(fmt::format("model '{}': {} must be a whole number from {} on, but it is '{}'", text_,
                                    key, least, value));
    }
  }

  void read(const std::string& key, double& target, double least) const {
    if (!has(key)) return;
    const std::string& value = values_.at(key);
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), target);
    if (error != std::errc() || end != value.data() + value.size() || !std::isfinite(target) ||
        target < least) {
      throw ConfigError(fmt::format("model '{}': {} must be a number from {} on, but it is '{}'", text_, key,
                                    least, value));
    }
  }

  void read(const std::string& key, bool& target) const {
    std::int64_t value = target ? 1 : 0;
    read(key, value, 0);
    if (value > 1)
      throw ConfigError(fmt::format("model '{}': {} must be 0 or 1, but it is {}", text_, key, value));
    target = value == 1;
  }

  void check_keys(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : values_) {
      if (std::ranges::find(known, key) != known.end()) continue;
      throw ConfigError(fmt::format("model '{}': unknown key '{}'; did you mean '{}'? Known here are {}",
                                    text_, key, nearest_name(key, known), fmt::join(known, ", ")));
    }
  }

  void require(const std::vector<std::string>& keys) const {
    for (const std::string& key : keys) {
      if (has(key)) continue;
      throw ConfigError(
          fmt::format("model '{}': {} is missing; without the name of a known model, {} are needed", text_,
                      key, fmt::join(keys, ", ")));
    }
  }

 private:
  std::string text_;
  std::string name_;
  std::map<std::string, std::string> values_;
};

// One table for both families: name → configuration.
struct Known {
  std::optional<Gpt2Config> gpt2;
  std::optional<LlamaConfig> llama;
};

const std::vector<std::pair<std::string, Known>>& known_models() {
  static const std::vector<std::pair<std::string, Known>> models = {
      {"gpt2", {Gpt2Config::gpt2(), {}}},
      {"gpt2-medium", {Gpt2Config::gpt2_medium(), {}}},
      {"gpt2-large", {Gpt2Config::gpt2_large(), {}}},
      {"gpt2-xl", {Gpt2Config::gpt2_xl(), {}}},
      {"llama-15m", {{}, LlamaConfig::llama_15m()}},
      {"llama-1b", {{}, LlamaConfig::llama_1b()}},
      {"llama-7b", {{}, LlamaConfig::llama_7b()}},
      {"llama-8b", {{}, LlamaConfig::llama_8b()}},
  };
  return models;
}

const Known& find_known(const Specification& specification) {
  for (const auto& [name, known] : known_models()) {
    if (name == specification.name()) return known;
  }
  throw ConfigError(fmt::format(
      "model '{}': there is no model '{}'; did you mean '{}'? Known are {}; or give sizes, as "
      "in layers=4,heads=4,width=128,context=256",
      specification.text(), specification.name(), nearest_name(specification.name(), language_model_names()),
      fmt::join(language_model_names(), ", ")));
}

std::int64_t resolve_vocab(const Specification& specification, std::int64_t vocab) {
  std::int64_t asked = vocab;
  specification.read("vocab", asked);
  if (asked < vocab) {
    throw ConfigError(
        fmt::format("model '{}': vocab={} is smaller than the {} tokens of the data; leave it out "
                    "or make it larger",
                    specification.text(), asked, vocab));
  }
  return asked;
}

std::unique_ptr<LanguageModel> make_gpt2(const Specification& specification, Gpt2Config config,
                                         std::int64_t vocab) {
  config.vocab = resolve_vocab(specification, vocab);
  specification.read("layers", config.layers);
  specification.read("heads", config.heads);
  specification.read("width", config.width);
  specification.read("context", config.context);
  specification.read("dropout", config.dropout, 0.0);
  return std::make_unique<Gpt2>(config);
}

std::unique_ptr<LanguageModel> make_llama(const Specification& specification, LlamaConfig config,
                                          std::int64_t vocab) {
  config.vocab = resolve_vocab(specification, vocab);
  specification.read("layers", config.layers);
  specification.read("heads", config.heads);
  specification.read("width", config.width);
  // Sizes that follow from others unless they are given themselves.
  if (specification.has("heads")) config.kv_heads = config.heads;
  if (specification.has("width")) config.hidden = LlamaConfig::default_hidden(config.width);
  specification.read("kv_heads", config.kv_heads);
  specification.read("hidden", config.hidden);
  specification.read("context", config.context);
  specification.read("rotary_base", config.rotary_base, 1.0);
  specification.read("rotary_factor", config.rotary_scaling.factor, 1.0);
  specification.read("rotary_low", config.rotary_scaling.low, 0.0);
  specification.read("rotary_high", config.rotary_scaling.high, 0.0);
  specification.read("rotary_context", config.rotary_scaling.context);
  specification.read("epsilon", config.epsilon, 0.0);
  specification.read("tied", config.tied);
  specification.read("dropout", config.dropout, 0.0);
  return std::make_unique<Llama>(config);
}

}  // namespace

const std::vector<std::string>& language_model_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const auto& model : known_models()) result.push_back(model.first);
    return result;
  }();
  return names;
}

std::unique_ptr<LanguageModel> make_language_model(std::string_view text, std::int64_t vocab) {
  static const std::vector<std::string> gpt2_keys = {"family",  "layers", "heads",  "width",
                                                     "context", "vocab",  "dropout"};
  static const std::vector<std::string> llama_keys = {
      "family",         "layers",  "heads",       "kv_heads",      "width",      "hidden",
      "context",        "vocab",   "rotary_base", "rotary_factor", "rotary_low", "rotary_high",
      "rotary_context", "epsilon", "tied",        "dropout"};
  const Specification specification(text);
  const Known* known = specification.name().empty() ? nullptr : &find_known(specification);
  const std::string own_family = known == nullptr ? "gpt2" : known->gpt2 ? "gpt2" : "llama";
  const std::string family = specification.get("family", own_family);
  if (family != "gpt2" && family != "llama") {
    throw ConfigError(
        fmt::format("model '{}': unknown family '{}'; the families are gpt2 and llama", text, family));
  }
  if (known != nullptr && family != own_family) {
    throw ConfigError(fmt::format("model '{}': {} is of family {}, not {}", text, specification.name(),
                                  own_family, family));
  }
  specification.check_keys(family == "gpt2" ? gpt2_keys : llama_keys);
  if (known == nullptr) specification.require({"layers", "heads", "width"});

  if (family == "gpt2") {
    return make_gpt2(specification, known == nullptr ? Gpt2Config() : *known->gpt2, vocab);
  }
  LlamaConfig config;
  config.context = kDefaultContext;
  return make_llama(specification, known == nullptr ? config : *known->llama, vocab);
}

}  // namespace tessera::nn
