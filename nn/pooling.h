#pragma once

#include "autograd/convolution.h"
#include "nn/module.h"

// The pools of autograd/convolution.h as modules, for Sequential and for hooks.

namespace tessera::nn {

class MaxPool2d final : public UnaryModule {
 public:
  explicit MaxPool2d(const Pool2dConfig& config = {}) : config_(config) {}
  Tensor forward(const Tensor& x) override { return max_pool2d(x, config_); }

 private:
  Pool2dConfig config_;
};

class AvgPool2d final : public UnaryModule {
 public:
  explicit AvgPool2d(const Pool2dConfig& config = {}) : config_(config) {}
  Tensor forward(const Tensor& x) override { return avg_pool2d(x, config_); }

 private:
  Pool2dConfig config_;
};

}  // namespace tessera::nn
