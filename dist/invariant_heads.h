#pragma once

// Keys and values of grouped-query attention (Ainslie et al., "GQA", 2023) in Invariant numerics. The
// gradient of a key/value head is a sum over the query heads that read it, and tp or cp may cut between
// those. So they are its leaves: attention is given a copy of the keys for each query head, and the gradients
// of the copies are added up in the tree of dist/tree_sum.h.
//
// Private to dist/.

#include <cstdint>

#include "dist/mesh.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// Which of the heads a rank has.
struct GroupedHeads {
  std::int64_t query_heads = 0, key_heads = 0;  ///< over all tp ranks
  /// Fewer key/value heads than tp ranks: each rank has all of them, and some of the query heads. Otherwise
  /// query heads are where their key/value head is.
  bool keys_are_whole = false;
};

/// Keys (values), a copy for each query head of this rank.
///
/// Shapes    x [B, T, G·K], G the key/value heads of this rank → [B, T, H·K], H its query heads: S(2) on tp
/// Gradient  Σ over the query heads of each group, of all tp ranks where keys are whole: complete, so x is I
///           there.
/// Cost      Where keys are whole, gradients of all heads are gathered over tp.
[[nodiscard]] Tensor copy_for_query_heads(const Tensor& x, const GroupedHeads& heads, const Mesh& mesh);

}  // namespace tessera::dist
