#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "nn/language_model.h"

namespace tessera::nn {

struct GenerateOptions {
  std::int64_t tokens = 100;  ///< new ones at most
  double temperature = 1.0;   ///< logits are divided by it; 0: always the likeliest token
  std::int64_t top_k = 0;     ///< only the k likeliest tokens can come; 0: all
  std::uint64_t seed = 0;     ///< of the draws; token i is a function of (seed, i, probabilities)
  std::optional<std::int64_t> stop_token = std::nullopt;  ///< ends the text; is not part of it
  bool use_cache = true;  ///< keep keys and values; without, each token costs a pass over all before it
  /// In the place of LanguageModel::next_logits, for a model that is laid out over ranks: ids [1, T] and a
  /// cache or null → [1, V].
  std::function<Tensor(const Tensor& ids, KvCache* cache)> next_logits = nullptr;
  /// Called for each token as it comes; false: stop.
  std::function<bool(std::int64_t token)> on_token = nullptr;
};

/// Continues `prompt` token by token; returns the new tokens. Runs in evaluation mode and without gradients;
/// the model's mode is put back.
///
/// Beyond the context the window slides: the later half of the tokens is read again as a new beginning.
/// Errors   ConfigError for an empty prompt, a negative temperature or top_k; IndexError for an id outside of
///          the vocabulary; NonFiniteError if the model gives a logit that is NaN.
/// Example  const auto ids = tokenizer.encode("In the beginning");
///          const std::vector<std::int64_t> prompt(ids.begin(), ids.end());
///          generate(model, prompt, {.tokens = 50, .temperature = 0.8, .top_k = 40});
std::vector<std::int64_t> generate(LanguageModel& model, std::span<const std::int64_t> prompt,
                                   const GenerateOptions& options = {});

/// Draws an index from softmax(logits / temperature) over its top_k largest; `draw` in [0, 1) chooses.
[[nodiscard]] std::int64_t sample_token(std::span<const double> logits, double temperature,
                                        std::int64_t top_k, double draw);

}  // namespace tessera::nn
