// Recomputation: the same bits as without, and nothing kept but the inputs.

#include "autograd/checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/backward.h"
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

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    context_.seed = 11;
    context_.step = 4;
    context_.sample_offset = 3;
  }

  static Tensor parameter(const Shape& shape, const char* stream) {
    Tensor x = uniform(shape, -0.5, 0.5, stream);
    x.set_requires_grad();
    return x;
  }

  // Random numbers of the rank's current step and sample, as nn's layers take them.
  static Tensor drop(const Tensor& x) {
    const RankContext& context = RankContext::current();
    return dropout(x, 0.3, context.random_key("drop"), context.sample_offset * x.dim(-1));
  }

  RankContext context_;
  RankContext::Scope scope_{context_};
};

struct Result {
  std::vector<float> y, dx, dw;
  friend bool operator==(const Result&, const Result&) = default;
};

// Loss and gradients of two layers, each wrapped by `wrap`. The step goes on before the backward pass, as it
// would in a pipeline.
Result run(const std::function<Tensor(const Function&, const Tensor&)>& wrap, RankContext& context) {
  Tensor x = uniform({4, 6}, -1, 1, "x"), w = uniform({6, 6}, -1, 1, "w");
  x.set_requires_grad();
  w.set_requires_grad();
  const Function layer = [w](const Tensor& in) {
    const RankContext& rank = RankContext::current();
    return dropout(gelu(linear(in, w)), 0.3, rank.random_key("drop"), rank.sample_offset * 24);
  };
  const Tensor y = wrap(layer, wrap(layer, x));
  const Tensor loss = sum(y * y);
  context.step += 1;
  context.sample_offset += 8;
  loss.backward();
  context.step -= 1;
  context.sample_offset -= 8;
  return {y.to_vector<float>(), x.grad().to_vector<float>(), w.grad().to_vector<float>()};
}

TEST_F(CheckpointTest, GradientsAndDropoutAreTheSameBitsAsWithout) {
  const Result plain = run([](const Function& f, const Tensor& x) { return f(x); }, context_);
  const Result recomputed =
      run([](const Function& f, const Tensor& x) { return checkpoint(f, x); }, context_);
  EXPECT_EQ(recomputed, plain);
  context_.step += 1;  // another mask: the test above can fail
  EXPECT_NE(run([](const Function& f, const Tensor& x) { return checkpoint(f, x); }, context_), plain);
}

TEST_F(CheckpointTest, NestsToAnyDepth) {
  const Result plain = run([](const Function& f, const Tensor& x) { return f(x); }, context_);
  const Result nested = run(
      [](const Function& f, const Tensor& x) {
        return checkpoint(
            [f](const Tensor& a) { return checkpoint([f](const Tensor& b) { return checkpoint(f, b); }, a); },
            x);
      },
      context_);
  EXPECT_EQ(nested, plain);
}

TEST_F(CheckpointTest, RunsTheFunctionOnceForwardAndOnceBackward) {
  Tensor x = parameter({3}, "x");
  int runs = 0;
  const Tensor y = checkpoint(
      [&runs](const Tensor& in) {
        ++runs;
        return exp(in);
      },
      x);
  EXPECT_EQ(runs, 1);
  sum(y).backward();
  EXPECT_EQ(runs, 2);
  {
    const NoGrad no_grad;
    static_cast<void>(checkpoint(
        [&runs](const Tensor& in) {
          ++runs;
          return exp(in);
        },
        x));
  }
  EXPECT_EQ(runs, 3);
}

TEST_F(CheckpointTest, ParametersAreFoundThoughNoInputNeedsAGradient) {
  Tensor w = parameter({5}, "w");
  const Tensor x = ones({5});
  const Tensor y = checkpoint([w](const Tensor& in) { return in * w * w; }, x);
  EXPECT_TRUE(y.requires_grad());
  sum(y).backward();
  const std::vector<float> values = w.to_vector<float>(), grads = w.grad().to_vector<float>();
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(grads[i], 2 * values[i]);
}

