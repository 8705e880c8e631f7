#pragma once

// What the tests of nn share: known parameters, and gradients by central differences.

#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "nn/module.h"
#include "tensor/create.h"

namespace tessera::nn {

/// ((37 i + 11 k) mod 19 − 9) / 64 + offset for element i, in f64: dyadic fractions, exact in f32 too.
inline Tensor pattern(const Shape& shape, std::int64_t k = 0, double offset = 0.0) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < shape.num_elements(); ++i) {
    values.push_back(static_cast<double>((37 * i + 11 * k) % 19 - 9) / 64.0 + offset);
  }
  return from_vector(values, shape);
}

/// Makes the module f64 and gives its k-th parameter pattern(shape, k), plus 1 for the gains of norms: what
/// tests/references/nn_pytorch.py does.
inline void set_pattern(Module& module) {
  module.to(kF64);
  const NoGrad no_grad;
  std::int64_t k = 0;
  for (auto& [name, parameter] : module.named_parameters()) {
    const bool gain = name.find("norm") != std::string::npos ||
                      (name.find("ln_") != std::string::npos && name.ends_with("weight"));
    Tensor target = parameter;
    target.copy_from(pattern(parameter.shape(), k++, gain ? 1.0 : 0.0));
  }
}

/// Compares the gradients of Σ forward(x)·w (w fixed, in [0.5, 1.5)) with central differences for x and for
/// every parameter; empty if all agree, else the worst element. Everything must be f64. With a step of 1e-5
/// the numeric side is off by about 1e-10 (step² times the third derivative) and 1e-11 (rounding, 1e-16 /
/// step).
inline std::string gradient_errors(Module& module, const std::function<Tensor(const Tensor&)>& forward,
                                   const Tensor& input, double tolerance = 1e-7) {
  constexpr double kStep = 1e-5;
  Tensor x = input.clone();
  if (is_floating(x.dtype())) x.set_requires_grad();
  NamedTensors leaves = module.named_parameters();
  if (x.requires_grad()) leaves.emplace_back("x", x);
  module.zero_grad();
  const Tensor y = forward(x);
  const Tensor weights = uniform(y.shape(), 0.5, 1.5, "gradient_errors", {.dtype = kF64});
  backward(y, weights);

  const NoGrad no_grad;
  const auto value = [&] { return sum(forward(x) * weights).item(); };
  std::string worst;
  double worst_error = tolerance;
  for (auto& [name, leaf] : leaves) {
    if (!leaf.grad().defined()) return name + " has no gradient";
    const std::vector<double> analytic = leaf.grad().template to_vector<double>();
    Tensor flat = leaf.detach().reshape({-1});
    for (std::int64_t i = 0; i < flat.num_elements(); ++i) {
      const double original = flat.at({i});
      flat.set({i}, original + kStep);
      const double above = value();
      flat.set({i}, original - kStep);
      const double below = value();
      flat.set({i}, original);
      const double numeric = (above - below) / (2 * kStep);
      const double error =
          std::fabs(analytic[static_cast<std::size_t>(i)] - numeric) / (1 + std::fabs(numeric));
      if (!(error <= worst_error)) {
        worst_error = error;
        worst = fmt::format("{} element {}: analytic {:.10g}, numeric {:.10g}", name, i,
                            analytic[static_cast<std::size_t>(i)], numeric);
      }
    }
  }
  return worst;
}

/// The first difference above the tolerance, as text; empty if there is none.
inline std::string difference(const std::vector<double>& got, const std::vector<double>& expected,
                              double tolerance) {
  if (got.size() != expected.size())
    return fmt::format("{} elements instead of {}", got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - expected[i]) <= tolerance)) {
      return fmt::format("element {}: {:.17g} instead of {:.17g}", i, got[i], expected[i]);
    }
  }
  return "";
}

inline std::string difference(const Tensor& got, const std::vector<double>& expected, double tolerance) {
  return difference(got.to_vector<double>(), expected, tolerance);
}

inline std::string difference(const Tensor& got, const Tensor& expected, double tolerance) {
  if (got.shape() != expected.shape()) return describe(got) + " instead of " + describe(expected);
  return difference(got, expected.to_vector<double>(), tolerance);
}

}  // namespace tessera::nn
