#pragma once

#include "nn/attention_core.h"
#include "nn/dropout.h"
#include "nn/kv_cache.h"
#include "nn/linear.h"

namespace tessera::nn {

struct CausalSelfAttentionConfig {
  std::int64_t width = 0;
  std::int64_t heads = 0;
  double dropout = 0.0;  ///< on the probabilities and on the result
  bool bias = true;
  std::optional<Init> projection_init = std::nullopt;         ///< of c_attn's weight
  std::optional<Init> output_projection_init = std::nullopt;  ///< of c_proj's weight
  std::optional<Init> bias_init = std::nullopt;
};

/// GPT-2's attention: one projection to queries, keys and values, causal attention, one projection back.
///
/// Shapes    x [B, T, width] → the same
/// Modules   c_attn [3·width, width] (rows: all queries, all keys, all values), c_proj [width, width],
///           resid_dropout
/// Cut       The number of heads at work follows from the width of what c_attn gives, so a rank that holds
///           the rows of some heads, or of none, runs the same code. A bias counts as rows do.
/// Errors    ConfigError if heads does not divide width.
class CausalSelfAttention final : public Module, public AttentionCore {
 public:
  explicit CausalSelfAttention(const CausalSelfAttentionConfig& config);
  /// With a cache, x holds the tokens that follow those in it.
  Tensor operator()(const Tensor& x, LayerCache* cache = nullptr) {
    return run_hooks([&](const Tensor& input) { return forward(input, cache); }, x);
  }
  Tensor forward(const Tensor& x, LayerCache* cache);

 private:
  [[nodiscard]] Tensor attend_packed(const Tensor& qkv, LayerCache* cache) const;

  std::int64_t head_width_;
  double dropout_;
  std::string stream_;
  Linear& c_attn_;
  Linear& c_proj_;
  Dropout& resid_dropout_;
};

/// width / heads. ConfigError that explains if heads does not divide width.
std::int64_t head_width(std::int64_t width, std::int64_t heads);

}  // namespace tessera::nn
