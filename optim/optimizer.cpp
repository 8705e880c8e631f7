#include "optim/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::optim {
namespace {

bool is_16_bit(DType dtype) { return dtype == kBF16 || dtype == kF16; }

// A gradient that several parameters' bucket holds: its storage reaches beyond it.
bool is_part_of_larger_storage(const Tensor& grad) {
  return grad.size_bytes() < static_cast<std::int64_t>(grad.storage().size_bytes());
}

void check_parameter(const char* type, const std::string& name, const Tensor& parameter) {
  if (!parameter.defined()) throw ConfigError(fmt::format("{}: the parameter {} is undefined", type, name));
  if (!is_floating(parameter.dtype())) {
    throw DTypeError(
        fmt::format("{}: the parameter {} must be floating, got {}", type, name, describe(parameter)));
  }
  if (!parameter.is_contiguous()) {
    throw ShapeError(
        fmt::format("{}: the parameter {}, {}, must be contiguous; give the tensor that it is a view of",
                    type, name, describe(parameter)));
  }
}

void check_lr(const char* what, double lr) {
  if (!(lr >= 0.0) || !std::isfinite(lr)) {
    throw ConfigError(fmt::format("{}: the learning rate must be finite and not negative, got {}", what, lr));
  }
}

// The gradient as the kernel wants it; undefined if there is none.
Tensor usable_grad(const std::string& name, const Tensor& parameter) {
  const Tensor grad = parameter.grad();
  if (!grad.defined()) return grad;
  if (grad.shape() != parameter.shape()) {
    throw ShapeError(fmt::format("step: the gradient of {} is {}, the parameter {}", name, describe(grad),
                                 describe(parameter)));
  }
  if (grad.device() != parameter.device()) {
    throw DeviceError(fmt::format("step: the gradient of {} is on {}, the parameter on {}", name,
                                  to_string(grad.device()), to_string(parameter.device())));
  }
  // Rounded by itself: an f32 update does not read f64, and such a gradient is rare (set by hand).
  if (grad.dtype() == kF64 && parameter.dtype() != kF64) return grad.to(kF32).contiguous();
  return grad.contiguous();
}

// "a, b, c and 12 more": errors about checkpoints can concern every tensor of a model.
std::string join_first(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 3;
  const std::size_t shown = std::min(kShown, names.size());
  std::string text =
      fmt::format("{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

}  // namespace

Optimizer::Optimizer(const char* type, double lr, const NamedTensors& parameters,
                     std::vector<ParameterGroup> groups, std::shared_ptr<PieceExchange> exchange)
    : type_(type), lr_(lr), groups_(std::move(groups)), exchange_(std::move(exchange)) {
  check_lr(type_, lr_);
  for (const ParameterGroup& group : groups_) {
    if (!(group.lr_scale >= 0.0)) {
      throw ConfigError(fmt::format("{}: lr_scale must not be negative, got {}", type_, group.lr_scale));
    }
  }
  std::unordered_set<std::string> names;
  for (const auto& [name, parameter] : parameters) {
    check_parameter(type_, name, parameter);
    if (!names.insert(name).second)
      throw ConfigError(fmt::format("{}: two parameters are named {}", type_, name));
    const Tensor& candidate = parameter;
    const auto same = [&candidate](const auto& known) { return known.second.is_same(candidate); };
    if (std::any_of(parameters_.begin(), parameters_.end(), same)) continue;
    const std::size_t group = group_index(groups_, name);
    parameters_.emplace_back(name, parameter);
    slots_.push_back({.group = group == kNoGroup ? groups_.size() : group});
  }
  groups_.emplace_back();  // of those that no pattern matches
}

void Optimizer::allocate_state(const std::function<MomentNames(std::size_t parameter)>& moments_of,
                               double initial_value) {
  initial_moment_ = initial_value;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].moment_names = moments_of(i);
    if (parameters_[i].second.requires_grad()) allocate(i);
  }
}

