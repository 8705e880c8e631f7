#include "optim/clip.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "kernels/kernels.h"

namespace tessera::optim {

NamedTensors gradients_of(const NamedTensors& parameters) {
  NamedTensors gradients;
  std::vector<const Tensor*> seen;
  for (const auto& [name, parameter] : parameters) {
    const Tensor& candidate = parameter;
    const auto is_candidate = [&candidate](const Tensor* other) { return other->is_same(candidate); };
    if (std::any_of(seen.begin(), seen.end(), is_candidate)) continue;
    seen.push_back(&candidate);
    if (Tensor grad = parameter.grad(); grad.defined()) gradients.emplace_back(name, std::move(grad));
  }
  return gradients;
}

double grad_sum_of_squares(const NamedTensors& parameters) {
  const NamedTensors gradients = gradients_of(parameters);
  double sum = 0.0;
  // One call for each run of gradients on the same device: usually one call.
  for (std::size_t begin = 0; begin < gradients.size();) {
    const Device device = gradients[begin].second.device();
    std::vector<kernels::ConstView> views;
    std::size_t end = begin;
    for (; end < gradients.size() && gradients[end].second.device() == device; ++end) {
      views.push_back(gradients[end].second.view());
    }
    sum += kernels::of(device.type).reductions.sum_of_squares(views);
    begin = end;
  }
  return sum;
}

NonFiniteElement first_non_finite_grad(const NamedTensors& parameters) {
  for (const auto& [name, grad] : gradients_of(parameters)) {
    const std::int64_t element = kernels::of(grad.device().type).reductions.first_non_finite(grad.view());
    if (element >= 0) return {.name = name, .element = element};
  }
  return {};
}

bool GradNorm::finite() const noexcept { return std::isfinite(value); }

GradNorm global_grad_norm(const NamedTensors& parameters, double grad_scale) {
  GradNorm norm;
  norm.grad_scale = grad_scale;
  norm.value = std::abs(grad_scale) * std::sqrt(grad_sum_of_squares(parameters));
  if (!norm.finite()) {
    NonFiniteElement first = first_non_finite_grad(parameters);
    norm.non_finite = std::move(first.name);
    norm.element = first.element;
  }
  return norm;
}

double clip_factor(double norm, double max_norm) {
  if (!(max_norm >= 0.0))
    throw ConfigError(fmt::format("clip_factor: max_norm must not be negative, got {}", max_norm));
  if (!std::isfinite(norm)) {
    throw NonFiniteError(
        fmt::format("clip_factor: the norm of the gradients is {}; the step must be left out", norm));
  }
  return max_norm == 0.0 ? 1.0 : std::min(1.0, max_norm / (norm + 1e-6));
}

double clip_factor(const GradNorm& norm, double max_norm) {
  if (!norm.finite() && !norm.non_finite.empty()) {
    throw NonFiniteError(
        fmt::format("clip_factor: the gradient of {} is not finite (element {}); the step must be left "
                    "out",
                    norm.non_finite, norm.element));
  }
  return clip_factor(norm.value, max_norm);
}

}  // namespace tessera::optim
