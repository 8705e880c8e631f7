// N targets, V vocabulary, R ranks on the axis.

#include "dist/vocab_parallel.h"

#include <fmt/format.h>

#include <utility>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

struct OwnRows {
  std::int64_t begin, end;
  OwnRows(std::int64_t first, std::int64_t last) : begin(first), end(last) {}
  OwnRows(std::int64_t count, const Mesh& mesh, MeshAxis axis)
      : begin(shard_begin(count, mesh.size(axis), mesh.index(axis))),
        end(begin + shard_size(count, mesh.size(axis), mesh.index(axis))) {}
};

// Elements of `values` in [begin, end) counted from begin; others −1, but `kept` stays what it is.
Tensor renumbered(const Tensor& values, OwnRows own, std::int64_t count, const std::int64_t* kept,
                  const char* what) {
  if (values.device() == meta) return empty_like(values);
  std::vector<std::int64_t> numbers = values.to_vector<std::int64_t>();
  for (std::int64_t& number : numbers) {
    if (kept != nullptr && number == *kept) continue;
    if (number < 0 || number >= count)
      throw IndexError(fmt::format("{} {} is outside of the vocabulary of {}", what, number, count));
    number = number >= own.begin && number < own.end ? number - own.begin : -1;
  }
  return from_vector(numbers, values.shape());
}

void check(const Tensor& logits, const Tensor& targets, std::int64_t vocab, const OwnRows& own, MeshAxis axis,
           const CrossEntropyConfig& config) {
  const AxisLayout on_axis = logits.layout()[axis];
  if (RankContext::current().check_layouts && !(on_axis.is_sharded() && on_axis.dim() == logits.dims() - 1)) {
    throw LayoutError(
        fmt::format("vocab_parallel_cross_entropy: on {}, logits must be cut along the vocabulary, S({}), "
                    "but they are {} ({}); logits need never be gathered, and cross_entropy of gathered ones "
                    "is a loss that every rank has and none should count alone",
                    tessera::name(axis), logits.dims() - 1, to_string(on_axis), describe(logits)));
  }
  if (logits.dim(-1) != own.end - own.begin ||
      targets.num_elements() * logits.dim(-1) != logits.num_elements()) {
    throw ShapeError(fmt::format(
        "vocab_parallel_cross_entropy: this rank has columns [{}, {}) of {}, but logits are {} and "
        "targets {}",
        own.begin, own.end, vocab, describe(logits), describe(targets)));
  }
  if (config.label_smoothing != 0.0) {
    throw ConfigError(
        "vocab_parallel_cross_entropy: label smoothing needs all logits of a row; train without it, or "
        "without "
        "cutting the vocabulary");
  }
}

// Each rank would divide by its own targets. Without layouts (RankContext::check_layouts is false) nobody
// knows whether dp and cp have cut the targets, and they are there to do that.
void refuse_mean_of_means(const Tensor& logits, const Tensor& targets, const Mesh& mesh, MeshAxis axis) {
  const bool is_checked = RankContext::current().check_layouts;
  for (const MeshAxis other : kMeshAxes) {
    if (other == axis || mesh.size(other) == 1) continue;
    const AxisLayout of_logits = logits.layout()[other], of_targets = targets.layout()[other];
    const bool is_data = other == MeshAxis::kDp || other == MeshAxis::kCp;
    const bool is_part = of_logits.is_sharded() || of_logits.is_partial() || of_targets.is_sharded();
    if (is_checked ? !is_part : !is_data) continue;
    throw LayoutError(fmt::format(
        "vocab_parallel_cross_entropy: kMean on a mesh whose {} has {} ranks{} would be a mean of means; use "
        "Reduction::kSum (or kNone), and divide by the targets of all ranks",
        tessera::name(other), mesh.size(other),
        is_checked
            ? fmt::format(" (logits {}, targets {})", to_string(logits.layout()), to_string(targets.layout()))
            : ""));
  }
}

