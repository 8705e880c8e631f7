// Layers, functions and losses against PyTorch's, forward and gradients, in four dtypes: layers_pytorch.py
// has the same table and says what the stored values are.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "nn/nn.h"
#include "tests/references/stored_values.h"

namespace tessera::reference {
namespace {

constexpr const char* kFile = TESSERA_SOURCE_DIR "/tests/references/layers.txt";

using Inputs = std::vector<Tensor>;
using Function = std::function<Tensor(const Inputs& x)>;

// What a case computes, and the module whose parameters it uses (null: none).
struct Subject {
  std::unique_ptr<nn::Module> module;
  Function function;
};

// A layer from one tensor to one tensor.
template <class Layer, class... Args>
Subject layer(Args&&... args) {
  auto module = std::make_unique<Layer>(std::forward<Args>(args)...);
  Layer* m = module.get();
  return {std::move(module), [m](const Inputs& x) { return (*m)(x[0]); }};
}

Subject function(Function f) { return {nullptr, std::move(f)}; }

Subject make_add_layer_norm() {
  auto module = std::make_unique<nn::LayerNorm>(19);
  nn::LayerNorm* m = module.get();
  return {std::move(module), [m](const Inputs& x) {
            const auto [sum, normalized] = m->add(x[0], x[1]);
            return concat(std::vector{sum, normalized}, 0);
          }};
}

Subject make_sequential() {
  auto module = std::make_unique<nn::Sequential>();
  module->add<nn::Linear>(7, 5);
  module->add<nn::Tanh>();
  module->add<nn::Linear>(5, 3);
  nn::Sequential* m = module.get();
  return {std::move(module), [m](const Inputs& x) { return (*m)(x[0]); }};
}

Subject make_rotary() {
  auto module = std::make_unique<nn::RotaryEmbedding>(6, 100.0);
  nn::RotaryEmbedding* m = module.get();
  return {std::move(module), [m](const Inputs& x) { return (*m)(x[0], 5); }};
}

// In evaluation mode, after two batches in training mode; output and running statistics.
Subject make_batch_norm_in_evaluation() {
  auto module = std::make_unique<nn::BatchNorm2d>(5, nn::BatchNormOptions{.momentum = 0.25});
  nn::BatchNorm2d* m = module.get();
  return {std::move(module), [m](const Inputs& x) {
            const DType dtype = x[0].dtype();
            const NamedTensors state = m->state();
            {
              const NoGrad no_grad;
              m->to(kF64);
              m->train();
              static_cast<void>((*m)(noise(310, {3, 5, 3, 7})));
              static_cast<void>((*m)(noise(311, {2, 5, 1, 3})));
              m->eval();
              m->to(dtype);
            }
            std::vector<Tensor> parts{(*m)(x[0]).flatten()};
            for (const auto& [name, tensor] : state) {
              if (name.starts_with("running_")) parts.push_back(tensor);
            }
            return concat(parts, 0);
          }};
}

// Targets of the losses: layers_pytorch.py's TARGETS, and numbers in [0, 1).
Tensor classes() {
  Tensor targets = whole_numbers(300, {7}, 97);
  targets.set({2}, -100);
  return targets;
}
Tensor probabilities(DType dtype) { return noise(301, {5, 13}, 0.5).to(dtype); }

struct Case {
  const char* name;
  Inputs inputs;  // in f64, or ids
  Subject (*make)();
};

Tensor input(const Shape& shape, double scale = 1.0, int i = 0) { return noise(100 + i, shape) * scale; }

std::vector<Case> layer_cases() {
  return {
      {"linear", {input({2, 3, 7})}, [] { return layer<nn::Linear>(7, 5); }},
      {"linear_without_bias",
       {input({2, 3, 7})},
       [] { return layer<nn::Linear>(7, 5, nn::LinearOptions{.bias = false}); }},
      {"linear_wide", {input({5, 37})}, [] { return layer<nn::Linear>(37, 11); }},
      {"layer_norm", {input({3, 37})}, [] { return layer<nn::LayerNorm>(37); }},
      {"layer_norm_without_bias",
       {input({2, 3, 5})},
       [] { return layer<nn::LayerNorm>(5, nn::LayerNormOptions{.bias = false, .epsilon = 0.01}); }},
      {"rms_norm", {input({3, 37})}, [] { return layer<nn::RmsNorm>(37); }},
      {"add_layer_norm", {input({3, 19}), input({3, 19}, 1.0, 1)}, make_add_layer_norm},
      {"embedding", {whole_numbers(100, {3, 5}, 13)}, [] { return layer<nn::Embedding>(13, 7); }},
      {"relu", {input({3, 13}, 16.0)}, [] { return layer<nn::Relu>(); }},
      {"silu", {input({3, 13}, 16.0)}, [] { return layer<nn::Silu>(); }},
      {"tanh", {input({3, 13}, 16.0)}, [] { return layer<nn::Tanh>(); }},
      {"sigmoid", {input({3, 13}, 16.0)}, [] { return layer<nn::Sigmoid>(); }},
      {"gelu", {input({3, 13}, 16.0)}, [] { return layer<nn::Gelu>(); }},
      {"gelu_erf", {input({3, 13}, 16.0)}, [] { return layer<nn::Gelu>(tessera::Gelu::kErf); }},
      {"softmax",
       {input({3, 5, 7}, 8.0)},
       [] { return function([](const Inputs& x) { return softmax(x[0], 1); }); }},
      {"log_softmax",
       {input({3, 37}, 8.0)},
       [] { return function([](const Inputs& x) { return log_softmax(x[0]); }); }},
      {"sequential", {input({3, 7})}, make_sequential},
      {"mlp", {input({2, 3, 7})}, [] { return layer<nn::Mlp>(nn::MlpConfig{.width = 7, .hidden = 11}); }},
      {"swiglu",
       {input({2, 3, 7})},
       [] { return layer<nn::SwiGlu>(nn::SwiGluConfig{.width = 7, .hidden = 11}); }},
      {"rotary", {input({2, 5, 3, 6})}, make_rotary},
      {"conv2d",
       {input({2, 3, 7, 5})},
       [] { return layer<nn::Conv2d>(3, 5, Size2(3), nn::Conv2dOptions{.padding = 1}); }},
      {"conv2d_with_everything",
       {input({3, 4, 9, 8})},
       [] {
         return layer<nn::Conv2d>(
             4, 6, Size2(3, 2),
             nn::Conv2dOptions{
                 .stride = {2, 3}, .padding = {1, 2}, .dilation = {2, 3}, .groups = 2, .bias = false});
       }},
      {"max_pool2d", {input({2, 3, 7, 5})}, [] { return layer<nn::MaxPool2d>(); }},
      {"max_pool2d_with_everything",
       {input({2, 3, 7, 9})},
       [] {
         return layer<nn::MaxPool2d>(
             Pool2dConfig{.window = {3, 2}, .stride = {2, 1}, .padding = 1, .dilation = {1, 3}});
       }},
      {"max_pool2d_of_zeros",
       {input({2, 3, 7, 9}, 0.0)},
       [] {
         return layer<nn::MaxPool2d>(Pool2dConfig{.window = {3, 2}, .stride = {2, 1}, .padding = 1});
       }},
      {"avg_pool2d",
       {input({2, 3, 7, 5})},
       [] {
         return layer<nn::AvgPool2d>(Pool2dConfig{.window = {3, 2}, .stride = {2, 1}, .padding = 1});
       }},
      {"batch_norm",
       {input({3, 5, 3, 7})},
       [] { return layer<nn::BatchNorm2d>(5, nn::BatchNormOptions{.epsilon = 0.01}); }},
      {"batch_norm_in_evaluation", {input({2, 5, 3, 7})}, make_batch_norm_in_evaluation},
      {"causal_self_attention",
       {input({2, 7, 15})},
       [] { return layer<nn::CausalSelfAttention>(nn::CausalSelfAttentionConfig{.width = 15, .heads = 3}); }},
      {"attention_of_all",
       {input({2, 7, 15})},
       [] {
         return layer<nn::MultiHeadAttention>(
             nn::MultiHeadAttentionConfig{.width = 15, .heads = 3, .causal = false, .bias = true});
       }},
      {"grouped_attention",
       {input({2, 5, 18})},
       [] {
         return layer<nn::MultiHeadAttention>(
             nn::MultiHeadAttentionConfig{.width = 18, .heads = 6, .kv_heads = 2});
       }},
      {"attention_after_a_cache",
       {input({2, 5, 6, 7}), input({2, 9, 2, 7}, 1.0, 1), input({2, 9, 2, 7}, 1.0, 2)},
       [] { return function([](const Inputs& x) { return attention(x[0], x[1], x[2], {.scale = 0.5}); }); }},
  };
}

template <Reduction reduction>
std::vector<Case> loss_cases() {
  static const std::string suffix = reduction == Reduction::kMean  ? "mean"
                                    : reduction == Reduction::kSum ? "sum"
                                                                   : "none";
  static const std::vector<std::string> names = {"cross_entropy_" + suffix + "_0.0",
                                                 "cross_entropy_" + suffix + "_0.1", "mse_" + suffix,
                                                 "bce_" + suffix, "kl_" + suffix};
  return {
      {names[0].c_str(),
       {input({7, 97}, 8.0)},
       [] {
         return function(
             [](const Inputs& x) { return cross_entropy(x[0], classes(), {.reduction = reduction}); });
       }},
      {names[1].c_str(),
       {input({7, 97}, 8.0)},
       [] {
         return function([](const Inputs& x) {
           return cross_entropy(x[0], classes(), {.label_smoothing = 0.1, .reduction = reduction});
         });
       }},
      {names[2].c_str(),
       {input({5, 13}), input({5, 13}, 1.0, 1)},
       [] { return function([](const Inputs& x) { return mse_loss(x[0], x[1], reduction); }); }},
      {names[3].c_str(),
       {input({5, 13}, 16.0)},
       [] {
         return function([](const Inputs& x) {
           return bce_with_logits_loss(x[0], probabilities(x[0].dtype()), reduction);
         });
       }},
      {names[4].c_str(),
       {input({5, 13}, 8.0)},
       [] {
         return function(
             [](const Inputs& x) { return kl_div_loss(x[0], probabilities(x[0].dtype()), reduction); });
       }},
  };
}

std::vector<Case> all_cases() {
  std::vector<Case> cases = layer_cases();
  for (auto* make :
       {loss_cases<Reduction::kMean>, loss_cases<Reduction::kSum>, loss_cases<Reduction::kNone>}) {
    for (Case& c : make()) cases.push_back(std::move(c));
  }
  return cases;
}

void set_noise(nn::Module& module, DType dtype) {
  module.to(dtype);
  const NoGrad no_grad;
  const bool norm = dynamic_cast<nn::LayerNorm*>(&module) || dynamic_cast<nn::RmsNorm*>(&module) ||
                    dynamic_cast<nn::BatchNorm2d*>(&module);
  std::int64_t k = 0;
  for (auto& [name, parameter] : module.named_parameters()) {
    Tensor target = parameter;
    target.copy_from(noise(k++, parameter.shape(), norm && name == "weight" ? 1.0 : 0.0));
  }
}

// Output and gradients of a case, each with the name under which it is stored.
std::vector<std::pair<std::string, std::vector<double>>> results(const Case& c, DType dtype) {
  const Subject subject = c.make();
  if (subject.module) set_noise(*subject.module, dtype);
  Inputs inputs;
  for (const Tensor& x : c.inputs) {
    inputs.push_back(is_floating(x.dtype()) ? x.to(dtype) : x);
    if (is_floating(x.dtype())) inputs.back().set_requires_grad();
  }
  const Tensor y = subject.function(inputs);
  backward(y, noise(200, y.shape()).to(y.dtype()));
  const std::string name = c.name;
  std::vector<std::pair<std::string, std::vector<double>>> results{{name + ":y", y.to_vector<double>()}};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad()) continue;
    results.emplace_back(fmt::format("{}:input{}", name, i), inputs[i].grad().to_vector<double>());
  }
  if (subject.module) {
    int k = 0;
    for (const Tensor& parameter : subject.module->parameters()) {
      results.emplace_back(fmt::format("{}:parameter{}", name, k++), parameter.grad().to_vector<double>());
    }
  }
  return results;
}

