#pragma once

#include <optional>

#include "autograd/convolution.h"
#include "nn/module.h"

namespace tessera::nn {

struct Conv2dOptions {
  Size2 stride = 1;
  Size2 padding = 0;
  Size2 dilation = 1;
  std::int64_t groups = 1;
  bool bias = true;
  std::optional<Init> weight_init =
      std::nullopt;  ///< default: Init::kaiming_uniform(C/groups·KH·KW), as PyTorch's
  std::optional<Init> bias_init = std::nullopt;  ///< the same
};

/// Windows of a picture times a weight, at each place (LeCun et al., 1989); see conv2d of
/// autograd/convolution.h.
///
/// Shapes    x [N, channels, H, W] → [N, outputs, OH, OW]; weight [outputs, channels/groups, KH, KW], bias
///           [outputs]
/// Errors    ConfigError if groups does not divide both.
/// Example   model.add<nn::Conv2d>(1, 16, 3, nn::Conv2dOptions{.padding = 1});
class Conv2d final : public UnaryModule {
 public:
  Conv2d(std::int64_t channels, std::int64_t outputs, Size2 kernel, const Conv2dOptions& options = {});
  Tensor forward(const Tensor& x) override;

 private:
  Conv2dConfig config_;
  Tensor weight_;
  Tensor bias_;
};

}  // namespace tessera::nn