// −log softmax(logits)[target] of each row over all ranks' columns.
Tensor row_losses(const Tensor& logits, const Tensor& targets, const kernels::CrossEntropyOptions& options,
                  Communicator& group) {
  const std::int64_t rows = targets.num_elements();
  const TensorOptions like{.dtype = accumulation_dtype(logits.dtype()), .device = logits.device()};
  // sums[0]: exp(own lse − largest), sums[1]: −logits[target]; the first all-reduce finds the largest lse.
  Tensor sums = empty({2, rows}, like);
  Tensor lse = sums.select(0, 0), minus_target = sums.select(0, 1);
  const kernels::Losses& kernel = kernels::of(logits.device().type).losses;
  kernel.cross_entropy(logits.view(), targets.view(), options, minus_target.mutable_view(),
                       lse.mutable_view());
  Tensor largest = lse.clone();
  group.all_reduce(buffer_of(largest), ReduceOp::kMax);
  lse.copy_from(exp(lse - largest));
  group.all_reduce(buffer_of(sums));
  const Tensor whole_lse = largest + log(lse);
  const Tensor counts = logical_not(equal(targets, static_cast<double>(options.ignore_index))).to(like.dtype);
  const Tensor losses = (whole_lse + minus_target) * counts;
  return record("vocab_parallel_cross_entropy", losses, {logits},
                [logits = saved(logits), targets = saved(targets), whole_lse, options](const Tensor& dy,
                                                                                       Needs needs) -> Grads {
                  const bool sole_owner = needs.may_overwrite_saved() && logits.is_sole_owner();
                  Tensor dlogits = sole_owner ? logits.get().detach() : empty_like(logits.get());
                  const kernels::ConstView logits_view = logits.get().view();
                  kernels::of(dy.device().type)
                      .losses.cross_entropy_backward(dy.contiguous().view(), logits_view,
                                                     targets.get().view(), whole_lse.view(), options,
                                                     dlogits.mutable_view());
                  return {dlogits};
                });
}

}  // namespace

Tensor mask_foreign_ids(const Tensor& ids, std::int64_t count, const Mesh& mesh, MeshAxis axis) {
  if (mesh.size(axis) == 1) return ids;
  return renumbered(ids, OwnRows(count, mesh, axis), count, nullptr, "embedding: id")
      .set_layout(ids.layout().with(axis, AxisLayout::partial()));
}

Tensor targets_in(const Tensor& targets, std::int64_t begin, std::int64_t end, std::int64_t vocab,
                  std::int64_t ignored) {
  return renumbered(targets, OwnRows(begin, end), vocab, &ignored, "cross_entropy: target");
}

Tensor vocab_parallel_cross_entropy(Tensor&& given_logits, const Tensor& targets, std::int64_t vocab,
                                    const Mesh& mesh, MeshAxis axis, const CrossEntropyConfig& config) {
  const Tensor logits = std::move(given_logits);
  if (config.reduction == Reduction::kMean) refuse_mean_of_means(logits, targets, mesh, axis);
  if (mesh.size(axis) == 1) return cross_entropy(logits, targets, config);
  const OwnRows own(vocab, mesh, axis);
  check(logits, targets, vocab, own, axis, config);
  const Layout layout = layout_rules::row_losses(
      "vocab_parallel_cross_entropy",
      Tensor(logits.detach()).set_layout(logits.layout().with(axis, AxisLayout::invariant())), targets);
  Tensor losses;
  {
    // Rows as one dimension, whatever is cut of what they are made of; the result gets its layout below.
    const LayoutChecks no_layout_checks(false);
    const std::int64_t rows = targets.num_elements();
    const Tensor own_targets = renumbered(targets.contiguous().reshape({rows}), own, vocab,
                                          &config.ignore_index, "cross_entropy: target");
    losses = row_losses(logits.reshape({rows, logits.dim(-1)}).contiguous(), own_targets,
                        {.ignore_index = config.ignore_index, .partial_vocabulary = true}, mesh.group(axis))
                 .reshape(targets.shape());
  }
  losses.set_layout(layout);
  if (config.reduction == Reduction::kNone) return losses;
  if (config.reduction == Reduction::kSum) return sum(losses);
  return sum(losses) / sum(logical_not(equal(targets, static_cast<double>(config.ignore_index)))).item();
}

}  // namespace tessera::dist
