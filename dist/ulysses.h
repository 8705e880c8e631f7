#pragma once

#include "autograd/attention.h"
#include "dist/communicator.h"
#include "dist/mesh.h"
#include "dist/sequence_cut.h"

namespace tessera::dist {

/// Exact attention over a sequence of which each rank has a piece: an exchange gives each rank the whole
/// sequence for some of the heads, it attends, and a second exchange brings the result back (Jacobs et al.,
/// "DeepSpeed Ulysses", 2023).
///
/// Shapes    q [B, n, H, K]; k, v [B, n, G, K], G dividing H; n = cut.size(rank) → [B, n, H, K]
/// Heads     Rank r takes heads shard_begin(H), ..., shard_size(H) of them: uneven numbers of heads and fewer
///           heads than ranks (some get none) are fine, though ranks wait for the one with most. Where a cut
///           of the G heads of keys and values would not give every rank those of its queries (fewer of them
///           than ranks, say), they are first repeated, as few times as will do: see key_head_copies.
/// Gradient  The same exchanges, the other way round.
/// Dropout   As for ring_attention.
/// Calling   Every rank of the group calls, with the same cut; a group of one calls `attention`.
/// Memory    q, k, v and o of the whole sequence for 1/R of the heads, besides the rank's own piece of them.
/// Bytes     4 all-to-alls forward and 4 backward; to each peer ⌈T/R⌉·⌈H/R⌉·B·K elements of q and of o, and
///           the same with key_head_copies·G heads of k and of v.
/// Errors    ShapeError if q, k and v do not fit each other or the cut; ConfigError if the cut is balanced:
///           pieces that follow each other in rank order are what the exchange joins; DeviceError as for
///           collectives. Before any traffic.
[[nodiscard]] Tensor ulysses_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const AttentionConfig& config, Communicator& group,
                                       const SequenceCut& cut);

/// The same along an axis of a mesh, with layout types: as for ring_attention.
[[nodiscard]] Tensor ulysses_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const AttentionConfig& config, const Mesh& mesh, MeshAxis axis,
                                       const SequenceCut& cut);

/// How often each of `key_heads` is repeated so that `num_ranks` ranks, which cut them as they cut the
/// `query_heads`, each get those of its queries: the smallest number that divides query_heads / key_heads.
///
/// Example   key_head_copies(8, 4, 2) == 1; key_head_copies(8, 2, 4) == 2; key_head_copies(6, 2, 4) == 3
[[nodiscard]] std::int64_t key_head_copies(std::int64_t query_heads, std::int64_t key_heads, int num_ranks);

}  // namespace tessera::dist
