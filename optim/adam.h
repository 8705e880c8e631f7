#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

struct AdamConfig {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  std::optional<double> weight_decay = std::nullopt;  ///< default, as PyTorch's: 0 for Adam, 0.01 for AdamW
  /// kBF16, for bf16 parameters alone: 6 bytes of state an element instead of 12. Masters are the same f32
  /// numbers, of which the parameter is the high half; moments are bf16, rounded at random so that changes
  /// below their resolution add up (docs/decisions/0014-bf16-optimizer-state.md).
  DType state_dtype = kF32;
};

/// Adam (Kingma & Ba, 2015), with g = grad_scale · grad + weight_decay · p:
///
///   m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
///   p ← p − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)
///
/// Memory    Two moments in f32 (f64) for each parameter, and a master for each 16-bit one: 8 or 12 bytes an
///           element. With AdamConfig::state_dtype kBF16 two moments in bf16 and half of a master: 6 bytes.
/// Example   optim::Adam optimizer({w, b}, {.lr = 1e-3});
class Adam : public Optimizer {
 public:
  explicit Adam(const NamedTensors& parameters, const AdamConfig& config = {},
                std::vector<ParameterGroup> groups = {})
      : Adam("Adam", false, parameters, config, std::move(groups)) {}
  explicit Adam(const std::vector<Tensor>& parameters, const AdamConfig& config = {})
      : Adam(numbered(parameters), config) {}

  /// β₁ of every group.
  void set_momentum(double momentum) override;

 protected:
  Adam(const char* type, bool decoupled, const NamedTensors& parameters, const AdamConfig& config,
       std::vector<ParameterGroup> groups);

 private:
  void update_all(std::span<const Update> updates, double grad_scale) override;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  std::vector<kernels::AdamOptions> options_;  // by group
  DType state_dtype_;
};

/// AdamW (Loshchilov & Hutter, 2019): the decay is not part of the gradient but shrinks the parameter by
/// itself, p ← (1 − lr · weight_decay) p, before Adam's update with g = grad_scale · grad.
///
/// Example   optim::AdamW optimizer(model.named_parameters(), {.lr = 6e-4, .weight_decay = 0.1},
///                                  optim::no_decay_for_biases_and_norms());
class AdamW final : public Adam {
 public:
  explicit AdamW(const NamedTensors& parameters, const AdamConfig& config = {},
                 std::vector<ParameterGroup> groups = {})
      : Adam("AdamW", true, parameters, config, std::move(groups)) {}
  explicit AdamW(const std::vector<Tensor>& parameters, const AdamConfig& config = {})
      : AdamW(numbered(parameters), config) {}
};

}  // namespace tessera::optim
