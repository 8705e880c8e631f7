#pragma once

#include "nn/linear.h"

namespace tessera::nn {

struct SwiGluConfig {
  std::int64_t width = 0;
  std::int64_t hidden = 0;
  std::optional<Init> weight_init = std::nullopt;         ///< of gate_proj and up_proj
  std::optional<Init> output_weight_init = std::nullopt;  ///< of down_proj
};

/// Llama's feed-forward half of a block: down_proj(silu(gate_proj(x)) · up_proj(x)) (Shazeer, "GLU variants
/// improve Transformer", 2020).
///
/// Shapes    x [..., width] → the same
/// Modules   gate_proj and up_proj [hidden, width], down_proj [width, hidden]; no biases
class SwiGlu final : public UnaryModule {
 public:
  explicit SwiGlu(const SwiGluConfig& config);
  Tensor forward(const Tensor& x) override;

 private:
  Linear& gate_proj_;
  Linear& up_proj_;
  Linear& down_proj_;
};

}  // namespace tessera::nn
