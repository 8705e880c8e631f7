#pragma once

#include <cstdint>
#include <optional>

#include "kernels/random_key.h"
#include "tensor/tensor.h"

namespace tessera {

struct AttentionConfig {
  bool causal = true;  ///< query t of T sees keys up to t + S − T: the queries are the last T of S positions
  std::optional<double> scale = std::nullopt;  ///< default 1/√K
  double dropout = 0.0;                        ///< on the probabilities
  kernels::RandomKey key = {};                 ///< of the dropout mask
  std::int64_t first_sample = 0;               ///< global index of sample 0 of this batch, for the mask
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

}  // namespace tessera
