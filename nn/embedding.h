#pragma once

#include "nn/module.h"

namespace tessera::nn {

struct EmbeddingOptions {
  Init init = Init::normal(1.0);  ///< as PyTorch's
};

/// A learned vector for each id: y[..., :] = weight[ids[..., :]], and zeros for id −1.
///
/// Shapes    ids [...] in i64 → [..., width]; weight [count, width]
/// Errors    IndexError for an id outside [−1, count).
class Embedding final : public UnaryModule {
 public:
  Embedding(std::int64_t count, std::int64_t width, const EmbeddingOptions& options = {});
  Tensor forward(const Tensor& ids) override;
  [[nodiscard]] const Tensor& weight() const noexcept { return weight_; }

 private:
  Tensor weight_;
};

}  // namespace tessera::nn
