#include "nn/swiglu.h"

#include "autograd/arithmetic.h"
#include "autograd/math.h"

namespace tessera::nn {

SwiGlu::SwiGlu(const SwiGluConfig& config)
    : gate_proj_(add_module<Linear>("gate_proj", config.width, config.hidden,
                                    LinearOptions{.bias = false, .weight_init = config.weight_init})),
      up_proj_(add_module<Linear>("up_proj", config.width, config.hidden,
                                  LinearOptions{.bias = false, .weight_init = config.weight_init})),
      down_proj_(add_module<Linear>("down_proj", config.hidden, config.width,
                                    LinearOptions{.bias = false, .weight_init = config.output_weight_init})) {
}

Tensor SwiGlu::forward(const Tensor& x) {
  const Tensor gate = cheap([](const Tensor& g) { return silu(g); }, gate_proj_(x));
  return down_proj_(cheap([](const Tensor& g, const Tensor& up) { return g * up; }, gate, up_proj_(x)));
}

}  // namespace tessera::nn
