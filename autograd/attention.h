#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "kernels/random_key.h"
#include "tensor/tensor.h"

namespace tessera {

namespace kernels {
struct AttentionOptions;
}

struct AttentionConfig {
  bool causal = true;  ///< query t of T sees keys up to t + S − T: the queries are the last T of S positions
  std::optional<double> scale = std::nullopt;  ///< default 1/√K
  double dropout = 0.0;                        ///< on the probabilities
  kernels::RandomKey key = {};                 ///< of the dropout mask

  // Where q, k and v lie in the whole problem, of which a rank may have a part: the mask of a probability
  // follows from its sample, head, query and key over all ranks. For nothing else.
  std::int64_t first_sample = 0;     ///< global index of sample 0 of this batch
  std::int64_t first_head = 0;       ///< global index of head 0 of q
  std::int64_t num_heads = 0;        ///< of queries, over all ranks; 0: as many as q has
  std::int64_t first_query = 0;      ///< position of query 0
  std::int64_t first_key = 0;        ///< position of key 0
  std::int64_t sequence_length = 0;  ///< of the whole sequence; 0: T queries and S keys
};

/// softmax(q·kᵀ·scale)·v for each head, exactly, in tiles: memory grows with T, not T² (Dao et al., 2022).
///
/// Shapes    q [B, T, H, K]; k, v [B, S, G, K] with G dividing H: each key/value head serves H/G query heads
///           (Ainslie et al., "GQA", 2023) → [B, T, H, K]
/// Memory    Saves q, k, v, the result and one number for each query.
[[nodiscard]] Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                               const AttentionConfig& config = {});

/// The same for packed projections, without copies in either direction.
/// Shapes    qkv [B, T, (H + 2G)·K]: H query heads, G key heads, G value heads → [B, T, H·K]
[[nodiscard]] Tensor attention_packed(const Tensor& qkv, std::int64_t query_heads, std::int64_t key_heads,
                                      const AttentionConfig& config = {});

/// What computes attention in a layer: `attention`, or what dist puts in its place when the keys of a
/// sequence lie on several ranks. Arguments and result as for `attention`.
using AttentionFunction =
    std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config)>;

namespace detail {
/// Throws ShapeError or DTypeError unless q, k and v fit each other.
void check_attention(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v);
/// What the kernels are told about a call with q [B, T, H, K] and k [B, S, G, K].
[[nodiscard]] kernels::AttentionOptions attention_options(const AttentionConfig& config, const Tensor& q,
                                                          const Tensor& k);
}  // namespace detail

}  // namespace tessera
