// Hooks on gradients: what DDP, ZeRO and the profiler attach to.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

using Values = std::vector<double>;

Tensor leaf(const Values& values) {
  Tensor x = from_vector<double>(values);
  x.set_requires_grad();
  return x;
}

Values values(const Tensor& x) { return x.to_vector<double>(); }

TEST(GradHook, OnAResultReplacesTheGradientThatGoesOn) {
  Tensor x = leaf({1, 2});
  const Tensor y = x * 3.0;
  register_hook(y, [](const Tensor& grad) { return grad * 10.0; });
  sum(y).backward();
  EXPECT_EQ(values(x.grad()), (Values{30, 30}));
}

// The kernels behind would read beyond the end of one or the other.
TEST(GradHook, MayNotReplaceAGradientByOneOfAnotherShape) {
  const auto three = [](const Tensor&) { return from_vector<double>({1, 2, 3}); };
  for (const bool on_leaf : {true, false}) {
    Tensor x = leaf({1, 2});
    const Tensor y = x * 3.0;
    register_hook(on_leaf ? x : y, three);
    expect_error<ShapeError>([&] { sum(y).backward(); }, {"hook", "f64 [2]", "f64 [3]"});
    EXPECT_FALSE(x.grad().defined());
  }
}

TEST(GradHook, OnAResultSeesTheSumOverItsUses) {
  Tensor x = leaf({1});
  const Tensor y = x * 3.0;
  std::vector<Values> seen;
  register_hook(y, [&](const Tensor& grad) {
    seen.push_back(values(grad));
    return Tensor();
  });
  (y * 2.0 + y * 5.0).backward();
  EXPECT_EQ(seen, (std::vector<Values>{{7}}));
  EXPECT_EQ(values(x.grad()), (Values{21}));
}

TEST(GradHook, SeveralRunInOrderEachOnTheResultOfTheOneBefore) {
  Tensor x = leaf({1});
  const Tensor y = x * 1.0;
  register_hook(y, [](const Tensor& grad) { return grad + 1.0; });
  register_hook(y, [](const Tensor& grad) { return grad * 2.0; });
  y.backward();
  EXPECT_EQ(values(x.grad()), (Values{4}));
}

TEST(GradHook, OnALeafSeesTheSumOfOnePassBeforeItIsAdded) {
  Tensor x = leaf({1});
  std::vector<Values> seen;
  register_hook(x, [&](const Tensor& grad) {
    seen.push_back(values(grad));
    return grad * -1.0;
  });
  for (int pass = 0; pass < 2; ++pass) (x * 2.0 + x * 5.0).backward();
  EXPECT_EQ(seen, (std::vector<Values>{{7}, {7}}));
  EXPECT_EQ(values(x.grad()), (Values{-14}));
}

TEST(GradHook, NeedsATensorWithGradients) {
  expect_error<AutogradError>([] { register_hook(ones({2}), {}); }, {"register_hook", "f32 [2]"});
  expect_error<AutogradError>([] { register_accumulated_hook(leaf({1}) * 1.0, {}); },
                              {"register_accumulated_hook", "not a leaf"});
}

// Reduction starts when a gradient is complete, so the hook must come after the last contribution, once, and
// while earlier layers are still to run.
TEST(AccumulatedHook, RunsOncePerPassAfterTheLastContributionInTheMiddleOfThePass) {
  Tensor early = leaf({2}), late = leaf({3}), both = leaf({5});
  std::vector<std::string> events;
  std::vector<Values> sums;
  const auto watch = [&](const char* name, const Tensor& x) {
    register_accumulated_hook(x, [&events, &sums, name](const Tensor& grad) {
      events.push_back(name);
      sums.push_back(values(grad));
    });
  };
  watch("early", early);
  watch("late", late);
  watch("both", both);
  const auto run = [&] {
    const Tensor h = early * both;  // 10
    register_hook(h, [&](const Tensor&) {
      events.emplace_back("h");
      return Tensor();
    });
    (h * late * both).backward();  // 10 · 3 · 5
  };
  run();
  // late: h·both = 50. early: both·late·both = 75. both: h·late + early·late·both = 30 + 30.
  EXPECT_EQ(events[0], "late");
  EXPECT_EQ(events[1], "h");
  EXPECT_EQ(sums[0], (Values{50}));
  ASSERT_EQ(events.size(), 4u);
  for (std::size_t i = 2; i < 4; ++i)
    EXPECT_EQ(sums[i - 1], events[i] == "early" ? (Values{75}) : (Values{60})) << events[i];
  events.clear();
  sums.clear();
  run();
  EXPECT_EQ(events.size(), 4u);
  EXPECT_EQ(sums[0], (Values{100})) << "sees the accumulated gradient";
}

TEST(AccumulatedHook, ComesAfterTheHookThatReplacesTheGradient) {
  Tensor x = leaf({1});
  register_hook(x, [](const Tensor& grad) { return grad * 3.0; });
  Values seen;
  register_accumulated_hook(x, [&](const Tensor& grad) { seen = values(grad); });
  (x * 2.0 + x * 2.0).backward();
  EXPECT_EQ(seen, (Values{12}));
}

// A tied weight: embedding below, output layer on top.
TEST(AccumulatedHook, OfATiedWeightWaitsForBothUses) {
  Tensor weight = uniform({4, 2}, -1, 1, "tied", {.dtype = kF64});
  weight.set_requires_grad();
  int calls = 0;
  Values at_hook;
  register_accumulated_hook(weight, [&](const Tensor& grad) {
    ++calls;
    at_hook = values(grad);
  });
  const Tensor h = embedding(weight, from_vector<std::int64_t>({1, 3}));
  sum(square(linear(h, weight))).backward();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(at_hook, values(weight.grad()));
}

TEST(AccumulatedHook, OfADeferredGradientRunsWhenThatIsComputed) {
  Tensor x = leaf({2});
  Tensor weight = leaf({3});
  int calls = 0;
  register_accumulated_hook(weight, [&](const Tensor&) { ++calls; });
  DeferredGradients later;
  backward((x * 1.0) * weight, {}, {.deferred = &later});
  EXPECT_EQ(calls, 0);
  later.run();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(values(weight.grad()), (Values{2}));
}

}  // namespace
}  // namespace tessera
