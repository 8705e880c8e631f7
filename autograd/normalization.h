#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/random_key.h"
#include "tensor/tensor.h"

namespace tessera {

/// softmax (its logarithm) along `dim`, computed in f32 (f64 for f64) and stable for any finite input.
[[nodiscard]] Tensor softmax(const Tensor& x, int dim = -1);
[[nodiscard]] Tensor log_softmax(const Tensor& x, int dim = -1);

/// The other ranks that have tokens of the same sequences, for gradients of gain and bias whose bits are not
/// to depend on that: they are then sums over the tokens of all, in the order of one rank that has them all.
struct TokenRanks {
  /// x [B, t, ...] of this rank → [B, T, ...] of all, in order. Called in backward passes, by all of them.
  std::function<Tensor(const Tensor& x)> gather;
  /// Gradients of parameters are summed over the ranks later: one of them gives the sum, the others 0.
  bool counts = true;
};
/// Null: x has all tokens that there are, or each rank's gradients are the sums over its own.
using TokenRanksPtr = std::shared_ptr<const TokenRanks>;

/// y = (x − mean) / √(variance + ε) · gain + bias over the last dimension (Ba et al., 2016).
/// Shapes    x [..., D], gain [D], bias [D] or undefined → [..., D]; with `ranks` x is [B, t, D]
[[nodiscard]] Tensor layer_norm(const Tensor& x, const Tensor& gain, const Tensor& bias,
                                double epsilon = 1e-5, const TokenRanksPtr& ranks = nullptr);

/// What a pre-norm residual block does between two sublayers, in one pass over memory.
struct ResidualNorm {
  Tensor sum;         ///< x + residual: the residual stream goes on
  Tensor normalized;  ///< layer_norm(sum)
};
[[nodiscard]] ResidualNorm add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& gain,
                                          const Tensor& bias, double epsilon = 1e-5,
                                          const TokenRanksPtr& ranks = nullptr);

/// y = x / √(mean(x²) + ε) · gain over the last dimension (Zhang & Sennrich, 2019). Shapes as layer_norm.
[[nodiscard]] Tensor rms_norm(const Tensor& x, const Tensor& gain, double epsilon = 1e-5,
                              const TokenRanksPtr& ranks = nullptr);

/// Zeroes each element with probability p and scales the rest by 1/(1 − p) (Srivastava et al., 2014). The
/// mask is a function of the key and of each element's global index: element i of x (row-major) has index
/// first_index + i. It is made again in the backward pass, not stored.
[[nodiscard]] Tensor dropout(const Tensor& x, double p, const kernels::RandomKey& key,
                             std::int64_t first_index = 0);

/// Which part of [samples, tokens, ...] a rank has.
struct TokenIndices {
  std::int64_t first_sample = 0;
  std::vector<std::int64_t> positions;  ///< of the tokens, in the order in which the rank has them
  std::int64_t sequence_length = 0;     ///< tokens of a whole sequence
};
/// The same for a part of a batch of sequences: element (b, t, i) of x [B, T, ...], i counting all that
/// follows, has index ((first_sample + b)·sequence_length + positions[t])·I + i, whichever rank has it.
/// Errors    ShapeError if `positions` is not one for each t, or holds one outside of the sequence.
/// Cost      A call of the kernel for each run of positions with equal steps.
[[nodiscard]] Tensor dropout(const Tensor& x, double p, const kernels::RandomKey& key,
                             const TokenIndices& tokens);

/// Turns pairs (k, k + K/2) of each head by angles that grow with position (Su et al., 2021).
/// Shapes    x [B, T, H, K], cosine and sine [T, K/2] in f32 (f64 for f64) → [B, T, H, K]
[[nodiscard]] Tensor rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine);

}  // namespace tessera
