#include "dist/invariant_tokens.h"

#include <fmt/format.h>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "nn/token_positions.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr int kTokenDim = 1;  // of [B, T, ...]

void require(const char* operation, const Tensor& x, const Mesh& mesh, MeshAxis axis, bool fits,
             const char* wanted) {
  if (fits || mesh.size(axis) == 1 || !RankContext::current().check_layouts) return;
  throw LayoutError(fmt::format("{}: on {}, x must be {}, but it is {} ({})", operation, tessera::name(axis),
                                wanted, to_string(x.layout()[axis]), describe(x)));
}

Tensor cut_along(Tensor y, const Tensor& x, MeshAxis axis) {
  if (!RankContext::current().check_layouts) return y;
  return y.set_layout(x.layout().with(axis, AxisLayout::sharded(kTokenDim)));
}

Tensor with_axis(Tensor y, const Tensor& x, const Layout& layout) {
  return x.layout().is_invariant() && layout.is_invariant() ? y : y.set_layout(layout);
}

// Elements alone; what is recorded is the move as a whole.
Tensor gathered(const Tensor& x, Communicator& group, std::int64_t size) {
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  return all_gather(x.detach().set_layout({}), kTokenDim, group, size);
}

Tensor own_tokens(const Tensor& x, const Communicator& group) {
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  const std::int64_t size = x.dim(kTokenDim), begin = shard_begin(size, group.size(), group.rank());
  return x.detach()
      .set_layout({})
      .slice(kTokenDim, begin, begin + shard_size(size, group.size(), group.rank()))
      .contiguous();
}

}  // namespace

Tensor gather_tokens(const Tensor& x, const Mesh& mesh, MeshAxis axis, std::int64_t size) {
  const AxisLayout on_axis = x.layout()[axis];
  require("gather_tokens", x, mesh, axis,
          on_axis.is_sharded() && on_axis.dim() == kTokenDim && on_axis.in_order(), "cut into tokens: S(1)");
  if (mesh.size(axis) == 1) return x;
  Communicator& group = mesh.group(axis);
  const Layout layout = x.layout().with(axis, AxisLayout::invariant());
  return record("gather_tokens", with_axis(gathered(x, group, size), x, layout), {x},
                [&group](const Tensor& dy, Needs) -> Grads { return {own_tokens(dy, group)}; });
}

Tensor cut_tokens(const Tensor& x, const Mesh& mesh, MeshAxis axis) {
  require("cut_tokens", x, mesh, axis, x.layout()[axis].is_invariant(), "whole: I");
  if (mesh.size(axis) == 1) return x;
  Communicator& group = mesh.group(axis);
  return record("cut_tokens", cut_along(own_tokens(x, group), x, axis), {x},
                [&group, size = x.dim(kTokenDim)](const Tensor& dy, Needs) -> Grads {
                  return {gathered(dy, group, size)};
                });
}

Tensor cut_embedded_tokens(const Tensor& y, const Tensor& rows, std::int64_t num_rows, const Mesh& mesh) {
  constexpr MeshAxis kCp = MeshAxis::kCp;
  require("cut_embedded_tokens", y, mesh, kCp, y.layout()[kCp].is_replicated(), "replicated: R");
  if (mesh.size(kCp) == 1) return y;
  Communicator& group = mesh.group(kCp);
  return record(
      "cut_embedded_tokens", cut_along(own_tokens(y, group), y, kCp), {y},
      [&group, rows = saved(rows), share = own_share(num_rows, mesh)](const Tensor& dy, Needs) -> Grads {
        const Tensor all = gathered(dy, group, rows.get().dim(kTokenDim));
        const Tensor ids = rows.get().detach().set_layout({}).unsqueeze(2);
        const Tensor is_own = logical_and(greater_equal(ids, static_cast<double>(share.begin)),
                                          less(ids, static_cast<double>(share.end)));
        return {where(is_own, all, zeros_like(all))};
      });
}

Range own_share(std::int64_t size, const Mesh& mesh) {
  const int ranks = mesh.size(MeshAxis::kCp), rank = mesh.index(MeshAxis::kCp);
  const std::int64_t begin = shard_begin(size, ranks, rank);
  return {begin, begin + shard_size(size, ranks, rank)};
}

std::int64_t tokens_over_tp() {
  const std::int64_t tokens = nn::tokens_of_tp_peers();
  return tokens == 0 ? -1 : tokens;
}

Tensor over_cp(const Tensor& x, const Mesh& mesh) {
  if (mesh.size(MeshAxis::kCp) == 1) return x;
  const std::int64_t length = RankContext::current().sequence_length;
  return gathered(x, mesh.group(MeshAxis::kCp), length == 0 ? -1 : length);
}

TokenRanksPtr token_ranks(const Mesh& mesh, bool sequence_parallel) {
  const bool over_tp = sequence_parallel && mesh.size(MeshAxis::kTp) > 1;
  if (!over_tp && mesh.size(MeshAxis::kCp) == 1) return nullptr;
  TokenRanks ranks;
  ranks.gather = [&mesh, over_tp](const Tensor& x) {
    return over_cp(over_tp ? gathered(x, mesh.group(MeshAxis::kTp), tokens_over_tp()) : x, mesh);
  };
  ranks.counts = mesh.index(MeshAxis::kCp) == 0 && (!over_tp || mesh.index(MeshAxis::kTp) == 0);
  return std::make_shared<const TokenRanks>(std::move(ranks));
}

}  // namespace tessera::dist
