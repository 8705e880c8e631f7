#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "nn/language_model.h"

namespace tessera::nn {

/// How logits become probabilities, in this order. Without change: softmax(logits).
struct Sampling {
  double temperature = 1.0;  ///< logits are divided by it; 0: always the likeliest token
  std::int64_t top_k = 0;    ///< only the k likeliest tokens can come; 0: all
  /// Only the likeliest tokens can come that make up this much probability together: the fewest that reach it
  /// (Holtzman et al., "The curious case of neural text degeneration", 2020); 1: all.
  double top_p = 1.0;
  /// Before all else, positive logits of tokens that were there are divided by it, and negative ones are
  /// multiplied (Keskar et al., "CTRL", 2019); 1: none.
  double repetition_penalty = 1.0;
};

struct GenerateOptions {
  std::int64_t tokens = 100;  ///< new ones at most
  // As in Sampling. Prompt and new tokens are what was there.
  double temperature = 1.0;
  std::int64_t top_k = 0;
  double top_p = 1.0;
  double repetition_penalty = 1.0;
  std::uint64_t seed = 0;  ///< of the draws; token i is a function of (seed, i, probabilities)
  std::vector<std::int64_t> stop_tokens = {};  ///< each ends the text and is not part of it
  /// Only ids below it can come; 0: all of the model's. A tokenizer may have fewer than the model, whose
  /// number is often rounded up.
  std::int64_t vocab = 0;
  bool use_cache = true;  ///< keep keys and values; without, each token costs a pass over all before it
  /// In the place of LanguageModel::next_logits, for a model that is laid out over ranks: ids [B, T] and a
  /// cache or null → [B, V].
  std::function<Tensor(const Tensor& ids, KvCache* cache)> next_logits = nullptr;
  /// Called for each token as it comes; false: stop. Of `generate` alone.
  std::function<bool(std::int64_t token)> on_token = nullptr;
};

/// Continues `prompt` token by token; returns the new tokens. Runs in evaluation mode and without gradients;
/// the model's mode is put back.
///
/// Beyond the context the window slides: the later half of the tokens is read again as a new beginning.
/// Errors   ConfigError for an empty prompt and for options out of range; IndexError for an id outside of
///          the vocabulary; NonFiniteError if the model gives a logit that is NaN or +inf.
/// Example  const auto ids = tokenizer.encode("In the beginning");
///          const std::vector<std::int64_t> prompt(ids.begin(), ids.end());
///          generate(model, prompt, {.tokens = 50, .temperature = 0.8, .top_k = 40});
std::vector<std::int64_t> generate(LanguageModel& model, std::span<const std::int64_t> prompt,
                                   const GenerateOptions& options = {});

/// Continues several prompts, of any lengths, in passes over all of them: row r is what
/// generate(model, prompts[r]) gives with the seed `options.seed + r`, within rounding of the logits.
///
/// All rows stand at the same position: the first pass reads as many tokens as the shortest prompt has, and
/// a longer one goes on with its own tokens while the others have new ones (as Llama's own program does). So
/// no token looks at padding, and no mask is needed.
/// Cost     Passes for the longest prompt plus `tokens`, of which a row that has ended still takes part.
/// Errors   As of generate, and ConfigError if options.on_token is set.
std::vector<std::vector<std::int64_t>> generate_batch(LanguageModel& model,
                                                      std::span<const std::vector<std::int64_t>> prompts,
                                                      const GenerateOptions& options = {});

/// The probability of each token. `seen`: tokens that were there, in any order, any number of times.
///
/// Equals   Of two tokens that are equally likely at the edge of top_k or top_p, the lower id stays.
/// Errors   ConfigError for a setting out of range; NonFiniteError for a logit that is NaN or +inf, or if all
///          are -inf.
[[nodiscard]] std::vector<double> token_probabilities(std::span<const double> logits,
                                                      const Sampling& sampling,
                                                      std::span<const std::int64_t> seen = {});

/// Draws a token from these probabilities; `draw` in [0, 1) chooses.
[[nodiscard]] std::int64_t sample_token(std::span<const double> logits, const Sampling& sampling, double draw,
                                        std::span<const std::int64_t> seen = {});

}  // namespace tessera::nn
