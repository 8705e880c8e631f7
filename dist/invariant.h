#pragma once

// Invariant numerics as a whole: what it refuses, and what it switches. How each kind of sum is made the same
// in every layout stands in
//
//   tree_sum.h            gradients over samples: the tree
//   zero_samples.cpp      the same pass by pass: samples in any order, weights that layers share
//   invariant_linear.h    products over what tp cuts
//   invariant_heads.h     key/value heads that several query heads read
//   invariant_loss.h      the vocabulary, and the loss of a sample
//   invariant_tokens.h    gradients over tokens that sequence parallelism or cp cuts
//   exact_sum.h           the norm of gradients, LAMB's norms
//
// and docs/invariance.md explains it.
//
// Private to dist/.

#include "dist/config.h"
#include "dist/mesh.h"

namespace tessera {
class RankContext;
}

namespace tessera::dist {

/// Errors   ConfigError for what would not have the bits of one rank, with the reason and the nearest that
///          works.
void check_invariant(const Config& config, const Mesh& mesh);

/// Matrix products of this rank go through loops in which an element depends on its row, its column and the
/// inner size alone (KernelContext::invariant_products), for the length of a scope.
class InvariantProducts {
 public:
  InvariantProducts();
  ~InvariantProducts();
  InvariantProducts(const InvariantProducts&) = delete;
  InvariantProducts& operator=(const InvariantProducts&) = delete;

 private:
  RankContext& context_;
  bool previous_;
};

}  // namespace tessera::dist
