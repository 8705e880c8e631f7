// How gradients are summed up.
//
// Each flat with trainable parameters has a buffer that its gradients are views of, so that autograd adds to
// it in place. When the last gradient of a flat is complete, the sum over ranks begins; in one order on all
// ranks, the model's from back to front. Where it leads depends on how far optimizer state is cut:
//
//     whole   all-reduce over the data ranks
//     inner   reduce-scatter over the shard group, then all-reduce over the outer group
//     all     reduce-scatter over both
//
// in place, in the buffer: a rank's result is its own slice. Where gradients are cut, the slice is added to
// `accumulated` and the buffer dropped, for each micro-batch; the steps that optimizer state is cut further
// than gradients are made once, after the last micro-batch.
//
// In Invariant numerics the sum over samples is another one: dist/zero_samples.cpp.

#include <fmt/format.h>

#include <algorithm>

#include "autograd/grad_mode.h"
#include "dist/zero_state.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::detail {
namespace {

// A rank that is ahead waits for the others before it has more full gradients than this in memory. Until then
// it keeps them, though their sums may be there: what a step holds must not depend on when messages come.
constexpr std::size_t kMaxUnderWay = 2;

}  // namespace

ZeroReduce::ZeroReduce(FlatSet& flats)
    : set_(flats),
      flats_(flats.plan.flats.size()),
      complete_(flats.plan.parameters.size()),
      is_taken_(flats.plan.units.size()),
      stages_left_(flats.plan.num_stages) {
  const CategoryScope category(MemoryCategory::kGradient);
  const Spread spread = set_.plan.placement.gradients;
  for (std::size_t i = flats_.size(); i-- > 0;) {
    const ZeroFlat& plan = set_.plan.flats[i];
    if (!plan.trainable) continue;
    order_.push_back(i);
    flats_[i].stages_left = set_.plan.stages_using(plan);
    if (spread == Spread::kWhole) {
      ensure_buffer(i);
    } else {
      set_.memory[i].accumulated = zeros({set_.slice(plan, spread).size()},
                                         {.dtype = plan.gradient_dtype, .device = set_.options.device});
    }
  }
}

// --- The buffer --------------------------------------------------------------------------------------------

void ZeroReduce::ensure_buffer(std::size_t flat) {
  Tensor& gradients = set_.memory[flat].gradients;
  if (gradients.defined()) return;
  const ZeroFlat& plan = set_.plan.flats[flat];
  const CategoryScope category(MemoryCategory::kGradient);
  gradients = zeros({plan.padded}, {.dtype = plan.gradient_dtype, .device = set_.options.device});
  for (const std::size_t parameter : plan.parameters) attach(parameter);
}

// Gradients may have been dropped or replaced by the program, or made by autograd before there was a buffer:
// what is there is moved into the buffer. It would not be reduced otherwise.
void ZeroReduce::attach(std::size_t index) {
  const ZeroParameter& place = set_.plan.parameters[index];
  Tensor parameter = place.record.tensor;
  const Shape& shape = parameter.shape();
  Tensor view = set_.memory[place.flat].gradients.as_strided(shape, contiguous_strides(shape), place.offset);
  const Tensor current = parameter.grad();
  if (!current.defined()) {
    view.zero();
  } else if (current.storage() == view.storage() && current.offset() == view.offset()) {
    return;
  } else {
    view.copy_from(current);
  }
  parameter.set_grad(view);
}

// The same where the values that are there do not matter, and the buffer is zero.
void ZeroReduce::reset_gradient(std::size_t index) {
  const ZeroParameter& place = set_.plan.parameters[index];
  Tensor parameter = place.record.tensor;
  const Shape& shape = parameter.shape();
  parameter.set_grad(
      set_.memory[place.flat].gradients.as_strided(shape, contiguous_strides(shape), place.offset));
}

void ZeroReduce::drop_buffer(std::size_t flat) {
  for (const std::size_t parameter : set_.plan.flats[flat].parameters) {
    Tensor tensor = set_.plan.parameters[parameter].record.tensor;
    tensor.set_grad({});
  }
  set_.memory[flat].gradients = {};
}

