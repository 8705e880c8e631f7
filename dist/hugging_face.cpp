#include "dist/hugging_face.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "autograd/grad_mode.h"
#include "data/atomic_file.h"
#include "data/json_depth.h"
#include "dist/hugging_face_config.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

[[noreturn]] void fail(const fs::path& path, const std::string& reason) {
  throw DataError(fmt::format("{}: {}", path.string(), reason));
}

// Follows from the sizes of the model; some versions of transformers saved it.
bool is_table(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with("rotary_emb.inv_freq");
}

// Of GPT-2: transformers has Conv1D there, whose weight is [inputs, outputs].
bool is_transposed(bool is_gpt2, std::string_view name) {
  if (!is_gpt2) return false;
  return name.ends_with(".c_attn.weight") || name.ends_with(".c_proj.weight") ||
         name.ends_with(".c_fc.weight");
}

std::string without_prefix(const std::string& name, bool is_gpt2) {
  const std::string_view prefix = is_gpt2 ? "transformer." : "model.";
  return name.starts_with(prefix) ? name.substr(prefix.size()) : name;
}

std::string with_prefix(const std::string& name, bool is_gpt2) {
  return name == "lm_head.weight" ? name : (is_gpt2 ? "transformer." : "model.") + name;
}

Shape transposed_shape(const Shape& shape) { return {shape[1], shape[0]}; }

// {"weight_map": {"name": "file"}}
std::map<std::string, std::string> read_index(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (data::detail::nests_too_deep(text)) fail(path, data::detail::too_deep());
  try {
    const Json map = Json::parse(text).at("weight_map");
    if (!map.is_object() || map.empty()) fail(path, "'weight_map' does not say which file has which tensor");
    std::map<std::string, std::string> files;
    for (const auto& [name, value] : map.items()) {
      const std::string name_of_file = value.get<std::string>();
      // A name, not a path: an index from elsewhere must not make a program read other folders.
      if (name_of_file.empty() || name_of_file.find('/') != std::string::npos)
        fail(path, fmt::format("'{}' is not the name of a file in this folder", name_of_file));
      files[name] = name_of_file;
    }
    return files;
  } catch (const Json::exception& error) {
    fail(path, fmt::format("not an index of safetensors: {}", error.what()));
  }
}

}  // namespace

bool is_hugging_face_folder(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / kConfigFile, ignored) &&
         (fs::exists(folder / kWeightsFile, ignored) || fs::exists(folder / kIndexFile, ignored));
}

HuggingFaceReader::HuggingFaceReader(const fs::path& folder) : folder_(folder) {
  const detail::HuggingFaceConfig config = detail::read_hugging_face_config(folder / kConfigFile);
  description_ = config.description;
  layers_ = config.layers;
  is_gpt2_ = config.is_gpt2;
  is_tied_ = config.is_tied;
  find_files();
  find_tensors();
}

void HuggingFaceReader::find_files() {
  if (fs::exists(folder_ / kWeightsFile)) {
    files_.push_back(data::SafetensorsFile::open(folder_ / kWeightsFile));
    for (const auto& entry : files_[0].entries()) file_of_[entry.name] = 0;
    return;
  }
  if (!fs::exists(folder_ / kIndexFile)) {
    fail(folder_, fmt::format("holds neither {} nor {}; weights of an older form (pytorch_model.bin) become "
                              "safetensors by loading and saving them with transformers",
                              kWeightsFile, kIndexFile));
  }
  std::map<std::string, std::size_t> numbers;  // by the file's name
  for (const auto& [name, file_name] : read_index(folder_ / kIndexFile)) {
    const auto [number, is_new] = numbers.emplace(file_name, files_.size());
    if (is_new) files_.push_back(data::SafetensorsFile::open(folder_ / file_name));
    if (!files_[number->second].contains(name)) {
      fail(folder_ / kIndexFile,
           fmt::format("says that '{}' is in {}, but it is not there", name, file_name));
    }
    file_of_[name] = number->second;
  }
  std::size_t in_files = 0;
  for (const auto& file : files_) in_files += file.entries().size();
  if (in_files != file_of_.size()) {
    fail(folder_ / kIndexFile,
         fmt::format("lists {} tensors, but its files hold {}", file_of_.size(), in_files));
  }
}

