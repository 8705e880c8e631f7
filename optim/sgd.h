#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

struct SgdConfig {
  double lr = 1e-2;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
};

/// Stochastic gradient descent with momentum, as PyTorch defines it. With
/// g = grad_scale · grad + weight_decay · p:
///
///   u ← g at the first step, then momentum · u + (1 − dampening) · g
///   p ← p − lr · u,   or with Nesterov   p ← p − lr · (g + momentum · u)
///
/// The velocity u is free of lr, unlike in Sutskever et al., 2013: a schedule acts on past gradients too.
///
/// Memory    One velocity in f32 (f64) for each parameter of a group with momentum; none without.
/// Errors    ConfigError for Nesterov without momentum or with dampening.
/// Example   optim::Sgd optimizer({w, b}, {.lr = 0.1, .momentum = 0.9, .nesterov = true});
class Sgd final : public Optimizer {
 public:
  explicit Sgd(const NamedTensors& parameters, const SgdConfig& config = {},
               std::vector<ParameterGroup> groups = {});
  explicit Sgd(const std::vector<Tensor>& parameters, const SgdConfig& config = {})
      : Sgd(numbered(parameters), config) {}

  /// Of every group. ConfigError if it changes between 0 and more: velocities exist from the start, or never.
  void set_momentum(double momentum) override;

 private:
  void update_all(std::span<const Update> updates, double grad_scale) override;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  std::vector<kernels::SgdOptions> options_;  // by group
  std::vector<bool> has_velocity_;            // by group
};

}  // namespace tessera::optim
