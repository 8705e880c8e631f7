#pragma once

// config.json of transformers and our descriptions of models, each made of the other. Private to dist/.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "nn/language_model.h"

namespace tessera::dist::detail {

/// What config.json says that the weights do not.
struct HuggingFaceConfig {
  std::string description;  ///< for nn::make_language_model
  std::int64_t layers = 0;
  bool is_gpt2 = false;  ///< else a Llama
  bool is_tied = false;  ///< output layer and embedding are one
};

/// Keys that are missing have the defaults of transformers; keys that do not change what a model computes
/// are not looked at.
/// Errors   DataError that names the key, for a model that ours would not compute the same as.
[[nodiscard]] HuggingFaceConfig read_hugging_face_config(const std::filesystem::path& path);

/// The text of a config.json for `model`, whose weights are in `dtype`.
/// Errors   ConfigError for a model of another family.
[[nodiscard]] std::string hugging_face_config(const nn::LanguageModel& model, DType dtype,
                                              std::optional<std::int64_t> end_of_text);

}  // namespace tessera::dist::detail
