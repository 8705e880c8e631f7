#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "data/token_file.h"
#include "dist/communicator.h"
#include "dist/engine.h"
#include "nn/language_model.h"

namespace gpt2 {

struct EvaluationOptions {
  std::int64_t seq = 0;         ///< tokens per window; 0: the model's context
  std::int64_t stride = 0;      ///< from window to window; 0: seq, no overlap
  std::int64_t batch = 8;       ///< windows per pass of a rank
  std::int64_t max_tokens = 0;  ///< targets to look at, from the start of the file; 0: all
  /// Asked before each pass; must answer alike on all ranks that compute together. True ends the evaluation.
  std::function<bool()> stop = nullptr;
};

struct Evaluation {
  double nats = 0.0;        ///< sum of −ln p over the targets
  std::int64_t tokens = 0;  ///< targets
  bool whole_file = false;
  bool stopped = false;           ///< by EvaluationOptions::stop: the figures mean nothing
  std::int64_t source_bytes = 0;  ///< text behind the file's tokens, the first of them included
  double first_token_bits = 0.0;  ///< for the token that nothing precedes: log2(vocabulary)
  double file_tokens = 0;         ///< of the file

  [[nodiscard]] double loss() const { return nats / static_cast<double>(tokens); }
  [[nodiscard]] double perplexity() const;
  /// Bits that an arithmetic coder would need for the text with this model, for each byte of it. Of a part of
  /// the file only an estimate: it takes each token for as many bytes as they have on average.
  [[nodiscard]] double bits_per_byte() const;
};

/// Sum of the losses of `rows` windows [rows, seq], and how many targets count.
using WindowLosses = std::function<tessera::dist::Engine::LossSum(
    std::span<const std::int64_t> inputs, std::span<const std::int64_t> targets, std::int64_t rows)>;

/// Mean loss over a token file; every token but the first is predicted once. The windows are shared out over
/// the ranks of `group`, which make equally many passes; all get the same result. A collective.
///
/// Errors   ConfigError if the windows are longer than `context`.
[[nodiscard]] Evaluation evaluate(const WindowLosses& losses, std::int64_t context,
                                  const tessera::data::TokenFile& file, tessera::dist::Communicator& group,
                                  const EvaluationOptions& options);

/// Of a model on one rank.
[[nodiscard]] Evaluation evaluate(tessera::nn::LanguageModel& model, const tessera::data::TokenFile& file,
                                  tessera::dist::Communicator& group, const EvaluationOptions& options);

}  // namespace gpt2
