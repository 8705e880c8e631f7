// Hooks around forward and backward: their order, what they see, what they may change.

#include <gtest/gtest.h>

#include "autograd/checkpoint.h"
#include "nn/nn.h"
#include "tests/nn/check.h"

namespace tessera::nn {
namespace {

using Log = std::vector<std::string>;

void watch(Module& module, const std::string& name, Log& log) {
  module.add_forward_pre_hook([&log, name](Module&, std::span<Tensor>) { log.push_back("forward " + name); });
  module.add_forward_hook([&log, name](Module&, std::span<Tensor>) { log.push_back("forwarded " + name); });
  module.add_backward_pre_hook(
      [&log, name](Module&, std::span<const Tensor>) { log.push_back("backward " + name); });
  module.add_backward_hook(
      [&log, name](Module&, std::span<const Tensor>) { log.push_back("backwarded " + name); });
}

struct Pair {
  Sequential model;
  Linear& a = model.add<Linear>(2, 2);
  Linear& b = model.add<Linear>(2, 2);
};

Tensor input() {
  Tensor x = ones({1, 2});
  x.set_requires_grad();
  return x;
}

TEST(Hooks, RunAroundForwardAndAroundBackwardInReverse) {
  Pair pair;
  Log log;
  watch(pair.model, "model", log);
  watch(pair.a, "a", log);
  watch(pair.b, "b", log);
  const Tensor y = sum(pair.model(input()));
  EXPECT_EQ(
      log, (Log{"forward model", "forward a", "forwarded a", "forward b", "forwarded b", "forwarded model"}));
  log.clear();
  y.backward();
  EXPECT_EQ(log, (Log{"backward model", "backward b", "backwarded b", "backward a", "backwarded a",
                      "backwarded model"}));
}

TEST(Hooks, TheFirstAddedIsTheOutermost) {
  Pair pair;
  Log log;
  watch(pair.a, "outer", log);
  watch(pair.a, "inner", log);
  const Tensor y = sum(pair.model(input()));
  EXPECT_EQ(log, (Log{"forward outer", "forward inner", "forwarded inner", "forwarded outer"}));
  log.clear();
  y.backward();
  EXPECT_EQ(log, (Log{"backward outer", "backward inner", "backwarded inner", "backwarded outer"}));
}

TEST(Hooks, DoNotChangeValuesOrGradients) {
  const auto run = [](bool hooks) {
    Pair pair;
    set_pattern(pair.model);
    Log log;
    if (hooks) {
      for (Module* module : pair.model.modules()) watch(*module, module->name(), log);
    }
    Tensor x = pattern({3, 2}, 5);
    x.set_requires_grad();
    const Tensor y = pair.model(x);
    sum(y * y).backward();
    std::vector<std::vector<double>> result{y.to_vector<double>(), x.grad().to_vector<double>()};
    for (const Tensor& p : pair.model.parameters()) result.push_back(p.grad().to_vector<double>());
    return result;
  };
  EXPECT_EQ(run(true), run(false));
}

// y = W₂ (W₁ x): a hook that doubles a's input and one that adds 1 to its output.
TEST(Hooks, OnForwardMayReplaceInputsAndOutputs) {
  Pair pair;
  set_pattern(pair.model);
  const Tensor x = pattern({1, 2}, 3);
  const Tensor expected = pair.b(pair.a(x * 2.0) + 1.0);
  pair.a.add_forward_pre_hook([](Module&, std::span<Tensor> inputs) { inputs[0] = inputs[0] * 2.0; });
  pair.a.add_forward_hook([](Module&, std::span<Tensor> outputs) { outputs[0] = outputs[0] + 1.0; });
  EXPECT_EQ("", difference(pair.model(x), expected, 0.0));
}

TEST(Hooks, OnBackwardSeeTheGradientsAndParametersAreReady) {
  Linear layer(2, 2);
  set_pattern(layer);
  int calls = 0;
  layer.add_backward_pre_hook([&](Module& module, std::span<const Tensor> dys) {
    ++calls;
    EXPECT_EQ(&module, &layer);
    ASSERT_EQ(dys.size(), 1u);
    EXPECT_EQ(dys[0].to_vector<double>(), (std::vector<double>{10, 20}));
    EXPECT_FALSE(layer.weight().grad().defined());
  });
  layer.add_backward_hook([&](Module&, std::span<const Tensor> dxs) {
    ++calls;
    const Tensor expected = matmul(from_vector<double>({10, 20}, Shape{1, 2}), layer.weight().detach());
    EXPECT_EQ("", difference(dxs[0], expected, 1e-15));
    EXPECT_TRUE(layer.weight().grad().defined());
    EXPECT_TRUE(layer.bias().grad().defined());
  });
  Tensor x = pattern({1, 2}, 1);
  x.set_requires_grad();
  backward(layer(x), from_vector<double>({10, 20}, Shape{1, 2}));
  EXPECT_EQ(calls, 2);
}

TEST(Hooks, AreGoneAfterRemovalAndMayRemoveThemselves) {
  Linear layer(2, 2);
  int calls = 0;
  HookId once = 0;
  once = layer.add_forward_hook([&](Module& module, std::span<Tensor>) {
    ++calls;
    module.remove_hook(once);
  });
  const HookId removed = layer.add_forward_pre_hook([&](Module&, std::span<Tensor>) { calls += 100; });
  layer.remove_hook(removed);
  layer.remove_hook(removed);
  layer.remove_hook(12345);
  for (int i = 0; i < 3; ++i) static_cast<void>(layer(ones({1, 2})));
  EXPECT_EQ(calls, 1);
}

TEST(Hooks, UnderNoGradOnlyThoseOnForwardRun) {
  Linear layer(2, 2);
  Log log;
  watch(layer, "layer", log);
  const NoGrad no_grad;
  static_cast<void>(layer(ones({1, 2})));
  EXPECT_EQ(log, (Log{"forward layer", "forwarded layer"}));
}

// Without an input that needs a gradient there is nothing that the backward hook could wait for.
TEST(Hooks, OfAFirstLayerSeeTheBeginningOfItsBackwardOnly) {
  Linear layer(2, 2);
  Log log;
  watch(layer, "layer", log);
  sum(layer(ones({1, 2}))).backward();
  EXPECT_EQ(log, (Log{"forward layer", "forwarded layer", "backward layer"}));
}

TEST(Hooks, RunAgainUnderRecomputation) {
  Pair pair;
  Log log;
  watch(pair.a, "a", log);
  const Tensor y = checkpoint([&](const Tensor& x) { return pair.model(x); }, input());
  sum(y).backward();
  EXPECT_EQ(log, (Log{"forward a", "forwarded a", "forward a", "forwarded a", "backward a", "backwarded a"}));
}

TEST(Hooks, SeeBothInputsAndBothOutputsOfTheFusedNorm) {
  LayerNorm norm(4);
  std::vector<std::size_t> counts;
  norm.add_forward_pre_hook([&](Module&, std::span<Tensor> tensors) { counts.push_back(tensors.size()); });
  norm.add_forward_hook([&](Module&, std::span<Tensor> tensors) { counts.push_back(tensors.size()); });
  norm.add_backward_pre_hook(
      [&](Module&, std::span<const Tensor> tensors) { counts.push_back(tensors.size()); });
  norm.add_backward_hook([&](Module&, std::span<const Tensor> tensors) { counts.push_back(tensors.size()); });
  Tensor x = ones({2, 4}), residual = ones({2, 4});
  x.set_requires_grad();
  residual.set_requires_grad();
  const auto [total, normalized] = norm.add(x, residual);
  sum(total + normalized).backward();
  EXPECT_EQ(counts, (std::vector<std::size_t>{2, 2, 2, 2}));
}

TEST(Hooks, SeeTheGradientOfAnInputInItsPlace) {
  LayerNorm norm(4);
  std::vector<bool> defined;
  norm.add_backward_hook([&](Module&, std::span<const Tensor> gradients) {
    for (const Tensor& gradient : gradients) defined.push_back(gradient.defined());
  });
  Tensor residual = ones({2, 4});
  residual.set_requires_grad();
  const auto [total, normalized] = norm.add(ones({2, 4}), residual);
  sum(total + normalized).backward();
  EXPECT_EQ(defined, (std::vector<bool>{false, true})) << "x wants none, the residual has one";
}

TEST(Hooks, AroundAWholeModelSeeIdsAndLogits) {
  Gpt2 model({.vocab = 7, .context = 4, .layers = 1, .heads = 1, .width = 4});
  std::vector<Shape> shapes;
  model.add_forward_pre_hook(
      [&](Module&, std::span<Tensor> tensors) { shapes.push_back(tensors[0].shape()); });
  model.add_forward_hook([&](Module&, std::span<Tensor> tensors) { shapes.push_back(tensors[0].shape()); });
  const Tensor ids = zeros({2, 3}, {.dtype = kI64});
  model.loss(ids, ids).backward();
  EXPECT_EQ(shapes, (std::vector<Shape>{{2, 3}, {2, 3, 7}}));
}

}  // namespace
}  // namespace tessera::nn
