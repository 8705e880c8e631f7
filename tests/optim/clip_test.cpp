#include "optim/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "optim/sgd.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

using Doubles = std::vector<double>;

// ‖(3, 4, 12)‖ = 13, over two parameters; the third has no gradient.
TEST(Clip, NormCountsEveryGradientOnce) {
  Tensor a = parameter({0.0, 0.0}), b = parameter({0.0}, kF32), c = parameter({7.0});
  give_grad(a, {3.0, 4.0});
  give_grad(b, {12.0});
  EXPECT_DOUBLE_EQ(global_grad_norm({{"a", a}, {"b", b}, {"c", c}}).value, 13.0);
  EXPECT_DOUBLE_EQ(global_grad_norm({{"a", a}, {"b", b}, {"tied", a}}).value, 13.0);
  EXPECT_DOUBLE_EQ(global_grad_norm({{"a", a}, {"b", b}}, -0.5).value, 6.5);
  EXPECT_DOUBLE_EQ(grad_sum_of_squares({{"a", a}, {"b", b}}), 169.0);
  EXPECT_EQ(global_grad_norm({}).value, 0.0);
}

// 4 + 2⁻²⁰ has no f32: a sum in f32 would lose the small gradients, each below half a unit in the last place
// of 4.
TEST(Clip, NormIsSummedInF64) {
  const int n = 1 << 12;
  Tensor big = parameter({0.0}, kF32), small = parameter(Doubles(n, 0.0), kF32);
  give_grad(big, {2.0});
  give_grad(small, Doubles(n, std::ldexp(1.0, -16)));
  EXPECT_DOUBLE_EQ(grad_sum_of_squares({{"big", big}, {"small", small}}), 4.0 + std::ldexp(1.0, -20));
}

TEST(Clip, FactorLeavesSmallNormsAlone) {
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(0.0, 1.0), 1.0);
  EXPECT_EQ(clip_factor(1e9, 0.0), 1.0);  // no clipping
  EXPECT_DOUBLE_EQ(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
  EXPECT_THROW((void)clip_factor(1.0, -1.0), ConfigError);
}

TEST(Clip, AStepWithTheFactorIsAStepWithGradientsScaledByHand) {
  Tensor p = parameter(start_values(9)), q = parameter(start_values(9));
  Sgd optimizer({{"p", p}}, {.lr = 0.5, .momentum = 0.9}), by_hand({{"q", q}}, {.lr = 0.5, .momentum = 0.9});
  for (int t = 0; t < 5; ++t) {
    const Doubles g = grad_values(9, t);
    double squares = 0.0;
    for (const double x : g) squares += x * x;
    const double factor = std::min(1.0, 0.75 / (std::sqrt(squares) + 1e-6));
    ASSERT_LT(factor, 1.0);  // clipping is active
    Doubles scaled;
    for (const double x : g) scaled.push_back(x * factor);
    give_grad(p, g);
    give_grad(q, scaled);
    optimizer.step({.grad_scale = clip_factor(global_grad_norm(optimizer.parameters()), 0.75)});
    by_hand.step();
  }
  // Scaling before or after the products differs by a rounding or two of values below 4, in each of 5 steps.
  const Doubles got = p.to_vector<double>(), want = q.to_vector<double>();
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-14);
}

TEST(Clip, ANormThatIsNotFiniteNamesTheParameter) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    Tensor a = parameter({0.0, 0.0}, kF32), b = parameter({0.0, 0.0, 0.0}, kF32), c = parameter({0.0}, kF32);
    give_grad(a, {1.0, 2.0});
    give_grad(b, {1.0, 2.0, bad});
    give_grad(c, {bad});
    const GradNorm norm = global_grad_norm({{"h.0.a", a}, {"h.1.b", b}, {"h.2.c", c}});
    EXPECT_FALSE(norm.finite());
    EXPECT_EQ(norm.non_finite, "h.1.b");
    EXPECT_EQ(norm.element, 2);
    try {
      (void)clip_factor(norm, 1.0);
      FAIL() << "nothing was thrown";
    } catch (const NonFiniteError& error) {
      EXPECT_NE(std::string(error.what()).find("h.1.b"), std::string::npos) << error.what();
    }
    EXPECT_THROW((void)clip_factor(bad, 1.0), NonFiniteError);
  }
}

}  // namespace
}  // namespace tessera::optim
