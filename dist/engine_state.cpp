// An engine's checkpoint: whole tensors made of what the ranks hold, and the other way round.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "dist/checkpoint.h"
#include "dist/collectives.h"
#include "dist/engine.h"
#include "dist/engine_parts.h"
#include "dist/gather_texts.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kPp = MeshAxis::kPp;

// "h.0.attn.c_attn.weight/moment1" → the parameter's name.
std::string parameter_of(const std::string& state_name) {
  return state_name.substr(0, state_name.rfind('/'));
}
bool is_step_count(const std::string& state_name) { return state_name.ends_with("/step"); }

Tensor named(const NamedTensors& tensors, const std::string& name, const char* what) {
  for (const auto& [other, tensor] : tensors) {
    if (other == name) return tensor;
  }
  throw DataError(fmt::format("checkpoint: the {} has no '{}'", what, name));
}

constexpr const char* kLossScaleKey = "loss_scale";
constexpr const char* kSkippedStepsKey = "skipped_steps";

std::string to_text(const optim::LossScaler::State& state) {
  return fmt::format("{} {} {}", state.scale, state.steps_without_overflow, state.hysteresis_left);
}

optim::LossScaler::State loss_scale_from(const std::string& text) {
  optim::LossScaler::State state;
  std::istringstream in(text);
  if (!(in >> state.scale >> state.steps_without_overflow >> state.hysteresis_left)) {
    throw DataError(fmt::format("checkpoint: metadata '{}' is '{}', not three numbers", kLossScaleKey, text));
  }
  return state;
}

std::int64_t skipped_steps_from(const std::string& text, std::int64_t steps_done) {
  std::int64_t skipped = -1;
  std::istringstream in(text);
  if (!(in >> skipped) || !in.eof() || skipped < 0 || skipped > steps_done) {
    throw DataError(fmt::format("checkpoint: metadata '{}' is '{}', not a number of steps from 0 to {}",
                                kSkippedStepsKey, text, steps_done));
  }
  return skipped;
}

// Before anything is loaded. `Entry` is TensorInfo or SafetensorsFile::Entry.
template <class Entry>
void check_same_model(const NamedTensors& model, const LaidOut& laid_out, const std::vector<Entry>& entries) {
  for (const auto& [name, tensor] : model) {
    const auto entry = std::ranges::find(entries, name, &Entry::name);
    if (entry == entries.end())
      throw DataError(fmt::format("checkpoint: it has no '{}', which the model has", name));
    const Placement* place = laid_out.find(name);
    const Shape whole = place == nullptr ? tensor.shape() : place->whole_shape;
    if (entry->shape != whole) {
      throw DataError(fmt::format("checkpoint: '{}' is {}, but the model's is {}", name,
                                  to_string(entry->shape), to_string(whole)));
    }
  }
}

}  // namespace

// From the stage that has it to the others; `get` gives it there.
Tensor Engine::from_holder(const std::string& parameter, DType dtype, const Shape& shape,
                           const std::function<Tensor()>& get) const {
  if (parts_->pipeline == nullptr) return get();
  const int holder = parts_->pipeline->holder_of(parameter);
  Tensor values;
  if (parts_->zero->has(parameter)) values = get().contiguous();  // a collective of all that have it
  if (holder != mesh_.index(kPp)) values = empty(shape, {.dtype = dtype, .device = cpu});
  mesh_.group(kPp).broadcast(buffer_of(values), holder);
  return values;
}

// What the optimizer keeps of every parameter. Each rank knows of its own stages' parameters.
std::vector<Engine::StateEntry> Engine::optimizer_entries() const {
  std::vector<StateEntry> own;
  for (const auto& [name, dtype, get] : parts_->optimizer->state_entries()) own.push_back({name, dtype});
  if (parts_->pipeline == nullptr) return own;
  std::string text;
  for (const auto& [name, dtype] : own) text += fmt::format("{}:{}\n", static_cast<int>(dtype), name);
  const std::vector<std::string> texts = gather_texts(text, mesh_.group(kPp));
  std::vector<StateEntry> all;
  for (const std::string& each : texts) {
    std::istringstream lines(each);
    for (std::string line; std::getline(lines, line);) {
      const std::size_t colon = line.find(':');
      StateEntry entry{line.substr(colon + 1), static_cast<DType>(std::stoi(line.substr(0, colon)))};
      const bool is_new =
          std::ranges::none_of(all, [&](const StateEntry& other) { return other.name == entry.name; });
      if (is_new) all.push_back(std::move(entry));
    }
  }
  return all;
}

