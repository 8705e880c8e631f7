// Gpt2 and Llama against GPT2LMHeadModel and LlamaForCausalLM of transformers: models_transformers.py has
// their sizes and says what the stored values are.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tests/references/stored_values.h"

namespace tessera::reference {
namespace {

constexpr std::int64_t kBatch = 2, kTime = 11;
constexpr int kSteps = 20;

std::unique_ptr<nn::LanguageModel> make_gpt2() {
  return std::make_unique<nn::Gpt2>(
      nn::Gpt2Config{.vocab = 97, .context = 13, .layers = 2, .heads = 3, .width = 15});
}

std::unique_ptr<nn::LanguageModel> make_llama() {
  nn::LlamaConfig config;
  config.vocab = 73;
  config.context = 13;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.width = 24;
  config.hidden = 29;
  config.rotary_base = 100.0;
  return std::make_unique<nn::Llama>(config);
}

struct Case {
  const char* file;
  std::unique_ptr<nn::LanguageModel> (*make)();
};
const Case kCases[] = {{TESSERA_SOURCE_DIR "/tests/references/gpt2.txt", make_gpt2},
                       {TESSERA_SOURCE_DIR "/tests/references/llama.txt", make_llama}};

NamedTensors sorted_parameters(const nn::Module& model) {
  NamedTensors parameters = model.named_parameters();
  std::ranges::sort(parameters, {}, [](const auto& p) { return p.first; });
  return parameters;
}

std::unique_ptr<nn::LanguageModel> make_with_noise(const Case& c, DType dtype) {
  std::unique_ptr<nn::LanguageModel> model = c.make();
  model->to(dtype);
  const NoGrad no_grad;
  std::int64_t k = 0;
  for (auto& [name, parameter] : sorted_parameters(*model)) {
    const bool gain = name.find("norm") != std::string::npos ||
                      (name.find("ln_") != std::string::npos && name.ends_with("weight"));
    parameter.copy_from(noise(k++, parameter.shape(), gain ? 1.0 : 0.0));
  }
  return model;
}

struct Batch {
  Tensor ids, targets;
};

// transformers takes the tokens themselves as labels and moves them on by one: so here the last has no
// target.
Batch make_batch(std::int64_t vocab, int step) {
  const Tensor ids = whole_numbers(1000 + step, {kBatch, kTime}, vocab);
  Tensor targets = full({kBatch, kTime}, -100, {.dtype = kI64});
  targets.slice(1, 0, kTime - 1).copy_from(ids.slice(1, 1, kTime));
  targets.set({1, 3 + step % 5 - 1}, -100);
  return {ids, targets};
}

using Results =
    std::vector<std::pair<std::string, std::vector<double>>>;  // by the name that they are stored under

Results logits_loss_and_gradients(const Case& c, DType dtype) {
  const std::unique_ptr<nn::LanguageModel> model = make_with_noise(c, dtype);
  const auto [ids, targets] = make_batch(model->vocab(), 0);
  Results results{{"logits", model->logits(ids).to_vector<double>()}};
  const Tensor loss = model->loss(ids, targets);
  results.emplace_back("loss", loss.to_vector<double>());
  loss.backward();
  for (const auto& [name, parameter] : model->named_parameters()) {
    results.emplace_back("gradient:" + name, parameter.grad().to_vector<double>());
  }
  return results;
}

Results training(const Case& c, DType dtype) {
  const std::unique_ptr<nn::LanguageModel> model = make_with_noise(c, dtype);
  optim::AdamW optimizer(model->named_parameters(), {.beta2 = 0.95, .epsilon = 1e-5, .weight_decay = 0.1},
                         optim::no_decay_for_biases_and_norms());
  std::vector<double> losses, norms;
  for (int step = 0; step < kSteps; ++step) {
    optimizer.set_lr(1.0 / 512 * (kSteps - step) / kSteps);
    optimizer.zero_grad();
    const auto [ids, targets] = make_batch(model->vocab(), step % 4);
    const Tensor loss = model->loss(ids, targets);
    loss.backward();
    const optim::GradNorm norm = optim::global_grad_norm(optimizer.parameters());
    losses.push_back(loss.item());
    norms.push_back(norm.value);
    optimizer.step({.grad_scale = optim::clip_factor(norm, 1.0)});
  }
  Results results{{"losses", losses}, {"norms", norms}};
  for (const auto& [name, parameter] : model->named_parameters()) {
    results.emplace_back("trained:" + name, parameter.to_vector<double>());
  }
  return results;
}

void expect_within(double bound, StoredValues& stored, const Results& results) {
  for (const auto& [name, got] : results) {
    EXPECT_LE(largest_relative_error(got, stored.at(name).values), bound) << stored.path() << ": " << name;
  }
}

// f64 against numbers that are stored in 23 bits, 1.2e-7 at worst. What transformers computes in f32 all the
// same (models_transformers.py) takes Llama's a few roundings of 2⁻²⁴ away, and Adam's steps multiply that.
TEST(Transformers, F64IsEqualAsFarAsTheStoredDigitsGo) {
  for (const Case& c : kCases) {
    StoredValues stored(c.file);
    const double bound = c.make == make_gpt2 ? 1.3e-7 : 2e-6;
    expect_within(bound, stored, logits_loss_and_gradients(c, kF64));
    expect_within(bound, stored, training(c, kF64));
    EXPECT_EQ(stored.unread(), std::set<std::string>()) << c.file;
  }
}

// The largest error of a tensor, in parts of its largest element. Most are below 1e-6.
TEST(Transformers, LogitsLossAndEveryGradientInF32AreWithin1e5) {
  for (const Case& c : kCases) {
    StoredValues stored(c.file);
    expect_within(1e-5, stored, logits_loss_and_gradients(c, kF32));
  }
}

TEST(Transformers, LossesAndWeightsOf20StepsOfAdamWInF32AreWithin1e5) {
  for (const Case& c : kCases) {
    StoredValues stored(c.file);
    expect_within(1e-5, stored, training(c, kF32));
  }
}

// In 16 bits the measure is PyTorch's own distance from its f64 with the same weights, which are exact in
// every dtype. Both sides round as many times, in other places, so their errors are draws of one size: over
// all gradients within a quarter of each other, in one tensor, of which some have 15 elements, within a
// factor of 3. An error of the loss is that of 19 targets' logits in the mean: 1/√19 of theirs.
TEST(Transformers, SixteenBitsAreAsNearToF64AsPyTorchs) {
  for (const Case& c : kCases) {
    for (const DType dtype : {kF16, kBF16}) {
      StoredValues stored(c.file);
      double squares = 0.0, own_squares = 0.0;
      for (const auto& [name, got] : logits_loss_and_gradients(c, dtype)) {
        SCOPED_TRACE(fmt::format("{} {} {}", c.file, tessera::name(dtype), name));
        const StoredTensor& expected = stored.at(name);
        const double error = relative_error(got, expected.values), own = expected.own_error.at(dtype);
        if (name == "loss") {
          EXPECT_LE(error, stored.at("logits").own_error.at(dtype) / 4);
        } else if (name == "logits") {
          EXPECT_LE(error, 1.25 * own);
        } else {
          EXPECT_LE(error, 3 * own);
          squares += error * error * squared_norm(expected.values);
          own_squares += own * own * squared_norm(expected.values);
        }
      }
      EXPECT_LE(std::sqrt(squares / own_squares), 1.25) << c.file << ' ' << name(dtype);
    }
  }
}

}  // namespace
}  // namespace tessera::reference
