// The tensor-parallel plans of Tessera's own models.

#include <fmt/format.h>

#include "dist/tensor_parallel.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "nn/llama.h"

namespace tessera::dist {
namespace {

Plan plan_for(const nn::Gpt2Config& config) {
  return {
      {"wte", Role::kVocabulary},
      {"wpe", Role::kTokens},
      {"h.*.ln_?", Role::kTokens},
      {"h.*.attn", Role::kEnter},
      {"h.*.attn", Role::kHeads, 1, config.heads},
      {"h.*.attn.c_attn", Role::kColumn, 3, config.heads},
      {"h.*.attn.c_proj", Role::kRow, 1, config.heads},
      {"h.*.mlp", Role::kEnter},
      {"h.*.mlp.c_fc", Role::kColumn},
      {"h.*.mlp.c_proj", Role::kRow},
      {"ln_f", Role::kTokens},
      {"lm_head", Role::kVocabulary},
  };
}

// With at least as many key/value heads as ranks, queries follow their key head; with fewer, queries are cut
// by themselves and every rank computes all keys and values. Which of the two holds, the role kKeyValue
// decides by the same comparison.
Plan plan_for(const nn::LlamaConfig& config, int tp) {
  const std::int64_t key_heads = config.kv_heads == 0 ? config.heads : config.kv_heads;
  const std::int64_t share = config.heads / key_heads;
  const bool queries_follow = key_heads >= tp;
  const std::int64_t units = queries_follow ? key_heads : config.heads;
  return {
      {"embed_tokens", Role::kVocabulary},
      {"layers.*.*layernorm", Role::kTokens},
      {"layers.*.self_attn", Role::kEnter},
      {"layers.*.self_attn", Role::kHeads, queries_follow ? share : 1, units},
      {"layers.*.self_attn.q_proj", Role::kColumn, 1, units},
      {"layers.*.self_attn.k_proj", Role::kKeyValue, share, key_heads},
      {"layers.*.self_attn.v_proj", Role::kKeyValue, share, key_heads},
      {"layers.*.self_attn.o_proj", Role::kRow, 1, units},
      {"layers.*.mlp", Role::kEnter},
      {"layers.*.mlp.gate_proj", Role::kColumn},
      {"layers.*.mlp.up_proj", Role::kColumn},
      {"layers.*.mlp.down_proj", Role::kRow},
      {"norm", Role::kTokens},
      {"lm_head", Role::kVocabulary},
  };
}

}  // namespace

Plan tensor_parallel_plan(const nn::Module& model, int tp) {
  if (const auto* gpt2 = dynamic_cast<const nn::Gpt2*>(&model)) return plan_for(gpt2->config());
  if (const auto* llama = dynamic_cast<const nn::Llama*>(&model)) return plan_for(llama->config(), tp);
  if (tp == 1) return {};
  throw ConfigError(
      fmt::format("tensor parallel: there is no plan for a {}; write one (dist/tensor_parallel.h) and "
                  "give it to lay_out",
                  model.type_name()));
}

}  // namespace tessera::dist
