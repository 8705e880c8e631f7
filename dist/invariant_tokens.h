#pragma once

// Where Invariant numerics bring the tokens of a sequence together that sequence parallelism (over tp) or
// context parallelism (over cp) cuts. Sums over tokens are then made of all of them, in the order in which
// one rank has them, instead of by parts whose number depends on the layout.
//
// Private to dist/.

#include <cstdint>

#include "autograd/normalization.h"
#include "dist/mesh.h"
#include "dist/placement.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// S(1) → I: all tokens, of which every rank then does the same.
///
/// Shapes    x [B, shard_size(T), ...] → [B, T, ...]; T = `size`, or R times x's where that is left at −1.
/// Gradient  This rank's tokens of dy, which is whole, and the same, on every rank: nothing is summed.
/// Errors    LayoutError unless x is S(1) on the axis.
[[nodiscard]] Tensor gather_tokens(const Tensor& x, const Mesh& mesh, MeshAxis axis, std::int64_t size = -1);

/// I → S(1): this rank's tokens.
///
/// Shapes    x [B, T, ...] → [B, shard_size(T), ...]
/// Gradient  The tokens of all ranks, on every rank.
/// Errors    LayoutError unless x is I on the axis.
[[nodiscard]] Tensor cut_tokens(const Tensor& x, const Mesh& mesh, MeshAxis axis);

/// R → S(1) over cp: this rank's tokens of the result of an embedding.
///
/// Shapes    y [B, T, D], rows [B, T]: which row of a table of `num_rows` each token has, −1 for none
/// Gradient  The tokens of all ranks, where their row is in this rank's share of the table (own_share); else
///           0. So each row of the table gets its gradient on one rank, the one that makes that row's
///           gradient as an output layer, if the table is tied to one.
[[nodiscard]] Tensor cut_embedded_tokens(const Tensor& y, const Tensor& rows, std::int64_t num_rows,
                                         const Mesh& mesh);

/// Of `size` rows of a gradient that all cp ranks could make, those that this one does.
[[nodiscard]] Range own_share(std::int64_t size, const Mesh& mesh);

/// The tokens of all ranks that share a sequence, for norms on cut tokens; null where none are cut.
[[nodiscard]] TokenRanksPtr token_ranks(const Mesh& mesh, bool sequence_parallel);

/// Tokens of a sequence that this rank holds together with its tp peers; −1 if nobody said.
[[nodiscard]] std::int64_t tokens_over_tp();

/// x [B, t, ...] of this rank → [B, T, ...] of its cp peers as well, outside of the graph.
[[nodiscard]] Tensor over_cp(const Tensor& x, const Mesh& mesh);

}  // namespace tessera::dist
