// Selective recomputation of single values: the graph keeps how to make them; the gradients are the same
// bits.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

using Function = std::function<Tensor(const Tensor&)>;

class Recomputed : public testing::Test {
 protected:
  [[nodiscard]] std::int64_t activations() const {
    return context_.pool(cpu)->report().of(MemoryCategory::kActivation).current;
  }

  static Tensor parameter(const Shape& shape, const char* stream) {
    Tensor x = uniform(shape, -1, 1, stream);
    x.set_requires_grad();
    return x;
  }

  /// exp that counts its runs.
  Function counted() {
    return [this](const Tensor& x) {
      ++runs_;
      return exp(x);
    };
  }

  RankContext context_{{.seed = 3}};
  RankContext::Scope scope_{context_};
  int runs_ = 0;
};

constexpr std::int64_t kBytes = 8 * 16 * 4;  // of a tensor [8, 16]

TEST_F(Recomputed, TheGraphKeepsTheInputAndNotTheResult) {
  const Tensor w = parameter({16, 16}, "w");
  const Tensor x = parameter({8, 16}, "x");
  for (const bool again : {false, true}) {
    const std::int64_t before = activations();
    const Tensor f = x * 1.0;
    const Tensor y = linear(again ? recomputed(counted(), f) : exp(f), w);
    EXPECT_EQ(activations() - before, (again ? 2 : 3) * kBytes) << "f and y; without recomputation, exp(f)";
    sum(y).backward();
  }
  EXPECT_EQ(runs_, 2);
}

// Loss and gradients of a layer whose value is made by `make`; the context goes on between the passes.
std::vector<std::vector<float>> run(const std::function<Tensor(const Function&, const Tensor&)>& make,
                                    bool retain, bool defer) {
  RankContext& context = RankContext::current();
  Tensor x = uniform({8, 16}, -1, 1, "x"), w = uniform({16, 16}, -1, 1, "w"),
         v = uniform({16, 16}, -1, 1, "v");
  for (Tensor* leaf : {&x, &w, &v}) leaf->set_requires_grad();
  const Function drop = [](const Tensor& in) {
    const RankContext& rank = RankContext::current();
    return dropout(gelu(in), 0.3, rank.random_key("drop"), rank.sample_offset * 16);
  };
  const Tensor h = make(drop, linear(x, w));
  const Tensor n = make([v](const Tensor& in) { return rms_norm(in, v.select(0, 1)); }, h);  // of a value
  const Tensor loss = sum(linear(n, v) * linear(n, w) + square(h));
  context.step += 1;
  context.sample_offset += 8;
  DeferredGradients later;
  backward(loss, {}, {.retain_graph = retain, .deferred = defer ? &later : nullptr});
  if (defer) later.run();
  if (retain) backward(loss);
  context.step -= 1;
  context.sample_offset -= 8;
  return {loss.to_vector<float>(), x.grad().to_vector<float>(), w.grad().to_vector<float>(),
          v.grad().to_vector<float>()};
}

TEST_F(Recomputed, GradientsAreTheSameBits) {
  for (const bool retain : {false, true}) {
    for (const bool defer : {false, true}) {
      if (retain && defer) continue;
      const auto plain = run([](const Function& f, const Tensor& x) { return f(x); }, retain, defer);
      const auto again =
          run([](const Function& f, const Tensor& x) { return recomputed(f, x); }, retain, defer);
      EXPECT_EQ(again, plain) << (retain ? "two passes" : defer ? "weights later" : "one pass");
    }
  }
}

TEST_F(Recomputed, WorksInsideOfACheckpoint) {
  Tensor x = parameter({8, 16}, "x"), w = parameter({16, 16}, "w");
  std::vector<std::vector<float>> grads;
  for (const bool again : {false, true}) {
    x.set_grad({});
    const Function layer = [&](const Tensor& in) {
      return linear(again ? recomputed(counted(), in) : exp(in), w);
    };
    sum(square(checkpoint(layer, x))).backward();
    grads.push_back(x.grad().to_vector<float>());
  }
  EXPECT_EQ(grads[1], grads[0]);
  EXPECT_EQ(runs_, 3) << "forward, forward again, and for w's gradient";
}

TEST_F(Recomputed, RunsOnceMoreForAllWhoSavedTheResult) {
  const Tensor x = parameter({8, 16}, "x"), w = parameter({16, 16}, "w");
  const Tensor h = recomputed(counted(), x);
  sum(linear(h, w) + linear(h, w) + square(h)).backward();
  EXPECT_EQ(runs_, 2);
}

