#include "nn/rms_norm.h"

namespace tessera::nn {

RmsNorm::RmsNorm(std::int64_t width, double epsilon)
    : weight_(add_parameter("weight", {width}, Init::ones())), epsilon_(epsilon) {}

Tensor RmsNorm::forward(const Tensor& x) {
  return cheap([weight = weight_, epsilon = epsilon_,
                ranks = ranks_](const Tensor& in) { return rms_norm(in, weight, epsilon, ranks); },
               x);
}

}  // namespace tessera::nn
