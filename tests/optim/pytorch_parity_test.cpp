// SGD, Adam and AdamW against PyTorch, 20 steps under a falling learning rate.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "optim/adam.h"
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
};

// The largest difference from PyTorch's f64 values after 20 steps. All sizes are parameters of one optimizer.
double largest_difference(const Case& c, const reference::PyTorchValues& expected, DType dtype) {
  const std::vector<int>& sizes = reference::kPyTorchSizes;
  std::vector<Tensor> parameters;
  for (const int n : sizes) parameters.push_back(parameter(start_values(n), dtype));
  const std::unique_ptr<Optimizer> optimizer = c.make(parameters);
  for (int t = 0; t < kSteps; ++t) {
    optimizer->set_lr(c.lr * (kSteps - t) / kSteps);
    for (std::size_t s = 0; s < sizes.size(); ++s) give_grad(parameters[s], grad_values(sizes[s], t));
    optimizer->step();
  }
  double largest = 0.0;
  for (std::size_t s = 0; s < sizes.size(); ++s) {
    const std::vector<double> got = parameters[s].to_vector<double>();
    const std::vector<double>& want = expected.after_20_steps[s];
    EXPECT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) largest = std::max(largest, distance(got[i], want[i]));
  }
  return largest;
}

TEST(PyTorchParity, EveryCaseHasStoredValues) {
  ASSERT_EQ(std::size(kCases), reference::kPyTorchValues.size());
  for (std::size_t i = 0; i < std::size(kCases); ++i)
    EXPECT_STREQ(kCases[i].name, reference::kPyTorchValues[i].name);
}

// f64: each of 20 steps rounds values below 4 a few times, 20 · 4 · 4 · 2⁻⁵³ ≈ 4e-14; epsilon divides nothing
// close to zero, as no gradient sequence vanishes.
TEST(PyTorchParity, TwentyStepsInF64AreEqualWithinRounding) {
  for (std::size_t i = 0; i < std::size(kCases); ++i) {
    EXPECT_LT(largest_difference(kCases[i], reference::kPyTorchValues[i], kF64), 4e-14) << kCases[i].name;
  }
}

// f32: the same count with 2⁻²⁴ gives 2e-5; with few roundings at the top of the range, a fourth of it holds.
TEST(PyTorchParity, TwentyStepsInF32AreEqualWithinRounding) {
  for (std::size_t i = 0; i < std::size(kCases); ++i) {
    EXPECT_LT(largest_difference(kCases[i], reference::kPyTorchValues[i], kF32), 5e-6) << kCases[i].name;
  }
}

}  // namespace
}  // namespace tessera::optim
