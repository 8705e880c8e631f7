// Models as transformers stores them. What it wrote is in hugging_face_values.h; that it reads what is
// written here is shown by tests/references/check_transformers.py, which needs transformers.

#include "dist/hugging_face.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "autograd/grad_mode.h"
#include "data/hash.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"
#include "tests/dist/hugging_face_values.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

using data::read_file;
using data::TemporaryFolder;
using data::write_file;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// The elements of a tensor, by its name in the file: the formula of tests/references/hugging_face.py.
std::vector<float> pattern(const std::string& name, std::size_t count) {
  std::int64_t k = 0;
  for (const char c : name) k += static_cast<unsigned char>(c);
  const bool is_norm = name.find("ln_") != std::string::npos || name.find("norm") != std::string::npos;
  const float offset = is_norm && name.ends_with("weight") ? 1.0F : 0.0F;
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t step = (37 * static_cast<std::int64_t>(i) + 11 * k) % 19 - 9;
    values[i] = static_cast<float>(step) / 64.0F + offset;
  }
  return values;
}

// A file of safetensors with this header, in f32.
std::string file_bytes(const std::string& header) {
  std::string bytes(8, '\0');
  const std::uint64_t header_bytes = header.size();
  std::memcpy(bytes.data(), &header_bytes, 8);
  bytes += header;
  std::vector<std::pair<std::size_t, std::string>> by_offset;
  const Json entries = Json::parse(header);
  for (const auto& [name, entry] : entries.items())
    if (name != "__metadata__") by_offset.emplace_back(entry["data_offsets"][0].get<std::size_t>(), name);
  std::ranges::sort(by_offset);
  for (const auto& [begin, name] : by_offset) {
    const std::size_t size = entries[name]["data_offsets"][1].get<std::size_t>() - begin;
    const std::vector<float> values = pattern(name, size / sizeof(float));
    bytes.append(reinterpret_cast<const char*>(values.data()), size);
  }
  return bytes;
}

// The folder that transformers wrote, to the byte.
void write_folder(const fs::path& folder, const HuggingFaceCase& c) {
  fs::create_directories(folder);
  write_file(folder / "config.json", c.config);
  if (c.index != nullptr) write_file(folder / "model.safetensors.index.json", c.index);
  for (const auto& file : c.files) {
    const std::string bytes = file_bytes(file.header);
    data::detail::Fnv1a hash;
    hash.add(std::as_bytes(std::span(bytes.data(), bytes.size())));
    ASSERT_EQ(hash.value(), file.hash) << c.name << ": " << file.name << " is not what transformers wrote";
    write_file(folder / file.name, bytes);
  }
}

const HuggingFaceCase& case_named(const std::string& name) {
  return *std::ranges::find(kHuggingFaceCases, name, [](const auto& c) { return std::string(c.name); });
}

Tensor logits_of(nn::LanguageModel& model) {
  const NoGrad no_grad;
  std::vector<std::int64_t> ids;
  for (const auto& row : kHuggingFaceIds) ids.insert(ids.end(), row.begin(), row.end());
  return model.logits(from_vector(ids, Shape{2, static_cast<std::int64_t>(ids.size()) / 2}));
}

// f32 on both sides: logits are up to 1 in size and come out of some hundred roundings of 6e-8 each, which
// add up as their root does. A wrong rotation or a bias left out makes differences of 1e-2.
void expect_logits(nn::LanguageModel& model, const std::vector<double>& expected, const std::string& what) {
  const std::vector<double> got = logits_of(model).to_vector<double>();
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 2e-6) << what << ", " << i;
}

TEST(HuggingFace, ModelsOfTransformersGiveItsLogits) {
  for (const HuggingFaceCase& c : kHuggingFaceCases) {
    const TemporaryFolder folder;
    ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
    EXPECT_TRUE(is_hugging_face_folder(folder.path())) << c.name;
    const auto model = load_hugging_face(folder.path());
    EXPECT_FALSE(model->training());
    expect_logits(*model, c.logits, c.name);
  }
}

