#include "dist/zero.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "dist/exact_sum.h"
#include "dist/zero_state.h"
#include "kernels/error.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace detail {
namespace {

ZeroGroups make_groups(const ZeroPlan& plan, const Mesh& mesh) {
  Communicator& data = mesh.group(MeshAxis::kDp, MeshAxis::kCp);
  const ZeroGroupNames names = zero_group_names(plan);
  const int p = data.rank() % plan.ranks.inner, q = data.rank() / plan.ranks.inner;
  ZeroGroups groups;
  groups.data = groups.inner = &data;
  std::vector<int> neighbours, same_place;  // data ranks
  for (int i = 0; i < plan.ranks.inner; ++i) neighbours.push_back(q * plan.ranks.inner + i);
  for (int i = 0; i < plan.ranks.outer; ++i) same_place.push_back(i * plan.ranks.inner + p);
  if (plan.ranks.outer > 1) {
    groups.own_inner = data.group_of(neighbours, names.inner);
    groups.inner = groups.own_inner.get();
    groups.outer = data.group_of(same_place, names.outer);
  }
  if (plan.placement.parameters != Spread::kWhole) groups.gather = data.group_of(neighbours, names.gather);
  return groups;
}

FlatSet lay_out(nn::Module& model, const Mesh& mesh, const ZeroOptions& options, const FillParameter& fill) {
  FlatSet set;
  set.plan = plan_zero(model, mesh.shape(), options);
  set.options = options;
  set.mesh = &mesh;
  set.groups = make_groups(set.plan, mesh);
  set.data_rank = set.groups.data->rank();
  materialise(model, set, fill);
  return set;
}

// Module hooks: bring parameters, make room for gradients. What a placement does not need is not hooked.
void hook_units(nn::Module& model, const std::shared_ptr<ZeroState>& state) {
  const std::weak_ptr<ZeroState> weak = state;
  const auto alive = [weak](auto action) {
    return [weak, action](nn::Module&, auto&&) {
      if (const auto s = weak.lock()) action(*s);
    };
  };
  const bool cuts_parameters = state->plan.placement.parameters != Spread::kWhole;
  const bool cuts_gradients = state->plan.placement.gradients != Spread::kWhole;
  if (cuts_parameters && state->options.stages.empty()) {
    model.add_forward_pre_hook(alive([](ZeroState& s) { s.gather.begin_forward(0); }));
    model.add_forward_hook(alive([](ZeroState& s) { s.gather.end_forward(); }));
  }
  for (std::size_t u = 0; u < state->plan.units.size(); ++u) {
    nn::Module& module = *state->plan.units[u].module;
    const bool shares_weights = std::ranges::any_of(state->plan.units[u].flats, [&state](std::size_t flat) {
      return state->plan.flats[flat].units.size() > 1;
    });
    if (state->plan.tree_sums && shares_weights)
      module.add_backward_hook(alive([u](ZeroState& s) { s.reduce.take_parts(u); }));
    if (cuts_parameters) {
      module.add_forward_pre_hook(alive([u](ZeroState& s) { s.gather.enter(u); }));
      module.add_forward_hook(alive([u](ZeroState& s) { s.gather.leave(u); }));
      module.add_backward_hook(alive([u](ZeroState& s) { s.gather.leave_backward(u); }));
    }
    if (cuts_gradients) {
      module.add_backward_pre_hook(alive([u, cuts_parameters](ZeroState& s) {
        s.check_in_backward(s.plan.units[u].name);
        if (cuts_parameters) s.gather.enter_backward(u);
        s.reduce.prepare_unit(u);
      }));
    }
  }
}

void hook_gradients(const std::shared_ptr<ZeroState>& state) {
  for (std::size_t i = 0; i < state->plan.parameters.size(); ++i) {
    const ZeroFlat& flat = state->plan.flats[state->plan.parameters[i].flat];
    if (!flat.trainable) continue;
    const auto complete = [weak = std::weak_ptr<ZeroState>(state), i, units = flat.units](const Tensor&) {
      const auto s = weak.lock();
      if (s == nullptr) return;
      s->reduce.gradient_is_complete(i);
      if (s->plan.placement.parameters == Spread::kWhole) return;
      // How the end of the backward pass of a first unit is seen, whose inputs take no gradients.
      for (const std::size_t u : units) {
        if (s->reduce.unit_is_complete(u)) s->gather.leave_backward(u);
      }
    };
    register_accumulated_hook(state->plan.parameters[i].record.tensor, complete);
  }
}

}  // namespace