void HuggingFaceReader::find_tensors() {
  // Each layer has tensors: a number that somebody made up must not build a model of billions of them.
  if (layers_ > static_cast<std::int64_t>(file_of_.size())) {
    fail(folder_, fmt::format("{} says that the model has {} layers, but there are only {} tensors",
                              kConfigFile, layers_, file_of_.size()));
  }
  std::map<std::string, Shape> wanted;  // by our name; a tied head is not among them
  {
    const DeviceScope scope(meta);
    try {
      for (const auto& [name, tensor] : nn::make_language_model(description_, 1)->state())
        wanted.emplace(name, tensor.shape());
    } catch (const Error& error) {  // sizes that are impossible together
      fail(folder_ / kConfigFile, error.what());
    }
  }
  std::vector<std::string> unknown;
  std::optional<Place> tied_head;
  for (const auto& [stored_name, file] : file_of_) {
    if (is_table(stored_name)) continue;
    const std::string name = without_prefix(stored_name, is_gpt2_);
    const Place place{.file = file, .name = stored_name, .transposed = is_transposed(is_gpt2_, name)};
    if (name == "lm_head.weight" && is_tied_) {
      tied_head = place;
      continue;
    }
    const auto found = wanted.find(name);
    if (found == wanted.end()) {
      unknown.push_back(stored_name);
      continue;
    }
    const auto& entries = files_[file].entries();
    const auto entry = std::ranges::find(entries, stored_name, &data::SafetensorsFile::Entry::name);
    const bool two_sizes = entry->shape.dims() == 2;
    const Shape shape = place.transposed && two_sizes ? transposed_shape(entry->shape) : entry->shape;
    if (shape != found->second) {
      fail(folder_,
           fmt::format("'{}' is {}, but {} makes it {}", stored_name, to_string(entry->shape), kConfigFile,
                       to_string(place.transposed ? transposed_shape(found->second) : found->second)));
    }
    if (!is_floating(entry->dtype)) {
      fail(folder_, fmt::format("'{}' is {}; weights must be of a floating dtype", stored_name,
                                tessera::name(entry->dtype)));
    }
    if (!places_.emplace(name, place).second)
      fail(folder_, fmt::format("'{}' is there with and without its prefix", name));
    tensors_.push_back({name, entry->dtype, shape});
  }
  for (const auto& [name, shape] : wanted) {
    if (!places_.contains(name))
      fail(folder_, fmt::format("'{}' is missing{}", with_prefix(name, is_gpt2_),
                                unknown.empty() ? "" : fmt::format("; '{}' is unknown", unknown[0])));
  }
  if (!unknown.empty()) fail(folder_, fmt::format("'{}' is no tensor of this model", unknown[0]));
  if (tied_head) check_tied_head(*tied_head);
}

// config.json says that both are one, so the file must not say otherwise.
void HuggingFaceReader::check_tied_head(const Place& head) const {
  const Tensor weight = files_[head.file].read(head.name);
  const Tensor embedding = read(is_gpt2_ ? "wte.weight" : "embed_tokens.weight");
  const bool equal = weight.dtype() == embedding.dtype() && weight.shape() == embedding.shape() &&
                     std::memcmp(weight.view().data, embedding.view().data,
                                 static_cast<std::size_t>(weight.size_bytes())) == 0;
  if (!equal) {
    fail(folder_,
         fmt::format("'{}' is not the embedding, though {} says that they are tied", head.name, kConfigFile));
  }
}

Tensor HuggingFaceReader::read(const std::string& name) const {
  const auto place = places_.find(name);
  if (place == places_.end()) fail(folder_, fmt::format("holds no tensor '{}'", name));
  const Tensor stored = files_[place->second.file].read(place->second.name);
  return place->second.transposed ? stored.transpose(0, 1).contiguous() : stored;
}