TEST(HuggingFace, WhatIsSavedHasTheNamesShapesAndBytesOfTransformers) {
  for (const char* name : {"GPT-2", "Llama", "Llama 3.1, tied"}) {
    const HuggingFaceCase& c = case_named(name);
    const TemporaryFolder folder;
    ASSERT_NO_FATAL_FAILURE(write_folder(folder / "theirs", c));
    const auto model = load_hugging_face(folder / "theirs");
    save_hugging_face(folder / "ours", *model, {.end_of_text = 10});
    const auto theirs = data::SafetensorsFile::open(folder / "theirs/model.safetensors");
    const auto ours = data::SafetensorsFile::open(folder / "ours/model.safetensors");
    EXPECT_EQ(ours.metadata(), theirs.metadata());
    ASSERT_EQ(ours.entries().size(), theirs.entries().size()) << name;
    for (const auto& entry : theirs.entries()) {
      const Tensor saved = ours.read(entry.name);
      EXPECT_EQ(saved.shape(), entry.shape) << entry.name;
      EXPECT_EQ(saved.to_vector<double>(), theirs.read(entry.name).to_vector<double>()) << entry.name;
    }
    // Every key that we write has the value that transformers wrote, where it wrote that key.
    const Json our_config = Json::parse(read_file(folder / "ours/config.json"));
    const Json their_config = Json::parse(c.config);
    int compared = 0;
    for (const auto& [key, value] : our_config.items()) {
      if (!their_config.contains(key) || key == "bos_token_id") continue;
      EXPECT_EQ(value, their_config[key]) << name << ": " << key;
      ++compared;
    }
    EXPECT_GE(compared, 12) << name;
  }
}

TEST(HuggingFace, WhatIsSavedLoadsAgainInAnyDTypeAndInParts) {
  for (const char* text : {"layers=2,heads=2,width=16,context=8,dropout=0.1",
                           "family=llama,layers=2,heads=4,kv_heads=2,width=16,context=8",
                           "family=llama,layers=2,heads=4,width=16,context=8,tied=1,rotary_factor=8,"
                           "rotary_low=1,rotary_high=4,rotary_context=16"}) {
    const auto model = nn::make_language_model(text, 23);
    model->eval();
    for (const DType dtype : {kF32, kBF16, kF16}) {
      for (const std::int64_t largest : {std::int64_t{1} << 40, std::int64_t{2000}}) {
        const TemporaryFolder folder;
        save_hugging_face(folder / "new/folder", *model, {.dtype = dtype, .largest_file_bytes = largest});
        EXPECT_EQ(fs::exists(folder / "new/folder/model.safetensors.index.json"), largest == 2000) << text;
        const HuggingFaceReader reader(folder / "new/folder");
        for (const auto& info : reader.tensors()) EXPECT_EQ(info.dtype, dtype);
        const auto loaded = load_hugging_face(folder / "new/folder");
        EXPECT_EQ(loaded->description(), model->description());
        for (const auto& [name, tensor] : model->state()) {
          EXPECT_EQ(loaded->find_parameter(name).to_vector<double>(), tensor.to(dtype).to_vector<double>())
              << name << " in " << tessera::name(dtype);
        }
      }
    }
  }
}

// As version 4 of transformers wrote what version 5 writes as rope_parameters.
TEST(HuggingFace, ReadsRotationsAsOlderVersionsWroteThem) {
  const HuggingFaceCase& c = case_named("Llama 3.1, tied");
  const TemporaryFolder folder;
  ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
  Json config = Json::parse(c.config);
  Json rope = config["rope_parameters"];
  config.erase("rope_parameters");
  config["rope_theta"] = rope["rope_theta"];
  rope.erase("rope_theta");
  config["rope_scaling"] = rope;
  write_file(folder / "config.json", config.dump());
  expect_logits(*load_hugging_face(folder.path()), c.logits, "version 4");

  // And the scaling counts: without it the logits are others.
  config["rope_scaling"] = nullptr;
  write_file(folder / "config.json", config.dump());
  const std::vector<double> unscaled = logits_of(*load_hugging_face(folder.path())).to_vector<double>();
  double largest = 0.0;
  for (std::size_t i = 0; i < unscaled.size(); ++i)
    largest = std::max(largest, std::abs(unscaled[i] - c.logits[i]));
  EXPECT_GT(largest, 1e-3);
}

