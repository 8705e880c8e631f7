#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

struct AdagradConfig {
  double lr = 1e-2;
  double lr_decay = 0.0;  ///< the t-th update of a parameter runs at lr / (1 + (t − 1) · lr_decay)
  double weight_decay = 0.0;
  double initial_accumulator_value = 0.0;
  double epsilon = 1e-10;
};

/// Adagrad (Duchi et al., 2011), as PyTorch defines it. With g = grad_scale · grad + weight_decay · p:
///
///   s ← s + g²        p ← p − lr / (1 + (t − 1) · lr_decay) · g / (√s + ε)
///
/// Memory    One sum of squares in f32 (f64) for each parameter, and a master for each 16-bit one.
/// Example   optim::Adagrad optimizer({w, b}, {.lr = 0.1});
class Adagrad final : public Optimizer {
 public:
  explicit Adagrad(const NamedTensors& parameters, const AdagradConfig& config = {},
                   std::vector<ParameterGroup> groups = {});
  explicit Adagrad(const std::vector<Tensor>& parameters, const AdagradConfig& config = {})
      : Adagrad(numbered(parameters), config) {}

  /// ConfigError: there is none.
  void set_momentum(double momentum) override;

 private:
  void update_all(std::span<const Update> updates, double grad_scale) override;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  double lr_decay_;
  std::vector<kernels::AdagradOptions> options_;  // by group
};

}  // namespace tessera::optim
