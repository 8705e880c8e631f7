#pragma once

#include "nn/causal_self_attention.h"
#include "nn/rotary_embedding.h"

namespace tessera::nn {

struct MultiHeadAttentionConfig {
  std::int64_t width = 0;
  std::int64_t heads = 0;
  /// Heads of keys and values, each shared by heads / kv_heads queries; 0: as many as heads.
  std::int64_t kv_heads = 0;
  bool causal = true;
  bool bias = false;
  double dropout = 0.0;                                   ///< on the probabilities
  std::optional<Init> weight_init = std::nullopt;         ///< of the projections to queries, keys and values
  std::optional<Init> output_weight_init = std::nullopt;  ///< of o_proj
};

/// Self-attention with separate projections, grouped heads of keys and values (Ainslie et al., "GQA", 2023)
/// and optional rotary positions: Llama's.
///
/// Shapes    x [B, T, width] → the same
/// Modules   q_proj [heads·K, width], k_proj and v_proj [kv_heads·K, width], o_proj [width, heads·K]; K =
///           width / heads
/// Cut       As CausalSelfAttention: heads at work follow from the projections' widths.
/// Errors    ConfigError if heads does not divide width, or kv_heads does not divide heads.
class MultiHeadAttention final : public Module, public AttentionCore {
 public:
  /// `rotary`, if given, must live as long as this module: usually both belong to one model.
  explicit MultiHeadAttention(const MultiHeadAttentionConfig& config, RotaryEmbedding* rotary = nullptr);
  /// With a cache, x holds the tokens that follow those in it.
  Tensor operator()(const Tensor& x, LayerCache* cache = nullptr) {
    return run_hooks([&](const Tensor& input) { return forward(input, cache); }, x);
  }
  Tensor forward(const Tensor& x, LayerCache* cache);

 private:
  [[nodiscard]] Tensor attend_at_positions(Tensor q_BTHK, Tensor k_BTGK, const Tensor& v_BTGK,
                                           LayerCache* cache) const;

  std::int64_t head_width_;
  bool causal_;
  double dropout_;
  std::string stream_;
  RotaryEmbedding* rotary_;
  Linear& q_proj_;
  Linear& k_proj_;
  Linear& v_proj_;
  Linear& o_proj_;
};

}  // namespace tessera::nn