// The section of an older version counts where both are there, and the context that scaling began with may
// stand beside the section (which then has no say), in it, or be the model's own. All as LlamaConfig of
// transformers resolves it: the logits stay its.
TEST(HuggingFace, TakesRotationsFromWhereTransformersDoes) {
  const HuggingFaceCase& c = case_named("Llama 3.1, tied");
  const Json good = Json::parse(c.config);
  const Json rope = good["rope_parameters"];
  const char* original = "original_max_position_embeddings";
  ASSERT_EQ(rope[original], good["max_position_embeddings"]);
  Json without = rope, wrong = rope;
  without.erase(original);
  wrong[original] = 4;
  const std::vector<std::pair<const char*, Json>> changes = {
      {"the model's context", {{"rope_parameters", without}}},
      {"beside the section", {{"rope_parameters", wrong}, {original, 16}}},
      {"both sections", {{"rope_scaling", rope}, {"rope_parameters", {{"rope_type", "default"}}}}},
      {"an empty older section", {{"rope_scaling", Json::object()}}}};
  for (const auto& [name, change] : changes) {
    const TemporaryFolder folder;
    ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
    Json config = good;
    config.update(change);
    write_file(folder / "config.json", config.dump());
    expect_logits(*load_hugging_face(folder.path()), c.logits, name);
  }
}

// GPT2Config takes the sizes by the names of other families, too.
TEST(HuggingFace, TakesSizesOfGpt2ByTheirOtherNames) {
  const HuggingFaceCase& c = case_named("GPT-2");
  const TemporaryFolder folder;
  ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
  Json config = Json::parse(c.config);
  for (const auto& [ours, other] :
       {std::pair{"n_embd", "hidden_size"}, std::pair{"n_layer", "num_hidden_layers"},
        std::pair{"n_head", "num_attention_heads"}, std::pair{"n_positions", "max_position_embeddings"}}) {
    config[other] = config[ours];
    config.erase(ours);
  }
  write_file(folder / "config.json", config.dump());
  expect_logits(*load_hugging_face(folder.path()), c.logits, "other names");
}

// GPT-2's first checkpoints hold masks beside the weights, and some an output layer beside the embedding.
TEST(HuggingFace, LeavesOutTablesAndATiedHead) {
  const HuggingFaceCase& c = case_named("GPT-2");
  const TemporaryFolder folder;
  ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
  NamedTensors tensors = data::SafetensorsFile::open(folder / "model.safetensors").read_all();
  const auto wte = std::ranges::find(tensors, "transformer.wte.weight", &NamedTensors::value_type::first);
  const Tensor embedding = wte->second;
  tensors.emplace_back("transformer.h.0.attn.bias", ones({1, 1, 8, 8}).to(kBool));
  tensors.emplace_back("transformer.h.1.attn.masked_bias", scalar(-1e4));
  tensors.emplace_back("lm_head.weight", embedding);
  fs::remove(folder / "model.safetensors");
  data::write_safetensors(folder / "model.safetensors", tensors);
  expect_logits(*load_hugging_face(folder.path()), c.logits, "with tables");

  tensors.back().second = ones(embedding.shape());
  fs::remove(folder / "model.safetensors");
  data::write_safetensors(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { (void)load_hugging_face(folder.path()); },
                          {"lm_head.weight", "is not the embedding"});
}

