#include "nn/attention_core.h"

#include "tensor/context.h"

namespace tessera::nn {

AttentionConfig AttentionCore::config(bool causal, double dropout, const std::string& stream) const {
  const RankContext& context = RankContext::current();
  AttentionConfig config;
  config.causal = causal;
  config.dropout = dropout;
  config.key = context.random_key(stream);
  config.first_sample = context.sample_offset;
  config.first_head = first_head_;
  config.num_heads = num_heads_;
  return config;
}

}  // namespace tessera::nn
