#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

#include "data/tokenizer.h"

namespace tessera::data {

/// Names of the token files that prepare() writes beside kTokenizerFile.
inline constexpr std::string_view kTrainFile = "train.tokens";
inline constexpr std::string_view kValidationFile = "validation.tokens";

enum class PrepareStage { kReadSample, kTrainTokenizer, kEncodeTraining, kEncodeValidation };

struct PrepareOptions {
  std::filesystem::path text;  ///< any bytes; UTF-8 gives the best tokens
  std::filesystem::path out;   ///< folder for the three files, made if need be

  /// Ids of the tokenizer to train. The text may yield fewer, see Tokenizer::train.
  std::int64_t vocab_size = 4096;
  /// Used instead of training one, if set; vocab_size is not looked at.
  std::optional<Tokenizer> tokenizer = {};

  /// The end of the text that is held out, as a part of its bytes, in (0, 1).
  double validation_fraction = 0.1;
  /// The tokenizer is trained on this much of the training part, taken evenly from all over it.
  std::int64_t sample_bytes = 64 << 20;
  /// The text is read and encoded in parts of this size; it has no influence on the ids.
  std::int64_t chunk_bytes = 4 << 20;

  /// Called with the tokenizer before anything is written with it. May throw to stop; nothing is left then.
  std::function<void(const Tokenizer& tokenizer)> check_tokenizer = {};

  /// Called often, with bytes (merges for kTrainTokenizer) done and in all. May throw to stop; nothing is
  /// left then.
  std::function<void(PrepareStage stage, std::int64_t done, std::int64_t total)> progress = {};
};

struct PrepareResult {
  std::int64_t train_bytes = 0;
  std::int64_t validation_bytes = 0;
  std::int64_t train_tokens = 0;
  std::int64_t validation_tokens = 0;
  std::int64_t vocab_size = 0;
  std::uint64_t vocabulary_hash = 0;
};

/// Makes a text ready for training: writes `out`/tokenizer.json, train.tokens and validation.tokens.
///
/// Validation is the last tenth of the bytes (cut at a UTF-8 boundary): a held-out end, not lines drawn at
/// random, whose neighbours the model would have seen. The tokenizer learns from the training part only.
///
/// The text is read in parts: memory does not grow with it. The three files appear at the end, together.
///
/// Errors    DataError: the text is missing, empty, unreadable, not a file, or too short for two tokens in
///           each part; the folder can't be written to. ConfigError: impossible options. FileError: disk
///           full. Whatever was in `out` before is then still there.
/// Example
///     auto result = data::prepare({.text = "corpus.txt", .out = "run/", .vocab_size = 2048});
///     auto tokens = data::TokenFile::open("run/train.tokens");
PrepareResult prepare(const PrepareOptions& options);

}  // namespace tessera::data
