#include "nn/conv2d.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::nn {

namespace {

// Channels of one group.
std::int64_t group_channels(std::int64_t channels, std::int64_t outputs, std::int64_t groups) {
  if (groups < 1 || channels % groups != 0 || outputs % groups != 0) {
    throw ConfigError(
        fmt::format("Conv2d: groups must divide channels and outputs; but channels = {}, outputs = {} "
                    "and groups = {}",
                    channels, outputs, groups));
  }
  return channels / groups;
}

}  // namespace

Conv2d::Conv2d(std::int64_t channels, std::int64_t outputs, Size2 kernel, const Conv2dOptions& options)
    : config_{options.stride, options.padding, options.dilation, options.groups} {
  const std::int64_t inputs = group_channels(channels, outputs, options.groups);
  const std::int64_t fan_in = inputs * kernel.rows * kernel.columns;
  weight_ = add_parameter("weight", {outputs, inputs, kernel.rows, kernel.columns},
                          options.weight_init ? *options.weight_init : Init::kaiming_uniform(fan_in));
  if (options.bias) {
    bias_ = add_parameter("bias", {outputs},
                          options.bias_init ? *options.bias_init : Init::kaiming_uniform(fan_in));
  }
}

Tensor Conv2d::forward(const Tensor& x) { return conv2d(x, weight_, bias_, config_); }

}  // namespace tessera::nn
