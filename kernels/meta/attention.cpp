#include <algorithm>

#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

/// Pairs (t, s) that one head computes. Causal: query t sees min(S, max(0, t + S − T + 1)) keys.
std::int64_t visible_pairs(std::int64_t queries, std::int64_t keys, bool causal) {
  if (!causal) return queries * keys;
  // The queries that see any key are the last min(T, S); the last of them sees all S, each one before sees
  // one less.
  const std::int64_t seeing = std::min(queries, keys);
  return seeing * keys - seeing * (seeing - 1) / 2;
}

/// Σ over batch entries, heads and visible pairs of K: what one product of attention multiplies.
std::int64_t products(const ConstView& q, const ConstView& k, bool causal) {
  return q.shape[0] * q.shape[2] * visible_pairs(q.shape[1], k.shape[1], causal) * q.shape[3];
}

class MetaAttention final : public Attention {
 public:
  // 4·T·S·K per head: the products q·kᵀ and p·v. The softmax between them is not counted, as is usual when
  // speeds are stated; causal attention counts the visible pairs only.
  void attention(const ConstView& q, const ConstView& k, const ConstView& v, const AttentionOptions& options,
                 const View& o, const View& lse) const override {
    Count(KernelKind::kAttention)
        .flops(4 * products(q, k, options.causal))
        .reads(q)
        .reads(k)
        .reads(v)
        .writes(o)
        .writes(lse);
  }

  // 10·T·S·K per head: five products: q·kᵀ again, dp = do·vᵀ, dv = pᵀ·do, dq = ds·k, dk = dsᵀ·q.
  void attention_backward(const ConstView& d_o, const ConstView& q, const ConstView& k, const ConstView& v,
                          const ConstView& o, const ConstView& lse, const AttentionOptions& options,
                          const View& dq, const View& dk, const View& dv) const override {
    Count(KernelKind::kAttention)
        .flops(10 * products(q, k, options.causal))
        .reads(d_o)
        .reads(q)
        .reads(k)
        .reads(v)
        .reads(o)
        .reads(lse)
        .writes(dq)
        .writes(dk)
        .writes(dv);
  }
};

}  // namespace

const Attention& attention() noexcept {
  static const MetaAttention family;
  return family;
}

}  // namespace tessera::kernels::meta_device
