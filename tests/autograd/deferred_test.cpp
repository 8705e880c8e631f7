// Activation gradients now, weight gradients later: the same bits as together.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/ops.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

// Two layers with everything that has a weight, and one weight used twice.
struct Layers {
  Tensor table, gain, bias, w1, b1, w2;

  Layers() {
    const auto parameter = [](const Shape& shape, const char* stream) {
      Tensor x = uniform(shape, -0.5, 0.5, stream);
      x.set_requires_grad();
      return x;
    };
    table = parameter({7, 6}, "table");
    gain = parameter({6}, "gain");
    bias = parameter({6}, "bias");
    w1 = parameter({18, 6}, "w1");
    b1 = parameter({18}, "b1");
    w2 = parameter({6, 6}, "w2");
  }

  [[nodiscard]] std::vector<Tensor> all() const { return {table, gain, bias, w1, b1, w2}; }

  [[nodiscard]] Tensor loss(const Tensor& ids) const {
    const Tensor x = embedding(table, ids);
    const Tensor h = attention_packed(linear(layer_norm(x, gain, bias), w1, b1), 2, 2);
    const ResidualNorm r = add_layer_norm(linear(h, w2), x, gain, bias);
    const Tensor logits = linear(r.sum + gelu(linear(r.normalized, w2)), table);
    return cross_entropy(logits, ids);
  }
};

std::vector<std::vector<float>> grads(const Layers& layers) {
  std::vector<std::vector<float>> result;
  for (const Tensor& x : layers.all()) result.push_back(x.grad().to_vector<float>());
  return result;
}

TEST(Deferred, WeightGradientsAreTheSameBitsAsInOnePass) {
  const Tensor ids = from_vector<std::int64_t>({1, 2, 3, 4, 0, 6, 6, 1}, Shape{2, 4});
  const Layers layers;
  layers.loss(ids).backward();
  const auto together = grads(layers);
  for (const Tensor& x : layers.all()) Tensor(x).set_grad({});

  DeferredGradients later;
  backward(layers.loss(ids), {}, {.deferred = &later});
  EXPECT_FALSE(later.empty());
  EXPECT_FALSE(layers.w1.grad().defined());
  EXPECT_FALSE(layers.w2.grad().defined());
  later.run();
  EXPECT_TRUE(later.empty());
  EXPECT_EQ(grads(layers), together);
}

// A table has no other input, so its gradient would come in the first pass, as that of the input does.
TEST(Deferred, AllLeavesButOneCanWait) {
  const Tensor ids = from_vector<std::int64_t>({1, 2, 3, 4, 0, 6, 6, 1}, Shape{2, 4});
  const Layers layers;
  layers.loss(ids).backward();
  const auto together = grads(layers);
  for (const Tensor& x : layers.all()) Tensor(x).set_grad({});

  Tensor input = ones({2, 4});
  input.set_requires_grad();
  DeferredGradients first, second;
  const auto pass = [&](DeferredGradients& later) {
    const Tensor x = input * 3.0;  // no other input either: wanted now
    backward(layers.loss(ids) + sum(x), {}, {.deferred = &later, .defers_all_leaves = true, .now = input});
  };
  pass(first);
  EXPECT_EQ(input.grad().to_vector<float>(), std::vector<float>(8, 3.0f));
  pass(second);
  for (const Tensor& x : layers.all()) EXPECT_FALSE(x.grad().defined());
  second.run();
  EXPECT_EQ(grads(layers), together);
  for (const Tensor& x : layers.all()) Tensor(x).set_grad({});
  first.run();
  EXPECT_EQ(grads(layers), together);
}

TEST(Deferred, ThePassOfActivationsComputesNoWeightGradients) {
  RankContext context;
  const RankContext::Scope scope(context);
  const DeviceScope device(meta);
  // Two products a layer in each direction: y = x·Wᵀ is 2·N·I·O flops, so are dx and dW.
  const std::int64_t n = 32, width = 64, product = 2 * n * width * width;
  Tensor x = empty({n, width}), w1 = empty({width, width}), w2 = empty({width, width});
  for (Tensor* leaf : {&x, &w1, &w2}) leaf->set_requires_grad();
  const Tensor y = linear(linear(x * 1.0, w1), w2);
  const auto flops_of = [&](const auto& run) {
    const std::uint64_t before = context.kernels.counts.flops;
    run();
    return static_cast<std::int64_t>(context.kernels.counts.flops - before);
  };
  DeferredGradients later;
  const Tensor dy = empty({n, width});
  EXPECT_EQ(flops_of([&] { backward(y, dy, {.deferred = &later}); }),
            2 * product + n * width);  // dx twice, ·1.0
  EXPECT_EQ(flops_of([&] { later.run(); }), 2 * product);
}

TEST(Deferred, SavedValuesLiveUntilTheDeferredPartRan) {
  RankContext context;
  const RankContext::Scope scope(context);
  const auto activations = [&] {
    return context.pool(cpu)->report().of(MemoryCategory::kActivation).current;
  };
  const CategoryScope category(MemoryCategory::kActivation);
  Tensor w = ones({8, 8});
  w.set_requires_grad();
  const std::int64_t parameters = activations();
  DeferredGradients later;
  {
    Tensor x = ones({4, 8});
    x.set_requires_grad();
    backward(linear(x * 1.0, w), ones({4, 8}), {.deferred = &later});
  }
  EXPECT_EQ(activations(), parameters + 2 * 128);  // x·1.0 and the gradient of the result
  later.run();
  EXPECT_EQ(activations(), parameters);
}

// The weights of a recomputed block are its node's inputs beside its activations: they wait too, and the
// block is run again for them.
TEST(Deferred, WorksThroughCheckpoint) {
  const auto run = [](bool defer) {
    Tensor x = uniform({3, 4}, -1, 1, "x"), w = uniform({4, 4}, -1, 1, "w");
    x.set_requires_grad();
    w.set_requires_grad();
    DeferredGradients later;
    const Tensor y = checkpoint([w](const Tensor& in) { return gelu(linear(in, w)); }, x * 1.0);
    backward(y, ones({3, 4}), {.deferred = defer ? &later : nullptr});
    EXPECT_EQ(w.grad().defined(), !defer);
    if (defer) later.run();
    return std::pair(x.grad().to_vector<float>(), w.grad().to_vector<float>());
  };
  EXPECT_EQ(run(true), run(false));
}

// exp(w) gives its part of the gradient at once, y · w only in the deferred part: the hook sees the sum.
TEST(Deferred, AHookSeesTheSumOfWhatCameAtOnceAndWhatWasDeferred) {
  Tensor x = from_vector<double>({1, 2}), w = from_vector<double>({0, 0});
  x.set_requires_grad();
  w.set_requires_grad();
  std::vector<std::vector<double>> seen;
  register_hook(w, [&](const Tensor& grad) {
    seen.push_back(grad.to_vector<double>());
    return Tensor();
  });
  const Tensor y = x * 3.0;
  DeferredGradients deferred;
  backward(sum(y * w + exp(w)), {}, {.deferred = &deferred});
  EXPECT_TRUE(seen.empty());
  deferred.run();
  EXPECT_EQ(seen, (std::vector<std::vector<double>>{{4, 7}}));
  EXPECT_EQ(w.grad().to_vector<double>(), (std::vector<double>{4, 7}));
}

}  // namespace
}  // namespace tessera