CheckpointSources Engine::checkpoint_sources() {
  CheckpointSources sources;
  sources.step = steps_done_;
  if (config_.dtype == kF16) {
    sources.metadata[kLossScaleKey] = to_text(parts_->scaler.state());
    sources.metadata[kSkippedStepsKey] = std::to_string(steps_skipped_);
  }
  const LaidOut& laid_out = parts_->laid_out;
  for (const auto& [name, tensor] : model_.state()) {
    const Placement* place = laid_out.find(name);
    sources.model.tensors.push_back(
        {name, tensor.dtype(), place == nullptr ? tensor.shape() : place->whole_shape});
  }
  sources.model.get = [this](const std::string& name) {
    const Placement* place = parts_->laid_out.find(name);
    if (place == nullptr) return named(model_.state(), name, "model");
    const DType dtype = named(model_.state(), name, "model").dtype();
    return from_holder(name, dtype, place->whole_shape, [&] { return parts_->zero->whole(name); });
  };
  std::map<std::string, DType> dtypes;
  for (const auto& [name, dtype] : optimizer_entries()) {
    const Shape shape = is_step_count(name) ? Shape{} : laid_out.placement(parameter_of(name)).whole_shape;
    sources.optimizer.tensors.push_back({name, dtype, shape});
    dtypes[name] = dtype;
  }
  // One at a time: masters may be made for the occasion.
  sources.optimizer.get = [this, entries = parts_->optimizer->state_entries(),
                           dtypes](const std::string& name) {
    const std::string parameter = parameter_of(name);
    const Shape shape = is_step_count(name) ? Shape{} : parts_->laid_out.placement(parameter).whole_shape;
    return from_holder(parameter, dtypes.at(name), shape, [&] {
      const auto entry = std::ranges::find(entries, name, &optim::Optimizer::StateEntry::name);
      if (entry == entries.end()) throw DataError(fmt::format("checkpoint: the optimizer has no '{}'", name));
      const Tensor own = entry->get();
      return is_step_count(name) ? own : parts_->zero->whole(parameter, own);
    });
  };
  return sources;
}

void Engine::load(const CheckpointReader& checkpoint) {
  const NoGrad no_grad;
  optim::LossScaler scaler = parts_->scaler;
  const auto saved_scale = checkpoint.metadata().find(kLossScaleKey);
  if (config_.dtype == kF16 && saved_scale != checkpoint.metadata().end())
    scaler.load_state(loss_scale_from(saved_scale->second));
  const auto saved_skips = checkpoint.metadata().find(kSkippedStepsKey);
  const std::int64_t skipped = saved_skips == checkpoint.metadata().end()
                                   ? 0
                                   : skipped_steps_from(saved_skips->second, checkpoint.step());
  check_same_model(model_.state(), parts_->laid_out, checkpoint.model().entries());
  // The optimizer first: it may be of another kind and refuse.
  NamedTensors pieces;
  for (const auto& entry : checkpoint.optimizer().entries()) {
    const bool known = parts_->laid_out.find(parameter_of(entry.name)) != nullptr;
    if (known && !parts_->zero->has(parameter_of(entry.name))) continue;  // another stage's
    const Tensor whole = checkpoint.optimizer().read(entry.name);
    pieces.emplace_back(entry.name, is_step_count(entry.name) || !known
                                        ? whole
                                        : parts_->zero->piece(parameter_of(entry.name), whole));
  }
  parts_->optimizer->load_state(pieces);
  // Of bf16 state the weights are halves of the masters, in whatever way those of the saved run were rounded.
  const bool has_halves = config_.optimizer.state_dtype == kBF16;
  load_parts([&](const std::string& name) {
    const std::string master = name + "/master";
    return has_halves && checkpoint.optimizer().contains(master)
               ? optim::bf16_weight_of(checkpoint.optimizer().read(master))
               : checkpoint.model().read(name);
  });
  parts_->scaler = scaler;
  steps_skipped_ = skipped;
  steps_done_ = checkpoint.step();
}

void Engine::load_weights(const TensorSource& weights) {
  const NoGrad no_grad;
  check_same_model(model_.state(), parts_->laid_out, weights.tensors);
  load_parts(weights.get);
  parts_->optimizer->reset_masters();
}

void Engine::load_parts(const std::function<Tensor(const std::string& name)>& get) {
  for (const auto& [name, tensor] : model_.state()) {
    const bool is_parameter = parts_->laid_out.find(name) != nullptr;
    if (is_parameter && !parts_->zero->has(name)) continue;
    const Tensor whole = get(name).to(tensor.dtype());
    if (is_parameter) {
      parts_->zero->load(name, whole);
    } else {
      Tensor(tensor).copy_from(whole);
    }
  }
}

}  // namespace tessera::dist