void Optimizer::allocate_bf16_state(const MomentNames& moments) {
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.dtype() == kBF16) continue;
    throw DTypeError(
        fmt::format("{}: state_dtype bf16 is for bf16 parameters, and {} is {}; convert the model, or leave "
                    "state_dtype out",
                    type_, name, tessera::describe(parameter)));
  }
  state_is_bf16_ = true;
  allocate_state([&moments](std::size_t) { return moments; });
}

void Optimizer::allocate(std::size_t index) {
  Slot& slot = slots_[index];
  if (slot.allocated) return;
  const Tensor& parameter = parameters_[index].second;
  const CategoryScope category(MemoryCategory::kOptimizerState);
  TensorOptions options{.dtype = accumulation_dtype(parameter.dtype()), .device = parameter.device()};
  if (state_is_bf16_) {
    options.dtype = kU8;
    slot.master_low = empty({2 * parameter.num_elements()}, options);
    options.dtype = kBF16;
  } else if (is_16_bit(parameter.dtype())) {
    slot.master = empty(parameter.shape(), options);
  }
  for (std::size_t m = 0; m < slot.moment_names.size(); ++m) {
    slot.moments[m] = full(parameter.shape(), initial_moment_, options);
  }
  slot.allocated = true;
}

// Not at construction: weights are often loaded between the two.
void Optimizer::make_master_current(std::size_t index) {
  Slot& slot = slots_[index];
  if (slot.master_is_current) return;
  if (slot.master_low.defined()) slot.master_low.zero();
  if (slot.master.defined()) slot.master.copy_from(parameters_[index].second);
  slot.master_is_current = true;
}

// Undefined for f32 and f64 parameters.
Tensor Optimizer::master_of(std::size_t index) {
  make_master_current(index);
  const Slot& slot = slots_[index];
  if (!slot.master_low.defined()) return slot.master;
  const CategoryScope category(MemoryCategory::kWorkspace);
  const Tensor& parameter = parameters_[index].second;
  Tensor master = empty(parameter.shape(), {.dtype = kF32, .device = parameter.device()});
  kernels::of(parameter.device().type)
      .updates.join_masters(parameter.view(), slot.master_low.view(), master.mutable_view());
  return master;
}

void Optimizer::set_master(std::size_t index, const Tensor& master) {
  Slot& slot = slots_[index];
  if (!slot.master_low.defined()) return slot.master.copy_from(master);
  Tensor& parameter = parameters_[index].second;
  const CategoryScope category(MemoryCategory::kWorkspace);
  Tensor on_device = empty(parameter.shape(), {.dtype = kF32, .device = parameter.device()});
  on_device.copy_from(master);
  kernels::of(parameter.device().type)
      .updates.split_masters(on_device.view(), parameter.mutable_view(), slot.master_low.mutable_view());
}

void Optimizer::step(const StepOptions& options) {
  if (!std::isfinite(options.grad_scale)) {
    throw NonFiniteError(fmt::format(
        "step: grad_scale is {}; a step without finite gradients must be left out", options.grad_scale));
  }
  const NoGrad no_grad;

  // Everything that can be refused is refused here, before the first change.
  std::vector<Tensor> grads(parameters_.size());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    grads[i] = usable_grad(parameters_[i].first, parameters_[i].second);
  }
  if (exchange_ != nullptr) agree_on_gradients(grads);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (grads[i].defined()) allocate(i);
  }

  std::vector<Update> updates;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!grads[i].defined()) continue;
    Slot& slot = slots_[i];
    Tensor& parameter = parameters_[i].second;
    make_master_current(i);
    Update update{.parameter = i, .group = slot.group, .step = ++slot.step, .grad = grads[i], .item = {}};
    kernels::UpdateItem& item = update.item;
    item.grad = grads[i].view();
    item.parameter = slot.master.defined() ? slot.master.mutable_view() : parameter.mutable_view();
    if (slot.master.defined()) item.low_precision = parameter.mutable_view();
    if (slot.master_low.defined()) item.master_low = slot.master_low.mutable_view();
    if (slot.moments[0].defined()) item.moment1 = slot.moments[0].mutable_view();
    if (slot.moments[1].defined()) item.moment2 = slot.moments[1].mutable_view();
    updates.push_back(std::move(update));
  }
  update_all(updates, options.grad_scale);
}