TEST(HuggingFace, RefusesModelsThatItWouldNotComputeTheSame) {
  struct Change {
    const char* of;
    const char* key;
    Json value;
    const char* reason;
  };
  const std::vector<Change> changes = {
      {"GPT-2", "model_type", "gpt_neox", "'gpt_neox'; the families are"},
      {"GPT-2", "model_type", 5, "not a text"},
      {"GPT-2", "activation_function", "relu", "gelu_new"},
      {"GPT-2", "n_inner", 16, "4 · n_embd"},
      {"GPT-2", "layer_norm_epsilon", 1e-6, "1e-05"},
      {"GPT-2", "scale_attn_by_inverse_layer_idx", true, "false"},
      {"GPT-2", "scale_attn_weights", false, "true"},
      {"GPT-2", "add_cross_attention", true, "false"},
      {"GPT-2", "tie_word_embeddings", false, "true"},
      {"GPT-2", "attn_pdrop", 0.5, "one dropout for all"},
      {"GPT-2", "n_layer", 0, "not a whole number from 1"},
      {"GPT-2", "n_layer", -1, "not a whole number from 1"},
      {"GPT-2", "n_layer", 2.5, "not a whole number from 1"},
      {"GPT-2", "n_layer", 1e30, "not a whole number from 1"},
      {"GPT-2", "n_layer", 3, "'transformer.h.2.attn.c_attn.bias' is missing"},
      {"GPT-2", "n_layer", 1, "is no tensor of this model"},
      {"GPT-2", "n_layer", 2000000000, "2000000000 layers, but there are only 28 tensors"},
      {"GPT-2", "num_attention_heads", 4, "is 4, but 'n_head', which is the same, is 2"},
      {"GPT-2", "is_causal", false, "'is_causal' is false"},
      {"Llama", "is_causal", false, "'is_causal' is false"},
      {"Llama", "quantization_config", Json{{"quant_method", "gptq"}}, "'quantization_config' is there"},
      {"GPT-2", "n_head", 3, "heads must divide width"},
      {"GPT-2", "n_positions", 9, "'transformer.wpe.weight' is [8, 8], but config.json makes it [9, 8]"},
      {"GPT-2", "vocab_size", 12, "'transformer.wte.weight' is [11, 8]"},
      {"Llama", "hidden_act", "gelu", "silu"},
      {"Llama", "attention_bias", true, "false"},
      {"Llama", "mlp_bias", true, "false"},
      {"Llama", "head_dim", 8, "hidden_size / num_attention_heads"},
      {"Llama", "num_attention_heads", 5, "hidden_size / num_attention_heads"},
      {"Llama", "num_key_value_heads", 3, "kv_heads"},
      {"Llama", "tie_word_embeddings", "yes", "not true or false"},
      {"Llama", "tie_word_embeddings", true, "is not the embedding"},
      {"Llama", "rms_norm_eps", "small", "not a number"},
      {"Llama", "rope_parameters", Json{{"rope_type", "yarn"}, {"factor", 2.0}}, "'yarn'"},
      {"Llama", "rope_parameters", 7, "is not an object of keys"},
      {"Llama", "rope_parameters", Json{{"rope_type", "llama3"}, {"factor", 2.0}},
       "'low_freq_factor' is missing"},
      {"Llama", "rope_parameters", Json{{"partial_rotary_factor", 0.5}}, "'partial_rotary_factor' is 0.5"},
      {"Llama", "partial_rotary_factor", 0.5, "'partial_rotary_factor' is 0.5"},
      {"Llama", "rope_parameters",
       Json{{"rope_type", "llama3"}, {"factor", 2.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}},
       "low below high"},
  };
  for (const Change& change : changes) {
    const TemporaryFolder folder;
    const HuggingFaceCase& c = case_named(change.of);
    ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
    Json config = Json::parse(c.config);
    config[change.key] = change.value;
    write_file(folder / "config.json", config.dump());
    SCOPED_TRACE(fmt::format("{}: {} = {}", change.of, change.key, change.value.dump()));
    expect_error<DataError>([&] { (void)load_hugging_face(folder.path()); },
                            {change.reason, folder.path().string()});
  }
}