// --- A backward pass ---------------------------------------------------------------------------------------

bool ZeroReduce::keeps_full() const {
  return set_.plan.keep_full_gradients && set_.plan.placement.gradients != Spread::kWhole;
}

// A pass for inputs alone may complete gradients of some weights, whose operations have no other inputs: they
// wait for the others.
bool ZeroReduce::is_due(std::size_t flat) const {
  if (pass_.gradients == BackwardPass::Gradients::kInputs) return false;
  if (set_.plan.tree_sums) return false;  // a sum of samples begins when the last one is complete
  if (flats_[flat].stages_left == 0) return true;
  return set_.plan.placement.gradients != Spread::kWhole && !keeps_full();
}

void ZeroReduce::begin_backward(const BackwardPass& pass) {
  if (set_.plan.tree_sums && samples_.num_leaves == 0)
    throw AutogradError(
        "Zero: with tree_sums, begin_step() comes before the first begin_backward() of a step");
  pass_ = pass;
  in_backward_ = true;
  num_started_ = num_done_ = 0;
  due_.clear();
  std::fill(is_taken_.begin(), is_taken_.end(), std::uint8_t{0});
  const bool ends_stage = pass.last && pass.gradients != BackwardPass::Gradients::kInputs;
  if (ends_stage) --stages_left_;
  for (const std::size_t index : order_) {
    Flat& flat = flats_[index];
    flat.complete = 0;
    flat.step = Step::kCollecting;
    if (!set_.plan.is_used_in(set_.plan.flats[index], pass.stage)) continue;
    if (ends_stage) --flat.stages_left;
    if (is_due(index)) due_.push_back(index);
    if (set_.plan.tree_sums) {
      check_hooks(index);
      // Before the first gradient: 0 + (−0) is 0, and a gradient that was copied would be −0.
      if (pass.gradients != BackwardPass::Gradients::kInputs) ensure_buffer(index);
    }
  }
  std::fill(complete_.begin(), complete_.end(), std::uint8_t{0});
  for (const std::size_t flat : order_) {
    if (!set_.memory[flat].gradients.defined()) continue;
    for (const std::size_t parameter : set_.plan.flats[flat].parameters) attach(parameter);
  }
}

void ZeroReduce::prepare_unit(std::size_t unit) {
  if (pass_.gradients == BackwardPass::Gradients::kInputs) return;
  make_room();
  for (const std::size_t flat : set_.plan.units[unit].flats) {
    if (set_.plan.flats[flat].trainable && flats_[flat].step == Step::kCollecting) ensure_buffer(flat);
  }
}

void ZeroReduce::gradient_is_complete(std::size_t parameter) {
  const ZeroParameter& place = set_.plan.parameters[parameter];
  Flat& flat = flats_[place.flat];
  if (!in_backward_ || flat.step != Step::kCollecting) {
    throw AutogradError(fmt::format(
        "Zero: a backward pass added to the gradient of '{}' {}; every backward pass stands between "
        "begin_backward() and end_backward(), one in each pair",
        place.record.name,
        in_backward_ ? "after it was on its way to the other ranks" : "outside of those announced"));
  }
  ensure_buffer(place.flat);
  if (std::exchange(complete_[parameter], std::uint8_t{1}) == 0) ++flat.complete;
  RankContext::current().pool(set_.options.device)->set_place("behind the gradient of", place.record.name);
  if (!is_due(place.flat)) return;
  start_complete_ones();
  make_room();
}

// Where parameters are cut, memory is short, and one that is under way hides behind the unit that computes.
std::size_t ZeroReduce::may_be_under_way() const {
  return set_.plan.placement.parameters == Spread::kWhole ? kMaxUnderWay : 1;
}

void ZeroReduce::make_room() {
  if (!peers_are_apart_) advance(may_be_under_way(), Wait::kPatiently);
  if (peers_are_apart_) advance(order_.size(), Wait::kNone);
}

