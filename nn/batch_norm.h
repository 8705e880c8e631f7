#pragma once

#include "nn/module.h"

namespace tessera::nn {

struct BatchNormOptions {
  double epsilon = 1e-5;
  double momentum = 0.1;  ///< weight of the newest batch in the running statistics
};

/// y = (x − mean) / √(variance + ε) · weight + bias for each channel (Ioffe & Szegedy, 2015). In training
/// mode mean and variance are those of the batch, over N·H·W elements, and the running statistics move
/// towards them (the variance towards the unbiased one); in evaluation mode they are the running ones.
///
/// Shapes    x [N, channels, H, W] → the same; weight and bias [channels] begin with ones and zeros
/// Buffers   running_mean and running_var [channels], at first zeros and ones, in state() under PyTorch's
///           names. Its num_batches_tracked has no counterpart.
/// Layouts   In training mode pictures that are cut over ranks are a LayoutError: each rank would normalise
///           by its own part, and the result depend on how many there are.
/// Errors    ShapeError for another number of channels, or for one element a channel in training mode.
class BatchNorm2d final : public UnaryModule {
 public:
  explicit BatchNorm2d(std::int64_t channels, const BatchNormOptions& options = {});
  Tensor forward(const Tensor& x) override;

 private:
  void check(const Tensor& x) const;
  void follow_batch(const Tensor& mean, const Tensor& var, std::int64_t elements);

  double epsilon_;
  double momentum_;
  Tensor weight_;
  Tensor bias_;
  Tensor running_mean_;
  Tensor running_var_;
};

}  // namespace tessera::nn
