#include "nn/layer_norm.h"

namespace tessera::nn {

LayerNorm::LayerNorm(std::int64_t width, const LayerNormOptions& options)
    : weight_(add_parameter("weight", {width}, Init::ones())), epsilon_(options.epsilon) {
  if (options.bias) bias_ = add_parameter("bias", {width}, Init::zeros());
}

Tensor LayerNorm::forward(const Tensor& x) { return layer_norm(x, weight_, bias_, epsilon_); }

ResidualNorm LayerNorm::add(const Tensor& x, const Tensor& residual) {
  auto outputs = run_hooks(
      [this](const Tensor& a, const Tensor& b) {
        ResidualNorm result = add_layer_norm(a, b, weight_, bias_, epsilon_);
        return std::array<Tensor, 2>{std::move(result.sum), std::move(result.normalized)};
      },
      x, residual);
  return {std::move(outputs[0]), std::move(outputs[1])};
}

}  // namespace tessera::nn
