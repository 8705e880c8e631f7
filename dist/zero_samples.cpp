// How gradients are summed up in Invariant numerics.
//
// A pass is one sample, and its gradients, when the pass has ended, a leaf of a tree (dist/tree_sum.h). After
// the last pass of a stage the ranks exchange the nodes that they have.
//
// A weight that several units use (a tied embedding) has a tree for each of them, and the sum of these in the
// end, in the model's order:
//
//     head        h0 + h1 + ...  ─┐
//                                 ├─  gradient
//     embedding   e0 + e1 + ...  ─┘
//
// For units may be in different stages, which never see the parts of one sample together.

#include <fmt/format.h>

#include <algorithm>

#include "autograd/graph.h"
#include "dist/zero_state.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::detail {

void ZeroReduce::begin_step(LeafOwners samples) {
  samples_ = std::move(samples);
  const LeafRange own = samples_.runs[static_cast<std::size_t>(set_.data_rank)];
  for (const std::size_t flat : order_) {
    set_.memory[flat].samples.assign(set_.plan.flats[flat].units.size(),
                                     TreeAccumulator(own, samples_.num_leaves));
  }
}

// Parts of units can't be told apart where autograd holds them back until it has all.
void ZeroReduce::check_hooks(std::size_t flat) const {
  if (set_.plan.flats[flat].units.size() < 2) return;
  for (const std::size_t parameter : set_.plan.flats[flat].parameters) {
    const nn::ParameterRecord& record = set_.plan.parameters[parameter].record;
    if (grad_info(record.tensor)->hooks.empty()) continue;
    throw AutogradError(
        fmt::format("Zero: with tree_sums, '{}' can have no gradient hook: each of the layers that share it "
                    "has a sum of its own; register_accumulated_hook works, and a hook without tree_sums",
                    record.name));
  }
}

// What is in the buffer are the gradients of one sample, of this unit alone.
void ZeroReduce::take_part(std::size_t index, std::size_t unit) {
  const ZeroFlat& plan = set_.plan.flats[index];
  ensure_buffer(index);
  for (const std::size_t parameter : plan.parameters) attach(parameter);
  const CategoryScope category(MemoryCategory::kGradient);
  FlatMemory& memory = set_.memory[index];
  const auto part = static_cast<std::size_t>(std::ranges::find(plan.units, unit) - plan.units.begin());
  if (pass_.sample) memory.samples[part].add_leaf(*pass_.sample, memory.gradients);
  memory.gradients.zero();
}

void ZeroReduce::take_parts(std::size_t unit) {
  if (!in_backward_ || pass_.gradients != BackwardPass::Gradients::kAll) return;
  is_taken_[unit] = 1;
  for (const std::size_t index : set_.plan.units[unit].flats) {
    const ZeroFlat& flat = set_.plan.flats[index];
    if (flat.trainable && flat.units.size() > 1) take_part(index, unit);
  }
}

// At the end of a pass: the part of the one unit whose end nobody told. That of the first is never told, for
// its inputs take no gradients, nor any in a pass for weights, to which plan_zero leaves one unit.
void ZeroReduce::take_rest(std::size_t index) {
  const ZeroFlat& flat = set_.plan.flats[index];
  std::vector<std::size_t> rest;
  for (const std::size_t unit : flat.units) {
    if (set_.plan.units[unit].stage == pass_.stage && (flat.units.size() == 1 || is_taken_[unit] == 0))
      rest.push_back(unit);
  }
  if (rest.empty()) return;
  if (rest.size() > 1) {
    throw AutogradError(fmt::format(
        "Zero: with tree_sums, the gradients that '{}' and '{}' gave to '{}' can't be told apart: each unit "
        "that shares a weight must run as a module, and all but one take gradients of their inputs",
        set_.plan.units[rest[0]].name, set_.plan.units[rest[1]].name,
        set_.plan.parameters[flat.parameters[0]].record.name));
  }
  take_part(index, rest[0]);
}

void ZeroReduce::end_sample() {
  for (const std::size_t index : order_) {
    if (!set_.plan.is_used_in(set_.plan.flats[index], pass_.stage)) continue;
    take_rest(index);
    if (flats_[index].stages_left > 0) continue;
    sum_samples(index);
    flats_[index].step = Step::kDone;
    set_.memory[index].samples = {};
  }
}

void ZeroReduce::sum_samples(std::size_t index) {
  const ZeroFlat& plan = set_.plan.flats[index];
  FlatMemory& memory = set_.memory[index];
  // Shard groups have no sums of their own: all ranks get all of it.
  const bool is_whole = set_.plan.placement.optimizer == Spread::kWhole || set_.plan.ranks.outer > 1;
  const Range own = is_whole ? Range{0, plan.padded} : set_.slice(plan, set_.plan.placement.optimizer);
  Tensor sum = memory.gradients.slice(0, own.begin, own.end), part = sum;
  for (TreeAccumulator& samples : memory.samples) {
    if (is_whole) {
      tree_all_reduce(samples.nodes(), samples_, *set_.groups.data, part);
    } else {
      tree_reduce_scatter(samples.nodes(), samples_, *set_.groups.data, part);
    }
    samples = {};
    if (!part.is_same(sum)) sum.add_scaled(part);
    const CategoryScope category(MemoryCategory::kCommunication);
    if (&samples != &memory.samples.back()) part = empty_like(sum);
  }
  if (set_.plan.placement.gradients != Spread::kWhole) finish(index);
}

}  // namespace tessera::dist::detail
