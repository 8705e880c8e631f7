// N targets of this rank, V vocabulary.

#include "dist/invariant_loss.h"

#include <utility>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/invariant_linear.h"
#include "dist/invariant_tokens.h"
#include "dist/vocab_parallel.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;
constexpr kernels::CrossEntropyOptions kOptions{.partial_vocabulary = true};

struct Forward {
  Tensor losses, lse;  // [N]
};

// logits [N, own columns], targets [N]
Forward forward(const Tensor& logits, const Tensor& targets, std::int64_t vocab, const Mesh& mesh) {
  const int ranks = mesh.size(kTp), rank = mesh.index(kTp);
  const kernels::Losses& kernel = kernels::of(logits.device().type).losses;
  const TensorOptions like{.dtype = accumulation_dtype(logits.dtype()), .device = logits.device()};
  const ContractionLeaves leaves(vocab, Cut{});
  const LeafOwners owners = leaves.owners(ranks);
  const LeafRange own = owners.runs[static_cast<std::size_t>(rank)];
  const std::int64_t rows = targets.num_elements(), first_column = shard_begin(vocab, ranks, rank);

  // Each target is in one leaf: the others give 0, and the sum is exact.
  Tensor minus_target = zeros({rows}, like), largest = full({rows}, -1e30, like);
  std::vector<Tensor> lse_of_leaf;
  for (std::int64_t leaf = own.begin; leaf < own.end; ++leaf) {
    const Range columns = leaves.in_part(leaf, ranks, rank).front();
    Tensor minus = empty({rows}, like), lse = empty({rows}, like);
    kernel.cross_entropy(logits.slice(1, columns.begin, columns.end).view(),
                         targets_in(targets, first_column + columns.begin, first_column + columns.end, vocab,
                                    kOptions.ignore_index)
                             .view(),
                         kOptions, minus.mutable_view(), lse.mutable_view());
    minus_target.add_scaled(minus);
    largest = maximum(largest, lse);
    lse_of_leaf.push_back(std::move(lse));
  }
  if (ranks > 1) {
    mesh.group(kTp).all_reduce(buffer_of(minus_target));
    mesh.group(kTp).all_reduce(buffer_of(largest), ReduceOp::kMax);
  }
  TreeAccumulator sum(own, owners.num_leaves);
  for (const Tensor& lse : lse_of_leaf) sum.add(exp(lse - largest));
  Tensor total = empty({rows}, like);
  tree_all_reduce(sum.nodes(), owners, mesh.group(kTp), total);

  Forward result;
  result.lse = largest + log(total);
  const Tensor counts =
      logical_not(equal(targets, static_cast<double>(kOptions.ignore_index))).to(like.dtype);
  result.losses = (result.lse + minus_target) * counts;
  return result;
}

Tensor row_losses(const Tensor& logits, const Tensor& targets, std::int64_t vocab, const Mesh& mesh) {
  Forward result;
  {
    const NoGrad no_grad;
    result = forward(logits.detach(), targets, vocab, mesh);
  }
  const std::int64_t begin = shard_begin(vocab, mesh.size(kTp), mesh.index(kTp));
  const Tensor own_targets = targets_in(targets, begin, begin + logits.dim(1), vocab, kOptions.ignore_index);
  return record(
      "invariant_cross_entropy", result.losses, {logits},
      [logits = saved(logits), own_targets, lse = result.lse](const Tensor& dy, Needs needs) -> Grads {
        const bool sole_owner = needs.may_overwrite_saved() && logits.is_sole_owner();
        Tensor dlogits = sole_owner ? logits.get().detach() : empty_like(logits.get());
        const kernels::ConstView logits_view = logits.get().view();
        kernels::of(dy.device().type)
            .losses.cross_entropy_backward(dy.contiguous().view(), logits_view, own_targets.view(),
                                           lse.view(), kOptions, dlogits.mutable_view());
        return {dlogits};
      });
}

void check(const Tensor& logits, std::int64_t vocab, const Mesh& mesh) {
  const AxisLayout on_axis = logits.layout()[kTp];
  const bool cut = on_axis.is_sharded() && on_axis.dim() == logits.dims() - 1;
  if (mesh.size(kTp) > 1 && RankContext::current().check_layouts && !cut) {
    throw LayoutError(
        "invariant_cross_entropy: on tp, logits must be cut along the vocabulary, but they are " +
        to_string(on_axis));
  }
  if (logits.dim(-1) != shard_size(vocab, mesh.size(kTp), mesh.index(kTp)))
    throw ShapeError("invariant_cross_entropy: logits are not this rank's columns: " + describe(logits));
}

}  // namespace

InvariantLoss invariant_cross_entropy(Tensor&& given_logits, const Tensor& targets, std::int64_t vocab,
                                      const Mesh& mesh) {
  const Tensor logits = std::move(given_logits);
  check(logits, vocab, mesh);
  const Layout layout = layout_rules::row_losses(
      "invariant_cross_entropy",
      Tensor(logits.detach()).set_layout(logits.layout().with(kTp, AxisLayout::invariant())), targets);
  Tensor losses;
  {
    // Rows as one dimension, whatever is cut of what they are made of; the result gets its layout below.
    const LayoutChecks no_layout_checks(false);
    const std::int64_t rows = targets.num_elements();
    losses = row_losses(logits.reshape({rows, logits.dim(-1)}).contiguous(),
                        targets.contiguous().reshape({rows}), vocab, mesh)
                 .reshape(targets.shape());
  }
  losses.set_layout(layout);
  InvariantLoss result{.sum = sum(losses)};
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  const Tensor whole = sum(over_cp(losses.detach().set_layout({}), mesh));
  result.whole = whole.device() == meta ? 0.0 : whole.item();
  return result;
}

}  // namespace tessera::dist
