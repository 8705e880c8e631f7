#include "autograd/grad_check.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/arithmetic.h"
#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/reductions.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera {
namespace {

double weighted_value(const std::function<Tensor(std::span<const Tensor>)>& function,
                      std::span<const Tensor> inputs, const Tensor& weights) {
  const NoGrad no_grad;
  return sum(function(inputs) * weights).item();
}

}  // namespace

std::string grad_check(const std::function<Tensor(std::span<const Tensor>)>& function,
                       std::span<const Tensor> inputs, const GradCheckOptions& options) {
  // Leaves with the geometry of the inputs: a strided input stays strided.
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs) {
    if (is_floating(input.dtype()) && input.dtype() != kF64)
      throw DTypeError("grad_check: inputs must be f64 or integers");
    leaves.push_back(input.detach());
    if (input.dtype() == kF64) leaves.back().set_requires_grad();
  }
  const Tensor y = function(leaves);
  const Tensor weights = uniform(y.shape(), 0.5, 1.5, "grad_check", {.dtype = kF64});
  backward(y, weights);

  std::string worst;
  double worst_error = options.tolerance;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (!leaves[i].requires_grad()) continue;
    const Tensor analytic = leaves[i].grad().defined() ? leaves[i].grad() : zeros_like(leaves[i]);
    if (analytic.shape() != leaves[i].shape()) {
      return fmt::format("input {}: the gradient has shape {}, the input {}", i, to_string(analytic.shape()),
                         to_string(leaves[i].shape()));
    }
    const std::vector<double> values = analytic.to_vector<double>();
    std::vector<std::int64_t> index(static_cast<std::size_t>(leaves[i].dims()), 0);
    for (std::size_t e = 0; e < values.size(); ++e) {
      Tensor element = leaves[i].detach();
      for (const std::int64_t at : index) element = element.select(0, at);
      const double original = element.item();
      element.fill(original + options.step);
      const double above = weighted_value(function, leaves, weights);
      element.fill(original - options.step);
      const double below = weighted_value(function, leaves, weights);
      element.fill(original);
      const double numeric = (above - below) / (2 * options.step);
      const double error = std::fabs(values[e] - numeric) / (1 + std::fabs(numeric));
      if (!(error <= worst_error)) {
        worst_error = error;
        worst =
            fmt::format("input {}, element {}: analytic {:.10g}, numeric {:.10g}", i, e, values[e], numeric);
      }
      for (int d = leaves[i].dims() - 1; d >= 0; --d) {
        if (++index[static_cast<std::size_t>(d)] < leaves[i].dim(d)) break;
        index[static_cast<std::size_t>(d)] = 0;
      }
    }
  }
  return worst;
}

}  // namespace tessera
