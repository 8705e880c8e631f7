#pragma once

#include <functional>
#include <optional>
#include <utility>

#include "nn/module.h"

namespace tessera::nn {

struct LinearOptions {
  bool bias = true;
  std::optional<Init> weight_init = std::nullopt;  ///< default: Init::kaiming_uniform(inputs), as PyTorch's
  std::optional<Init> bias_init = std::nullopt;    ///< the same
};

/// y = x·weightᵀ + bias.
///
/// Shapes    x [..., inputs] → [..., outputs]; weight [outputs, inputs], bias [outputs]
/// Example   add_module<Linear>("output", 64, 3, LinearOptions{.bias = false});
class Linear final : public UnaryModule {
 public:
  Linear(std::int64_t inputs, std::int64_t outputs, const LinearOptions& options = {});
  /// Without bias, on the weight of another module: an output layer that is tied to an embedding.
  explicit Linear(const Tensor& tied_weight);

  Tensor forward(const Tensor& x) override;

  /// `hook` sees x·weightᵀ before the bias is added, and what it returns goes on in its place: the reduction
  /// of a layer whose inputs are cut over ranks, so that the bias is added once, to the sum. Empty (the
  /// default): product and bias in one pass.
  using ProductHook = std::function<Tensor(const Tensor& product)>;
  void set_product_hook(ProductHook hook) { product_hook_ = std::move(hook); }

  /// Computes the layer in the place of tessera::linear; no product hook is called then. Empty (the default):
  /// tessera::linear.
  using Function = std::function<Tensor(const Tensor& x, const Tensor& weight, const Tensor& bias)>;
  void set_function(Function function) { function_ = std::move(function); }

  [[nodiscard]] const Tensor& weight() const noexcept { return weight_; }
  /// Undefined without bias.
  [[nodiscard]] const Tensor& bias() const noexcept { return bias_; }

 private:
  Tensor weight_;
  Tensor bias_;
  ProductHook product_hook_;
  Function function_;
};

}  // namespace tessera::nn
