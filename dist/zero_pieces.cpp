// From a model on meta to the parts that this rank holds, and from parts back to whole tensors.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <unordered_set>
#include <vector>

#include "autograd/grad_mode.h"
#include "dist/exact_sum.h"
#include "dist/zero_state.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace detail {
namespace {

// Parameters that have values keep them.
void give_values(const nn::ParameterRecord& record, const FillParameter& fill, Tensor& local) {
  if (local.device() == meta) return;  // nor is there anything to count: it is not of a step
  if (record.tensor.device() != meta) {
    local.copy_from(record.tensor.detach());
  } else if (fill) {
    fill(record, local);
  } else {
    record.init.fill(local, record.stream);
  }
}

std::string storage_name(const ZeroPlan& plan, const ZeroFlat& flat) {
  if (plan.placement.parameters == Spread::kWhole) return plan.units[flat.units[0]].name;
  return fmt::format(
      "{} of unit '{}', which ZeRO gathers while the unit runs",
      plan.parameters[flat.parameters[0]].record.name + (flat.parameters.size() > 1 ? ", ..." : ""),
      plan.units[flat.units[0]].name);
}

}  // namespace

void materialise(nn::Module& model, FlatSet& set, const FillParameter& fill) {
  const NoGrad no_grad;
  std::unordered_set<std::string> parameter_names;
  // Those of other ranks' stages, too: they stay on meta, and only buffers come whole.
  for (const auto& [name, parameter] : model.named_parameters()) parameter_names.insert(name);
  model.materialize(set.options.device,
                    [&](std::string_view path) { return !parameter_names.contains(std::string(path)); });

  const Spread spread = set.plan.placement.parameters;
  for (const ZeroFlat& flat : set.plan.flats) {
    FlatMemory& memory = set.memory.emplace_back();
    {
      const CategoryScope category(MemoryCategory::kParameter);
      const TensorOptions options{.dtype = flat.dtype, .device = set.options.device};
      memory.elements = empty({flat.padded}, options);
      Storage storage = memory.elements.storage();
      storage.set_name(storage_name(set.plan, flat));
      if (spread == Spread::kWhole) {
        memory.elements.slice(0, flat.elements, flat.padded).zero();
      } else {
        storage.drop();
        memory.shard = zeros({set.slice(flat, spread).size()}, options);
      }
    }
    for (const std::size_t index : flat.parameters) {
      const ZeroParameter& place = set.plan.parameters[index];
      Tensor parameter = place.record.tensor;
      const Shape& shape = parameter.shape();
      const Tensor view = memory.elements.as_strided(shape, contiguous_strides(shape), place.offset);
      if (spread == Spread::kWhole) {
        Tensor local = view;
        give_values(place.record, fill, local);
      } else {
        const CategoryScope category(MemoryCategory::kWorkspace);
        Tensor local = empty(shape, {.dtype = flat.dtype, .device = set.options.device});
        give_values(place.record, fill, local);
        set.write_shard(index, local);
      }
      if (parameter.requires_grad()) parameter.set_grad({});
      parameter.rebind(view);
    }
  }
}

// The part of a parameter that lies in this rank's slice.
void FlatSet::write_shard(std::size_t parameter, const Tensor& values) {
  const ZeroParameter& place = plan.parameters[parameter];
  const Range own = slice(plan.flats[place.flat], plan.placement.parameters);
  const Range part = plan.part_of(parameter, own);
  if (part.size() == 0) return;
  const std::int64_t begin = place.offset + part.begin - own.begin;
  memory[place.flat]
      .shard.slice(0, begin, begin + part.size())
      .copy_from(values.contiguous().reshape({-1}).slice(0, part.begin, part.end));
}

// Along dp and cp by the spread; along tp by the layout.
bool ZeroState::counts_in_stage(std::size_t parameter) const {
  const int copies = plan.ranks.size() / plan.ranks.ways(plan.placement.optimizer);
  // Data ranks with the same part are those of equal place in their shard groups: the first group counts.
  if (copies > 1 && data_rank >= plan.ranks.size() / copies) return false;
  const Layout& layout = plan.parameters[parameter].record.tensor.layout();
  for (const MeshAxis axis : {MeshAxis::kEp, MeshAxis::kTp}) {
    if (!layout[axis].is_sharded() && mesh->index(axis) > 0) return false;
  }
  return true;
}

// Stages have parameters of their own, but for those that are shared.
bool ZeroState::counts(std::size_t parameter) const {
  const bool is_shared = plan.flats[plan.parameters[parameter].flat].is_shared;
  if (is_shared && options.sharing_group->rank() > 0) return false;
  return counts_in_stage(parameter);
}

Tensor ZeroState::join(std::size_t parameter, const Tensor& part, Spread spread) const {
  const ZeroParameter& place = plan.parameters[parameter];
  const ZeroFlat& flat = plan.flats[place.flat];
  const Range own = plan.part_of(parameter, slice(flat, spread));
  if (part.num_elements() != own.size()) {
    throw ShapeError(fmt::format("whole: {} elements of '{}' lie on this rank, but the part is {}",
                                 own.size(), place.record.name, describe(part)));
  }
  const CategoryScope category(MemoryCategory::kWorkspace);
  Tensor result = empty(place.record.tensor.shape(), {.dtype = part.dtype(), .device = part.device()});
  if (own.size() > 0) {
    result.as_strided({own.size()}, {1}, own.begin).copy_from(part.detach().contiguous().reshape({-1}));
  }
  // Each of the ranks that hold some of it sends its part. A matrix of a block lies on few of them.
  Communicator& group = spread == Spread::kAll ? *groups.data : *groups.inner;
  std::vector<Work> works;
  const int ways = plan.ranks.ways(spread);
  for (int i = 0; i < ways && ways > 1; ++i) {
    const Range range = plan.part_of(parameter, flat.slice(ways, i));
    if (range.size() == 0) continue;
    const int root =
        spread == Spread::kAll ? i % plan.ranks.outer * plan.ranks.inner + i / plan.ranks.outer : i;
    works.push_back(group.broadcast_async({bytes_at(result, range.begin), range.size(), part.dtype()}, root));
  }
  for (Work& work : works) work.wait();
  return result;
}

