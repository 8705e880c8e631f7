#include "autograd/losses.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "autograd/math.h"
#include "autograd/reductions.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

const kernels::Losses& loss_kernels(const Tensor& x) { return kernels::of(x.device().type).losses; }

Tensor reduced(const Tensor& losses, Reduction reduction) {
  switch (reduction) {
    case Reduction::kMean:
      return mean(losses);
    case Reduction::kSum:
      return sum(losses);
    case Reduction::kNone:
      break;
  }
  return losses;
}

void check_same_shape(const char* operation, const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape()) {
    throw ShapeError(fmt::format("{}: prediction and target must have one shape, but they are {} and {}",
                                 operation, describe(a), describe(b)));
  }
}

// The loss of each row; its gradient is dloss · (softmax − target).
Tensor row_losses(const Tensor& logits, const Tensor& targets, const kernels::CrossEntropyOptions& options) {
  const DType dtype = accumulation_dtype(logits.dtype());
  Tensor losses = empty(targets.shape(), {.dtype = dtype, .device = logits.device()});
  Tensor lse = empty_like(losses);
  loss_kernels(logits).cross_entropy(logits.view(), targets.view(), options, losses.mutable_view(),
                                     lse.mutable_view());
  return record(
      "cross_entropy", laid_out(losses, layout_rules::row_losses("cross_entropy", logits, targets)), {logits},
      [logits = saved(logits), targets = saved(targets), lse, options](const Tensor& dy,
                                                                       Needs needs) -> Grads {
        // Nobody but this closure sees the logits any more: their memory becomes the gradient's.
        const bool sole_owner = needs.may_overwrite_saved() && logits.is_sole_owner();
        Tensor dlogits = sole_owner ? logits.get().detach() : empty_like(logits.get());
        const kernels::ConstView logits_view = logits.get().view();
        loss_kernels(dy).cross_entropy_backward(dy.contiguous().view(), logits_view, targets.get().view(),
                                                lse.view(), options, dlogits.mutable_view());
        return {dlogits};
      });
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyConfig& config) {
  Shape expected = logits.shape();
  if (expected.dims() > 0) expected.erase(expected.dims() - 1);
  if (logits.dims() == 0 || targets.shape() != expected || targets.dtype() != kI64 ||
      !is_floating(logits.dtype())) {
    throw ShapeError(fmt::format(
        "cross_entropy: logits [..., V] in a floating dtype need targets [...] in i64, but they are "
        "{} and {}",
        describe(logits), describe(targets)));
  }
  if (config.label_smoothing < 0.0 || config.label_smoothing > 1.0) {
    throw ShapeError(fmt::format("cross_entropy: label_smoothing must lie in [0, 1], but it is {}",
                                 config.label_smoothing));
  }
  const Layout layout = layout_rules::row_losses("cross_entropy", logits, targets);
  const std::int64_t rows = targets.num_elements();
  Tensor losses;
  {
    const LayoutChecks no_layout_checks(false);  // rows are merged and taken apart again
    losses =
        row_losses(logits.reshape({rows, logits.dim(-1)}).contiguous(), targets.contiguous().reshape({rows}),
                   {.ignore_index = config.ignore_index, .label_smoothing = config.label_smoothing})
            .reshape(expected);
  }
  losses.set_layout(layout);
  if (config.reduction == Reduction::kNone) return losses;
  if (config.reduction == Reduction::kSum) return sum(losses);
  static_cast<void>(
      layout_rules::reduction("cross_entropy's mean", losses, {}, layout_rules::Reduced::kMean));
  // The count is data, so on meta, where there is none, every target counts.
  const double counted =
      targets.device() == meta
          ? static_cast<double>(rows)
          : sum(logical_not(equal(targets, static_cast<double>(config.ignore_index)))).item();
  return sum(losses) / counted;
}

Tensor cross_entropy(Tensor&& logits, const Tensor& targets, const CrossEntropyConfig& config) {
  const Tensor taken = std::move(logits);  // gone when this returns: the graph alone holds them then
  return cross_entropy(taken, targets, config);
}

Tensor mse_loss(const Tensor& prediction, const Tensor& target, Reduction reduction) {
  check_same_shape("mse_loss", prediction, target);
  return reduced(square(prediction - target), reduction);
}

Tensor kl_div_loss(const Tensor& log_prediction, const Tensor& target, Reduction reduction) {
  check_same_shape("kl_div_loss", log_prediction, target);
  // 0·log 0 = 0: the logarithm of a zero target is never taken.
  const Tensor safe = where(equal(target, 0.0), ones_like(target), target);
  return reduced(target * (log(safe) - log_prediction), reduction);
}

// −t·log σ(x) − (1 − t)·log(1 − σ(x)), with −log σ(x) = softplus(−x). The shorter softplus(x) − t·x would
// lose all digits where x is large and t = 1: σ(20) differs from 1 by 2e-9.
Tensor bce_with_logits_loss(const Tensor& logits, const Tensor& target, Reduction reduction) {
  check_same_shape("bce_with_logits_loss", logits, target);
  return reduced(target * softplus(-logits) + (1.0 - target) * softplus(logits), reduction);
}

}  // namespace tessera
