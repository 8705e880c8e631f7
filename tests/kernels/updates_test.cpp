#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

struct UpdateCase {
  const char* name;
  DType parameter, grad, low;
  bool has_low;
};

const UpdateCase kCases[] = {{"f64", kF64, kF64, kF64, false},
                             {"f32", kF32, kF32, kF32, false},
                             {"f32 with bf16 copy", kF32, kF32, kBF16, true},
                             {"bf16 gradient and copy", kF32, kBF16, kBF16, true},
                             {"f16 gradient and copy", kF32, kF16, kF16, true}};

/// Parameters of several sizes, one empty, one larger than a chunk; and the same as doubles for the
/// reference.
struct Model {
  explicit Model(const UpdateCase& c) {
    unsigned seed = 1;
    for (const Sizes& shape : {Sizes{7}, Sizes{0}, Sizes{3, 50}, Sizes{40000}, Sizes{}}) {
      parameter.push_back(HostArray::random(c.parameter, shape, seed++));
      grad.push_back(HostArray::random(c.grad, shape, seed++));
      moment1.emplace_back(c.parameter, shape);
      moment2.emplace_back(c.parameter, shape);
      low.emplace_back(c.low, shape);
      p.push_back(HostArray(kF64, shape));
      m.push_back(HostArray(kF64, shape));
      v.push_back(HostArray(kF64, shape));
      p.back().for_each([&](const Sizes& i) { p.back().set(i, parameter.back()(i)); });
    }
    for (std::size_t i = 0; i < parameter.size(); ++i) {
      UpdateItem item;
      item.parameter = parameter[i].view();
      item.grad = grad[i].view();
      item.moment1 = moment1[i].view();
      item.moment2 = moment2[i].view();
      item.low_precision = low[i].view();
      if (!c.has_low) item.low_precision.data = nullptr;
      items.push_back(item);
    }
  }

  void expect_near(const UpdateCase& c, double roundings) {
    for (std::size_t k = 0; k < parameter.size(); ++k) {
      EXPECT_TRUE(parameter[k].guards_intact() && moment1[k].guards_intact() && low[k].guards_intact());
      int wrong = 0;
      parameter[k].for_each([&](const Sizes& i) {
        const double bound = roundings * unit_roundoff(c.parameter) * (1 + std::abs(p[k](i)));
        if (!(std::abs(parameter[k](i) - p[k](i)) <= bound)) ++wrong;
        if (!c.has_low) return;
        HostArray rounded(c.low, {1});
        rounded.set({0}, parameter[k](i));
        if (low[k](i) != rounded({0})) ++wrong;
      });
      EXPECT_EQ(wrong, 0) << "item " << k;
    }
  }

  std::deque<HostArray> parameter, grad, moment1, moment2, low, p, m, v;
  std::vector<UpdateItem> items;
};

TEST(Updates, AdamFollowsItsFormulaOverSteps) {
  for (const InstructionSet set : supported_sets()) {
    for (const UpdateCase& c : kCases) {
      for (const bool decoupled : {true, false}) {
        for (const int threads : {1, 2}) {
          SCOPED_TRACE(std::string(name(set)) + " " + c.name + (decoupled ? " AdamW" : " Adam"));
          const WithThreads with(threads);
          Model model(c);
          AdamOptions o = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.1};
          o.decoupled = decoupled;
          o.grad_scale = 0.5;
          for (o.step = 1; o.step <= 3; ++o.step) {
            cpu_kernels(set).updates.adam(model.items, o);
            for (std::size_t k = 0; k < model.p.size(); ++k) {
              HostArray &p = model.p[k], &m = model.m[k], &v = model.v[k];
              p.for_each([&](const Sizes& i) {
                double g = model.grad[k](i) * o.grad_scale, x = p(i);
                decoupled ? x *= 1 - o.lr* o.weight_decay : g += o.weight_decay * x;
                m.set(i, o.beta1 * m(i) + (1 - o.beta1) * g);
                v.set(i, o.beta2 * v(i) + (1 - o.beta2) * g * g);
                const double step = static_cast<double>(o.step);
                const double m_hat = m(i) / (1 - std::pow(o.beta1, step)),
                             v_hat = v(i) / (1 - std::pow(o.beta2, step));
                p.set(i, x - o.lr * m_hat / (std::sqrt(v_hat) + o.epsilon));
              });
            }
          }
          model.expect_near(c, 20);
        }
      }
    }
  }
}

