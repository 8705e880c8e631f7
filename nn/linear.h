#pragma once

#include <optional>

#include "nn/module.h"

namespace tessera::nn {

struct LinearOptions {
  bool bias = true;
  std::optional<Init> weight_init = std::nullopt;  ///< default: Init::kaiming_uniform(inputs), as PyTorch's
  std::optional<Init> bias_init = std::nullopt;    ///< the same
};

/// y = x·weightᵀ + bias.
///
/// Shapes    x [..., inputs] → [..., outputs]; weight [outputs, inputs], bias [outputs]
/// Example   add_module<Linear>("output", 64, 3, LinearOptions{.bias = false});
class Linear final : public UnaryModule {
 public:
  Linear(std::int64_t inputs, std::int64_t outputs, const LinearOptions& options = {});
  /// Without bias, on the weight of another module: an output layer that is tied to an embedding.
  explicit Linear(const Tensor& tied_weight);

  Tensor forward(const Tensor& x) override;

  [[nodiscard]] const Tensor& weight() const noexcept { return weight_; }
  /// Undefined without bias.
  [[nodiscard]] const Tensor& bias() const noexcept { return bias_; }

 private:
  Tensor weight_;
  Tensor bias_;
};

}  // namespace tessera::nn
