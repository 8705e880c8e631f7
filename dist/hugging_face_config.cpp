#include "dist/hugging_face_config.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "data/json_depth.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "nn/llama.h"
#include "nn/multi_head_attention.h"

namespace tessera::dist::detail {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostBytes = 1 << 24;

// A config.json whose keys may be missing or null; both mean the default.
class Keys {
 public:
  Keys(const fs::path& path, const Json& json) : path_(path), json_(json) {
    if (!json.is_object()) throw DataError(fmt::format("{}: is not an object of keys", path.string()));
  }

  [[noreturn]] void fail(std::string_view key, const std::string& reason) const {
    throw DataError(fmt::format("{}: '{}' {}", path_.string(), key, reason));
  }
  // Null if it is not there.
  [[nodiscard]] Json find(const char* key) const {
    const auto found = json_.find(key);
    return found == json_.end() ? Json() : *found;
  }
  [[nodiscard]] std::int64_t count(const char* key, std::int64_t fallback) const {
    const Json value = find(key);
    if (value.is_null()) return fallback;
    // 2^31 is more than any size, and products of a few stay numbers.
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < 1 ||
        value.get<std::uint64_t>() > (std::uint64_t{1} << 31))
      fail(key, fmt::format("is {}, not a whole number from 1 to 2^31", value.dump()));
    return value.get<std::int64_t>();
  }
  [[nodiscard]] double number(const char* key, double fallback) const {
    const Json value = find(key);
    if (value.is_null()) return fallback;
    if (!value.is_number() || value.get<double>() < 0.0)
      fail(key, fmt::format("is {}, not a number from 0 on", value.dump()));
    return value.get<double>();
  }
  [[nodiscard]] bool boolean(const char* key, bool fallback) const {
    const Json value = find(key);
    if (value.is_null()) return fallback;
    if (!value.is_boolean()) fail(key, fmt::format("is {}, not true or false", value.dump()));
    return value.get<bool>();
  }
  [[nodiscard]] std::string text(const char* key, const char* fallback) const {
    const Json value = find(key);
    if (value.is_null()) return fallback;
    if (!value.is_string()) fail(key, fmt::format("is {}, not a text", value.dump()));
    return value.get<std::string>();
  }
  void require(bool condition, const char* key, const char* ours) const {
    if (!condition) fail(key, fmt::format("is {}; this model has {}", find(key).dump(), ours));
  }
  [[nodiscard]] bool has(const char* key) const { return !find(key).is_null(); }
  // A number that may stand under either name, as transformers takes it.
  [[nodiscard]] std::int64_t count_of(const char* key, const char* other, std::int64_t fallback) const {
    const std::int64_t value = count(key, count(other, fallback));
    if (count(other, value) != value)
      fail(other, fmt::format("is {}, but '{}', which is the same, is {}", count(other, value), key, value));
    return value;
  }

 private:
  const fs::path& path_;
  Json json_;
};

// What either family may have there, and ours have not.
void refuse_others(const Keys& keys) {
  keys.require(keys.boolean("is_causal", true), "is_causal", "true");
  if (keys.has("quantization_config"))
    keys.fail("quantization_config", "is there; only weights that were not quantised are read");
}

