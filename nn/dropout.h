#pragma once

#include "nn/module.h"

namespace tessera::nn {

/// Zeroes each element with probability p and scales the rest by 1/(1 − p), in training mode only (Srivastava
/// et al., 2014).
///
/// The mask is a function of (seed, this module's name, RankContext::step, global index): x's first dimension
/// is the sample, and sample 0 of x is number RankContext::sample_offset of the step's batch. Of x
/// [B, T, ...] the second is the token, whose position nn/token_positions.h knows. So the mask of a token is
/// the same however batch and sequences are cut into micro-batches and ranks, and when a pass is run again.
/// Errors    ConfigError if p lies outside [0, 1]; LayoutError if x is cut along its channels.
class Dropout final : public UnaryModule {
 public:
  explicit Dropout(double p);
  Tensor forward(const Tensor& x) override;
  [[nodiscard]] double p() const noexcept { return p_; }

 private:
  double p_;
  std::string stream_;
};

/// ConfigError that names `module` unless 0 ≤ p ≤ 1; returns p.
double check_dropout(const std::string& module, double p);

}  // namespace tessera::nn