// Ranks may come by different ways, and an empty piece has nothing to tell a gradient from none: without
// this, one would call a collective that its peers leave out.
void Optimizer::agree_on_gradients(std::vector<Tensor>& grads) {
  std::vector<std::string> names;
  std::vector<double> with_gradient;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    names.push_back(parameters_[i].first);
    with_gradient.push_back(grads[i].defined() ? static_cast<double>(grads[i].num_elements()) : 0.0);
  }
  exchange_->sum_over_pieces(names, with_gradient);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& parameter = parameters_[i].second;
    // On meta nobody else has answered: the others have their gradients where this rank has its own.
    if (parameter.device() == meta) continue;
    if (with_gradient[i] == 0.0) {
      grads[i] = Tensor();
    } else if (!grads[i].defined()) {
      grads[i] = zeros(parameter.shape(),
                       {.dtype = accumulation_dtype(parameter.dtype()), .device = parameter.device()});
    }
  }
}

std::vector<Optimizer::Batch> Optimizer::batches_of(std::span<const Update> updates) const {
  std::map<std::tuple<std::size_t, std::int64_t, DeviceType>, Batch> batches;
  for (std::size_t u = 0; u < updates.size(); ++u) {
    const Update& update = updates[u];
    const DeviceType device = update.grad.device().type;
    Batch& batch = batches[{update.group, update.step, device}];
    batch.group = update.group;
    batch.step = update.step;
    batch.lr = lr_ * groups_[update.group].lr_scale;
    batch.kernels = &kernels::of(device).updates;
    batch.items.push_back(update.item);
    batch.updates.push_back(u);
  }
  std::vector<Batch> list;
  for (auto& [key, batch] : batches) list.push_back(std::move(batch));
  return list;
}

void Optimizer::zero_grad(ZeroGrad how) {
  const NoGrad no_grad;
  for (auto& [name, parameter] : parameters_) {
    Tensor grad = parameter.grad();
    if (!grad.defined()) continue;
    if (how == ZeroGrad::kKeep || is_part_of_larger_storage(grad)) {
      grad.zero();
    } else {
      parameter.set_grad({});
    }
  }
}

void Optimizer::set_lr(double lr) {
  check_lr("set_lr", lr);
  lr_ = lr;
}

NamedTensors Optimizer::state() {
  NamedTensors state;
  for (const StateEntry& entry : state_entries()) state.emplace_back(entry.name, entry.get());
  return state;
}

std::vector<Optimizer::StateEntry> Optimizer::state_entries() {
  const NoGrad no_grad;
  std::vector<StateEntry> entries;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (!slot.allocated) continue;
    make_master_current(i);
    const std::string& name = parameters_[i].first;
    entries.push_back({name + "/step", kI64, [this, i] {
                         return scalar(static_cast<double>(slots_[i].step), {.dtype = kI64, .device = cpu});
                       }});
    if (slot.master.defined() || slot.master_low.defined()) {
      entries.push_back({name + "/master", kF32, [this, i] {
                           const NoGrad without_graph;
                           return master_of(i);
                         }});
    }
    const MomentNames& moments = slot.moment_names;
    for (std::size_t m = 0; m < moments.size(); ++m) {
      entries.push_back({fmt::format("{}/{}", name, moments[m]), slot.moments[m].dtype(),
                         [this, i, m] { return slots_[i].moments[m]; }});
    }
  }
  return entries;
}