HuggingFaceConfig read_gpt2(const Keys& keys) {
  const std::int64_t width = keys.count_of("n_embd", "hidden_size", 768),
                     layers = keys.count_of("n_layer", "num_hidden_layers", 12);
  const double dropout = keys.number("resid_pdrop", 0.1);
  const std::string activation = keys.text("activation_function", "gelu_new");
  keys.require(activation == "gelu_new" || activation == "gelu_pytorch_tanh", "activation_function",
               "gelu_new, GELU by its tanh formula");
  keys.require(keys.count("n_inner", 4 * width) == 4 * width, "n_inner", "4 · n_embd");
  keys.require(keys.number("layer_norm_epsilon", 1e-5) == 1e-5, "layer_norm_epsilon", "1e-05");
  keys.require(keys.boolean("scale_attn_weights", true), "scale_attn_weights", "true");
  keys.require(!keys.boolean("scale_attn_by_inverse_layer_idx", false), "scale_attn_by_inverse_layer_idx",
               "false");
  keys.require(!keys.boolean("add_cross_attention", false), "add_cross_attention", "false");
  keys.require(keys.boolean("tie_word_embeddings", true), "tie_word_embeddings", "true");
  for (const char* key : {"embd_pdrop", "attn_pdrop"})
    keys.require(keys.number(key, 0.1) == dropout, key, "one dropout for all: make it equal to resid_pdrop");
  if (dropout >= 1.0) keys.fail("resid_pdrop", "must be below 1");
  return {.description = fmt::format("family=gpt2,layers={},heads={},width={},context={},vocab={},dropout={}",
                                     layers, keys.count_of("n_head", "num_attention_heads", 12), width,
                                     keys.count_of("n_positions", "max_position_embeddings", 1024),
                                     keys.count("vocab_size", 50257), dropout),
          .layers = layers,
          .is_gpt2 = true,
          .is_tied = true};
}

// ",rotary_base=..." and what Llama 3.1 adds to it. Version 5 of transformers has one section for both; where
// an older one is there too, that one counts, unless it is empty.
std::string read_rotary(const Keys& keys, const fs::path& path, std::int64_t context) {
  const Json older = keys.find("rope_scaling");
  const char* section_name = older.is_null() || older.empty() ? "rope_parameters" : "rope_scaling";
  const Json section = keys.find(section_name);
  double base = keys.number("rope_theta", 10000.0);
  keys.require(keys.number("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor", "1");
  if (section.is_null()) return fmt::format(",rotary_base={}", base);
  const Keys rotary(path, section);
  base = rotary.number("rope_theta", base);
  rotary.require(rotary.number("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor", "1");
  const std::string type = rotary.text("rope_type", rotary.text("type", "default").c_str());
  if (type == "default") return fmt::format(",rotary_base={}", base);
  if (type != "llama3") {
    keys.fail(section_name, fmt::format("is of type '{}'; this model has 'default' and 'llama3'", type));
  }
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor"}) {
    if (!rotary.has(key)) rotary.fail(key, fmt::format("is missing in {}", section_name));
  }
  // The context that the scaling began with: beside the section, in it, or the model's own.
  const char* original = "original_max_position_embeddings";
  return fmt::format(",rotary_base={},rotary_factor={},rotary_low={},rotary_high={},rotary_context={}", base,
                     rotary.number("factor", 1.0), rotary.number("low_freq_factor", 1.0),
                     rotary.number("high_freq_factor", 4.0),
                     keys.count(original, rotary.count(original, context)));
}

HuggingFaceConfig read_llama(const Keys& keys, const fs::path& path) {
  const std::int64_t width = keys.count("hidden_size", 4096);
  const std::int64_t heads = keys.count("num_attention_heads", 32);
  const std::int64_t layers = keys.count("num_hidden_layers", 32);
  const std::int64_t context = keys.count("max_position_embeddings", 2048);
  const bool tied = keys.boolean("tie_word_embeddings", false);
  const double dropout = keys.number("attention_dropout", 0.0);
  keys.require(keys.text("hidden_act", "silu") == "silu", "hidden_act", "silu");
  keys.require(!keys.boolean("attention_bias", false), "attention_bias", "false");
  keys.require(!keys.boolean("mlp_bias", false), "mlp_bias", "false");
  keys.require(width % heads == 0 && keys.count("head_dim", width / heads) == width / heads, "head_dim",
               "hidden_size / num_attention_heads");
  if (dropout >= 1.0) keys.fail("attention_dropout", "must be below 1");
  return {.description = fmt::format(
              "family=llama,layers={},heads={},kv_heads={},width={},hidden={},context={},vocab={}{},"
              "epsilon={},tied={},dropout={}",
              layers, heads, keys.count("num_key_value_heads", heads), width,
              keys.count("intermediate_size", 11008), context, keys.count("vocab_size", 32000),
              read_rotary(keys, path, context), keys.number("rms_norm_eps", 1e-6), tied ? 1 : 0, dropout),
          .layers = layers,
          .is_gpt2 = false,
          .is_tied = tied};
}

Json gpt2_json(const nn::Gpt2Config& config) {
  return {{"model_type", "gpt2"},
          {"architectures", {"GPT2LMHeadModel"}},
          {"vocab_size", config.vocab},
          {"n_positions", config.context},
          {"n_embd", config.width},
          {"n_layer", config.layers},
          {"n_head", config.heads},
          {"n_inner", nullptr},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", 1e-5},
          {"resid_pdrop", config.dropout},
          {"embd_pdrop", config.dropout},
          {"attn_pdrop", config.dropout},
          {"tie_word_embeddings", true}};
}

Json llama_json(const nn::LlamaConfig& config) {
  Json json = {{"model_type", "llama"},
               {"architectures", {"LlamaForCausalLM"}},
               {"vocab_size", config.vocab},
               {"max_position_embeddings", config.context},
               {"hidden_size", config.width},
               {"intermediate_size", config.hidden},
               {"num_hidden_layers", config.layers},
               {"num_attention_heads", config.heads},
               {"num_key_value_heads", config.kv_heads},
               {"head_dim", nn::head_width(config.width, config.heads)},
               {"hidden_act", "silu"},
               {"rms_norm_eps", config.epsilon},
               {"rope_theta", config.rotary_base},
               {"attention_bias", false},
               {"mlp_bias", false},
               {"attention_dropout", config.dropout},
               {"tie_word_embeddings", config.tied}};
  if (const nn::RotaryScaling& scaling = config.rotary_scaling; scaling.factor != 1.0) {
    json["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", scaling.factor},
                            {"low_freq_factor", scaling.low},
                            {"high_freq_factor", scaling.high},
                            {"original_max_position_embeddings", scaling.context}};
  }
  return json;
}

}  // namespace

