#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "data/token_file.h"
#include "data/tokenizer.h"
#include "dist/checkpoint.h"
#include "nn/language_model.h"

namespace gpt2 {

/// Keys of a checkpoint's metadata.
inline constexpr const char* kModelKey = "model";            ///< LanguageModel::description()
inline constexpr const char* kSeqKey = "seq";                ///< tokens per sequence that it was trained on
inline constexpr const char* kVocabularyKey = "vocabulary";  ///< Tokenizer::vocabulary_hash() in hexadecimal
inline constexpr const char* kDTypeKey = "dtype";            ///< of parameters and activations in training
inline constexpr const char* kBatchKey = "batch";            ///< sequences per step
inline constexpr const char* kSeedKey = "seed";  ///< of initial weights, order of samples and dropout

/// A model as gpt2_train saves it: what generation and evaluation need.
struct SavedModel {
  std::unique_ptr<tessera::nn::LanguageModel> model;  ///< in evaluation mode
  tessera::data::Tokenizer tokenizer;
  std::int64_t step = 0;
  std::int64_t seq = 0;
};

/// Loads the latest checkpoint of a run's folder (or a checkpoint folder in it) and the tokenizer beside it;
/// or a folder as Hugging Face's transformers saves it, of which `step` is 0 and `seq` the context.
/// Errors   DataError: nothing there, damaged, or the tokenizer is not the one that the model was trained
///          with.
[[nodiscard]] SavedModel load_saved_model(const std::filesystem::path& folder);

/// "cb8fab83151c4e9d".
[[nodiscard]] std::string hash_text(std::uint64_t hash);

}  // namespace gpt2
