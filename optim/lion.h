#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

struct LionConfig {
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0.0;
};

/// Lion (Chen et al., "Symbolic discovery of optimization algorithms", 2023): every element moves by lr, in
/// the direction of a sign. With g = grad_scale · grad:
///
///   p ← (1 − lr · weight_decay) p − lr · sign(β₁ m + (1 − β₁) g)        m ← β₂ m + (1 − β₂) g
///
/// The paper takes a third to a tenth of AdamW's lr, and as much more weight decay: their product is what
/// counts.
///
/// Memory    One momentum in f32 (f64) for each parameter, half of Adam's, and a master for each 16-bit one.
/// Example   optim::Lion optimizer(model.named_parameters(), {.lr = 1e-4, .weight_decay = 1.0},
///                                 optim::no_decay_for_biases_and_norms());
class Lion final : public Optimizer {
 public:
  explicit Lion(const NamedTensors& parameters, const LionConfig& config = {},
                std::vector<ParameterGroup> groups = {});
  explicit Lion(const std::vector<Tensor>& parameters, const LionConfig& config = {})
      : Lion(numbered(parameters), config) {}

  /// β₁ of every group.
  void set_momentum(double momentum) override;

 private:
  void update_all(std::span<const Update> updates, double grad_scale) override;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  std::vector<kernels::LionOptions> options_;  // by group
};

}  // namespace tessera::optim
