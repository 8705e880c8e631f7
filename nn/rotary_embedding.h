#pragma once

#include <vector>

#include "nn/module.h"

namespace tessera::nn {

/// How Llama 3.1 reaches beyond the context it was first trained on: channels that turn less than `low` times
/// within `context` positions turn `factor` times as slowly, those that turn more than `high` times as ever,
/// and those between by a mixture (Grattafiori et al., "The Llama 3 herd", 2024).
struct RotaryScaling {
  double factor = 1.0;  ///< 1: none
  double low = 1.0;
  double high = 4.0;
  std::int64_t context = 8192;
};

/// Rotary position embedding (Su et al., "RoFormer", 2021): the pair (k, k + K/2) of each head is turned by
/// the angle position · base^(−2k/K), so that a product q·k depends on the distance of two positions only.
///
/// Shapes    x [B, T, H, K] → the same; x[:, t] stands at position `first_position` + t, or where
///           RankContext::token_positions says (nn/token_positions.h)
/// Memory    Cosines and sines of the positions seen so far, [positions, K/2] in f32 (f64 for f64), made at
///           first use. One module serves all blocks of a model.
/// Errors    ConfigError if the head width is odd, or `scaling` has no low < high or a factor below 1;
///           ShapeError if x has another head width.
class RotaryEmbedding final : public Module {
 public:
  explicit RotaryEmbedding(std::int64_t head_width, double base = 10000.0, const RotaryScaling& scaling = {});
  Tensor operator()(const Tensor& x, std::int64_t first_position = 0) {
    return run_hooks([&](const Tensor& input) { return forward(input, first_position); }, x);
  }
  Tensor forward(const Tensor& x, std::int64_t first_position);

 private:
  void make_tables(std::int64_t positions, DType dtype, Device device);
  void ensure_tables(std::int64_t positions, const Tensor& x);

  std::int64_t head_width_;
  double base_;
  RotaryScaling scaling_;
  Tensor cosine_;  // not buffers: they follow from the numbers above
  Tensor sine_;
  std::vector<std::int64_t> chosen_positions_;  // of a part of the tokens: the rows that all layers use
  Tensor chosen_cosine_, chosen_sine_;
};

}  // namespace tessera::nn
