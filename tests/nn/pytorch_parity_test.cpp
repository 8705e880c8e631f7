// Whole models and losses against numbers of PyTorch (tests/references/nn_pytorch.py), in f64.

#include <gtest/gtest.h>

#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/pytorch_values.h"

namespace tessera::nn {
namespace {

Tensor make_ids(std::int64_t shift) {
  std::vector<std::int64_t> ids;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 6; ++t) ids.push_back((5 * b + 3 * t + t * t + shift) % 11);
  }
  return from_vector(ids, Shape{2, 6});
}

// Logits are of order 1 and come out of sums of fewer than 100 terms: both sides are within some 100 · 2⁻⁵³ ≈
// 1e-14; the gradients' sums are of order 10 and have up to 400 terms.
void expect_pytorchs(LanguageModel& model, const reference::ModelValues& expected) {
  set_pattern(model);
  EXPECT_EQ("", difference(model.logits(make_ids(0)), expected.logits, 1e-13));
  const Tensor loss = model.loss(make_ids(0), make_ids(4));
  EXPECT_NEAR(loss.item(), expected.loss, 1e-13);
  loss.backward();
  const NamedTensors parameters = model.named_parameters();
  ASSERT_EQ(parameters.size(), expected.gradients.size());
  for (std::size_t k = 0; k < parameters.size(); ++k) {
    EXPECT_EQ(parameters[k].first, expected.gradients[k].name);
    const std::vector<double> g = parameters[k].second.grad().to_vector<double>();
    double weighted = 0.0, squares = 0.0;
    for (std::size_t i = 0; i < g.size(); ++i) {
      weighted += g[i] * (static_cast<double>((13 * i) % 7) - 2.5);
      squares += g[i] * g[i];
    }
    EXPECT_NEAR(weighted, expected.gradients[k].weighted_sum, 1e-12) << parameters[k].first;
    EXPECT_NEAR(squares, expected.gradients[k].sum_of_squares, 1e-12) << parameters[k].first;
  }
}

TEST(PyTorchParity, Gpt2LogitsLossAndGradients) {
  Gpt2 model({.vocab = 11, .context = 6, .layers = 2, .heads = 2, .width = 8});
  expect_pytorchs(model, reference::kGpt2);
}

LlamaConfig small_llama() {
  LlamaConfig config;
  config.vocab = 11;
  config.context = 6;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.width = 16;
  config.hidden = 24;
  config.rotary_base = 100.0;
  return config;
}

TEST(PyTorchParity, LlamaLogitsLossAndGradients) {
  Llama model(small_llama());
  expect_pytorchs(model, reference::kLlama);
}

// The same numbers under recomputation: it changes when things are computed, not what.
TEST(PyTorchParity, RecomputedGpt2AndLlama) {
  Gpt2 gpt2({.vocab = 11, .context = 6, .layers = 2, .heads = 2, .width = 8});
  gpt2.set_recompute(true);
  expect_pytorchs(gpt2, reference::kGpt2);
  Llama llama(small_llama());
  llama.set_recompute(true);
  expect_pytorchs(llama, reference::kLlama);
}

Tensor loss_logits() {
  std::vector<double> values;
  for (int r = 0; r < 6; ++r) {
    for (int v = 0; v < 5; ++v) values.push_back(((29 * r + 17 * v) % 23 - 11) / 4.0);
  }
  return from_vector(values, Shape{6, 5});
}

Tensor loss_of(const std::string& name, const Tensor& x) {
  const auto has = [&name](const char* part) { return name.find(part) != std::string::npos; };
  const Reduction reduction = has("mean")  ? Reduction::kMean
                              : has("sum") ? Reduction::kSum
                                           : Reduction::kNone;
  if (has("cross_entropy")) {
    const Tensor targets = from_vector<std::int64_t>({4, -100, 0, 2, -100, 1});
    return cross_entropy(x, targets, {.label_smoothing = has("0.1") ? 0.1 : 0.0, .reduction = reduction});
  }
  const std::vector<Tensor> rows = loss_logits().chunk(6, 0);
  const Tensor target = softmax(concat(std::vector<Tensor>(rows.rbegin(), rows.rend()), 0));
  if (has("mse")) return mse_loss(x, target, reduction);
  if (has("kl")) return kl_div_loss(log_softmax(x), target, reduction);
  return bce_with_logits_loss(x, target, reduction);
}

TEST(PyTorchParity, Losses) {
  for (const reference::LossValues& expected : reference::kLosses) {
    const std::string name = expected.name;
    Tensor x = loss_logits();
    x.set_requires_grad();
    const Tensor loss = loss_of(name, x);
    EXPECT_EQ("", difference(loss, expected.loss, 1e-13)) << name;
    sum(loss).backward();
    EXPECT_EQ("", difference(x.grad(), expected.gradient, 1e-14)) << name;
  }
}

}  // namespace
}  // namespace tessera::nn
