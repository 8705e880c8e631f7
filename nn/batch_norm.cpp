#include "nn/batch_norm.h"

#include <fmt/format.h>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/math.h"
#include "autograd/reductions.h"
#include "kernels/error.h"

namespace tessera::nn {

namespace {

// [channels] beside [N, channels, H, W].
Tensor of_channels(const Tensor& x, DType dtype) { return x.to(dtype).reshape({1, x.dim(0), 1, 1}); }

}  // namespace

BatchNorm2d::BatchNorm2d(std::int64_t channels, const BatchNormOptions& options)
    : epsilon_(options.epsilon),
      momentum_(options.momentum),
      weight_(add_parameter("weight", {channels}, Init::ones())),
      bias_(add_parameter("bias", {channels}, Init::zeros())),
      running_mean_(add_buffer("running_mean", {channels}, Init::zeros())),
      running_var_(add_buffer("running_var", {channels}, Init::ones())) {}

void BatchNorm2d::check(const Tensor& x) const {
  if (x.dims() != 4 || x.dim(1) != weight_.dim(0)) {
    throw ShapeError(
        fmt::format("BatchNorm2d: needs [N, {}, H, W], but came {}", weight_.dim(0), describe(x)));
  }
  if (training() && x.num_elements() <= x.dim(1)) {
    throw ShapeError(fmt::format("BatchNorm2d: one element a channel has no variance to train with; came {}",
                                 describe(x)));
  }
}

void BatchNorm2d::follow_batch(const Tensor& mean, const Tensor& var, std::int64_t elements) {
  const NoGrad no_grad;
  const double unbiased = static_cast<double>(elements) / static_cast<double>(elements - 1);
  const auto move = [this](Tensor& running, const Tensor& newest) {
    running.copy_from((1 - momentum_) * running.to(newest.dtype()) +
                      momentum_ * newest.detach().reshape(running.shape()));
  };
  move(running_mean_, mean);
  move(running_var_, unbiased * var);
}

// Made of operations that are there: their gradients are that of the whole. In f32 for 16-bit pictures.
Tensor BatchNorm2d::forward(const Tensor& x) {
  check(x);
  const DType wide = accumulation_dtype(x.dtype());
  const Tensor wide_x = x.to(wide);
  Tensor batch_mean, batch_var;
  if (training()) {
    batch_mean = mean(wide_x, {.dims = {0, 2, 3}, .keep_dims = true});
    batch_var = variance(wide_x, {.dims = {0, 2, 3}, .keep_dims = true}, /*correction=*/0);
    follow_batch(batch_mean, batch_var, x.num_elements() / x.dim(1));
  } else {
    batch_mean = of_channels(running_mean_, wide);
    batch_var = of_channels(running_var_, wide);
  }
  const Tensor normalized = (wide_x - batch_mean) * rsqrt(batch_var + epsilon_);
  return (normalized * of_channels(weight_, wide) + of_channels(bias_, wide)).to(x.dtype());
}

}  // namespace tessera::nn