TEST_F(Recomputed, DoesNotRunAgainForNobody) {
  const Tensor x = parameter({8, 16}, "x");
  sum(linear(recomputed(counted(), x), ones({16, 16}))).backward();  // no weight's gradient needs it
  {
    const NoGrad no_grad;
    static_cast<void>(recomputed(counted(), x));
  }
  EXPECT_EQ(runs_, 2);
}

// What saved the value comes first in the backward pass; when the gradient of the value itself is complete,
// its memory is free again.
TEST_F(Recomputed, TheRemadeValueDiesWithItsLastUser) {
  const Tensor w = parameter({16, 16}, "w"), x = parameter({8, 16}, "x");
  std::int64_t held[2] = {0, 0};
  for (const bool again : {false, true}) {
    Tensor h = again ? recomputed(counted(), x) : exp(x);
    const std::int64_t before = activations();
    register_hook(h, [&](const Tensor&) {
      held[again ? 1 : 0] = activations() - before;
      return Tensor();
    });
    const Tensor loss = sum(linear(h, w));
    h = Tensor();
    loss.backward();
  }
  EXPECT_EQ(held[1], held[0]);
}

// Cross-entropy writes its gradient over logits that nobody else holds; here a second operation saved them.
TEST_F(Recomputed, AValueThatSeveralSavedIsNotOverwrittenByTheFirst) {
  const Tensor targets = from_vector<std::int64_t>({0, 3, 15, 2, 8, 9, 1, 0});
  std::vector<std::vector<float>> grads;
  for (const bool again : {false, true}) {
    Tensor x = parameter({8, 16}, "x");
    Tensor logits = again ? recomputed(counted(), x) : exp(x);
    const Tensor squares = sum(square(logits));
    const Tensor loss = cross_entropy(logits, targets) + squares;  // cross_entropy goes back first
    logits = Tensor();
    loss.backward();
    grads.push_back(x.grad().to_vector<float>());
  }
  EXPECT_EQ(grads[1], grads[0]);
}

TEST_F(Recomputed, AResultThatWasChangedInPlaceIsKeptAsItIs) {
  Tensor x = parameter({4}, "x"), w = parameter({4}, "w");
  const Tensor h = recomputed(counted(), x);
  h.detach().fill(2);  // somebody clamps it, say, behind autograd's back
  sum(h * w).backward();
  EXPECT_EQ(w.grad().to_vector<float>(), (std::vector<float>{2, 2, 2, 2}));
}

TEST_F(Recomputed, AnInputThatWasChangedInPlaceIsCaught) {
  Tensor x = parameter({4}, "x"), w = parameter({4}, "w");
  const Tensor f = x * 1.0;
  const Tensor y = recomputed(counted(), f) * w;
  f.detach().fill(2);
  expect_error<AutogradError>([&] { sum(y).backward(); }, {"backward of 'multiply'", "changed in place"});
}

TEST_F(Recomputed, LeavesNoMemoryBehind) {
  const std::int64_t before = activations();
  {
    const Tensor x = ones({8, 16}), one = ones({16});
    Tensor y = recomputed([](const Tensor& in) { return in; }, x);  // hands its input through
    y.set_requires_grad();
    for (int i = 0; i < 3; ++i) {
      y = recomputed([one](const Tensor& in) { return rms_norm(in, one); }, y);
      y = recomputed([](const Tensor& in) { return in; }, y);
    }
    sum(square(y)).backward();
    const Tensor unused = square(recomputed(counted(), exp(y)));
    const Tensor same = recomputed([](const Tensor& in) { return in; }, exp(y));
    // One output of a node from the other.
    const ResidualNorm norm = add_layer_norm(exp(y), x, one, {});
    make_recomputable(
        norm.normalized, [one](std::span<const Tensor> sum) { return layer_norm(sum[0], one, {}); },
        std::span(&norm.sum, 1));
    const Tensor never_differentiated = square(norm.normalized);
  }
  EXPECT_EQ(activations(), before);
}

TEST_F(Recomputed, AnAliasOfTheValueCanBeMadeAgainToo) {
  const Tensor w = parameter({16, 16}, "w");
  std::vector<std::vector<float>> grads;
  for (const bool again : {false, true}) {
    const Tensor x = parameter({8, 16}, "x");
    const std::int64_t before = activations();
    Tensor h = recomputed(counted(), x);
    Tensor alias = record("alias", h.detach(), {h}, [](const Tensor& dy, Needs) -> Grads { return {dy}; });
    if (again) keep_recomputable(h, alias);
    const Tensor y = linear(alias, w);
    h = alias = Tensor();
    EXPECT_EQ(activations() - before, (again ? 1 : 2) * kBytes) << "y, and else h behind its alias";
    sum(y).backward();
    grads.push_back(x.grad().to_vector<float>());
  }
  EXPECT_EQ(grads[1], grads[0]);
}