bool ZeroReduce::unit_is_complete(std::size_t unit) const {
  return std::ranges::all_of(set_.plan.units[unit].flats, [this](std::size_t flat) {
    return set_.plan.flats[flat].trainable &&
           flats_[flat].complete == set_.plan.flats[flat].parameters.size();
  });
}

void ZeroReduce::end_backward() {
  while (num_started_ < due_.size()) start(due_[num_started_++]);
  advance(0, Wait::kToTheEnd);
  if (set_.plan.tree_sums && pass_.gradients != BackwardPass::Gradients::kInputs) end_sample();
  in_backward_ = false;
}

// A sum over samples begins when its last pass has ended, so nobody waits for one of a pass that did not end.
void ZeroReduce::give_up() {
  if (!set_.plan.tree_sums) end_backward();
  in_backward_ = false;
}

// --- The sum over ranks ------------------------------------------------------------------------------------

Buffer ZeroReduce::buffer(std::size_t flat, Range range) const {
  const FlatMemory& memory = set_.memory[flat];
  const bool is_whole = memory.gradients.defined();
  const Tensor& x = is_whole ? memory.gradients : memory.accumulated;
  const std::int64_t begin = range.begin - (is_whole ? 0 : home_begin(flat));
  return {bytes_at(x, begin), range.size(), x.dtype()};
}

void ZeroReduce::start_complete_ones() {
  while (num_started_ < due_.size()) {
    const std::size_t next = due_[num_started_];
    if (flats_[next].complete < set_.plan.flats[next].parameters.size()) return;
    ++num_started_;
    start(next);
  }
}

// A parameter that this rank did not use has gradient 0: the buffer's.
void ZeroReduce::start(std::size_t index) {
  const ZeroFlat& plan = set_.plan.flats[index];
  Flat& flat = flats_[index];
  ensure_buffer(index);
  for (const std::size_t parameter : plan.parameters) attach(parameter);
  flat.step = Step::kInner;
  if (set_.plan.placement.optimizer == Spread::kWhole) {
    if (set_.groups.data->size() > 1)
      flat.work = set_.groups.data->all_reduce_async(buffer(index, {0, plan.padded}));
  } else if (set_.plan.ranks.inner > 1) {
    flat.work = set_.groups.inner->reduce_scatter_async(buffer(index, {0, plan.padded}),
                                                        buffer(index, set_.slice(plan, Spread::kInner)));
  }
}

bool ZeroReduce::is_outer_due(std::size_t flat) const {
  const auto [parameters, gradients, optimizer] = set_.plan.placement;
  if (set_.plan.ranks.outer == 1 || optimizer == Spread::kWhole) return false;
  return flats_[flat].stages_left == 0 || gradients == Spread::kAll;
}

void ZeroReduce::start_outer(std::size_t index) {
  const ZeroFlat& plan = set_.plan.flats[index];
  const Buffer slice = buffer(index, set_.slice(plan, Spread::kInner));
  if (set_.plan.placement.optimizer == Spread::kAll) {
    flats_[index].work =
        set_.groups.outer->reduce_scatter_async(slice, buffer(index, set_.slice(plan, Spread::kAll)));
  } else {
    flats_[index].work = set_.groups.outer->all_reduce_async(slice);
  }
}

// A peer that skips units starts its reductions late, and may wait for this rank's next gathers meanwhile.
bool ZeroReduce::is_complete(Work& work, Wait wait) {
  if (wait == Wait::kNone) return work.test();
  if (wait == Wait::kToTheEnd || set_.plan.placement.parameters == Spread::kWhole) {
    work.wait();
    return true;
  }
  if (work.wait_for(set_.options.patience)) return true;
  peers_are_apart_ = true;
  return false;
}

