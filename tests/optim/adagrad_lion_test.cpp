// Adagrad and Lion: numbers by hand, and loops that follow the papers' formulas element by element.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/error.h"
#include "optim/adagrad.h"
#include "optim/lion.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

using Doubles = std::vector<double>;
constexpr int kSize = 33, kSteps = 20;

// Values stay below 4; each of 20 steps rounds a few times: 20 · 4 · 4 · 2⁻⁵³ ≈ 4e-14, in f32 2e-5.
constexpr double kF64Bound = 4e-14, kF32Bound = 2e-5;

void expect_near(const Tensor& x, const Doubles& expected, double tolerance) {
  const Doubles got = x.to_vector<double>();
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], tolerance) << "element " << i;
}

// ε = 0, lr 0.1, g = 3, 4, 12:  √s = 3, 5, 13.  p = 1 − 0.1 (1 + 4/5 + 12/13)
TEST(Adagrad, ThreeStepsByHand) {
  Tensor p = parameter({1.0});
  Adagrad optimizer({p}, {.lr = 0.1, .epsilon = 0.0});
  for (const double g : {3.0, 4.0, 12.0}) {
    give_grad(p, {g});
    optimizer.step();
  }
  EXPECT_NEAR(p.item(), 1.0 - 0.1 * (1.0 + 4.0 / 5.0 + 12.0 / 13.0), 1e-15);
}

// The sum starts at 16: √(16 + 9) = 5 and √(25 + 144) = 13; lr 0.5, then 0.5 / (1 + 1) in the second update.
TEST(Adagrad, StartsFromItsAccumulatorAndDecaysTheRateByUpdates) {
  Tensor p = parameter({1.0});
  Adagrad optimizer({p}, {.lr = 0.5, .lr_decay = 1.0, .initial_accumulator_value = 16.0, .epsilon = 0.0});
  EXPECT_EQ(optimizer.state().back().first, "0/sum_of_squares");
  EXPECT_EQ(optimizer.state().back().second.item(), 16.0);
  give_grad(p, {3.0});
  optimizer.step();
  EXPECT_NEAR(p.item(), 1.0 - 0.5 * 3.0 / 5.0, 1e-15);
  give_grad(p, {12.0});
  optimizer.step();
  EXPECT_NEAR(p.item(), 1.0 - 0.3 - 0.25 * 12.0 / 13.0, 1e-15);
}

TEST(Adagrad, FollowsItsFormulaWithDecayUnderAFallingRate) {
  for (const DType dtype : {kF64, kF32}) {
    Tensor tensor = parameter(start_values(kSize), dtype);
    Adagrad optimizer({tensor}, {.lr = 0.25, .lr_decay = 0.1, .weight_decay = 0.05, .epsilon = 1e-6});
    Doubles p = start_values(kSize), s(kSize, 0.0);
    for (int t = 0; t < kSteps; ++t) {
      const double lr = 0.25 * (kSteps - t) / kSteps;
      optimizer.set_lr(lr);
      const Doubles grad = grad_values(kSize, t);
      give_grad(tensor, grad);
      optimizer.step({.grad_scale = 0.5});
      for (std::size_t i = 0; i < p.size(); ++i) {
        const double g = 0.5 * grad[i] + 0.05 * p[i];
        s[i] += g * g;
        p[i] -= lr / (1.0 + 0.1 * t) * g / (std::sqrt(s[i]) + 1e-6);
      }
    }
    expect_near(tensor, p, dtype == kF64 ? kF64Bound : kF32Bound);
  }
}

// β₁ = 0.5, β₂ = 0.75, lr 0.1:
//   g = 4    blend 2       p = 1 − 0.1          m = 1
//   g = −1   blend 0       p stays              m = 0.75 − 0.25 = 0.5
//   g = −2   blend −0.75   p = 0.9 + 0.1        m = 0.375 − 0.5 = −0.125
TEST(Lion, ThreeStepsByHand) {
  Tensor p = parameter({1.0});
  Lion optimizer({p}, {.lr = 0.1, .beta1 = 0.5, .beta2 = 0.75});
  const Doubles expected{0.9, 0.9, 1.0};
  for (std::size_t t = 0; t < 3; ++t) {
    give_grad(p, {Doubles{4.0, -1.0, -2.0}[t]});
    optimizer.step();
    EXPECT_NEAR(p.item(), expected[t], 1e-15) << "step " << t;
  }
  EXPECT_EQ(optimizer.state().back().first, "0/momentum");
  EXPECT_EQ(optimizer.state().back().second.item(), -0.125);
}

