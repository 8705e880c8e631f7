#pragma once

#include "nn/language_model.h"
#include "nn/multi_head_attention.h"
#include "nn/rms_norm.h"
#include "nn/swiglu.h"

namespace tessera::nn {

/// Sizes of a Llama-style decoder (Touvron et al., "Llama 2", 2023; Grattafiori et al., "The Llama 3 herd",
/// 2024).
struct LlamaConfig {
  std::int64_t vocab = 32000;
  std::int64_t context = 4096;
  std::int64_t layers = 32;
  std::int64_t heads = 32;
  std::int64_t kv_heads = 32;  ///< heads of keys and values; must divide heads
  std::int64_t width = 4096;
  std::int64_t hidden = 11008;  ///< of the feed-forward half
  double rotary_base = 10000.0;
  RotaryScaling rotary_scaling = {};
  double epsilon = 1e-5;
  bool tied = false;     ///< output layer and embedding are one
  double dropout = 0.0;  ///< on attention's probabilities

  /// A size that trains on a laptop: the one of karpathy/llama2.c's stories15M, 15,191,712 parameters at
  /// 32,000 tokens.
  [[nodiscard]] static LlamaConfig llama_15m();
  /// The size of Llama 3.2 1B without its scaling of rotary frequencies: 1,235,814,400 parameters.
  [[nodiscard]] static LlamaConfig llama_1b();
  /// Llama 2 7B: 6,738,415,616 parameters.
  [[nodiscard]] static LlamaConfig llama_7b() { return {}; }
  /// Llama 3 8B: 8,030,261,248 parameters.
  [[nodiscard]] static LlamaConfig llama_8b();

  /// What a Llama takes for `hidden` when nobody says: 8/3·width, rounded up to a multiple of `multiple`, so
  /// that the three matrices of SwiGLU hold as many weights as the two of width 4·width.
  [[nodiscard]] static std::int64_t default_hidden(std::int64_t width, std::int64_t multiple = 32);
};

/// x + self_attn(input_layernorm(x)), then that + mlp(post_attention_layernorm(that)).
class LlamaBlock final : public Block {
 public:
  LlamaBlock(const LlamaConfig& config, RotaryEmbedding& rotary);
  Tensor forward(const Tensor& x, LayerCache* cache) override;

 private:
  RmsNorm& input_layernorm_;
  MultiHeadAttention& self_attn_;
  RmsNorm& post_attention_layernorm_;
  SwiGlu& mlp_;
};

/// A Llama-style decoder: RMSNorm, rotary positions, SwiGLU, grouped heads of keys and values, no biases.
/// Names are those of the usual checkpoints without their first "model.": embed_tokens,
/// layers.N.self_attn.q_proj, ..., norm, lm_head.
///
/// Start     As GPT-2: weights normal with deviation 0.02, o_proj and down_proj 0.02/√(2·layers); gains 1.
/// Errors    ConfigError for sizes that are impossible together.
class Llama final : public LanguageModel {
 public:
  explicit Llama(const LlamaConfig& config);
  [[nodiscard]] const LlamaConfig& config() const noexcept { return config_; }
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] Tensor embed(const Tensor& ids, std::int64_t first_position) override;
  [[nodiscard]] Tensor head(const Tensor& x) override;

 private:
  LlamaConfig config_;
  Embedding& embed_tokens_;
  RotaryEmbedding& rotary_;
  RmsNorm* norm_ = nullptr;
  Linear* lm_head_ = nullptr;
};

}  // namespace tessera::nn
