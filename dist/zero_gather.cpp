// How cut parameters come and go.
//
//     forward     wte   h.0   h.1   ln_f  lm_head       a unit's flat is gathered when the unit is entered
//     backward    lm_head  ln_f  h.1   h.0   wte        and dropped when it is left
//
// Gathers have a communicator of their own and follow a schedule that is the same on all ranks, so they match
// whatever path a rank takes: one that goes from h.0 to ln_f takes part in the gather of h.1 in between, and
// drops it at once. The first schedule is the order in which the model's units stand. What runs in another
// order is added where it ran; after the first step the ranks agree which entries any of them used, and the
// others go.
//
// Data is written through Storage::data(), which does not count as a change: the values are those that
// autograd saved.

#include <algorithm>
#include <cstring>

#include "dist/zero_state.h"
#include "kernels/error.h"

namespace tessera::dist::detail {

ZeroGather::ZeroGather(FlatSet& flats)
    : set_(flats),
      flats_(flats.plan.flats.size()),
      units_(flats.plan.units.size()),
      stages_(flats.plan.num_stages),
      prefetch_elements_(flats.options.prefetch_elements) {
  if (prefetch_elements_ < 0) {
    for (const ZeroUnit& unit : flats.plan.units) {
      std::int64_t elements = 0;
      for (const std::size_t flat : unit.flats) elements += flats.plan.flats[flat].padded;
      prefetch_elements_ = std::max(prefetch_elements_, elements);
    }
  }
  for (std::size_t unit = 0; unit < units_.size(); ++unit)
    stages_[flats.plan.units[unit].stage].forward.units.push_back(unit);
  for (auto& [forward, backward] : stages_) {
    backward.units.assign(forward.units.rbegin(), forward.units.rend());
    forward.used.resize(forward.units.size());
    backward.used.resize(forward.units.size());
  }
}

// --- Passes ------------------------------------------------------------------------------------------------

void ZeroGather::begin_forward(std::size_t stage) {
  if (in_backward_) {
    throw AutogradError(
        "Zero: a forward pass of the model began between begin_backward() and end_backward(); call "
        "begin_backward() after the forward pass, right before loss.backward()");
  }
  end_forward();
  stage_ = stage;
  in_forward_ = true;
}

// Also ends a pass of which the model's hooks did not tell: one that ran part by part, or met an exception.
void ZeroGather::end_forward() {
  if (in_backward_ || !std::exchange(in_forward_, false)) return;
  Pass& pass = stages_[stage_].forward;
  catch_up(pass, pass.units.size());
  pass.cursor = 0;
}

void ZeroGather::begin_backward(std::size_t stage) {
  end_forward();
  stage_ = stage;
  in_backward_ = true;
  stages_[stage_].backward.cursor = 0;
}

void ZeroGather::end_backward() {
  if (!in_backward_) return;
  Pass& pass = stages_[stage_].backward;
  catch_up(pass, pass.units.size());
  for (std::size_t unit = 0; unit < units_.size(); ++unit) leave_backward(unit);
  pass.cursor = 0;
  in_backward_ = false;
}

// --- Units -------------------------------------------------------------------------------------------------

void ZeroGather::enter(std::size_t unit) {
  if (in_backward_) return enter_backward(unit);
  in_forward_ = true;
  // An exception may have ended the unit's last forward pass before it was left.
  if (std::exchange(units_[unit].in_forward, true)) release(unit);
  acquire(unit, stages_[stage_].forward);
}

void ZeroGather::leave(std::size_t unit) {
  if (std::exchange(units_[unit].in_forward, false)) release(unit);
}

void ZeroGather::enter_backward(std::size_t unit) {
  if (!in_backward_ || std::exchange(units_[unit].in_backward, true)) return;
  acquire(unit, stages_[stage_].backward);
}

void ZeroGather::leave_backward(std::size_t unit) {
  if (std::exchange(units_[unit].in_backward, false)) release(unit);
}

void ZeroGather::acquire(std::size_t unit, Pass& pass) {
  const auto begin = pass.units.begin();
  const auto found = std::find(begin + static_cast<std::ptrdiff_t>(pass.cursor), pass.units.end(), unit);
  if (found != pass.units.end()) {
    catch_up(pass, static_cast<std::size_t>(found - begin));
    pass.used[pass.cursor++] = 1;
  } else if (recording_) {
    pass.units.insert(begin + static_cast<std::ptrdiff_t>(pass.cursor), unit);
    pass.used.insert(pass.used.begin() + static_cast<std::ptrdiff_t>(pass.cursor), 1);
    ++pass.cursor;
  }
  for (const std::size_t flat : set_.plan.units[unit].flats) {
    ++flats_[flat].holds;
    start(flat);
  }
  prefetch(pass);
  for (const std::size_t flat : set_.plan.units[unit].flats) finish(flat);
}

void ZeroGather::release(std::size_t unit) {
  for (const std::size_t flat : set_.plan.units[unit].flats) {
    --flats_[flat].holds;
    drop_if_unused(flat);
  }
}

// --- Flats -------------------------------------------------------------------------------------------------

void ZeroGather::start(std::size_t index) {
  Flat& flat = flats_[index];
  if (flat.presence != Presence::kDropped) return;
  const ZeroFlat& plan = set_.plan.flats[index];
  FlatMemory& memory = set_.memory[index];
  Storage storage = memory.elements.storage();
  storage.refill();
  const Range slice = set_.slice(plan, set_.plan.placement.parameters);
  std::byte* const all = bytes_at(memory.elements, 0);
  std::byte* const own = bytes_at(memory.elements, slice.begin);
  if (slice.size() > 0 && own != nullptr) {
    std::memcpy(own, memory.shard.storage().data(), static_cast<std::size_t>(memory.shard.size_bytes()));
  }
  flat.work =
      set_.groups.gather->all_gather_async({own, slice.size(), plan.dtype}, {all, plan.padded, plan.dtype});
  flat.presence = Presence::kUnderWay;
  live_elements_ += plan.padded;
}

void ZeroGather::finish(std::size_t index) {
  Flat& flat = flats_[index];
  if (flat.presence != Presence::kUnderWay) return;
  flat.work.wait();
  flat.presence = Presence::kHere;
}

void ZeroGather::drop(std::size_t index) {
  if (flats_[index].presence == Presence::kDropped) return;
  finish(index);
  Storage storage = set_.memory[index].elements.storage();
  storage.drop();
  flats_[index].presence = Presence::kDropped;
  live_elements_ -= set_.plan.flats[index].padded;
}

void ZeroGather::drop_if_unused(std::size_t index) {
  if (flats_[index].holds > 0 || set_.plan.is_persistent(set_.plan.flats[index]) ||
      is_used_again_soon(index)) {
    return;
  }
  drop(index);
}

void ZeroGather::drop_all() {
  for (std::size_t flat = 0; flat < flats_.size(); ++flat) {
    if (flats_[flat].holds == 0) drop(flat);
    // Handles stay and values change: what autograd saved of the old ones is stale.
    Storage storage = set_.memory[flat].elements.storage();
    storage.bump_version();
  }
}

void ZeroGather::end_recording() {
  if (std::exchange(recording_, false)) agree_on_schedule();
}

// Ranks may have met their exceptions in different units: each takes part in the gathers that are left of the
// pass, so that those of the next one match.
void ZeroGather::give_up() {
  if (in_backward_) end_backward();
  end_forward();
  for (std::size_t unit = 0; unit < units_.size(); ++unit) leave(unit);
  for (std::size_t flat = 0; flat < flats_.size(); ++flat) drop(flat);
}

// --- The schedule ------------------------------------------------------------------------------------------

bool ZeroGather::uses(std::size_t unit, std::size_t flat) const {
  return std::ranges::find(set_.plan.units[unit].flats, flat) != set_.plan.units[unit].flats.end();
}

void ZeroGather::take_part(std::size_t unit) {
  for (const std::size_t flat : set_.plan.units[unit].flats) start(flat);
  for (const std::size_t flat : set_.plan.units[unit].flats) {
    finish(flat);
    drop_if_unused(flat);
  }
}

void ZeroGather::catch_up(Pass& pass, std::size_t end) {
  while (pass.cursor < end) take_part(pass.units[pass.cursor++]);
}

// Starts gathers in the order of the schedule; it ends at the first that must wait, since a later one may not
// overtake it: ranks that are further on, or went another way, have the others in the schedule's order.
void ZeroGather::prefetch(const Pass& pass) {
  if (recording_) return;
  std::int64_t ahead = 0;
  std::vector<std::size_t> seen;
  for (std::size_t i = pass.cursor; i < pass.units.size(); ++i) {
    for (const std::size_t index : set_.plan.units[pass.units[i]].flats) {
      const ZeroFlat& plan = set_.plan.flats[index];
      const Flat& flat = flats_[index];
      if (flat.presence == Presence::kHere && set_.plan.is_persistent(plan)) continue;
      // Its gather for this use comes after it was dropped from an earlier one.
      if (flat.holds > 0 || std::ranges::find(seen, index) != seen.end()) return;
      seen.push_back(index);
      if (flat.presence == Presence::kHere) continue;  // kept for this use
      ahead += plan.padded;
      if (flat.presence == Presence::kUnderWay) continue;
      if (ahead > prefetch_elements_ || live_elements_ + plan.padded > set_.options.max_live_parameters) {
        return;
      }
      start(index);
    }
  }
}

bool ZeroGather::is_used_again_soon(std::size_t flat) const {
  if (recording_ || set_.options.max_reuse_distance == 0) return false;
  const Pass& pass = in_backward_ ? stages_[stage_].backward : stages_[stage_].forward;
  std::int64_t distance = 0;
  for (std::size_t i = pass.cursor; i < pass.units.size(); ++i) {
    if (uses(pass.units[i], flat)) return true;
    for (const std::size_t other : set_.plan.units[pass.units[i]].flats)
      distance += set_.plan.flats[other].padded;
    if (distance >= set_.options.max_reuse_distance) return false;
  }
  return false;
}

// Entries that no rank used go. Ranks took part in the same gathers, so their schedules have equal entries.
void ZeroGather::agree_on_schedule() {
  std::vector<Pass*> passes;
  for (Stage& stage : stages_) passes.insert(passes.end(), {&stage.forward, &stage.backward});
  std::vector<std::int32_t> used;
  for (const Pass* pass : passes) used.insert(used.end(), pass->used.begin(), pass->used.end());
  set_.groups.gather->all_reduce(buffer_of(used), ReduceOp::kMax);
  std::size_t next = 0;
  for (Pass* pass : passes) {
    std::vector<std::size_t> kept;
    for (const std::size_t unit : pass->units) {
      if (used[next++] != 0) kept.push_back(unit);
    }
    pass->units = std::move(kept);
    pass->used.assign(pass->units.size(), 1);
    pass->cursor = 0;
  }
}

}  // namespace tessera::dist::detail