void ZeroState::check_in_backward(const std::string& what) const {
  if (in_backward) return;
  throw AutogradError(
      fmt::format("Zero: a backward pass came to '{}' outside of begin_backward() and end_backward(); call "
                  "begin_backward() before loss.backward()",
                  what));
}

std::size_t ZeroState::parameter_index(const char* operation, const std::string& name) const {
  for (std::size_t i = 0; i < plan.parameters.size(); ++i) {
    if (plan.parameters[i].record.name == name) return i;
  }
  throw IndexError(fmt::format("{}: the model has no parameter '{}'", operation, name));
}

// Frozen parameters must not begin to learn, unseen by everybody: their gradients would not be reduced.
void ZeroState::check_trainable() const {
  for (const ZeroParameter& parameter : plan.parameters) {
    const bool trainable = parameter.record.tensor.requires_grad();
    if (trainable == plan.flats[parameter.flat].trainable) continue;
    throw ConfigError(
        fmt::format("Zero: '{}' was {} after the model was laid out; do it before, or lay the "
                    "model out again",
                    parameter.record.name, trainable ? "unfrozen" : "frozen"));
  }
}

void ZeroState::make_pieces() {
  for (std::size_t i = 0; i < plan.parameters.size(); ++i) {
    const ZeroParameter& place = plan.parameters[i];
    const ZeroFlat& flat = plan.flats[place.flat];
    if (!flat.trainable) continue;
    const bool is_whole = plan.placement.optimizer == Spread::kWhole;
    const bool is_cut = plan.placement.parameters != Spread::kWhole;
    const Range part = plan.part_of(i, slice(flat, plan.placement.optimizer));
    const Shape shape = is_whole ? place.record.tensor.shape() : Shape{part.size()};
    const Tensor& values = is_cut ? memory[place.flat].shard : memory[place.flat].elements;
    const std::int64_t first = is_cut ? slice(flat, plan.placement.parameters).begin : 0;
    const std::int64_t begin = part.size() == 0 ? 0 : place.offset + part.begin - first;
    Tensor piece = values.as_strided(shape, contiguous_strides(shape), begin);
    piece.set_requires_grad();
    pieces.emplace_back(place.record.name, piece);
    piece_parameters.push_back(i);
  }
  set_piece_gradients();
}

void ZeroState::set_piece_gradients() {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::size_t parameter = piece_parameters[i];
    const ZeroFlat& flat = plan.flats[plan.parameters[parameter].flat];
    pieces[i].second.set_grad(
        reduce.gradient_piece(parameter, plan.part_of(parameter, slice(flat, plan.placement.optimizer))));
  }
}

// From where the optimizer wrote them to where the model reads them.
void ZeroState::bring_new_values() {
  const auto [parameters, gradients, optimizer] = plan.placement;
  const auto part_of_memory = [this, p = parameters](std::size_t f, Range range) {
    const Tensor& values = p == Spread::kWhole ? memory[f].elements : memory[f].shard;
    return Buffer{bytes_at(values, range.begin - slice(plan.flats[f], p).begin), range.size(),
                  values.dtype()};
  };
  const auto gather_all = [&](Communicator& group, Spread from, Spread to) {
    std::vector<Work> works;
    for (std::size_t f = 0; f < plan.flats.size(); ++f) {
      if (!plan.flats[f].trainable) continue;
      works.push_back(group.all_gather_async(part_of_memory(f, slice(plan.flats[f], from)),
                                             part_of_memory(f, slice(plan.flats[f], to))));
    }
    for (Work& work : works) work.wait();
  };
  if (optimizer == Spread::kAll) gather_all(*groups.outer, Spread::kAll, Spread::kInner);
  if (optimizer != Spread::kWhole && parameters == Spread::kWhole && plan.ranks.inner > 1) {
    gather_all(*groups.inner, Spread::kInner, Spread::kWhole);
  }
  for (const FlatMemory& flat : memory) {
    Storage storage = flat.elements.storage();
    storage.bump_version();  // what autograd saved of the old values is stale
  }
}

}  // namespace detail

Zero::Zero(nn::Module& model, const Mesh& mesh, const ZeroOptions& options, FillParameter fill)
    : state_(std::make_shared<detail::ZeroState>(detail::lay_out(model, mesh, options, fill))),
      exchange_(detail::make_exchange(state_)) {
  state_->make_pieces();
  detail::hook_units(model, state_);
  detail::hook_gradients(state_);
}

Zero::~Zero() = default;

