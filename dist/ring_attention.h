#pragma once

#include "autograd/attention.h"
#include "dist/communicator.h"
#include "dist/mesh.h"
#include "dist/sequence_cut.h"

namespace tessera::dist {

/// Exact attention over a sequence of which each rank has some tokens: queries stay, keys and values go round
/// the ring of ranks, while each rank computes with those that it has (Liu et al., "Ring attention with
/// blockwise transformers for near-infinite context", 2023).
///
/// Shapes    q [B, n, H, K]; k, v [B, n, G, K], G dividing H; n = cut.size(rank) → [B, n, H, K]
/// Formula   With o_i, lse_i of the keys of rank i alone: lse = log Σ e^lse_i, o = Σ e^(lse_i − lse)·o_i,
///           folded in one after the other as they come.
/// Gradient  Keys and values go round again; their gradients travel with them, from rank to rank, and end at
///           home. Probabilities are made again from the saved lse. Block by block the sums are those of
///           `attention`, in another order: equal within rounding.
/// Dropout   Masks follow from global head, query and key: those of one rank that has the whole sequence.
///           `config` says which samples and heads these are; where the tokens are, `cut` says.
/// Calling   Every rank of the group calls, with the same cut and the same B, G, K; a group of one calls
///           `attention`. The group must outlive the graph.
/// Memory    Saves q, k, v, o and lse of the rank's own tokens. In flight: two packets of keys and values
///           [2, B, n, G, K], and in the backward pass three of gradients, in f32 (f64).
/// Bytes     P(r) = 2·B·G·K·cut.size(r)·bytes(dtype), R ranks. Forward: rank r sends Σ P − P(r + 1), which is
///           (R − 1)·P where R divides. Backward: the same and, in f32 (f64), Σ P − P(r) of gradients.
/// Rounding  16-bit results are merged, and gradients summed, in f32, but each block's part of them has been
///           rounded to 16 bits before.
/// Errors    ShapeError if q, k and v do not fit each other or the cut, DeviceError as for collectives:
///           before any traffic.
[[nodiscard]] Tensor ring_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionConfig& config, Communicator& group,
                                    const SequenceCut& cut);

/// The same along an axis of a mesh, with layout types: q, k and v must be cut.layout(1) on `axis`, and on
/// other axes what `attention` takes. LayoutError otherwise, before any traffic; the form with a group
/// refuses what is not I on every axis.
[[nodiscard]] Tensor ring_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionConfig& config, const Mesh& mesh, MeshAxis axis,
                                    const SequenceCut& cut);

}  // namespace tessera::dist
