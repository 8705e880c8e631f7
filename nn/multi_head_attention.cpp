// B batch, T time of the queries, S time of the keys, H query heads, G key and value heads, K head width.

#include "nn/multi_head_attention.h"

#include <fmt/format.h>

#include "autograd/attention.h"
#include "kernels/error.h"

namespace tessera::nn {
namespace {

std::int64_t kv_width(const MultiHeadAttentionConfig& config) {
  const std::int64_t kv_heads = config.kv_heads == 0 ? config.heads : config.kv_heads;
  if (kv_heads < 1 || config.heads % kv_heads != 0) {
    throw ConfigError(
        fmt::format("attention: each key/value head serves heads / kv_heads query heads, so kv_heads "
                    "must divide heads; but heads = {} and kv_heads = {}",
                    config.heads, kv_heads));
  }
  return kv_heads * head_width(config.width, config.heads);
}

// [B, T, H·K] → [B, T, H, K]
Tensor split_heads(const Tensor& x, std::int64_t head_width) { return x.unflatten(2, {-1, head_width}); }

}  // namespace

MultiHeadAttention::MultiHeadAttention(const MultiHeadAttentionConfig& config, RotaryEmbedding* rotary)
    : head_width_(head_width(config.width, config.heads)),
      causal_(config.causal),
      dropout_(check_dropout(name(), config.dropout)),
      stream_(stream_name("attn_dropout")),
      rotary_(rotary),
      q_proj_(add_module<Linear>("q_proj", config.width, config.width,
                                 LinearOptions{.bias = config.bias, .weight_init = config.weight_init})),
      k_proj_(add_module<Linear>("k_proj", config.width, kv_width(config),
                                 LinearOptions{.bias = config.bias, .weight_init = config.weight_init})),
      v_proj_(add_module<Linear>("v_proj", config.width, kv_width(config),
                                 LinearOptions{.bias = config.bias, .weight_init = config.weight_init})),
      o_proj_(
          add_module<Linear>("o_proj", config.width, config.width,
                             LinearOptions{.bias = config.bias, .weight_init = config.output_weight_init})) {}

Tensor MultiHeadAttention::attend_at_positions(Tensor q_BTHK, Tensor k_BTGK, const Tensor& v_BTGK,
                                               LayerCache* cache) const {
  if (rotary_ != nullptr) {
    const std::int64_t first_position = cache == nullptr ? 0 : cache->length();
    q_BTHK = (*rotary_)(q_BTHK, first_position);
    k_BTGK = (*rotary_)(k_BTGK, first_position);
  }
  const AttentionConfig attention_config = config(causal_, training() ? dropout_ : 0.0, stream_);
  if (cache == nullptr) return attend(q_BTHK, k_BTGK, v_BTGK, attention_config);
  const auto [keys, values] = cache->append(k_BTGK, v_BTGK);
  return attention(q_BTHK, keys, values, attention_config);
}

Tensor MultiHeadAttention::forward(const Tensor& x, LayerCache* cache) {
  const Tensor o_BTHK =
      attend_at_positions(split_heads(q_proj_(x), head_width_), split_heads(k_proj_(x), head_width_),
                          split_heads(v_proj_(x), head_width_), cache);
  return o_proj_(o_BTHK.flatten(2, 3));
}

}  // namespace tessera::nn
