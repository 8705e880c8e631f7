// Optimizers against PyTorch, Lion and LAMB against timm: 20 steps under a falling learning rate.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/lamb.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sgd.h"
#include "tests/largest_difference.h"
#include "tests/optim/parameters.h"
#include "tests/optim/pytorch_values.h"

namespace tessera::optim {
namespace {

constexpr int kSteps = 20;

struct Case {
  const char* name;
  double lr;
  std::unique_ptr<Optimizer> (*make)(const std::vector<Tensor>& parameters);
};

template <class T, class Config>
std::unique_ptr<Optimizer> make(const std::vector<Tensor>& parameters, const Config& config) {
  return std::make_unique<T>(parameters, config);
}

// The same table as in optim_pytorch.py; where it leaves PyTorch's defaults, so does this.
const Case kCases[] = {
    {"sgd", 0.125, [](const std::vector<Tensor>& p) { return make<Sgd>(p, SgdConfig{}); }},
    {"sgd_decay", 0.125,
     [](const std::vector<Tensor>& p) { return make<Sgd>(p, SgdConfig{.weight_decay = 0.1}); }},
    {"sgd_momentum", 0.0625,
     [](const std::vector<Tensor>& p) { return make<Sgd>(p, SgdConfig{.momentum = 0.9}); }},
    {"sgd_dampening", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make<Sgd>(p, SgdConfig{.momentum = 0.9, .dampening = 0.5, .weight_decay = 0.01});
     }},
    {"sgd_nesterov", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make<Sgd>(p, SgdConfig{.momentum = 0.9, .weight_decay = 0.05, .nesterov = true});
     }},
    {"adam", 0.0625, [](const std::vector<Tensor>& p) { return make<Adam>(p, AdamConfig{}); }},
    {"adam_l2", 0.03125,
     [](const std::vector<Tensor>& p) {
       return make<Adam>(p, AdamConfig{.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.1});
     }},
    {"adamw_defaults", 0.0625, [](const std::vector<Tensor>& p) { return make<AdamW>(p, AdamConfig{}); }},
    {"adamw_gpt", 0.03125,
     [](const std::vector<Tensor>& p) {
       return make<AdamW>(p, AdamConfig{.beta2 = 0.95, .weight_decay = 0.1});
     }},
    {"adagrad", 0.25, [](const std::vector<Tensor>& p) { return make<Adagrad>(p, AdagradConfig{}); }},
    {"adagrad_lr_decay", 0.25,
     [](const std::vector<Tensor>& p) {
       return make<Adagrad>(p, AdagradConfig{.lr_decay = 0.25, .initial_accumulator_value = 0.5});
     }},
    {"adagrad_l2", 0.25,
     [](const std::vector<Tensor>& p) {
       return make<Adagrad>(p, AdagradConfig{.lr_decay = 0.125, .weight_decay = 0.05, .epsilon = 1e-2});
     }},
    {"lion_defaults", 0.03125, [](const std::vector<Tensor>& p) { return make<Lion>(p, LionConfig{}); }},
    {"lion_decay", 0.03125,
     [](const std::vector<Tensor>& p) {
       return make<Lion>(p, LionConfig{.beta1 = 0.95, .beta2 = 0.98, .weight_decay = 0.5});
     }},
    // timm's trust has no ends, or 1 as its upper one.
    {"lamb", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make<Lamb>(p, LambConfig{.min_trust = 0.0, .max_trust = 1e9});
     }},
    {"lamb_decay", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make<Lamb>(p, LambConfig{.beta1 = 0.8,
                                       .beta2 = 0.95,
                                       .epsilon = 1e-4,
                                       .weight_decay = 0.1,
                                       .min_trust = 0.0,
                                       .max_trust = 1e9});
     }},
    {"lamb_trust_up_to_1", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make<Lamb>(p, LambConfig{.weight_decay = 0.1, .min_trust = 0.0, .max_trust = 1.0});
     }},
};

std::unique_ptr<Optimizer> make_muon(const std::vector<Tensor>& parameters, const MuonConfig& config) {
  return std::make_unique<Muon>(numbered(parameters), config);
}

// PyTorch's Muon has a weight decay of 0.1 unless told otherwise.
const Case kMuonCases[] = {
    {"muon_defaults", 0.0625,
     [](const std::vector<Tensor>& p) { return make_muon(p, {.weight_decay = 0.1}); }},
    {"muon_plain", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make_muon(p, {.momentum = 0.5, .nesterov = false, .weight_decay = 0.5});
     }},
    {"muon_match_rms_adamw", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make_muon(p, {.scale = MuonScale::kAdamRms, .weight_decay = 0.1});
     }},
    {"muon_spectral_unclamped", 0.0625,
     [](const std::vector<Tensor>& p) {
       return make_muon(p, {.scale = MuonScale::kSpectralUnclamped, .weight_decay = 0.1});
     }},
    {"muon_three_iterations", 0.0625,
     [](const std::vector<Tensor>& p) { return make_muon(p, {.momentum = 0.9, .newton_schulz_steps = 3}); }},
};