struct SgdCase {
  const char* name;
  double momentum, dampening;
  bool nesterov;
};

TEST(Updates, SgdFollowsItsFormulaOverSteps) {
  const SgdCase variants[] = {{"plain", 0, 0, false},
                              {"momentum", 0.9, 0, false},
                              {"dampened", 0.9, 0.3, false},
                              {"nesterov", 0.9, 0, true}};
  for (const InstructionSet set : supported_sets()) {
    for (const UpdateCase& c : kCases) {
      for (const SgdCase& variant : variants) {
        SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + variant.name);
        const WithThreads with(2);
        Model model(c);
        SgdOptions o = {
            .lr = 0.1, .momentum = variant.momentum, .dampening = variant.dampening, .weight_decay = 0.01};
        o.nesterov = variant.nesterov;
        o.grad_scale = 2;
        if (variant.momentum == 0) {
          for (UpdateItem& item : model.items) item.moment1.data = nullptr;
        }
        for (int step = 0; step < 3; ++step) {
          o.first_step = step == 0;
          cpu_kernels(set).updates.sgd(model.items, o);
          for (std::size_t k = 0; k < model.p.size(); ++k) {
            HostArray &p = model.p[k], &u = model.m[k];
            p.for_each([&](const Sizes& i) {
              const double g = model.grad[k](i) * o.grad_scale + o.weight_decay * p(i);
              double direction = g;
              if (o.momentum != 0) {
                u.set(i, o.first_step ? g : o.momentum * u(i) + (1 - o.dampening) * g);
                direction = o.nesterov ? g + o.momentum * u(i) : u(i);
              }
              p.set(i, p(i) - o.lr * direction);
            });
          }
        }
        model.expect_near(c, 40);
      }
    }
  }
}

TEST(Updates, AdagradFollowsItsFormulaOverSteps) {
  for (const InstructionSet set : supported_sets()) {
    for (const UpdateCase& c : kCases) {
      SCOPED_TRACE(std::string(name(set)) + " " + c.name);
      const WithThreads with(2);
      Model model(c);
      const AdagradOptions o = {.lr = 0.1, .epsilon = 1e-6, .weight_decay = 0.1, .grad_scale = 0.5};
      for (int step = 0; step < 3; ++step) {
        cpu_kernels(set).updates.adagrad(model.items, o);
        for (std::size_t k = 0; k < model.p.size(); ++k) {
          HostArray &p = model.p[k], &s = model.m[k];
          p.for_each([&](const Sizes& i) {
            const double g = model.grad[k](i) * o.grad_scale + o.weight_decay * p(i);
            s.set(i, s(i) + g * g);
            p.set(i, p(i) - o.lr * g / (std::sqrt(s(i)) + o.epsilon));
          });
        }
      }
      model.expect_near(c, 40);
    }
  }
}

// Where the blend is all but 0 its rounding decides on the sign: the reference then follows the kernel's. Its
// rounding error is that of two products and a sum of numbers below 3.
TEST(Updates, LionFollowsItsFormulaOverSteps) {
  for (const InstructionSet set : supported_sets()) {
    for (const UpdateCase& c : kCases) {
      SCOPED_TRACE(std::string(name(set)) + " " + c.name);
      const WithThreads with(2);
      Model model(c);
      const LionOptions o = {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.5, .weight_decay = 0.1, .grad_scale = 0.5};
      int undecided = 0, negative = 0, positive = 0;
      for (int step = 0; step < 3; ++step) {
        // The gradient turns: the sign of the second blend is the momentum's, that of the third shows how
        // much of the turned gradient the momentum took up.
        for (HostArray& grad : model.grad) {
          grad.for_each([&](const Sizes& i) { grad.set(i, grad(i) * (step == 1 ? -4.0 : 1.0)); });
        }
        cpu_kernels(set).updates.lion(model.items, o);
        for (std::size_t k = 0; k < model.p.size(); ++k) {
          HostArray &p = model.p[k], &m = model.m[k];
          p.for_each([&](const Sizes& i) {
            const double g = model.grad[k](i) * o.grad_scale, blend = o.beta1 * m(i) + (1 - o.beta1) * g;
            double sign = blend > 0 ? 1.0 : blend < 0 ? -1.0 : 0.0;
            const double kept = (1 - o.lr * o.weight_decay) * p(i);
            if (std::abs(blend) < 10 * unit_roundoff(c.parameter)) {
              ++undecided;
              sign = std::round((kept - model.parameter[k](i)) / o.lr);
            }
            (sign < 0 ? negative : positive) += 1;
            m.set(i, o.beta2 * m(i) + (1 - o.beta2) * g);
            p.set(i, kept - o.lr * sign);
          });
        }
      }
      model.expect_near(c, 20);
      EXPECT_LT(undecided, 100);
      EXPECT_GT(std::min(negative, positive), 10000);
    }
  }
}

