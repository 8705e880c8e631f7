#include "nn/losses.h"

#include <gtest/gtest.h>

#include <limits>

#include "autograd/grad_check.h"
#include "kernels/error.h"
#include "tests/nn/check.h"

namespace tessera::nn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Two classes with logits 0 and log 3 have probabilities 1/4 and 3/4.
TEST(CrossEntropy, ByHand) {
  const Tensor logits = from_vector<double>({0, std::log(3.0), 0, std::log(3.0)}, Shape{2, 2});
  const Tensor targets = from_vector<std::int64_t>({0, 1});
  const auto loss = [&](const CrossEntropyConfig& config) { return cross_entropy(logits, targets, config); };
  EXPECT_NEAR(loss({}).item(), (std::log(4.0) + std::log(4.0 / 3)) / 2, 1e-15);
  EXPECT_NEAR(loss({.reduction = Reduction::kSum}).item(), std::log(4.0) + std::log(4.0 / 3), 1e-15);
  EXPECT_EQ("", difference(loss({.reduction = Reduction::kNone}), {std::log(4.0), std::log(4.0 / 3)}, 1e-15));
  // ε = 0.2: 0.9 of the true class and 0.1 of the other.
  EXPECT_NEAR(loss({.label_smoothing = 0.2}).item(), (std::log(4.0) + std::log(4.0 / 3)) / 2, 1e-15);
  EXPECT_EQ("", difference(loss({.label_smoothing = 0.2, .reduction = Reduction::kNone}),
                           {0.9 * std::log(4.0) + 0.1 * std::log(4.0 / 3),
                            0.1 * std::log(4.0) + 0.9 * std::log(4.0 / 3)},
                           1e-15));
}

TEST(CrossEntropy, IgnoredTargetsGiveNoLossAndNoGradient) {
  Tensor logits = pattern({3, 4});
  logits.set_requires_grad();
  const Tensor targets = from_vector<std::int64_t>({2, 7, 1});
  const Tensor loss = cross_entropy(logits, targets, {.ignore_index = 7});
  loss.backward();
  const Tensor rows = concat(std::vector{logits.detach().slice(0, 0, 1), logits.detach().slice(0, 2, 3)}, 0);
  EXPECT_NEAR(loss.item(), cross_entropy(rows, from_vector<std::int64_t>({2, 1})).item(), 1e-15);
  EXPECT_EQ("", difference(logits.grad().select(0, 1), {0, 0, 0, 0}, 0.0));
}

TEST(CrossEntropy, OfNothingButIgnoredTargetsIsNanAsInPyTorch) {
  EXPECT_TRUE(std::isnan(cross_entropy(pattern({2, 4}), from_vector<std::int64_t>({-100, -100})).item()));
}

// The largest logit is taken off before anything is exponentiated. One number keeps the log-sum-exp of a row,
// so it is rounded to 2⁻²⁴ of the largest logit: 1e3 · 2⁻²⁴ = 6e-5 for "all very small".
TEST(CrossEntropy, ExtremeLogitsStayFinite) {
  const struct {
    const char* name;
    std::vector<float> logits;
    double loss;
    std::vector<double> gradient;
  } cases[] = {
      {"certain and right", {1e4f, 0, 0}, 0.0, {0, 0, 0}},
      {"certain and wrong", {0, 1e4f, 0}, 1e4, {-1, 1, 0}},
      {"largest number", {0, 3e38f, 0}, 3e38, {-1, 1, 0}},
      {"all very small", {-1e3f, -1e3f, -1e3f}, std::log(3.0), {-2.0 / 3, 1.0 / 3, 1.0 / 3}},
      {"an impossible class", {0, 0, -std::numeric_limits<float>::infinity()}, std::log(2.0), {-0.5, 0.5, 0}},
  };
  for (const auto& c : cases) {
    Tensor logits = from_vector(c.logits, Shape{1, 3});
    logits.set_requires_grad();
    const Tensor loss = cross_entropy(logits, from_vector<std::int64_t>({0}));
    EXPECT_NEAR(loss.item(), c.loss, 6e-5 + 1e-6 * c.loss) << c.name;
    loss.backward();
    EXPECT_EQ("", difference(logits.grad(), c.gradient, 6e-5)) << c.name;
  }
}

TEST(CrossEntropy, NamesWhatIsWrong) {
  const Tensor logits = pattern({2, 4});
  EXPECT_THROW(static_cast<void>(cross_entropy(logits, from_vector<std::int64_t>({0, 4}))), IndexError);
  EXPECT_THROW(static_cast<void>(cross_entropy(logits, from_vector<std::int64_t>({0, -1}))), IndexError);
  EXPECT_THROW(static_cast<void>(cross_entropy(logits, from_vector<std::int64_t>({0}))), ShapeError);
  EXPECT_THROW(static_cast<void>(cross_entropy(logits, from_vector<float>({0, 1}))), ShapeError);
  EXPECT_THROW(
      static_cast<void>(cross_entropy(logits, from_vector<std::int64_t>({0, 1}), {.label_smoothing = 1.5})),
      ShapeError);
}

TEST(CrossEntropy, GradientMatchesFiniteDifferences) {
  const Tensor targets = from_vector<std::int64_t>({4, -100, 0, 2});
  for (const double smoothing : {0.0, 0.1}) {
    for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone}) {
      EXPECT_EQ("", grad_check(
                        [&](auto in) {
                          return cross_entropy(in[0], targets,
                                               {.label_smoothing = smoothing, .reduction = reduction});
                        },
                        std::vector{pattern({4, 5}) * 40.0}));
    }
  }
}