HuggingFaceConfig read_hugging_face_config(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code error;
  if (!file || !fs::is_regular_file(path, error))
    throw DataError(fmt::format("{}: there is no such file", path.string()));
  if (const auto size = fs::file_size(path, error); !error && size > static_cast<std::uintmax_t>(kMostBytes))
    throw DataError(fmt::format("{}: {} bytes are too many for a config.json", path.string(), size));
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (data::detail::nests_too_deep(text))
    throw DataError(fmt::format("{}: {}", path.string(), data::detail::too_deep()));
  try {
    const Keys keys(path, Json::parse(text));
    const std::string type = keys.text("model_type", "");
    if (type == "gpt2" || type == "llama") refuse_others(keys);
    if (type == "gpt2") return read_gpt2(keys);
    if (type == "llama") return read_llama(keys, path);
    keys.fail("model_type", fmt::format("is '{}'; the families are 'gpt2' and 'llama'", type));
  } catch (const Json::exception& json_error) {
    throw DataError(fmt::format("{}: not JSON, or cut short: {}", path.string(), json_error.what()));
  }
}

std::string hugging_face_config(const nn::LanguageModel& model, DType dtype,
                                std::optional<std::int64_t> end_of_text) {
  Json json;
  if (const auto* gpt2 = dynamic_cast<const nn::Gpt2*>(&model)) {
    json = gpt2_json(gpt2->config());
  } else if (const auto* llama = dynamic_cast<const nn::Llama*>(&model)) {
    json = llama_json(llama->config());
  } else {
    throw ConfigError(fmt::format("save_hugging_face: {} is neither Gpt2 nor Llama", model.type_name()));
  }
  // Without these, transformers would take the ids of the large vocabularies for granted.
  const Json id = end_of_text ? Json(*end_of_text) : Json();
  json["bos_token_id"] = id;
  json["eos_token_id"] = id;
  json["torch_dtype"] = dtype == kF32 ? "float32" : dtype == kF16 ? "float16" : "bfloat16";
  return json.dump(2) + "\n";
}

}  // namespace tessera::dist::detail
