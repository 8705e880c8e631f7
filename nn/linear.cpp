#include "nn/linear.h"

#include "autograd/arithmetic.h"
#include "autograd/linear_algebra.h"

namespace tessera::nn {

Linear::Linear(std::int64_t inputs, std::int64_t outputs, const LinearOptions& options)
    : weight_(add_parameter("weight", {outputs, inputs},
                            options.weight_init ? *options.weight_init : Init::kaiming_uniform(inputs))) {
  if (options.bias) {
    bias_ = add_parameter("bias", {outputs},
                          options.bias_init ? *options.bias_init : Init::kaiming_uniform(inputs));
  }
}

Linear::Linear(const Tensor& tied_weight) : weight_(tie_parameter("weight", tied_weight)) {}

Tensor Linear::forward(const Tensor& x) {
  if (function_) return function_(x, weight_, bias_);
  if (!product_hook_) return linear(x, weight_, bias_);
  const Tensor y = product_hook_(linear(x, weight_));
  return bias_.defined() ? y + bias_ : y;
}

}  // namespace tessera::nn
