#include "nn/rms_norm.h"

#include "autograd/normalization.h"

namespace tessera::nn {

RmsNorm::RmsNorm(std::int64_t width, double epsilon)
    : weight_(add_parameter("weight", {width}, Init::ones())), epsilon_(epsilon) {}

Tensor RmsNorm::forward(const Tensor& x) { return rms_norm(x, weight_, epsilon_); }

}  // namespace tessera::nn
