#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/safetensors.h"
#include "nn/language_model.h"

namespace tessera::dist {

// Models as Hugging Face's transformers stores them (`save_pretrained`):
//
//   FOLDER/config.json                      the model's family and sizes
//   FOLDER/model.safetensors                or, in parts, model-00001-of-00003.safetensors, ... with
//   FOLDER/model.safetensors.index.json     which part has which tensor
//
// GPT-2 (model_type "gpt2") and Llama ("llama"). Their names are ours behind "transformer." or "model."
// (which a file of the bare model has not); GPT-2's linear layers are stored [inputs, outputs] there, ours
// are [outputs, inputs].

/// True if `folder` looks like one: a config.json, and safetensors beside it.
[[nodiscard]] bool is_hugging_face_folder(const std::filesystem::path& folder);

/// Such a folder, read tensor by tensor: opening reads config.json and headers alone.
///
/// Left out   Tables that follow from the sizes (GPT-2's attn.bias and attn.masked_bias, rotary_emb.inv_freq)
///            and an output layer that is stored beside the embedding it is tied to.
/// Errors     DataError with file and reason: a file missing or damaged (data/safetensors.h); a model that
///            ours would not compute the same as (another family, activation, width of heads, biases where we
///            have none, ...); a tensor missing, unknown, of another shape, or there twice.
/// Example    const HuggingFaceReader reader("Llama-3.2-1B");
///            auto model = nn::make_language_model(reader.description(), 1);
///            for (const auto& info : reader.tensors()) use(info.name, reader.read(info.name));
class HuggingFaceReader {
 public:
  explicit HuggingFaceReader(const std::filesystem::path& folder);

  /// What nn::make_language_model builds the model from: "family=gpt2,layers=12,...".
  [[nodiscard]] const std::string& description() const noexcept { return description_; }
  /// The model's tensors under our names and with our shapes, in the dtypes of the file.
  [[nodiscard]] const std::vector<data::TensorInfo>& tensors() const noexcept { return tensors_; }
  /// A tensor by our name, laid out as ours, in the dtype of the file.
  [[nodiscard]] Tensor read(const std::string& name) const;

 private:
  struct Place {
    std::size_t file = 0;
    std::string name;  ///< there
    bool transposed = false;
  };
  void find_files();
  void find_tensors();
  void check_tied_head(const Place& head) const;

  std::filesystem::path folder_;
  std::string description_;
  std::int64_t layers_ = 0;
  bool is_gpt2_ = false, is_tied_ = false;
  std::vector<data::SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_of_;  ///< by the name there
  std::vector<data::TensorInfo> tensors_;
  std::map<std::string, Place> places_;  ///< by our name
};

/// The model of such a folder, on the cpu in f32, in evaluation mode.
/// Errors   As of HuggingFaceReader.
[[nodiscard]] std::unique_ptr<nn::LanguageModel> load_hugging_face(const std::filesystem::path& folder);

struct SaveHuggingFaceOptions {
  DType dtype = kF32;                                      ///< of the file: kF32, kF16 or kBF16
  std::int64_t largest_file_bytes = 5'000'000'000;         ///< a model that is larger comes in parts
  std::optional<std::int64_t> end_of_text = std::nullopt;  ///< ends a text, for `generate` of transformers
};

/// Writes `model` so that transformers loads it: `AutoModelForCausalLM.from_pretrained(folder)` gives the
/// same logits within rounding. The tokenizer is data::save_hugging_face_tokenizer's.
///
/// Memory    One tensor beside the model.
/// Errors    DataError if the folder holds a model already or cannot be written to; ConfigError for a dtype
///           or size that is none, and for a model that is neither GPT-2 nor Llama; DeviceError for one on
///           meta; FileError if the disk is full: no config.json stands there then.
void save_hugging_face(const std::filesystem::path& folder, const nn::LanguageModel& model,
                       const SaveHuggingFaceOptions& options = {});

}  // namespace tessera::dist
