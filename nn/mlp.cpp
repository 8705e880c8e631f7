#include "nn/mlp.h"

#include "autograd/math.h"

namespace tessera::nn {
namespace {
std::int64_t hidden_width(const MlpConfig& config) {
  return config.hidden == 0 ? 4 * config.width : config.hidden;
}
}  // namespace

Mlp::Mlp(const MlpConfig& config)
    : c_fc_(add_module<Linear>(
          "c_fc", config.width, hidden_width(config),
          LinearOptions{
              .bias = config.bias, .weight_init = config.projection_init, .bias_init = config.bias_init})),
      c_proj_(add_module<Linear>("c_proj", hidden_width(config), config.width,
                                 LinearOptions{.bias = config.bias,
                                               .weight_init = config.output_projection_init,
                                               .bias_init = config.bias_init})),
      dropout_(add_module<Dropout>("dropout", config.dropout)) {}

Tensor Mlp::forward(const Tensor& x) {
  const auto activation = [](const Tensor& f) { return gelu(f, tessera::Gelu::kTanh); };
  return dropout_(c_proj_(cheap(activation, c_fc_(x))));
}

}  // namespace tessera::nn
