// B batch, T tokens of all ranks, n of this one, H query heads, G key/value heads, K head width.

#include "dist/ulysses.h"

#include <fmt/format.h>

#include "autograd/grad_mode.h"
#include "dist/collectives.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Communicator& group,
           const SequenceCut& cut) {
  cut.check("ulysses_attention", q, k, v, group);
  if (cut.is_balanced() && group.size() > 1) {
    throw ConfigError(
        "ulysses_attention: the exchange joins pieces in rank order, and a balanced cut is in another: use "
        "SequenceCut::contiguous, or dist::ring_attention");
  }
}

// [B, n, G, K] → [B, n, G·copies, K], the copies of a head side by side.
Tensor repeat_heads(const Tensor& x, std::int64_t copies) {
  if (copies == 1) return x;
  return x.unsqueeze(3).expand({x.dim(0), x.dim(1), x.dim(2), copies, x.dim(3)}).flatten(2, 3);
}

}  // namespace

std::int64_t key_head_copies(std::int64_t query_heads, std::int64_t key_heads, int num_ranks) {
  const std::int64_t shared = key_heads == 0 ? 1 : query_heads / key_heads;
  for (std::int64_t copies = 1; copies < shared; ++copies) {
    if (shared % copies != 0) continue;
    // A rank's queries must be those that its heads of keys serve: `each` of them for each of these.
    const std::int64_t each = shared / copies, keys = key_heads * copies;
    bool fits = true;
    for (int r = 0; r < num_ranks; ++r) {
      fits = fits && shard_begin(query_heads, num_ranks, r) == each * shard_begin(keys, num_ranks, r);
    }
    if (fits) return copies;
  }
  return shared;
}

namespace {

Tensor over_group(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                  Communicator& group, const SequenceCut& cut) {
  const std::int64_t heads = q.dim(2), copies = key_head_copies(heads, k.dim(2), group.size());
  // S(1) → S(2): all tokens of some heads.
  const auto by_head = [&](const Tensor& x) { return all_to_all(x, 2, 1, group, cut.length()); };
  AttentionConfig own = config;
  own.num_heads = config.num_heads == 0 ? heads : config.num_heads;
  own.first_head = config.first_head + shard_begin(heads, group.size(), group.rank());
  const Tensor o =
      attention(by_head(q), by_head(repeat_heads(k, copies)), by_head(repeat_heads(v, copies)), own);
  // S(2) → S(1): all heads of some tokens.
  return all_to_all(o, 1, 2, group, heads);
}

}  // namespace

Tensor ulysses_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                         Communicator& group, const SequenceCut& cut) {
  check(q, k, v, group, cut);
  if (group.size() == 1) return attention(q, k, v, config);
  for (const Tensor* x : {&q, &k, &v}) refuse_laid_out("ulysses_attention", *x);
  return over_group(q, k, v, config, group, cut);
}

Tensor ulysses_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                         const Mesh& mesh, MeshAxis axis, const SequenceCut& cut) {
  Communicator& group = mesh.group(axis);
  check(q, k, v, group, cut);
  if (group.size() == 1) return attention(q, k, v, config);
  const Layout layout = cut.layout_of_attention("ulysses_attention", q, k, v, axis);
  const LayoutChecks no_layout_checks(false);  // the layout of the whole is known
  return over_group(q, k, v, config, group, cut).set_layout(layout);
}

}  // namespace tessera::dist
