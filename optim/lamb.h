#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

struct LambConfig {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-6;
  double weight_decay = 0.0;
  double min_trust = 0.01;  ///< DeepSpeed's min_coeff
  double max_trust = 10.0;  ///< DeepSpeed's max_coeff
};

/// LAMB (You et al., "Large batch optimization for deep learning", 2020): Adam's direction, at a length that
/// is in proportion to the parameter's own. With g, m̂ and v̂ as in Adam:
///
///   u = m̂ / (√v̂ + ε) + weight_decay · p        p ← p − lr · trust · u
///   trust = ‖p‖ / ‖u‖, within [min_trust, max_trust]; 1 if either norm is 0
///
/// The norms are of the *whole* tensor: of pieces they would depend on the number of ranks. With an exchange
/// every rank sums over its pieces, and one all-reduce joins the sums of all parameters; or the exchange
/// makes exact sums (PieceExchange::sum_squares_exactly), for which each u is made once more, one by one.
///
/// Memory    Two moments in f32 (f64) for each parameter, and a master for each 16-bit one.
/// Cost      10 reads and writes of an element's four bytes, where Adam has 7; two doubles a parameter sent.
/// Calling   With an exchange, step() is a collective.
/// Errors    ConfigError for a trust out of order.
/// Example   optim::Lamb optimizer(zero.pieces(), {.lr = 2e-3, .weight_decay = 0.01},
///                                 optim::no_decay_for_biases_and_norms(), exchange);
class Lamb final : public Optimizer {
 public:
  explicit Lamb(const NamedTensors& parameters, const LambConfig& config = {},
                std::vector<ParameterGroup> groups = {}, std::shared_ptr<PieceExchange> exchange = nullptr);
  explicit Lamb(const std::vector<Tensor>& parameters, const LambConfig& config = {})
      : Lamb(numbered(parameters), config) {}

  /// β₁ of every group.
  void set_momentum(double momentum) override;

 private:
  void update_all(std::span<const Update> updates, double grad_scale) override;
  [[nodiscard]] kernels::AdamOptions options_of(const Batch& batch, double grad_scale) const;
  [[nodiscard]] double trust(const kernels::LambSquares& squares) const noexcept;
  [[nodiscard]] std::vector<std::string> twice_named(std::span<const Update> updates) const;
  [[nodiscard]] Tensor direction_of(const Update& update);
  [[nodiscard]] bool sum_exactly(std::span<const Update> updates, std::span<kernels::LambSquares> squares);
  void sum_over_pieces(std::span<const Update> updates, std::span<kernels::LambSquares> squares) const;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  double min_trust_, max_trust_;
  std::vector<kernels::AdamOptions> options_;  // by group
};

}  // namespace tessera::optim
