#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace tessera {

/// How the losses of single elements (rows) become the result.
enum class Reduction { kMean, kSum, kNone };

struct CrossEntropyConfig {
  std::int64_t ignore_index = -100;  ///< targets of this value count for nothing
  double label_smoothing = 0.0;  ///< ε of Szegedy et al., 2016: the target becomes (1 − ε)·onehot + ε/V
  Reduction reduction = Reduction::kMean;  ///< the mean is over the targets that count
};

/// −log softmax(logits)[target], softmax and loss in one pass and in f32 (f64 for f64).
///
/// Shapes    logits [..., V], targets [...] in i64 → a scalar, or [...] without reduction; f32 (f64 for f64)
/// Gradient  softmax(logits) − target, written over the logits if nobody else holds them: there is no second
///           buffer of their size. A variable of the caller holds them; pass std::move(logits), or the result
///           of the model as it is.
/// Errors    IndexError for a target outside [0, V). The mean over no target at all is NaN, as in PyTorch.
[[nodiscard]] Tensor cross_entropy(const Tensor& logits, const Tensor& targets,
                                   const CrossEntropyConfig& config = {});
[[nodiscard]] Tensor cross_entropy(Tensor&& logits, const Tensor& targets,
                                   const CrossEntropyConfig& config = {});

/// (prediction − target)², element by element.
[[nodiscard]] Tensor mse_loss(const Tensor& prediction, const Tensor& target,
                              Reduction reduction = Reduction::kMean);

/// target·(log target − log_prediction): the first argument holds log-probabilities, the second
/// probabilities. The mean is over all elements, as in PyTorch's default; for the divergence itself take the
/// sum and divide by the batch.
[[nodiscard]] Tensor kl_div_loss(const Tensor& log_prediction, const Tensor& target,
                                 Reduction reduction = Reduction::kMean);

/// Binary cross-entropy of sigmoid(logits) with targets in [0, 1], stable for large |logits|.
[[nodiscard]] Tensor bce_with_logits_loss(const Tensor& logits, const Tensor& target,
                                          Reduction reduction = Reduction::kMean);

}  // namespace tessera