void Optimizer::load_state(const NamedTensors& saved) {
  const NoGrad no_grad;
  std::unordered_map<std::string, Tensor> by_name(saved.begin(), saved.end());
  std::vector<std::pair<Tensor, Tensor>> copies;  // target, source
  std::vector<std::pair<std::size_t, Tensor>> masters;
  std::vector<std::int64_t> steps(slots_.size(), 0);
  std::vector<std::string> missing;
  const auto take = [&by_name, &missing](const std::string& name, const Shape& shape) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      missing.push_back(name);
      return Tensor();
    }
    Tensor value = std::move(found->second);
    by_name.erase(found);
    if (!value.defined() || value.shape() != shape) {
      throw DataError(fmt::format("optimizer state: {} must have the shape {}, the saved one is {}", name,
                                  to_string(shape),
                                  value.defined() ? tessera::describe(value) : "undefined"));
    }
    return value;
  };

  for (std::size_t i = 0; i < slots_.size(); ++i) {
    const std::string& name = parameters_[i].first;
    // Saved state of a parameter that required no gradient when this optimizer was made, but did in the saved
    // run.
    if (by_name.contains(name + "/step")) allocate(i);
    const Slot& slot = slots_[i];
    if (!slot.allocated) continue;
    const Shape& shape = parameters_[i].second.shape();
    if (const Tensor step = take(name + "/step", {}); step.defined()) steps[i] = step.item<std::int64_t>();
    if (slot.master.defined() || slot.master_low.defined())
      masters.emplace_back(i, take(name + "/master", shape));
    const MomentNames& moments = slot.moment_names;
    for (std::size_t m = 0; m < moments.size(); ++m) {
      copies.emplace_back(slot.moments[m], take(fmt::format("{}/{}", name, moments[m]), shape));
    }
    if (steps[i] < 0) throw DataError(fmt::format("optimizer state: {}/step is {}", name, steps[i]));
  }
  if (!missing.empty()) {
    throw DataError(
        fmt::format("optimizer state: that of {} lacks {}; was it saved by another kind of optimizer?", type_,
                    join_first(missing)));
  }
  if (!by_name.empty()) {
    std::vector<std::string> unknown;
    for (const auto& [name, value] : by_name) unknown.push_back(name);
    std::sort(unknown.begin(), unknown.end());
    throw DataError(fmt::format("optimizer state: {} has no place for {}", type_, join_first(unknown)));
  }

  for (auto& [target, source] : copies) target.copy_from(source);
  for (const auto& [index, master] : masters) set_master(index, master);
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].step = steps[i];
    slots_[i].master_is_current = slots_[i].allocated;
  }
}

void Optimizer::reset_masters() noexcept {
  for (Slot& slot : slots_) slot.master_is_current = false;
}

std::size_t Optimizer::group_of(const std::string& name) const {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].first == name)
      return slots_[i].group + 1 == groups_.size() ? kNoGroup : slots_[i].group;
  }
  throw IndexError(fmt::format("group_of: {} has no parameter {}", type_, name));
}

std::string Optimizer::describe() const {
  std::string text = fmt::format("{}, lr {}", type_, lr_);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    std::int64_t count = 0, elements = 0;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].group != g) continue;
      ++count;
      elements += parameters_[i].second.num_elements();
    }
    const bool is_default = g + 1 == groups_.size();
    text += fmt::format(
        "\n  {}: {} parameters, {} elements, lr x {}, {}",
        is_default ? (g == 0 ? "all" : "all others") : fmt::format("{}", fmt::join(groups_[g].patterns, " ")),
        count, elements, groups_[g].lr_scale, describe_settings(g));
  }
  return text;
}

Tensor bf16_weight_of(const Tensor& master) {
  const NoGrad no_grad;
  const Tensor from = master.to(kF32).contiguous();
  Tensor weight = empty(from.shape(), {.dtype = kBF16, .device = from.device()});
  Tensor low = empty({2 * from.num_elements()}, {.dtype = kU8, .device = from.device()});
  kernels::of(from.device().type)
      .updates.split_masters(from.view(), weight.mutable_view(), low.mutable_view());
  return weight;
}

NamedTensors numbered(const std::vector<Tensor>& parameters) {
  NamedTensors named;
  for (std::size_t i = 0; i < parameters.size(); ++i) named.emplace_back(std::to_string(i), parameters[i]);
  return named;
}

}  // namespace tessera::optim
