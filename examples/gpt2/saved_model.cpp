#include "examples/gpt2/saved_model.h"

#include <fmt/format.h>

#include <charconv>

#include "data/prepare.h"
#include "dist/hugging_face.h"
#include "kernels/error.h"
#include "nn/model_factory.h"

namespace gpt2 {
namespace {

using tessera::DataError;
using tessera::data::Tokenizer;

std::string metadata(const tessera::dist::Checkpoint& checkpoint, const std::filesystem::path& folder,
                     const char* key) {
  const auto found = checkpoint.metadata.find(key);
  if (found == checkpoint.metadata.end()) {
    throw DataError(fmt::format("{}: the checkpoint does not say '{}'; gpt2_train did not write it",
                                folder.string(), key));
  }
  return found->second;
}

std::int64_t whole_number(const std::string& text, const std::filesystem::path& folder, const char* key) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw DataError(
        fmt::format("{}: the checkpoint's '{}' is '{}', not a number", folder.string(), key, text));
  }
  return value;
}

SavedModel load_from_hugging_face(const std::filesystem::path& folder) {
  SavedModel saved{.model = tessera::dist::load_hugging_face(folder), .tokenizer = Tokenizer::load(folder)};
  saved.seq = saved.model->context();
  // Vocabularies of models are often rounded up. The other way round, a text would end in an IndexError.
  if (saved.tokenizer.vocab_size() > saved.model->vocab()) {
    throw DataError(
        fmt::format("{}: the tokenizer has {} tokens, but the model knows {}: they do not belong "
                    "together",
                    folder.string(), saved.tokenizer.vocab_size(), saved.model->vocab()));
  }
  return saved;
}

// Says what a folder has that no model can be loaded from.
void require_model(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  if (tessera::dist::has_checkpoint(folder)) return;
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    throw DataError(
        fmt::format("{}: there is no such folder, hence no saved model; it is what gpt2_train has as --out, "
                    "or a model of Hugging Face that lies on this machine (nothing is downloaded)",
                    folder.string()));
  }
  if (fs::exists(folder / "config.json", ignored))
    static_cast<void>(tessera::dist::HuggingFaceReader(folder));  // throws what it lacks
  if (fs::exists(folder / tessera::data::kTrainFile, ignored)) {
    throw DataError(fmt::format(
        "{0}: there is no saved model, but tokens to train one with: gpt2_train --data {0} --out {0}",
        folder.string()));
  }
  throw DataError(
      fmt::format("{}: there is no saved model: neither a checkpoint of gpt2_train ('latest' or "
                  "'checkpoint.json') nor a model of Hugging Face ('config.json')",
                  folder.string()));
}

}  // namespace

std::string hash_text(std::uint64_t hash) { return fmt::format("{:016x}", hash); }

SavedModel load_saved_model(const std::filesystem::path& folder) {
  if (!tessera::dist::has_checkpoint(folder) && tessera::dist::is_hugging_face_folder(folder))
    return load_from_hugging_face(folder);
  require_model(folder);
  const tessera::dist::Checkpoint checkpoint = tessera::dist::load_checkpoint(folder, false);
  // A run's folder holds the tokenizer; so it lies one level up if a checkpoint folder was named.
  const bool is_run_folder = std::filesystem::exists(folder / tessera::data::kTokenizerFile);
  SavedModel saved{
      .model = nullptr,
      .tokenizer = Tokenizer::load(is_run_folder ? folder : std::filesystem::absolute(folder).parent_path()),
      .step = checkpoint.step,
      .seq = whole_number(metadata(checkpoint, folder, kSeqKey), folder, kSeqKey)};
  const std::string vocabulary = metadata(checkpoint, folder, kVocabularyKey);
  if (vocabulary != hash_text(saved.tokenizer.vocabulary_hash())) {
    throw DataError(fmt::format("{}: the tokenizer has the vocabulary {}, but the model was trained with {}",
                                folder.string(), hash_text(saved.tokenizer.vocabulary_hash()), vocabulary));
  }
  saved.model =
      tessera::nn::make_language_model(metadata(checkpoint, folder, kModelKey), saved.tokenizer.vocab_size());
  saved.model->load_state(checkpoint.model);
  saved.model->eval();
  return saved;
}

}  // namespace gpt2
