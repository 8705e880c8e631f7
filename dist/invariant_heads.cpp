// B samples, T tokens, G key/value heads and H query heads of this rank, K head width.

#include "dist/invariant_heads.h"

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/tree_sum.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;

// [B, T, heads·K] → [B, T, heads, K]
Tensor by_head(const Tensor& x, std::int64_t heads, std::int64_t width) {
  return x.detach().set_layout({}).contiguous().reshape({x.dim(0), x.dim(1), heads, width});
}

// [B, T, groups · share, K] → [B, T, groups · K]
Tensor sum_of_groups(const Tensor& heads, std::int64_t groups) {
  const std::int64_t share = groups == 0 ? 1 : heads.dim(2) / groups, width = heads.dim(3);
  const Tensor grouped = heads.reshape({heads.dim(0), heads.dim(1), groups, share, width});
  TreeAccumulator sum({0, share}, share);
  for (std::int64_t i = 0; i < share; ++i)
    sum.add(grouped.select(3, i).to(accumulation_dtype(heads.dtype())).contiguous());
  return sum.nodes().front().to(heads.dtype()).reshape({heads.dim(0), heads.dim(1), groups * width});
}

}  // namespace

Tensor copy_for_query_heads(const Tensor& x, const GroupedHeads& heads, const Mesh& mesh) {
  const int ranks = mesh.size(kTp), rank = mesh.index(kTp);
  const std::int64_t share = heads.query_heads / heads.key_heads;
  const std::int64_t groups =
      heads.keys_are_whole ? heads.key_heads : shard_size(heads.key_heads, ranks, rank);
  if (groups == 0) return x;
  const std::int64_t width = x.dim(2) / groups;
  const std::int64_t first = heads.keys_are_whole ? shard_begin(heads.query_heads, ranks, rank) : 0;
  const std::int64_t own = heads.keys_are_whole ? shard_size(heads.query_heads, ranks, rank) : groups * share;
  const Layout layout = RankContext::current().check_layouts && ranks > 1
                            ? x.layout().with(kTp, AxisLayout::sharded(2))
                            : x.layout();
  Tensor y;
  {
    const NoGrad no_grad;
    const LayoutChecks no_layout_checks(false);
    y = by_head(x, groups, width)
            .unsqueeze(3)
            .expand({x.dim(0), x.dim(1), groups, share, width})
            .reshape({x.dim(0), x.dim(1), groups * share, width})
            .slice(2, first, first + own)
            .contiguous()
            .reshape({x.dim(0), x.dim(1), own * width});
  }
  if (!layout.is_invariant()) y.set_layout(layout);
  return record("copy_for_query_heads", y, {x},
                [heads, groups, own, width, &mesh](const Tensor& dy, Needs) -> Grads {
                  Tensor copies = by_head(dy, own, width);
                  if (heads.keys_are_whole && mesh.size(kTp) > 1)
                    copies = all_gather(copies, 2, mesh.group(kTp), heads.query_heads);
                  return {sum_of_groups(copies, groups)};
                });
}

}  // namespace tessera::dist
