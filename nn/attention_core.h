#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "autograd/attention.h"

namespace tessera::nn {

/// What attention layers have in common: the computation between their projections, and which part of all
/// heads they are. dist replaces the one and states the other; a layer by itself computes `attention` with
/// all of its heads.
class AttentionCore {
 public:
  /// Puts `function` in the place of `attention`: q [B, T, H, K], k and v [B, T, G, K] of the tokens that
  /// this rank has → [B, T, H, K]. Empty: `attention` again. With a cache, which holds whole sequences, it
  /// is not asked.
  void set_attention(AttentionFunction function) { function_ = std::move(function); }
  /// This layer's heads are `first_head`, ... of `num_heads` heads of queries over all ranks: dropout masks
  /// follow from the global head.
  void set_heads(std::int64_t first_head, std::int64_t num_heads) {
    first_head_ = first_head;
    num_heads_ = num_heads;
  }

 protected:
  [[nodiscard]] bool is_replaced() const noexcept { return function_ != nullptr; }
  [[nodiscard]] AttentionConfig config(bool causal, double dropout, const std::string& stream) const;
  [[nodiscard]] Tensor attend(const Tensor& q_BTHK, const Tensor& k_BTGK, const Tensor& v_BTGK,
                              const AttentionConfig& config) const {
    return function_ ? function_(q_BTHK, k_BTGK, v_BTGK, config) : attention(q_BTHK, k_BTGK, v_BTGK, config);
  }

 private:
  AttentionFunction function_;
  std::int64_t first_head_ = 0;
  std::int64_t num_heads_ = 0;
};

}  // namespace tessera::nn
