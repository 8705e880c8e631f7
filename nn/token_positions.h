#pragma once

#include <cstdint>

#include "autograd/normalization.h"
#include "tensor/tensor.h"

// Which tokens of their sequences a tensor holds: what position embeddings, rotations and dropout masks
// depend on. Without ranks a tensor holds whole sequences. Over ranks, RankContext::token_positions says
// which tokens this rank has (context parallel), and a layout of S(1) on tp that it has only its piece of
// those (sequence parallel: the r-th of the pieces that Tensor::chunk cuts).

namespace tessera::nn {

/// Tokens of a sequence that this rank and its tp peers hold together, cut over them or not; 0 if nobody
/// said.
[[nodiscard]] std::int64_t tokens_of_tp_peers();

/// True if x [B, T, ...] does not hold whole sequences.
[[nodiscard]] bool holds_part_of_tokens(const Tensor& x);

/// The tokens that x [B, T, ...] holds along dimension 1, in their order there. `first_position`: of a whole
/// sequence, what comes before x (tokens in a cache).
/// Errors    LayoutError if x is cut along dimension 1 and nobody said where: RankContext::token_positions is
///           missing, or sequence_length is; ShapeError if x has another number of tokens than was said.
[[nodiscard]] TokenIndices token_indices(const Tensor& x, std::int64_t first_position = 0);

/// Their positions as ids [T] in i64, cut over the ranks as x's dimension 1 is.
[[nodiscard]] Tensor position_ids(const Tensor& x, std::int64_t first_position = 0);

}  // namespace tessera::nn
