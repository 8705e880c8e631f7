#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

struct GradCheckOptions {
  double step = 1e-5;       ///< of the central difference
  double tolerance = 1e-6;  ///< on |analytic − numeric| / (1 + |numeric|)
};

/// Compares the gradients of `function` with central differences, element by element.
///
/// `function` maps f64 tensors to one f64 tensor of any shape; its result is reduced to a scalar by fixed
/// pseudo-random weights, so that no error can cancel. Returns an empty string if all gradients agree, else a
/// description of the worst element. The error of the numeric side is about step² · f''' + 1e-16 / step:
/// below 1e-8 for smooth functions of order 1.
///
/// Example   EXPECT_EQ("", grad_check([](auto in) { return matmul(in[0], in[1]); }, inputs));
[[nodiscard]] std::string grad_check(const std::function<Tensor(std::span<const Tensor>)>& function,
                                     std::span<const Tensor> inputs, const GradCheckOptions& options = {});

}  // namespace tessera
