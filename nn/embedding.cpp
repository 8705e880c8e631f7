#include "nn/embedding.h"

#include "autograd/indexing.h"

namespace tessera::nn {

Embedding::Embedding(std::int64_t count, std::int64_t width, const EmbeddingOptions& options)
    : weight_(add_parameter("weight", {count, width}, options.init)) {}

Tensor Embedding::forward(const Tensor& ids) { return embedding(weight_, ids); }

}  // namespace tessera::nn