// Betas are dyadic, and so are the gradients: no blend is rounded in the first steps, and none of the later
// ones is near 0 (asserted), so the signs are the formula's in f32 too.
TEST(Lion, FollowsItsFormulaWithDecayUnderAFallingRate) {
  for (const DType dtype : {kF64, kF32}) {
    Tensor tensor = parameter(start_values(kSize), dtype);
    Lion optimizer({tensor}, {.lr = 0.0625, .beta1 = 0.875, .beta2 = 0.96875, .weight_decay = 0.5});
    Doubles p = start_values(kSize), m(kSize, 0.0);
    for (int t = 0; t < kSteps; ++t) {
      const double lr = 0.0625 * (kSteps - t) / kSteps;
      optimizer.set_lr(lr);
      const Doubles grad = grad_values(kSize, t);
      give_grad(tensor, grad);
      optimizer.step({.grad_scale = 0.5});
      for (std::size_t i = 0; i < p.size(); ++i) {
        const double g = 0.5 * grad[i], blend = 0.875 * m[i] + 0.125 * g;
        ASSERT_TRUE(blend == 0.0 || std::abs(blend) > 1e-5) << "step " << t << " element " << i;
        p[i] = (1.0 - lr * 0.5) * p[i] - lr * (blend > 0.0 ? 1.0 : blend < 0.0 ? -1.0 : 0.0);
        m[i] = 0.96875 * m[i] + 0.03125 * g;
      }
    }
    expect_near(tensor, p, dtype == kF64 ? kF64Bound : kF32Bound);
  }
}

TEST(Lion, SetMomentumReachesTheNextStep) {
  Tensor p = parameter({0.0});
  Lion optimizer({p}, {.lr = 1.0, .beta1 = 0.0, .beta2 = 0.5});
  give_grad(p, {4.0});
  optimizer.step();  // m = 2, p = −1
  optimizer.set_momentum(0.75);
  give_grad(p, {-4.0});
  optimizer.step();  // blend 1.5 − 1 > 0; with β₁ = 0 it were −4
  EXPECT_EQ(p.item(), -2.0);
}

TEST(AdagradAndLion, GroupsHaveTheirOwnSettings) {
  Tensor a = parameter({1.0}), b = parameter({1.0});
  Lion lion({{"a", a}, {"b", b}}, {.lr = 0.1, .weight_decay = 1.0},
            {{.patterns = {"b"}, .lr_scale = 2.0, .weight_decay = 0.0}});
  give_grad(a, {1.0});
  give_grad(b, {1.0});
  lion.step();
  EXPECT_NEAR(a.item(), 0.9 - 0.1, 1e-15);
  EXPECT_NEAR(b.item(), 1.0 - 0.2, 1e-15);
  EXPECT_NE(lion.describe().find("Lion, lr 0.1\n  b: 1 parameters, 1 elements, lr x 2, weight_decay 0"),
            std::string::npos)
      << lion.describe();
  Tensor c = parameter({1.0});
  Adagrad adagrad({{"c", c}}, {.lr = 0.1}, {{.patterns = {"c"}, .weight_decay = 1.0, .epsilon = 3.0}});
  give_grad(c, {0.0});
  adagrad.step();  // g = 1, √s = 1
  EXPECT_NEAR(c.item(), 1.0 - 0.1 / 4.0, 1e-15);
}

TEST(AdagradAndLion, MistakesAreRefused) {
  Tensor p = parameter({1.0});
  EXPECT_THROW(Adagrad({p}, {.lr_decay = -1.0}), ConfigError);
  EXPECT_THROW(Adagrad({p}, {.weight_decay = -1.0}), ConfigError);
  EXPECT_THROW(Adagrad({p}, {.initial_accumulator_value = -1.0}), ConfigError);
  EXPECT_THROW(Adagrad({p}, {.epsilon = -1.0}), ConfigError);
  EXPECT_THROW(Adagrad({p}).set_momentum(0.9), ConfigError);
  EXPECT_THROW(Adagrad({{"p", p}}, {}, {{.patterns = {"*"}, .beta2 = 0.9}}), ConfigError);
  EXPECT_THROW(Lion({p}, {.beta1 = 1.0}), ConfigError);
  EXPECT_THROW(Lion({p}, {.beta2 = -0.1}), ConfigError);
  EXPECT_THROW(Lion({p}, {.weight_decay = -0.1}), ConfigError);
  EXPECT_THROW(Lion({p}).set_momentum(1.0), ConfigError);
  EXPECT_THROW(Lion({{"p", p}}, {}, {{.patterns = {"*"}, .epsilon = 1e-8}}), ConfigError);
}

}  // namespace
}  // namespace tessera::optim