// A tied weight is used inside and outside; its hook must wait for both.
TEST_F(CheckpointTest, AParameterThatIsAlsoUsedOutsideGetsOneCompleteGradient) {
  Tensor w = parameter({4}, "w");
  int calls = 0;
  register_accumulated_hook(w, [&calls](const Tensor&) { ++calls; });
  const Tensor y = checkpoint([w](const Tensor& in) { return in * w; }, w * 2.0);  // 2w²
  sum(y + w * 3.0).backward();
  EXPECT_EQ(calls, 1);
  const std::vector<float> values = w.to_vector<float>(), grads = w.grad().to_vector<float>();
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_FLOAT_EQ(grads[i], 4 * values[i] + 3);
}

// What the function captures may itself be a result. The inner pass must end there: going on would run, and
// free, a part of the outer graph.
TEST_F(CheckpointTest, ACapturedResultIsDifferentiatedOnce) {
  Tensor x = parameter({4}, "x"), w = parameter({4}, "w");
  const Tensor h = exp(w);
  const Tensor y = checkpoint([h, w](const Tensor& in) { return in * h * w; }, x);
  sum(y * h).backward();  // x·w·e²ʷ
  const std::vector<double> xs = x.to_vector<double>(), ws = w.to_vector<double>(),
                            dw = w.grad().to_vector<double>();
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const double expected = xs[i] * std::exp(2 * ws[i]) * (1 + 2 * ws[i]);
    EXPECT_NEAR(dw[i], expected, 1e-6 * (1 + std::abs(expected))) << i;  // a dozen f32 roundings
  }
}

TEST_F(CheckpointTest, TakesSeveralInputsAndThoseWithoutGradientsGetNone) {
  Tensor a = parameter({3}, "a");
  const Tensor b = uniform({3}, 1, 2, "b"), ids = from_vector<std::int64_t>({2, 0, 1});
  const Tensor inputs[] = {a, b, ids};
  const Tensor y =
      checkpoint([](std::span<const Tensor> in) { return gather(in[0], 0, in[2]) * in[1]; }, inputs);
  sum(y).backward();
  const std::vector<float> bs = b.to_vector<float>();
  EXPECT_EQ(a.grad().to_vector<float>(), (std::vector<float>{bs[1], bs[2], bs[0]}));
  EXPECT_FALSE(b.grad().defined());
}

TEST_F(CheckpointTest, AnInputThatTheFunctionIgnoresGetsNoGradient) {
  Tensor x = parameter({3}, "x");
  sum(checkpoint([](const Tensor& in) { return ones_like(in); }, x)).backward();
  EXPECT_FALSE(x.grad().defined());
}

TEST_F(CheckpointTest, AnInputChangedInPlaceIsCaught) {
  Tensor x = parameter({3}, "x");
  const Tensor h = x * 1.0;
  const Tensor y = checkpoint([](const Tensor& in) { return exp(in); }, h);
  h.detach().fill(1);
  expect_error<AutogradError>([&] { sum(y).backward(); }, {"backward of 'checkpoint'", "changed in place"});
}

// Ten layers of [64, 64] keep 10 inputs to exp and 10 to the product; recomputed, the input of each pair.
TEST_F(CheckpointTest, KeepsTheInputsOnly) {
  const auto activations = [&] {
    return context_.pool(cpu)->report().of(MemoryCategory::kActivation).current;
  };
  const auto layer = [](const Tensor& in) { return square(tanh(square(in))); };
  const std::int64_t bytes = 64 * 64 * 4;
  for (const bool recompute : {false, true}) {
    Tensor x = ones({64, 64});
    x.set_requires_grad();
    Tensor y = x;
    const std::int64_t before = activations();
    for (int i = 0; i < 10; ++i) y = recompute ? checkpoint(layer, y) : layer(y);
    EXPECT_EQ(activations() - before, recompute ? 10 * bytes : 30 * bytes) << recompute;
  }
}

}  // namespace
}  // namespace tessera
