#pragma once

#include "nn/dropout.h"
#include "nn/linear.h"

namespace tessera::nn {

struct MlpConfig {
  std::int64_t width = 0;
  std::int64_t hidden = 0;  ///< 0: 4·width
  double dropout = 0.0;     ///< on the result
  bool bias = true;
  std::optional<Init> projection_init = std::nullopt;         ///< of c_fc's weight
  std::optional<Init> output_projection_init = std::nullopt;  ///< of c_proj's weight
  std::optional<Init> bias_init = std::nullopt;
};

/// GPT-2's feed-forward half of a block: c_proj(gelu(c_fc(x))).
///
/// Shapes    x [..., width] → the same
/// Modules   c_fc [hidden, width], c_proj [width, hidden], dropout
class Mlp final : public UnaryModule {
 public:
  explicit Mlp(const MlpConfig& config);
  Tensor forward(const Tensor& x) override;

 private:
  Linear& c_fc_;
  Linear& c_proj_;
  Dropout& dropout_;
};

}  // namespace tessera::nn