std::unique_ptr<nn::LanguageModel> load_hugging_face(const fs::path& folder) {
  const HuggingFaceReader reader(folder);
  auto model = [&] {
    const DeviceScope scope(cpu);
    return nn::make_language_model(reader.description(), 1);
  }();
  const NoGrad no_grad;
  // One by one, so that the file's form is not in memory beside the model.
  for (const auto& [name, tensor] : model->state()) Tensor(tensor).copy_from(reader.read(name));
  model->eval();
  return model;
}

// --- Writing -----------------------------------------------------------------------------------------------

namespace {

struct Part {
  std::vector<data::TensorInfo> infos;  // with names as transformers has them
  NamedTensors tensors;                 // with ours
  std::int64_t bytes = 0;
};

std::vector<Part> cut_into_parts(const nn::LanguageModel& model, bool is_gpt2,
                                 const SaveHuggingFaceOptions& options) {
  std::vector<Part> parts(1);
  for (const auto& [name, tensor] : model.state()) {
    const Shape shape = is_transposed(is_gpt2, name) ? transposed_shape(tensor.shape()) : tensor.shape();
    const data::TensorInfo info{with_prefix(name, is_gpt2), options.dtype, shape};
    if (parts.back().bytes > 0 && parts.back().bytes + info.size_bytes() > options.largest_file_bytes)
      parts.emplace_back();
    parts.back().infos.push_back(info);
    parts.back().tensors.emplace_back(name, tensor);
    parts.back().bytes += info.size_bytes();
  }
  return parts;
}

void write_part(const fs::path& path, const Part& part, bool is_gpt2, DType dtype) {
  data::SafetensorsWriter writer(path, part.infos, {{"format", "pt"}});
  for (const auto& [name, tensor] : part.tensors) {
    const Tensor values = tensor.detach().to(dtype);
    writer.write(is_transposed(is_gpt2, name) ? values.transpose(0, 1) : values);
  }
  writer.commit();
}

void refuse_saved_model(const fs::path& folder) {
  for (const char* name : {kConfigFile, kWeightsFile, kIndexFile}) {
    if (fs::exists(folder / name))
      fail(folder, fmt::format("holds a {} already; choose another folder", name));
  }
}

}  // namespace

void save_hugging_face(const fs::path& folder, const nn::LanguageModel& model,
                       const SaveHuggingFaceOptions& options) {
  if (options.dtype != kF32 && options.dtype != kF16 && options.dtype != kBF16) {
    throw ConfigError(
        fmt::format("save_hugging_face: weights are saved in f32, f16 or bf16, not {}", name(options.dtype)));
  }
  if (options.largest_file_bytes < 1) {
    throw ConfigError(fmt::format("save_hugging_face: the largest file must have at least 1 byte, not {}",
                                  options.largest_file_bytes));
  }
  const std::string config = detail::hugging_face_config(model, options.dtype, options.end_of_text);
  const bool is_gpt2 = dynamic_cast<const nn::Gpt2*>(&model) != nullptr;
  data::create_folder(folder);
  refuse_saved_model(folder);

  const std::vector<Part> parts = cut_into_parts(model, is_gpt2, options);
  Json index;
  std::int64_t total_bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string file = parts.size() == 1
                                 ? kWeightsFile
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, parts.size());
    write_part(folder / file, parts[i], is_gpt2, options.dtype);
    total_bytes += parts[i].bytes;
    for (const auto& info : parts[i].infos) index["weight_map"][info.name] = file;
  }
  if (parts.size() > 1) {
    index["metadata"]["total_size"] = total_bytes;
    data::AtomicFile file(folder / kIndexFile);
    file.write(index.dump(2) + "\n");
    file.commit();
  }
  data::AtomicFile file(folder / kConfigFile);  // last: without it there is no model
  file.write(config);
  file.commit();
}

}  // namespace tessera::dist
