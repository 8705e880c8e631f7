// B batch, T time of the queries, S time of the keys, H heads, K head width.

#include "nn/causal_self_attention.h"

#include <fmt/format.h>

#include "autograd/attention.h"
#include "kernels/error.h"

namespace tessera::nn {

std::int64_t head_width(std::int64_t width, std::int64_t heads) {
  if (width < 1 || heads < 1 || width % heads != 0) {
    throw ConfigError(
        fmt::format("attention: each head gets width / heads channels, so heads must divide width; "
                    "but width = {} and heads = {}",
                    width, heads));
  }
  return width / heads;
}

CausalSelfAttention::CausalSelfAttention(const CausalSelfAttentionConfig& config)
    : head_width_(head_width(config.width, config.heads)),
      dropout_(check_dropout(name(), config.dropout)),
      stream_(stream_name("attn_dropout")),
      c_attn_(add_module<Linear>(
          "c_attn", config.width, 3 * config.width,
          LinearOptions{
              .bias = config.bias, .weight_init = config.projection_init, .bias_init = config.bias_init})),
      c_proj_(add_module<Linear>("c_proj", config.width, config.width,
                                 LinearOptions{.bias = config.bias,
                                               .weight_init = config.output_projection_init,
                                               .bias_init = config.bias_init})),
      resid_dropout_(add_module<Dropout>("resid_dropout", config.dropout)) {}

Tensor CausalSelfAttention::attend_packed(const Tensor& qkv, LayerCache* cache) const {
  const AttentionConfig attention_config = config(/*causal=*/true, training() ? dropout_ : 0.0, stream_);
  const std::int64_t heads = qkv.dim(2) / (3 * head_width_);
  if (cache == nullptr && !is_replaced() && heads > 0)
    return attention_packed(qkv, heads, heads, attention_config);

  const Tensor qkv_BTHK = qkv.unflatten(2, {-1, head_width_});
  const Tensor q_BTHK = qkv_BTHK.slice(2, 0, heads), k_BTHK = qkv_BTHK.slice(2, heads, 2 * heads),
               v_BTHK = qkv_BTHK.slice(2, 2 * heads, 3 * heads);
  if (cache == nullptr) return attend(q_BTHK, k_BTHK, v_BTHK, attention_config).flatten(2, 3);
  const auto [keys, values] = cache->append(k_BTHK, v_BTHK);
  return attention(q_BTHK, keys, values, attention_config).flatten(2, 3);
}

Tensor CausalSelfAttention::forward(const Tensor& x, LayerCache* cache) {
  return resid_dropout_(c_proj_(attend_packed(c_attn_(x), cache)));
}

}  // namespace tessera::nn