TEST(HuggingFace, RefusesFoldersThatAreDamaged) {
  const HuggingFaceCase& c = case_named("Llama in parts");
  const auto refused = [&](const auto& damage, const char* reason) {
    const TemporaryFolder folder;
    ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
    damage(folder.path());
    SCOPED_TRACE(reason);
    expect_error<DataError>([&] { (void)load_hugging_face(folder.path()); },
                            {reason, folder.path().string()});
  };
  const auto edit_index = [](const auto& edit) {
    return [edit](const fs::path& folder) {
      Json index = Json::parse(read_file(folder / "model.safetensors.index.json"));
      edit(index);
      write_file(folder / "model.safetensors.index.json", index.dump());
    };
  };
  refused([](const fs::path& f) { fs::remove(f / "config.json"); }, "config.json: there is no such file");
  refused([](const fs::path& f) { write_file(f / "config.json", "{\"model_type\": "); }, "not JSON");
  refused([](const fs::path& f) { write_file(f / "config.json", "[]"); }, "not an object of keys");
  refused([](const fs::path& f) { write_file(f / "config.json", std::string(100, '[')); }, "not JSON");
  // Closed brackets are JSON. To copy or print them took the stack.
  const std::string deep = "{\"weight_map\": " + std::string(300000, '[') + std::string(300000, ']') + "}";
  for (const char* name : {"config.json", "model.safetensors.index.json"})
    refused([&](const fs::path& f) { write_file(f / name, deep); }, "stand in more than 100 others");
  refused([](const fs::path& f) { fs::remove(f / "model.safetensors.index.json"); }, "holds neither");
  refused([](const fs::path& f) { fs::remove(f / "model-00002-of-00004.safetensors"); },
          "No such file or directory");
  refused([](const fs::path& f) { fs::resize_file(f / "model-00002-of-00004.safetensors", 3000); }, "follow");
  refused([](const fs::path& f) { write_file(f / "model.safetensors.index.json", "{}"); }, "not an index");
  refused(edit_index([](Json& j) { j["weight_map"] = Json::object(); }), "'weight_map'");
  refused(edit_index([](Json& j) { j["weight_map"]["lm_head.weight"] = 5; }), "not an index");
  refused(edit_index([](Json& j) { j["weight_map"]["lm_head.weight"] = "../model.safetensors"; }),
          "is not the name of a file in this folder");
  refused(edit_index([](Json& j) { j["weight_map"]["more"] = "model-00001-of-00004.safetensors"; }),
          "says that 'more' is in model-00001-of-00004.safetensors, but it is not there");
  refused(edit_index([](Json& j) { j["weight_map"].erase("model.norm.weight"); }),
          "tensors, but its files hold");
}

TEST(HuggingFace, RefusesWeightsThatAreWholeNumbers) {
  const HuggingFaceCase& c = case_named("GPT-2");
  const TemporaryFolder folder;
  ASSERT_NO_FATAL_FAILURE(write_folder(folder.path(), c));
  NamedTensors tensors = data::SafetensorsFile::open(folder / "model.safetensors").read_all();
  tensors[0].second = tensors[0].second.to(kI32);
  fs::remove(folder / "model.safetensors");
  data::write_safetensors(folder / "model.safetensors", tensors);
  expect_error<DataError>([&] { (void)load_hugging_face(folder.path()); },
                          {tensors[0].first, "is i32", "floating"});
}

TEST(HuggingFace, RefusesToSaveWhatIsNone) {
  const TemporaryFolder folder;
  const auto model = nn::make_language_model("layers=1,heads=1,width=4,context=4", 5);
  expect_error<ConfigError>([&] { save_hugging_face(folder / "a", *model, {.dtype = kF64}); }, {"f64"});
  expect_error<ConfigError>([&] { save_hugging_face(folder / "a", *model, {.largest_file_bytes = 0}); },
                            {"at least 1 byte"});
  EXPECT_FALSE(fs::exists(folder / "a"));
  save_hugging_face(folder / "a", *model);
  expect_error<DataError>([&] { save_hugging_face(folder / "a", *model); }, {"already", "another folder"});
  const auto on_meta = [] {
    const DeviceScope scope(meta);
    return nn::make_language_model("layers=1,heads=1,width=4,context=4", 5);
  }();
  expect_error<DeviceError>([&] { save_hugging_face(folder / "b", *on_meta); }, {"meta"});
  EXPECT_FALSE(is_hugging_face_folder(folder / "b"));
}

}  // namespace
}  // namespace tessera::dist