// A second buffer of the logits' size is not made if nobody holds them, and they keep their values if
// somebody does.
TEST(CrossEntropy, WritesTheGradientOverLogitsThatNobodyHolds) {
  Tensor x = pattern({64, 50});
  x.set_requires_grad();
  const Tensor targets = zeros({64}, {.dtype = kI64});
  const MemoryPool& pool = *RankContext::current().pool(cpu);
  const auto peak_of = [&](bool hold) {
    Tensor logits = x * 1.0;
    const Tensor held = hold ? logits : Tensor();
    const std::vector<double> before = logits.to_vector<double>();
    const Tensor loss = cross_entropy(std::exchange(logits, Tensor()), targets);
    RankContext::current().pool(cpu)->reset_peak();
    const std::int64_t current = pool.report().total.current;
    loss.backward();
    if (hold) {
      EXPECT_EQ("", difference(held, before, 0.0));
    }
    x.set_grad({});
    return pool.report().total.peak - current;
  };
  const std::int64_t logits_bytes = x.size_bytes();
  EXPECT_LT(peak_of(false), 3 * logits_bytes / 2);  // the gradient of x alone
  EXPECT_GT(peak_of(true), 3 * logits_bytes / 2);   // and that of the logits
}

TEST(Mse, ByHand) {
  const Tensor prediction = from_vector<double>({1, 2, 4});
  const Tensor target = from_vector<double>({0, 2, 1});
  EXPECT_NEAR(mse_loss(prediction, target).item(), 10.0 / 3, 1e-15);
  EXPECT_EQ(mse_loss(prediction, target, Reduction::kSum).item(), 10.0);
  EXPECT_EQ(mse_loss(prediction, target, Reduction::kNone).to_vector<double>(),
            (std::vector<double>{1, 0, 9}));
  EXPECT_THROW(static_cast<void>(mse_loss(prediction, zeros({1}))), ShapeError);
}

// KL(½, ½ ‖ ¼, ¾) = ½ log 2 + ½ log ⅔; a target of 0 counts for nothing.
TEST(KlDiv, ByHand) {
  const Tensor log_prediction = log(from_vector<double>({0.25, 0.75, 0.25, 0.75}, Shape{2, 2}));
  const Tensor target = from_vector<double>({0.5, 0.5, 0, 1}, Shape{2, 2});
  const double first = 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), second = std::log(4.0 / 3);
  EXPECT_NEAR(kl_div_loss(log_prediction, target, Reduction::kSum).item(), first + second, 1e-15);
  EXPECT_NEAR(kl_div_loss(log_prediction, target).item(), (first + second) / 4, 1e-15);
}

TEST(BceWithLogits, ByHand) {
  const Tensor logits =
      from_vector<double>({0, std::log(3.0), std::log(3.0)});  // probabilities 1/2, 3/4, 3/4
  const Tensor target = from_vector<double>({1, 1, 0});
  EXPECT_EQ("", difference(bce_with_logits_loss(logits, target, Reduction::kNone),
                           {std::log(2.0), std::log(4.0 / 3), std::log(4.0)}, 1e-15));
}

// −log σ(20) is 2.06e-9: the difference of two numbers near 20 would be 0 in f32.
TEST(BceWithLogits, ExtremeLogitsKeepTheirDigits) {
  const struct {
    const char* name;
    float logit, target;
    double loss, gradient;
  } cases[] = {
      {"right and sure", 20, 1, 2.0611536e-9, -2.0611536e-9},
      {"right and sure of no", -20, 0, 2.0611536e-9, 2.0611536e-9},
      {"right beyond doubt", 1000, 1, 0, 0},
      {"right beyond doubt of no", -1000, 0, 0, 0},
      {"wrong", 1000, 0, 1000, 1},
      {"wrong about yes", -1000, 1, 1000, -1},
      {"half a target", 1000, 0.5, 500, 0.5},
      {"largest number", 3e38f, 0, 3e38, 1},
  };
  for (const auto& c : cases) {
    Tensor logits = from_vector<float>({c.logit});
    logits.set_requires_grad();
    const Tensor loss = bce_with_logits_loss(logits, from_vector<float>({c.target}));
    EXPECT_NEAR(loss.item(), c.loss, 1e-6 * c.loss) << c.name;
    loss.backward();
    EXPECT_NEAR(logits.grad().item(), c.gradient, 1e-6 * std::fabs(c.gradient)) << c.name;
  }
}

TEST(Losses, GradientsMatchFiniteDifferences) {
  const Tensor target = softmax(pattern({3, 4}, 5) * 30.0);
  for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone}) {
    const std::vector<Tensor> inputs{pattern({3, 4}) * 20.0, target};
    EXPECT_EQ("", grad_check([&](auto in) { return mse_loss(in[0], in[1], reduction); }, inputs));
    EXPECT_EQ("", grad_check([&](auto in) { return kl_div_loss(in[0], in[1], reduction); }, inputs));
    EXPECT_EQ("", grad_check([&](auto in) { return bce_with_logits_loss(in[0], in[1], reduction); }, inputs));
  }
}

}  // namespace
}  // namespace tessera::nn
