#include "nn/llama.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/arithmetic.h"

namespace tessera::nn {
namespace {

constexpr double kInitStddev = 0.02;

Init residual_init(const LlamaConfig& config) {
  return Init::normal(kInitStddev / std::sqrt(2.0 * static_cast<double>(config.layers)));
}

}  // namespace

LlamaConfig LlamaConfig::llama_15m() {
  LlamaConfig config;
  config.context = 256;
  config.layers = config.heads = config.kv_heads = 6;
  config.width = 288;
  config.hidden = 768;
  config.tied = true;
  return config;
}

LlamaConfig LlamaConfig::llama_1b() {
  LlamaConfig config;
  config.vocab = 128256;
  config.context = 8192;
  config.layers = 16;
  config.kv_heads = 8;
  config.width = 2048;
  config.hidden = 8192;
  config.rotary_base = 500000.0;
  config.tied = true;
  return config;
}

LlamaConfig LlamaConfig::llama_8b() {
  LlamaConfig config;
  config.vocab = 128256;
  config.context = 8192;
  config.kv_heads = 8;
  config.hidden = 14336;
  config.rotary_base = 500000.0;
  return config;
}

std::int64_t LlamaConfig::default_hidden(std::int64_t width, std::int64_t multiple) {
  return (8 * width / 3 + multiple - 1) / multiple * multiple;
}

LlamaBlock::LlamaBlock(const LlamaConfig& config, RotaryEmbedding& rotary)
    : input_layernorm_(add_module<RmsNorm>("input_layernorm", config.width, config.epsilon)),
      self_attn_(add_module<MultiHeadAttention>(
          "self_attn",
          MultiHeadAttentionConfig{.width = config.width,
                                   .heads = config.heads,
                                   .kv_heads = config.kv_heads,
                                   .dropout = config.dropout,
                                   .weight_init = Init::normal(kInitStddev),
                                   .output_weight_init = residual_init(config)},
          &rotary)),
      post_attention_layernorm_(
          add_module<RmsNorm>("post_attention_layernorm", config.width, config.epsilon)),
      mlp_(add_module<SwiGlu>("mlp", SwiGluConfig{.width = config.width,
                                                  .hidden = config.hidden,
                                                  .weight_init = Init::normal(kInitStddev),
                                                  .output_weight_init = residual_init(config)})) {}

Tensor LlamaBlock::forward(const Tensor& x, LayerCache* cache) {
  const Tensor attended = x + self_attn_(input_layernorm_(x), cache);
  return attended + mlp_(post_attention_layernorm_(attended));
}

Llama::Llama(const LlamaConfig& config)
    : LanguageModel(config.vocab, config.context, config.width),
      config_(config),
      embed_tokens_(add_module<Embedding>("embed_tokens", config.vocab, config.width,
                                          EmbeddingOptions{Init::normal(kInitStddev)})),
      rotary_(add_module<RotaryEmbedding>("rotary", head_width(config.width, config.heads),
                                          config.rotary_base, config.rotary_scaling)) {
  for (std::int64_t i = 0; i < config.layers; ++i) {
    register_block(add_module<LlamaBlock>(fmt::format("layers.{}", i), config, rotary_));
  }
  norm_ = &add_module<RmsNorm>("norm", config.width, config.epsilon);
  lm_head_ = config.tied ? &add_module<Linear>("lm_head", embed_tokens_.weight())
                         : &add_module<Linear>(
                               "lm_head", config.width, config.vocab,
                               LinearOptions{.bias = false, .weight_init = Init::normal(kInitStddev)});
}

Tensor Llama::embed(const Tensor& ids, std::int64_t /*first_position*/) { return embed_tokens_(ids); }

Tensor Llama::head(const Tensor& x) { return (*lm_head_)((*norm_)(x)); }

std::string Llama::description() const {
  const RotaryScaling& scaling = config_.rotary_scaling;
  const std::string rotary_scaling =
      scaling.factor == 1.0 ? ""
                            : fmt::format(",rotary_factor={},rotary_low={},rotary_high={},rotary_context={}",
                                          scaling.factor, scaling.low, scaling.high, scaling.context);
  return fmt::format(
      "family=llama,layers={},heads={},kv_heads={},width={},hidden={},context={},vocab={},rotary_base={}{},"
      "epsilon={},tied={},dropout={}",
      config_.layers, config_.heads, config_.kv_heads, config_.width, config_.hidden, config_.context,
      config_.vocab, config_.rotary_base, rotary_scaling, config_.epsilon, config_.tied ? 1 : 0,
      config_.dropout);
}

}  // namespace tessera::nn
