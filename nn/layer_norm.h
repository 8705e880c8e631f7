#pragma once

#include <utility>

#include "autograd/normalization.h"
#include "nn/module.h"

namespace tessera::nn {

struct LayerNormOptions {
  bool bias = true;
  double epsilon = 1e-5;
};

/// y = (x − mean) / √(variance + ε) · weight + bias over the last dimension (Ba et al., 2016).
///
/// Shapes    x [..., width] → the same; weight [width] begins with ones, bias [width] with zeros
class LayerNorm final : public UnaryModule {
 public:
  explicit LayerNorm(std::int64_t width, const LayerNormOptions& options = {});
  Tensor forward(const Tensor& x) override;

  /// x + residual and its norm in one pass over memory: what stands between the two halves of a transformer
  /// block. Hooks see x and the residual go in, sum and norm come out.
  ResidualNorm add(const Tensor& x, const Tensor& residual);

  /// For tokens that are cut over ranks: see TokenRanks.
  void set_token_ranks(TokenRanksPtr ranks) { ranks_ = std::move(ranks); }

 private:
  Tensor weight_;
  Tensor bias_;
  double epsilon_;
  TokenRanksPtr ranks_;
};

}  // namespace tessera::nn