TEST(Updates, LionLeavesZerosAloneAndPassesNansOn) {
  HostArray p(kF32, {3}), grad(kF32, {3}), m(kF32, {3});
  grad.set({1}, std::nan(""));
  grad.set({2}, 5.0);
  UpdateItem item;
  item.parameter = p.view();
  item.grad = grad.view();
  item.moment1 = m.view();
  for (const InstructionSet set : supported_sets()) {
    p.for_each([&](const Sizes& i) { p.set(i, 0.0), m.set(i, 0.0); });
    cpu_kernels(set).updates.lion({&item, 1}, {.lr = 0.5});
    EXPECT_EQ(p({0}), 0.0);
    EXPECT_TRUE(std::isnan(p({1})));
    EXPECT_EQ(p({2}), -0.5);
  }
}

// Sums of n positive terms, each within a few roundings of the reference's: so is the sum, relatively.
TEST(Updates, LambsTwoHalvesFollowItsFormulaOverSteps) {
  for (const InstructionSet set : supported_sets()) {
    for (const UpdateCase& c : kCases) {
      for (const int threads : {1, 2}) {
        SCOPED_TRACE(std::string(name(set)) + " " + c.name);
        const WithThreads with(threads);
        Model model(c);
        AdamOptions o = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-6, .weight_decay = 0.1};
        o.grad_scale = 0.5;
        for (o.step = 1; o.step <= 3; ++o.step) {
          std::vector<LambSquares> squares(model.items.size(), {.parameter = -1.0, .direction = -1.0});
          cpu_kernels(set).updates.lamb_moments(model.items, o, squares);
          std::vector<double> trust;
          for (std::size_t k = 0; k < model.p.size(); ++k) {
            trust.push_back(0.5 + static_cast<double>(k));
            HostArray &p = model.p[k], &m = model.m[k], &v = model.v[k];
            double of_parameter = 0, of_direction = 0;
            p.for_each([&](const Sizes& i) {
              const double g = model.grad[k](i) * o.grad_scale, step = static_cast<double>(o.step);
              m.set(i, o.beta1 * m(i) + (1 - o.beta1) * g);
              v.set(i, o.beta2 * v(i) + (1 - o.beta2) * g * g);
              const double m_hat = m(i) / (1 - std::pow(o.beta1, step)),
                           v_hat = v(i) / (1 - std::pow(o.beta2, step));
              const double u = m_hat / (std::sqrt(v_hat) + o.epsilon) + o.weight_decay * p(i);
              of_parameter += p(i) * p(i);
              of_direction += u * u;
              p.set(i, p(i) - o.lr * trust[k] * u);
            });
            const double bound = 100 * unit_roundoff(c.parameter);
            EXPECT_NEAR(squares[k].parameter, of_parameter, bound * of_parameter) << "item " << k;
            EXPECT_NEAR(squares[k].direction, of_direction, bound * of_direction) << "item " << k;
          }
          cpu_kernels(set).updates.lamb(model.items, o, trust);
        }
        model.expect_near(c, 40);
      }
    }
  }
}

}  // namespace
}  // namespace tessera::kernels::test
