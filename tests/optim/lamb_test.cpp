// LAMB on one rank; tests/dist/optimizer_pieces_test.cpp has the ranks.

#include "optim/lamb.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

using Doubles = std::vector<double>;

double norm(const Doubles& x) {
  double squares = 0.0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

// One step of one parameter, as the paper writes it down.
struct Reference {
  explicit Reference(Doubles start) : p(std::move(start)), m(p.size(), 0.0), v(p.size(), 0.0) {}
  void step(const Doubles& grad, double lr, const LambConfig& c) {
    ++t;
    Doubles u(p.size());
    for (std::size_t i = 0; i < p.size(); ++i) {
      m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * grad[i];
      v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * grad[i] * grad[i];
      const double m_hat = m[i] / (1.0 - std::pow(c.beta1, t)), v_hat = v[i] / (1.0 - std::pow(c.beta2, t));
      u[i] = m_hat / (std::sqrt(v_hat) + c.epsilon) + c.weight_decay * p[i];
    }
    trust = norm(p) == 0.0 || norm(u) == 0.0 ? 1.0 : std::clamp(norm(p) / norm(u), c.min_trust, c.max_trust);
    for (std::size_t i = 0; i < p.size(); ++i) p[i] -= lr * trust * u[i];
  }
  Doubles p, m, v;
  double trust = 0.0;
  int t = 0;
};

// The first direction is a sign, ‖u‖ = √2, whatever the gradient's size; ‖p‖ = 5: each element moves by
// 0.1 · 5/√2.
TEST(Lamb, TheFirstStepIsInProportionToTheParameter) {
  Tensor p = parameter({3.0, 4.0});
  Lamb optimizer({p}, {.lr = 0.1, .epsilon = 0.0});
  give_grad(p, {100.0, -0.001});
  optimizer.step();
  EXPECT_NEAR(p.at({0}), 3.0 - 0.1 * 5.0 / std::sqrt(2.0), 1e-14);
  EXPECT_NEAR(p.at({1}), 4.0 + 0.1 * 5.0 / std::sqrt(2.0), 1e-14);
}

// Values stay below 4; each of 20 steps rounds a few times, with the norms' relative error of a few more:
// 20 · 4 · 8 · 2⁻⁵³ ≈ 8e-14, and 4e-5 with 2⁻²⁴.
TEST(Lamb, FollowsItsFormulaForEachParameterByItself) {
  const LambConfig config{.lr = 0.05, .beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1, .max_trust = 3.0};
  for (const DType dtype : {kF64, kF32}) {
    std::vector<Tensor> tensors;
    std::vector<Reference> references;
    for (const int n : {1, 5, 33}) {
      tensors.push_back(parameter(start_values(n), dtype));
      references.emplace_back(start_values(n));
    }
    Lamb optimizer(tensors, config);
    double smallest = 1e9, largest = 0.0;
    for (int t = 0; t < 20; ++t) {
      const double lr = config.lr * (20 - t) / 20;
      optimizer.set_lr(lr);
      for (std::size_t k = 0; k < tensors.size(); ++k) {
        Doubles grad = grad_values(static_cast<int>(references[k].p.size()), t);
        give_grad(tensors[k], grad);
        for (double& g : grad) g *= 0.5;
        references[k].step(grad, lr, config);
        smallest = std::min(smallest, references[k].trust);
        largest = std::max(largest, references[k].trust);
      }
      optimizer.step({.grad_scale = 0.5});
    }
    EXPECT_LT(smallest, 1.0);
    EXPECT_EQ(largest, 3.0);  // the limit was met
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      const Doubles got = tensors[k].to_vector<double>();
      for (std::size_t i = 0; i < got.size(); ++i)
        EXPECT_NEAR(got[i], references[k].p[i], dtype == kF64 ? 8e-14 : 4e-5) << k << " element " << i;
    }
  }
}

TEST(Lamb, ParametersOfZerosMoveAsUnderAdam) {
  Tensor p = parameter({0.0, 0.0});
  Lamb optimizer({p}, {.lr = 0.1, .epsilon = 0.0});
  give_grad(p, {2.0, -3.0});
  optimizer.step();
  EXPECT_NEAR(p.at({0}), -0.1, 1e-15);
  EXPECT_NEAR(p.at({1}), 0.1, 1e-15);
}

TEST(Lamb, GradientsOfZerosMoveNothing) {
  Tensor p = parameter({3.0});
  Lamb optimizer({p}, {.lr = 0.1});
  give_grad(p, {0.0});
  optimizer.step();
  EXPECT_EQ(p.item(), 3.0);
}

TEST(Lamb, MistakesAreRefused) {
  Tensor p = parameter({1.0});
  EXPECT_THROW(Lamb({p}, {.beta1 = 1.0}), ConfigError);
  EXPECT_THROW(Lamb({p}, {.epsilon = -1.0}), ConfigError);
  EXPECT_THROW(Lamb({p}, {.min_trust = 2.0, .max_trust = 1.0}), ConfigError);
  EXPECT_THROW(Lamb({p}, {.min_trust = -1.0}), ConfigError);
  EXPECT_THROW(Lamb({p}).set_momentum(1.0), ConfigError);
  EXPECT_THROW(Lamb({{"p", p}}, {}, {{.patterns = {"*"}, .momentum = 0.9}}), ConfigError);
}

}  // namespace
}  // namespace tessera::optim
