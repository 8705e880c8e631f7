#include "nn/gpt2.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/arithmetic.h"
#include "nn/token_positions.h"

namespace tessera::nn {
namespace {

constexpr double kInitStddev = 0.02;

Init residual_init(const Gpt2Config& config) {
  return Init::normal(kInitStddev / std::sqrt(2.0 * static_cast<double>(config.layers)));
}

}  // namespace

Gpt2Config Gpt2Config::sized(std::int64_t layers, std::int64_t heads, std::int64_t width) {
  Gpt2Config config;
  config.layers = layers;
  config.heads = heads;
  config.width = width;
  return config;
}

Gpt2Block::Gpt2Block(const Gpt2Config& config)
    : ln_1_(add_module<LayerNorm>("ln_1", config.width)),
      attn_(add_module<CausalSelfAttention>(
          "attn", CausalSelfAttentionConfig{.width = config.width,
                                            .heads = config.heads,
                                            .dropout = config.dropout,
                                            .projection_init = Init::normal(kInitStddev),
                                            .output_projection_init = residual_init(config),
                                            .bias_init = Init::zeros()})),
      ln_2_(add_module<LayerNorm>("ln_2", config.width)),
      mlp_(add_module<Mlp>("mlp", MlpConfig{.width = config.width,
                                            .dropout = config.dropout,
                                            .projection_init = Init::normal(kInitStddev),
                                            .output_projection_init = residual_init(config),
                                            .bias_init = Init::zeros()})) {}

Tensor Gpt2Block::forward(const Tensor& x, LayerCache* cache) {
  const auto [sum, normalized] = ln_2_.add(x, attn_(ln_1_(x), cache));
  return sum + mlp_(normalized);
}

Gpt2::Gpt2(const Gpt2Config& config)
    : LanguageModel(config.vocab, config.context, config.width),
      config_(config),
      wte_(add_module<Embedding>("wte", config.vocab, config.width,
                                 EmbeddingOptions{Init::normal(kInitStddev)})),
      wpe_(add_module<Embedding>("wpe", config.context, config.width,
                                 EmbeddingOptions{Init::normal(kInitStddev)})),
      drop_(add_module<Dropout>("drop", config.dropout)) {
  for (std::int64_t i = 0; i < config.layers; ++i) {
    register_block(add_module<Gpt2Block>(fmt::format("h.{}", i), config));
  }
  ln_f_ = &add_module<LayerNorm>("ln_f", config.width);
  lm_head_ = &add_module<Linear>("lm_head", wte_.weight());
}

Tensor Gpt2::embed(const Tensor& ids, std::int64_t first_position) {
  const Tensor words = wte_(ids);
  return drop_(words + wpe_(position_ids(words, first_position)));
}

Tensor Gpt2::head(const Tensor& x) { return (*lm_head_)((*ln_f_)(x)); }

std::string Gpt2::description() const {
  return fmt::format("family=gpt2,layers={},heads={},width={},context={},vocab={},dropout={}", config_.layers,
                     config_.heads, config_.width, config_.context, config_.vocab, config_.dropout);
}

}  // namespace tessera::nn
