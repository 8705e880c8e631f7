#include "tests/layout_row.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <sstream>

#include "kernels/error.h"

namespace tessera::dist {
namespace {

using Mode = Config::Recompute::Mode;
using Set = void (*)(Config& config, const std::string& value);

std::int64_t number(const std::string& text) {
  std::int64_t result = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  if (error != std::errc() || end != text.data() + text.size())
    throw ConfigError(fmt::format("expected a whole number, got '{}'", text));
  return result;
}

void set_stage(Config& c, const std::string& value) {
  const std::int64_t stage = number(value);
  if (stage < 0 || stage > 3) throw ConfigError("expected zero=0 to zero=3");
  c.zero.stage = static_cast<int>(stage);
}

void set_recomputation(Config& c, const std::string& value) {
  if (value != "full" && value != "selective")
    throw ConfigError(fmt::format("expected recompute=full or recompute=selective, got '{}'", value));
  c.recompute.mode = value == "full" ? Mode::kFull : Mode::kSelective;
}

void set_scale(Config& c, const std::string& value) {
  if (!value.starts_with("2^")) throw ConfigError(fmt::format("expected a power of two, got '{}'", value));
  c.fp16.initial_scale_power = number(value.substr(2));
}

const std::map<std::string, Set>& words() {
  using C = Config;
  using Text = std::string;
  static const std::map<std::string, Set> known{
      {"zero", set_stage},
      {"mics", [](C& c, const Text& v) { c.zero.stage = 3, c.zero.mics_shard_size = number(v); }},
      {"hpz", [](C& c, const Text& v) { c.zero.stage = 3, c.zero.hpz_partition_size = number(v); }},
      {"full-gradients", [](C& c, const Text&) { c.zero.keep_full_gradients = true; }},
      {"persist", [](C& c, const Text& v) { c.zero.param_persistence_threshold = number(v); }},
      {"reuse", [](C& c, const Text& v) { c.zero.max_reuse_distance = number(v); }},
      {"sp", [](C& c, const Text&) { c.sequence_parallel = true; }},
      {"ulysses", [](C& c, const Text&) { c.context_parallel = C::ContextParallel::kUlysses; }},
      {"schedule", [](C& c, const Text& v) { c.pipeline.schedule = v; }},
      {"chunks", [](C& c, const Text& v) { c.pipeline.chunks = number(v); }},
      {"uniform", [](C& c, const Text&) { c.pipeline.partition = "uniform"; }},
      {"recompute", set_recomputation},
      {"checkpoints", [](C& c, const Text& v) { c.recompute.number_checkpoints = number(v); }},
      {"partitioned", [](C& c, const Text&) { c.recompute.partition_activations = true; }},
      {"on-host", [](C& c, const Text&) { c.recompute.cpu_checkpointing = true; }},
      {"pass", [](C& c, const Text& v) { c.batch.micro_batch = number(v); }},
      {"f64", [](C& c, const Text&) { c.dtype = kF64; }},
      {"f32", [](C& c, const Text&) { c.dtype = kF32; }},
      {"bf16", [](C& c, const Text&) { c.dtype = kBF16; }},
      {"f16", [](C& c, const Text&) { c.dtype = kF16; }},
      {"bf16-state", [](C& c, const Text&) { c.dtype = kBF16, c.optimizer.state_dtype = kBF16; }},
      {"scale", set_scale},
      {"invariant", [](C& c, const Text&) { c.numerics = C::Numerics::kInvariant; }},
      {"fast", [](C& c, const Text&) { c.numerics = C::Numerics::kFast; }},
  };
  return known;
}

bool is_optimizer(const std::string& word) {
  for (const char* each : {"AdamW", "SGD", "Adagrad", "Lion", "Lamb", "Muon"})
    if (word == each) return true;
  return false;
}

void apply(Config& config, const std::string& word, const OtherWord& other) {
  const std::size_t equals = word.find('=');
  const std::string key = word.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
  if (other && other(key, value)) return;
  if (is_optimizer(word)) {
    config.optimizer.type = word;
    if (word == "SGD" || word == "Muon") config.optimizer.momentum = 0.9;
  } else if (const auto set = words().find(key); set != words().end()) {
    set->second(config, value);
  } else {
    config.mesh = MeshShape::parse(word);
  }
}

}  // namespace

Config read_layout(const std::string& row, Config config, const OtherWord& other) {
  std::istringstream in(row);
  for (std::string word; in >> word;) {
    try {
      apply(config, word, other);
    } catch (const ConfigError& error) {
      throw ConfigError(fmt::format("row '{}', word '{}': {}", row, word, error.what()));
    }
  }
  return config;
}

}  // namespace tessera::dist
