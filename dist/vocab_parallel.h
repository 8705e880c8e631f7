#pragma once

// What a vocabulary that is cut over ranks needs (Shoeybi et al., "Megatron-LM", 2019, section 3): rank r has
// rows [shard_begin, shard_begin + shard_size) of the embedding's table, which are its columns of the logits.
//
//   embedding       ids → own ids, −1 elsewhere → rows, zeros elsewhere (P) → all_reduce
//   output layer    x (R) · own rows → own logits, S(-1)
//   loss            two numbers a token go over the wire instead of V logits

#include "autograd/losses.h"
#include "dist/mesh.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// Numbers ids by this rank's piece of `count` rows; ids of other ranks' rows become −1, which `embedding`
/// turns into rows of zeros.
///
/// Shapes    ids [...] in i64 → the same; P on `axis`: each id is at home on one rank
/// Errors    IndexError for an id outside [0, count).
[[nodiscard]] Tensor mask_foreign_ids(const Tensor& ids, std::int64_t count, const Mesh& mesh, MeshAxis axis);

/// Numbers targets by columns [begin, end) of `vocab`: −1 for those elsewhere; `ignored` stays what it is.
/// Errors    IndexError for another target outside [0, vocab).
[[nodiscard]] Tensor targets_in(const Tensor& targets, std::int64_t begin, std::int64_t end,
                                std::int64_t vocab, std::int64_t ignored);

/// cross_entropy (autograd/losses.h) of logits that are cut along the vocabulary; they are never gathered. A
/// vocabulary that R does not divide gives pieces of different length, and none is padded: there is no row
/// that softmax could see by mistake.
///
///   m = max_r lse_r,  lse = m + log Σ_r exp(lse_r − m),  loss = lse − logits[target]
///
/// Shapes    logits [..., shard_size(V)], targets [...] in i64, the same on every rank → a scalar or [...];
///           I on `axis`
/// Gradient  softmax(own logits) − own targets, from the saved lse: nothing is sent. Written over the logits
///           if nobody else holds them.
/// Cost      Two all-reduces, of N and 2N numbers (f32; f64 for f64), N targets.
/// Reduction kSum or kNone wherever tokens are cut (dp, cp): the default, kMean, would be a mean of means
///           there. Divide a kSum by the targets of all ranks that count.
/// Errors    LayoutError for logits that are whole on `axis`: their lse would count every logit R times, and
///           the loss be off by log R; for kMean if a layout cuts tokens or, with layouts switched off, if
///           the mesh has data ranks: before anything is sent. ConfigError for label smoothing. IndexError
///           for a target outside [0, V).
[[nodiscard]] Tensor vocab_parallel_cross_entropy(Tensor&& logits, const Tensor& targets, std::int64_t vocab,
                                                  const Mesh& mesh, MeshAxis axis,
                                                  const CrossEntropyConfig& config = {});

}  // namespace tessera::dist