std::vector<Shape> shapes() {
  std::vector<Shape> list;
  for (const int n : reference::kPyTorchSizes) list.push_back(Shape{n});
  return list;
}

std::vector<Shape> muon_shapes() {
  std::vector<Shape> list;
  for (const std::vector<int>& shape : reference::kPyTorchMuonShapes)
    list.push_back(Shape{shape[0], shape[1]});
  return list;
}

// For each shape, the largest difference after 20 steps. All are parameters of one optimizer.
std::vector<double> largest_differences(const Case& c, const std::vector<Shape>& shapes,
                                        const std::vector<std::vector<double>>& expected, DType dtype) {
  std::vector<Tensor> parameters;
  for (const Shape& shape : shapes) {
    const int n = static_cast<int>(shape.num_elements());
    parameters.push_back(from_vector<double>(start_values(n), shape).to(dtype));
    parameters.back().set_requires_grad();
  }
  const std::unique_ptr<Optimizer> optimizer = c.make(parameters);
  for (int t = 0; t < kSteps; ++t) {
    optimizer->set_lr(c.lr * (kSteps - t) / kSteps);
    for (Tensor& p : parameters) give_grad(p, grad_values(static_cast<int>(p.num_elements()), t));
    optimizer->step();
  }
  std::vector<double> largest;
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    largest.push_back(largest_difference(parameters[s], from_vector<double>(expected[s], shapes[s])));
  }
  return largest;
}

TEST(PyTorchParity, EveryCaseHasStoredValues) {
  ASSERT_EQ(std::size(kCases), reference::kPyTorchValues.size());
  for (std::size_t i = 0; i < std::size(kCases); ++i)
    EXPECT_STREQ(kCases[i].name, reference::kPyTorchValues[i].name);
  ASSERT_EQ(std::size(kMuonCases), reference::kPyTorchMuonValues.size());
  for (std::size_t i = 0; i < std::size(kMuonCases); ++i)
    EXPECT_STREQ(kMuonCases[i].name, reference::kPyTorchMuonValues[i].name);
}

void expect_within(double bound, DType dtype) {
  for (std::size_t i = 0; i < std::size(kCases); ++i) {
    const std::vector<std::vector<double>>& expected = reference::kPyTorchValues[i].after_20_steps;
    for (const double d : largest_differences(kCases[i], shapes(), expected, dtype)) {
      EXPECT_LT(d, bound) << kCases[i].name;
    }
  }
}

// f64: each of 20 steps rounds values below 4 a few times, LAMB's two norms counted: 20 · 4 · 4 · 2⁻⁵³ ≈
// 4e-14; epsilon divides nothing close to zero, as no gradient sequence vanishes.
TEST(PyTorchParity, TwentyStepsInF64AreEqualWithinRounding) { expect_within(4e-14, kF64); }

// f32: the same count with 2⁻²⁴ gives 2e-5; with few roundings at the top of the range, a fourth of it holds.
TEST(PyTorchParity, TwentyStepsInF32AreEqualWithinRounding) { expect_within(5e-6, kF32); }

// A round of Newton and Schulz's iteration rounds three products with coefficients up to 4.8, in all about
// 13 · 2⁻⁵³ beside matrices of norm 1, and each round after it multiplies an error by up to 3.4445:
// 13 (1 + 3.4 + 12 + 41 + 141) 2⁻⁵³ ≈ 3e-13 an O. Steps add up to Σ lr scale ≤ 0.66 √6 of them.
TEST(PyTorchParity, TwentyStepsOfMuonInF64AreEqualWithinRounding) {
  for (std::size_t i = 0; i < std::size(kMuonCases); ++i) {
    const reference::PyTorchMuonValues& expected = reference::kPyTorchMuonValues[i];
    const auto differences = largest_differences(kMuonCases[i], muon_shapes(), expected.after_20_steps, kF64);
    for (std::size_t s = 0; s < differences.size(); ++s) {
      EXPECT_LT(differences[s], 5e-13) << kMuonCases[i].name << ", shape " << s;
    }
  }
}

// f32: that count gives 3e-4 if every rounding meets the steepest way; few do, and a hundredth of it holds.
// PyTorch's own runs, whose iteration is in bf16, end a hundred times further away and more.
TEST(PyTorchParity, TwentyStepsOfMuonInF32AreNearerThanPyTorchsBf16) {
  for (std::size_t i = 0; i < std::size(kMuonCases); ++i) {
    const reference::PyTorchMuonValues& expected = reference::kPyTorchMuonValues[i];
    const auto differences = largest_differences(kMuonCases[i], muon_shapes(), expected.after_20_steps, kF32);
    for (std::size_t s = 0; s < differences.size(); ++s) {
      EXPECT_LT(differences[s], 3e-6) << kMuonCases[i].name << ", shape " << s;
      EXPECT_LT(100.0 * differences[s], expected.bf16_distances[s]) << kMuonCases[i].name << ", shape " << s;
    }
  }
}

}  // namespace
}  // namespace tessera::optim
