#pragma once

// Clipping by the global norm (Pascanu et al., 2013). The norm is one pass over the gradients; the factor
// goes into the update, so the gradients are neither written nor read once more.
//
//   const optim::GradNorm norm = optim::global_grad_norm(optimizer.parameters());
//   optimizer.step({.grad_scale = optim::clip_factor(norm, 1.0) * norm.grad_scale});
//
// Ranks that hold different parts add up `grad_sum_of_squares` of what each of them owns, every element once.

#include <cstdint>
#include <string>

#include "optim/parameter_groups.h"
#include "tensor/tensor.h"

namespace tessera::optim {

/// The gradients of those parameters that have one, under the same names. A tensor that is listed twice (tied
/// embeddings) gives one.
[[nodiscard]] NamedTensors gradients_of(const NamedTensors& parameters);

/// Σ g² over the gradients of `parameters`, in f64, in the order of the list: not dependent on the number of
/// threads.
[[nodiscard]] double grad_sum_of_squares(const NamedTensors& parameters);

struct NonFiniteElement {
  std::string name;           ///< empty: every element is finite
  std::int64_t element = -1;  ///< row-major index in the gradient
};

/// The first NaN or infinite gradient in the order of the list.
[[nodiscard]] NonFiniteElement first_non_finite_grad(const NamedTensors& parameters);

struct GradNorm {
  double value = 0.0;       ///< ‖grad_scale · g‖₂
  double grad_scale = 1.0;  ///< what it was computed with
  std::string
      non_finite;  ///< name of the first parameter whose gradient is not finite; empty if the norm is finite
  std::int64_t element = -1;  ///< which element of it
  [[nodiscard]] bool finite() const noexcept;
};

/// Norm of all gradients taken as one vector, each multiplied by `grad_scale` (1 / loss scale, 1 / tokens).
/// Only when it is not finite does a second pass look for the culprit.
[[nodiscard]] GradNorm global_grad_norm(const NamedTensors& parameters, double grad_scale = 1.0);

/// min(1, max_norm / (norm + 1e-6)), as PyTorch's clip_grad_norm_ has it; 1 if max_norm is 0 (no clipping).
/// Errors    NonFiniteError for a norm that is not finite; ConfigError for a negative max_norm.
[[nodiscard]] double clip_factor(double norm, double max_norm);
/// The same; the error names the parameter.
[[nodiscard]] double clip_factor(const GradNorm& norm, double max_norm);

}  // namespace tessera::optim
