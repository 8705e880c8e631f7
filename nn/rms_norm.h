#pragma once

#include <utility>

#include "autograd/normalization.h"
#include "nn/module.h"

namespace tessera::nn {

/// y = x / √(mean(x²) + ε) · weight over the last dimension (Zhang & Sennrich, 2019).
///
/// Shapes    x [..., width] → the same; weight [width] begins with ones
class RmsNorm final : public UnaryModule {
 public:
  explicit RmsNorm(std::int64_t width, double epsilon = 1e-5);
  Tensor forward(const Tensor& x) override;

  /// For tokens that are cut over ranks: see TokenRanks.
  void set_token_ranks(TokenRanksPtr ranks) { ranks_ = std::move(ranks); }

 private:
  Tensor weight_;
  double epsilon_;
  TokenRanksPtr ranks_;
};

}  // namespace tessera::nn
