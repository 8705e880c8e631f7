#pragma once

#include "nn/causal_self_attention.h"
#include "nn/language_model.h"
#include "nn/layer_norm.h"
#include "nn/mlp.h"

namespace tessera::nn {

/// Sizes of a GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019).
///
/// Example   Gpt2 model(Gpt2Config::gpt2_medium());
///           Gpt2 small({.vocab = 2048, .context = 256, .layers = 4, .heads = 4, .width = 128});
struct Gpt2Config {
  std::int64_t vocab = 50257;
  std::int64_t context = 1024;
  std::int64_t layers = 12;
  std::int64_t heads = 12;
  std::int64_t width = 768;
  double dropout = 0.0;  ///< after embeddings, on attention's probabilities, after both halves of a block

  [[nodiscard]] static Gpt2Config gpt2() { return {}; }                          ///< 124,439,808 parameters
  [[nodiscard]] static Gpt2Config gpt2_medium() { return sized(24, 16, 1024); }  ///< 354,823,168
  [[nodiscard]] static Gpt2Config gpt2_large() { return sized(36, 20, 1280); }   ///< 774,030,080
  [[nodiscard]] static Gpt2Config gpt2_xl() { return sized(48, 25, 1600); }      ///< 1,557,611,200

 private:
  [[nodiscard]] static Gpt2Config sized(std::int64_t layers, std::int64_t heads, std::int64_t width);
};

/// x + attn(ln_1(x)), then that + mlp(ln_2(that)).
class Gpt2Block final : public Block {
 public:
  explicit Gpt2Block(const Gpt2Config& config);
  Tensor forward(const Tensor& x, LayerCache* cache) override;

 private:
  LayerNorm& ln_1_;
  CausalSelfAttention& attn_;
  LayerNorm& ln_2_;
  Mlp& mlp_;
};

/// GPT-2. Names are those of the usual checkpoints (wte, wpe, h.N.ln_1, h.N.attn.c_attn, ...); there, weights
/// of linear layers are stored [inputs, outputs], here [outputs, inputs].
///
/// Start     Weights normal with deviation 0.02, those that write to the residual stream (c_proj)
///           0.02/√(2·layers), so that its variance does not grow with depth; biases 0, gains 1.
/// Tied      The output layer `lm_head` has the weight of the token embedding `wte`.
/// Errors    ConfigError for sizes that are impossible together.
class Gpt2 final : public LanguageModel {
 public:
  explicit Gpt2(const Gpt2Config& config);
  [[nodiscard]] const Gpt2Config& config() const noexcept { return config_; }
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] Tensor embed(const Tensor& ids, std::int64_t first_position) override;
  [[nodiscard]] Tensor head(const Tensor& x) override;

 private:
  Gpt2Config config_;
  Embedding& wte_;
  Embedding& wpe_;
  Dropout& drop_;
  LayerNorm* ln_f_ = nullptr;
  Linear* lm_head_ = nullptr;
};

}  // namespace tessera::nn