const NamedTensors& Zero::pieces() const noexcept { return state_->pieces; }
optim::PieceExchange& Zero::exchange() noexcept { return *exchange_; }
const ZeroPlan& Zero::plan() const noexcept { return state_->plan; }

ZeroMemory Zero::predicted_memory(std::int64_t optimizer_bytes_per_element) const {
  return predict_memory(state_->plan, state_->options, state_->data_rank, optimizer_bytes_per_element);
}

std::vector<ZeroTraffic> Zero::predicted_traffic(int accumulation) const {
  return predict_traffic(state_->plan, state_->mesh->coordinate(), accumulation);
}

// --- A step ------------------------------------------------------------------------------------------------

void Zero::begin_step(std::int64_t num_samples) {
  if (state_->phase == detail::ZeroState::Phase::kFinished) zero_gradients();
  state_->reduce.begin_step(sample_owners(state_->mesh->shape(), num_samples));
}

void Zero::begin_forward(std::size_t stage) {
  if (state_->plan.placement.parameters != Spread::kWhole) state_->gather.begin_forward(stage);
}

void Zero::end_forward() {
  if (state_->plan.placement.parameters != Spread::kWhole) state_->gather.end_forward();
}

void Zero::begin_backward(bool last_micro_batch) { begin_backward(BackwardPass{.last = last_micro_batch}); }

void Zero::begin_backward(const BackwardPass& pass) {
  using Phase = detail::ZeroState::Phase;
  if (state_->in_backward || state_->phase == Phase::kReduced) {
    throw AutogradError(fmt::format(
        "Zero: begin_backward() before {} of the pass before; or call zero_gradients() to give the step up",
        state_->in_backward ? "end_backward()" : "finish_gradients()"));
  }
  state_->check_trainable();
  if (state_->phase == Phase::kFinished) zero_gradients();
  const NoGrad no_grad;
  // Gradients of weights need activations and what came back alone.
  const bool needs_parameters = pass.gradients != BackwardPass::Gradients::kWeights;
  if (state_->plan.placement.parameters != Spread::kWhole && needs_parameters)
    state_->gather.begin_backward(pass.stage);
  state_->reduce.begin_backward(pass);
  state_->in_backward = true;
}

void Zero::end_backward() {
  if (!state_->in_backward) throw AutogradError("Zero: end_backward() without begin_backward()");
  const NoGrad no_grad;
  if (state_->plan.placement.parameters != Spread::kWhole) state_->gather.end_backward();
  state_->reduce.end_backward();
  state_->in_backward = false;
  if (state_->reduce.has_all_stages()) state_->phase = detail::ZeroState::Phase::kReduced;
}

void Zero::finish_gradients() {
  if (state_->in_backward || state_->phase != detail::ZeroState::Phase::kReduced) {
    throw AutogradError(
        "Zero: finish_gradients() comes after the end_backward() of the last micro-batch, which "
        "begin_backward(true) announces; there was none");
  }
  state_->reduce.sum_over_further_axes();
  state_->set_piece_gradients();
  state_->phase = detail::ZeroState::Phase::kFinished;
}

void Zero::after_update() {
  if (state_->in_backward) throw AutogradError("Zero: after_update() before end_backward()");
  state_->bring_new_values();
  if (state_->plan.placement.parameters == Spread::kWhole) return;
  state_->gather.drop_all();
  state_->gather.end_recording();
}

void Zero::zero_gradients() {
  const NoGrad no_grad;
  if (state_->in_backward) {
    if (state_->plan.placement.parameters != Spread::kWhole) state_->gather.give_up();
    state_->reduce.give_up();  // the sums are zeroed below
    state_->in_backward = false;
  }
  state_->reduce.zero();
  state_->phase = detail::ZeroState::Phase::kAccumulating;
}

double Zero::global_grad_sum_of_squares(bool is_spoilt) const {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  NamedTensors counted;
  for (std::size_t i = 0; i < state_->pieces.size(); ++i) {
    if (state_->counts(state_->piece_parameters[i])) counted.push_back(state_->pieces[i]);
  }
  if (state_->plan.tree_sums) {
    ExactSumOfSquares exact;
    for (const auto& [name, gradient] : optim::gradients_of(counted)) exact.add(gradient);
    if (is_spoilt) exact.add(full({1}, kNaN));
    exact.all_reduce(state_->mesh->world());
    return exact.value();
  }
  double sum[1] = {is_spoilt ? kNaN : optim::grad_sum_of_squares(counted)};
  if (state_->mesh->world().size() > 1) state_->mesh->world().all_reduce(buffer_of(sum));
  return sum[0];
}

}  // namespace tessera::dist