// dist::copy_to_ranks makes such an alias, I → R; what is computed from it looks at its layout again.
TEST_F(Recomputed, AnAliasOfAnotherLayoutComesBackWithIt) {
  const Layout replicated = Layout().with(MeshAxis::kTp, AxisLayout::replicated());
  const Tensor h = recomputed(counted(), parameter({8, 16}, "x"));
  Tensor alias = record("alias", h.detach(), {h}, [](const Tensor& dy, Needs) -> Grads { return {dy}; });
  alias.set_layout(replicated);
  keep_recomputable(h, alias);
  std::vector<Layout> seen;
  const Function f = [&](const Tensor& in) {
    seen.push_back(in.layout());
    return exp(in);
  };
  backward(sum(square(recomputed(f, alias))), full({}, 0.5));
  EXPECT_EQ(seen, (std::vector<Layout>{replicated, replicated}));
}

// Each value's recipe holds the value before; a graph that is dropped must not be dropped by recursion.
TEST_F(Recomputed, DeepGraphsDieWithoutRecursion) {
  const DeviceScope on(meta);
  Tensor x = ones({1});
  x.set_requires_grad();
  Tensor y = x;
  for (int i = 0; i < 100'000; ++i) y = recomputed([](const Tensor& in) { return -in; }, y);
  y = Tensor();
}

// --- Packed inputs -----------------------------------------------------------------------------------------

TEST_F(Recomputed, CheckpointKeepsWhatPackGives) {
  Tensor x = parameter({8, 16}, "x");
  const CheckpointOptions in_bf16{.pack = [](const Tensor& in) { return in.to(kBF16); },
                                  .unpack = [](const Tensor& in, const PackedInput&) { return in.to(kF32); }};
  const std::int64_t before = activations();
  Tensor y = checkpoint([](const Tensor& in) { return exp(in); }, x * 1.0, in_bf16);
  EXPECT_EQ(activations() - before, kBytes + kBytes / 2) << "y, and x in 16 bits";
  sum(y).backward();
  EXPECT_EQ(x.grad().to_vector<float>(), exp(x.detach().to(kBF16).to(kF32)).to_vector<float>());
}

TEST_F(Recomputed, KeptInHostMemoryComesBackAsAnActivation) {
  Tensor x = parameter({8, 16}, "x");
  std::vector<MemoryCategory> seen;
  const Function f = [&](const Tensor& in) {
    seen.push_back(in.storage().category());
    return exp(in);
  };
  const auto host = [&] { return context_.pool(cpu)->report().of(MemoryCategory::kHostActivation).current; };
  const std::int64_t before = activations();
  Tensor y = checkpoint(f, x * 1.0, kept_in_host_memory());
  EXPECT_EQ(activations() - before, kBytes) << "y alone";
  EXPECT_EQ(host(), kBytes);
  sum(y).backward();
  EXPECT_EQ(host(), 0);
  EXPECT_EQ(seen, (std::vector<MemoryCategory>{MemoryCategory::kActivation, MemoryCategory::kActivation}));
  EXPECT_EQ(x.grad().to_vector<float>(), exp(x.detach()).to_vector<float>());
}

TEST_F(Recomputed, TheLayoutOfAPackedInputIsPutBack) {
  Tensor x = ones({4, 6});
  x.set_requires_grad();
  const Layout layout = Layout().with(MeshAxis::kDp, AxisLayout::sharded(0));
  x.set_layout(layout);
  std::vector<Layout> seen;
  const Function f = [&](const Tensor& in) {
    seen.push_back(in.layout());
    return exp(in);
  };
  const CheckpointOptions flat{.pack = [](const Tensor& in) { return in.clone().reshape({24}); },
                               .unpack =
                                   [](const Tensor& in, const PackedInput&) {
                                     return in.clone().reshape({4, 6});
                                   }};
  const Tensor y = checkpoint(f, x, flat);
  backward(y, ones({4, 6}));
  EXPECT_EQ(seen, (std::vector<Layout>{layout, layout}));
}

TEST_F(Recomputed, RefusesAnInputOfAnotherShape) {
  const Tensor x = parameter({8, 16}, "x");
  const CheckpointOptions wrong{
      .pack = [](const Tensor& in) { return in.clone(); },
      .unpack = [](const Tensor& in, const PackedInput&) { return in.reshape({128}); }};
  const Tensor y = checkpoint([](const Tensor& in) { return exp(in); }, x, wrong);
  expect_error<ShapeError>([&] { sum(y).backward(); }, {"unpack()", "[8, 16]", "[128]"});
  expect_error<AutogradError>(
      [&] { static_cast<void>(checkpoint([](const Tensor& in) { return in; }, x, {.pack = wrong.pack})); },
      {"pack and unpack"});
}

}  // namespace
}  // namespace tessera