namespace {

class ZeroExchange final : public optim::PieceExchange {
 public:
  explicit ZeroExchange(std::shared_ptr<ZeroState> state) : state_(std::move(state)) {}

  void sum_over_pieces(std::span<const std::string> names, std::span<double> sums) override {
    if (names.size() != sums.size()) {
      throw ShapeError(fmt::format("sum_over_pieces: {} names and {} sums", names.size(), sums.size()));
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!state_->counts_in_stage(state_->parameter_index("sum_over_pieces", names[i]))) sums[i] = 0.0;
    }
    for (Communicator* group : groups_of_a_stage()) {
      if (group->size() > 1) group->all_reduce(buffer_of(sums));
    }
  }

  bool sum_squares_exactly(std::span<const std::string> names,
                           const std::function<Tensor(std::size_t)>& piece, std::span<double> sums) override {
    if (!state_->plan.tree_sums) return false;
    std::vector<ExactSumOfSquares> exact(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (state_->counts_in_stage(state_->parameter_index("sum_squares_exactly", names[i])))
        exact[i].add(piece(i));
    }
    for (Communicator* group : groups_of_a_stage()) ExactSumOfSquares::all_reduce(exact, *group);
    std::ranges::transform(exact, sums.begin(), &ExactSumOfSquares::value);
    return true;
  }

  [[nodiscard]] Tensor whole(const std::string& name, const Tensor& piece) override {
    const Tensor local =
        state_->join(state_->parameter_index("whole", name), piece, state_->plan.placement.optimizer);
    return state_->logical(name, local);
  }

  [[nodiscard]] Tensor piece(const std::string& name, const Tensor& whole) override {
    const std::size_t index = state_->parameter_index("piece", name);
    const Tensor local = state_->local_part("piece", index, whole);
    if (state_->plan.placement.optimizer == Spread::kWhole) return local.clone();
    const ZeroFlat& flat = state_->plan.flats[state_->plan.parameters[index].flat];
    const Range part = state_->plan.part_of(index, state_->slice(flat, state_->plan.placement.optimizer));
    return local.contiguous().reshape({-1}).slice(0, part.begin, part.end).clone();
  }

 private:
  /// One after the other, they have all ranks that hold parts of a stage.
  [[nodiscard]] std::array<Communicator*, 2> groups_of_a_stage() const {
    return {state_->groups.data, &state_->mesh->group(MeshAxis::kEp, MeshAxis::kTp)};
  }

  std::shared_ptr<ZeroState> state_;
};

}  // namespace

std::unique_ptr<optim::PieceExchange> make_exchange(std::shared_ptr<ZeroState> state) {
  return std::make_unique<ZeroExchange>(std::move(state));
}

Tensor ZeroState::logical(const std::string& name, const Tensor& local) const {
  return options.tensor_parts.whole ? options.tensor_parts.whole(name, local) : local;
}

Tensor ZeroState::local_part(const char* operation, std::size_t parameter, const Tensor& whole) const {
  const nn::ParameterRecord& record = plan.parameters[parameter].record;
  const Tensor local =
      (options.tensor_parts.part ? options.tensor_parts.part(record.name, whole) : whole).detach();
  if (local.shape() != record.tensor.shape()) {
    throw ShapeError(fmt::format("{}: '{}' is {} on this rank, but the given values are {}", operation,
                                 record.name, to_string(record.tensor.shape()), describe(whole)));
  }
  return local;
}

}  // namespace detail

bool Zero::has(const std::string& name) const {
  return std::ranges::any_of(state_->plan.parameters, [&name](const ZeroParameter& parameter) {
    return parameter.record.name == name;
  });
}

Tensor Zero::whole(const std::string& name) const {
  const std::size_t index = state_->parameter_index("whole", name);
  const ZeroParameter& place = state_->plan.parameters[index];
  const Spread spread = state_->plan.placement.parameters;
  if (spread == Spread::kWhole) return state_->logical(name, place.record.tensor.detach().clone());
  const Range own = state_->slice(state_->plan.flats[place.flat], spread);
  const Range part = state_->plan.part_of(index, own);
  const std::int64_t begin = part.size() == 0 ? 0 : place.offset + part.begin - own.begin;
  const Tensor& shard = state_->memory[place.flat].shard;
  return state_->logical(name, state_->join(index, shard.slice(0, begin, begin + part.size()), spread));
}

Tensor Zero::whole(const std::string& name, const Tensor& piece) const {
  return exchange_->whole(name, piece);
}
Tensor Zero::piece(const std::string& name, const Tensor& whole) const {
  return exchange_->piece(name, whole);
}

void Zero::load(const std::string& name, const Tensor& whole) {
  const NoGrad no_grad;
  const std::size_t index = state_->parameter_index("load", name);
  const Tensor local = state_->local_part("load", index, whole);
  Tensor parameter = state_->plan.parameters[index].record.tensor;
  if (state_->plan.placement.parameters == Spread::kWhole) {
    parameter.copy_from(local);
    return;
  }
  state_->write_shard(index, local);
  state_->gather.drop_all();
}

}  // namespace tessera::dist
