#pragma once

#include "autograd/math.h"
#include "nn/module.h"

// The functions of autograd/math.h as modules, for Sequential and for hooks.

namespace tessera::nn {

class Relu final : public UnaryModule {
 public:
  Tensor forward(const Tensor& x) override { return relu(x); }
};

class Silu final : public UnaryModule {
 public:
  Tensor forward(const Tensor& x) override { return silu(x); }
};

class Tanh final : public UnaryModule {
 public:
  Tensor forward(const Tensor& x) override { return tanh(x); }
};

class Sigmoid final : public UnaryModule {
 public:
  Tensor forward(const Tensor& x) override { return sigmoid(x); }
};

/// GPT-2's approximation by tanh, or the exact form.
class Gelu final : public UnaryModule {
 public:
  explicit Gelu(tessera::Gelu form = tessera::Gelu::kTanh) : form_(form) {}
  Tensor forward(const Tensor& x) override { return gelu(x, form_); }

 private:
  tessera::Gelu form_;
};

}  // namespace tessera::nn