// One step after the other for a flat; true when it has made all.
bool ZeroReduce::is_through(std::size_t index, Wait wait) {
  Flat& flat = flats_[index];
  const Spread cut = set_.plan.placement.gradients;
  const bool may_drop = cut == Spread::kWhole || wait != Wait::kNone || peers_are_apart_;
  if (flat.step == Step::kInner && is_complete(flat.work, wait)) {
    if (!may_drop && (cut == Spread::kInner || !is_outer_due(index))) return false;
    flat.work = {};
    if (cut == Spread::kInner) finish(index);
    flat.step = is_outer_due(index) ? Step::kOuter : Step::kDone;
    if (flat.step == Step::kOuter) start_outer(index);
    if (flat.step == Step::kDone && cut == Spread::kAll) finish(index);
  }
  if (flat.step == Step::kOuter && is_complete(flat.work, wait)) {
    if (!may_drop && cut == Spread::kAll) return false;
    flat.work = {};
    flat.step = Step::kDone;
    if (cut == Spread::kAll) finish(index);
  }
  return flat.step == Step::kDone;
}

// What a cut keeps of the buffer.
void ZeroReduce::finish(std::size_t index) {
  const Range slice = set_.slice(set_.plan.flats[index], set_.plan.placement.gradients);
  FlatMemory& memory = set_.memory[index];
  memory.accumulated.add_scaled(memory.gradients.slice(0, slice.begin, slice.end));
  drop_buffer(index);
}

// In order, since the second step of a flat must not overtake that of an earlier one.
void ZeroReduce::advance(std::size_t may_be_under_way, Wait wait) {
  while (num_done_ < num_started_) {
    const bool must = num_started_ - num_done_ > may_be_under_way;
    if (!is_through(due_[num_done_], must ? wait : Wait::kNone)) return;
    ++num_done_;
  }
}

void ZeroReduce::sum_over_further_axes() {
  std::vector<Work> works;
  for (const MeshAxis axis : kMeshAxes) {
    for (const std::size_t flat : order_) {
      const ZeroFlat& plan = set_.plan.flats[flat];
      if (std::ranges::find(plan.sum_axes, axis) == plan.sum_axes.end()) continue;
      works.push_back(set_.mesh->group(axis).all_reduce_async(
          buffer(flat, set_.slice(plan, set_.plan.placement.optimizer))));
    }
    for (Work& work : works) work.wait();
    works.clear();
  }
  for (const std::size_t flat : order_) {
    const ZeroFlat& plan = set_.plan.flats[flat];
    if (!plan.is_shared) continue;
    works.push_back(set_.options.sharing_group->all_reduce_async(
        buffer(flat, set_.slice(plan, set_.plan.placement.optimizer))));
  }
  for (Work& work : works) work.wait();
}

// --- The result --------------------------------------------------------------------------------------------

const Tensor& ZeroReduce::home(std::size_t flat) const {
  const FlatMemory& memory = set_.memory[flat];
  return set_.plan.placement.gradients == Spread::kWhole ? memory.gradients : memory.accumulated;
}

std::int64_t ZeroReduce::home_begin(std::size_t flat) const {
  return set_.slice(set_.plan.flats[flat], set_.plan.placement.gradients).begin;
}

Tensor ZeroReduce::gradient_piece(std::size_t parameter, Range part) const {
  const ZeroParameter& place = set_.plan.parameters[parameter];
  const std::int64_t begin = place.offset + part.begin - home_begin(place.flat);
  const bool is_whole = set_.plan.placement.optimizer == Spread::kWhole;
  const Shape shape = is_whole ? place.record.tensor.shape() : Shape{part.size()};
  return home(place.flat).as_strided(shape, contiguous_strides(shape), part.size() == 0 ? 0 : begin);
}

// Of a step that was given up there may be gradients outside of buffers, which the next pass would take in:
// those that the program replaced, and those that autograd made before there was a buffer.
void ZeroReduce::zero() {
  samples_ = {};
  stages_left_ = set_.plan.num_stages;
  for (const std::size_t flat : order_) {
    flats_[flat].stages_left = set_.plan.stages_using(set_.plan.flats[flat]);
    set_.memory[flat].samples = {};
    Tensor result = home(flat);
    result.zero();
    if (set_.plan.placement.gradients != Spread::kWhole) {
      drop_buffer(flat);
      continue;
    }
    for (const std::size_t parameter : set_.plan.flats[flat].parameters) reset_gradient(parameter);
  }
}

}  // namespace tessera::dist::detail