// f64: the stored values have 40 bits, and single operations are within some 1e-15.
TEST(Layers, F64IsPyTorchsAsFarAsTheStoredDigitsGo) {
  StoredValues stored(kFile);
  for (const Case& c : all_cases()) {
    for (const auto& [name, got] : results(c, kF64)) {
      EXPECT_LE(largest_relative_error(got, stored.at(name).values), 1e-12) << name;
    }
  }
  EXPECT_EQ(stored.unread(), std::set<std::string>());
}

// f32: a few roundings of 2⁻²⁴ = 6e-8 one after the other.
TEST(Layers, F32IsWithinAMillionth) {
  StoredValues stored(kFile);
  for (const Case& c : all_cases()) {
    for (const auto& [name, got] : results(c, kF32)) {
      EXPECT_LE(relative_error(got, stored.at(name).values), 1e-6) << name;
    }
  }
}

// PyTorch's own distance from its f64, with inputs that are exact in every dtype. Where it is 0, as of a sum
// or of relu, ours must be. Both round at much the same places; where they do not, errors are draws of one
// size.
TEST(Layers, SixteenBitsAreAsNearToF64AsPyTorchs) {
  StoredValues stored(kFile);
  for (const DType dtype : {kF16, kBF16}) {
    for (const Case& c : all_cases()) {
      for (const auto& [name, got] : results(c, dtype)) {
        const StoredTensor& expected = stored.at(name);
        EXPECT_LE(relative_error(got, expected.values), 1.5 * expected.own_error.at(dtype))
            << tessera::name(dtype) << ' ' << name;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::reference
