#include "nn/layer_norm.h"

namespace tessera::nn {

LayerNorm::LayerNorm(std::int64_t width, const LayerNormOptions& options)
    : weight_(add_parameter("weight", {width}, Init::ones())), epsilon_(options.epsilon) {
  if (options.bias) bias_ = add_parameter("bias", {width}, Init::zeros());
}

Tensor LayerNorm::forward(const Tensor& x) {
  return cheap([weight = weight_, bias = bias_, epsilon = epsilon_,
                ranks = ranks_](const Tensor& in) { return layer_norm(in, weight, bias, epsilon, ranks); },
               x);
}

ResidualNorm LayerNorm::add(const Tensor& x, const Tensor& residual) {
  auto outputs = run_hooks(
      [this](const Tensor& a, const Tensor& b) {
        ResidualNorm result = add_layer_norm(a, b, weight_, bias_, epsilon_, ranks_);
        if (recomputes_cheap_values()) {
          // The sum is kept for the norm's own gradient; its rows give the same bits without adding.
          make_recomputable(
              result.normalized,
              [weight = weight_, bias = bias_, epsilon = epsilon_](std::span<const Tensor> sum) {
                return layer_norm(sum[0], weight, bias, epsilon);
              },
              std::span(&result.sum, 1));
        }
        return std::array<Tensor, 2>{std::move(result.sum), std::move(result.normalized)};
      },
      x, residual);
  return {std::move(outputs[0]), std::move(outputs[1])};
}

}  // namespace tessera::nn
