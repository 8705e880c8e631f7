#pragma once

// Cross-entropy of Invariant numerics: the sum over the vocabulary has the leaves of dist/invariant_linear.h,
// on one rank as well, and the loss of a sample is a sum over all of its tokens, whichever rank has them.
//
// Private to dist/.

#include "autograd/losses.h"
#include "dist/mesh.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// The losses of one pass.
struct InvariantLoss {
  Tensor sum;          ///< of this rank's tokens: to be differentiated
  double whole = 0.0;  ///< of the tokens of all cp ranks, added in one rank's order
};

/// With c the leaves of the vocabulary:
///
///   m = max_c lse_c,  lse = m + log Σ_c exp(lse_c − m) in the tree's order,  loss = lse − logits[target]
///
/// Shapes    logits [B, T, shard_size(V)]: S(2) on tp, and S(1) on cp as targets [B, T] are
/// Gradient  softmax(own logits) − own targets, from the saved lse. Written over the logits if nobody else
///           holds them.
/// Cost      Three small exchanges over tp, one over cp.
/// Errors    LayoutError for logits that are whole where tp cuts them; IndexError for a target outside of
///           [0, V).
[[nodiscard]] InvariantLoss invariant_cross_entropy(Tensor&& logits, const Tensor& targets,
                                                    std::int64_t vocab, const Mesh& mesh);

}  // namespace tessera::dist
