#pragma once

#include "nn/module.h"

namespace tessera::nn {

/// y = x / √(mean(x²) + ε) · weight over the last dimension (Zhang & Sennrich, 2019).
///
/// Shapes    x [..., width] → the same; weight [width] begins with ones
class RmsNorm final : public UnaryModule {
 public:
  explicit RmsNorm(std::int64_t width, double epsilon = 1e-5);
  Tensor forward(const Tensor& x) override;

 private:
  Tensor weight_;
  double epsilon_;
};

}  // namespace tessera::nn
