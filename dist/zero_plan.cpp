#include "dist/zero_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

#include "autograd/graph.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "nn/language_model.h"

namespace tessera::dist {

ZeroPlacement ZeroPlacement::stage(int stage) {
  constexpr Spread kWhole = Spread::kWhole, kAll = Spread::kAll;
  switch (stage) {
    case 0:
      return {kWhole, kWhole, kWhole};
    case 1:
      return {kWhole, kWhole, kAll};
    case 2:
      return {kWhole, kAll, kAll};
    case 3:
      return {kAll, kAll, kAll};
    default:
      throw ConfigError(fmt::format("ZeRO has stages 0, 1, 2 and 3, but {} was asked for", stage));
  }
}

int DataRanks::ways(Spread spread) const noexcept {
  return spread == Spread::kWhole ? 1 : spread == Spread::kInner ? inner : size();
}

// A shard group cuts first, so that gathering parameters never leaves it; the outer groups cut its slices.
int DataRanks::part(Spread spread, int data_rank) const noexcept {
  const int p = data_rank % inner, q = data_rank / inner;
  return spread == Spread::kWhole ? 0 : spread == Spread::kInner ? p : p * outer + q;
}

Range ZeroPlan::part_of(std::size_t parameter, Range slice) const noexcept {
  const std::int64_t first = parameters[parameter].offset;
  const std::int64_t size = parameters[parameter].record.tensor.num_elements();
  const std::int64_t begin = std::max<std::int64_t>(slice.begin - first, 0);
  const std::int64_t end = std::min(slice.end - first, size);
  return begin < end ? Range{begin, end} : Range{};
}

bool ZeroPlan::is_used_in(const ZeroFlat& flat, std::size_t stage) const noexcept {
  return std::ranges::any_of(flat.units, [&](std::size_t u) { return units[u].stage == stage; });
}

std::size_t ZeroPlan::stages_using(const ZeroFlat& flat) const noexcept {
  std::size_t count = 0;
  for (std::size_t stage = 0; stage < num_stages; ++stage) count += is_used_in(flat, stage) ? 1 : 0;
  return count;
}

namespace {

// Where nothing is cut over shard groups, all data ranks are one.
DataRanks arrange(const MeshShape& mesh, const ZeroOptions& options) {
  const int group = options.ranks_per_shard_group;
  const int size = mesh[MeshAxis::kDp] * mesh[MeshAxis::kCp];
  if (group < 0 || (group > 0 && size % group != 0)) {
    throw ConfigError(
        fmt::format("ZeRO: a shard group of {} ranks does not divide the {} data ranks of mesh {} (dp {} x "
                    "cp {}); choose ranks_per_shard_group that do, or 0 for all of them",
                    group, size, mesh.to_string(), mesh[MeshAxis::kDp], mesh[MeshAxis::kCp]));
  }
  const auto [parameters, gradients, optimizer] = options.placement;
  const bool any_inner =
      parameters == Spread::kInner || gradients == Spread::kInner || optimizer == Spread::kInner;
  const int inner = group == 0 || !any_inner ? size : group;
  return {.inner = inner, .outer = size / inner};
}

const char* name(Spread spread) {
  return spread == Spread::kWhole ? "whole" : spread == Spread::kInner ? "inner" : "all";
}

// What is cut into one part is whole, and with one shard group the two ways to cut are one: so the mechanism
// has no special case for them.
ZeroPlacement normalised(const ZeroPlacement& asked, const DataRanks& ranks) {
  if (asked.parameters > asked.gradients || asked.gradients > asked.optimizer) {
    throw ConfigError(
        fmt::format("ZeRO: parameters {}, gradients {}, optimizer {}: gradients must be cut at least as far "
                    "as parameters, and optimizer state at least as far as gradients; nearest: {}, {}, {}",
                    name(asked.parameters), name(asked.gradients), name(asked.optimizer),
                    name(asked.parameters), name(std::max(asked.parameters, asked.gradients)),
                    name(std::max({asked.parameters, asked.gradients, asked.optimizer}))));
  }
  const auto normal = [&ranks](Spread spread) {
    if (ranks.ways(spread) == 1) return Spread::kWhole;
    return ranks.outer == 1 ? Spread::kInner : spread;
  };
  return {normal(asked.parameters), normal(asked.gradients), normal(asked.optimizer)};
}

struct UnitParameters {
  nn::Module* module;
  std::size_t stage;
  std::vector<Tensor> parameters;
};

// Which of the stages has the module; none if it is another rank's.
std::optional<std::size_t> stage_of(const nn::Module& module,
                                    const std::vector<std::vector<nn::Module*>>& stages) {
  if (stages.empty()) return 0;
  for (std::size_t stage = 0; stage < stages.size(); ++stage) {
    for (nn::Module* part : stages[stage]) {
      const std::vector<nn::Module*> below = part->modules();
      if (std::ranges::find(below, &module) != below.end()) return stage;
    }
  }
  return std::nullopt;
}

// A block with all that is below it, or a module with the parameters of its own; parents before children.
void collect_units(nn::Module& module, const std::vector<std::vector<nn::Module*>>& stages,
                   std::vector<UnitParameters>& units) {
  const bool is_block = dynamic_cast<nn::Block*>(&module) != nullptr;
  const NamedTensors parameters = is_block ? module.named_parameters() : module.own_parameters();
  const std::optional<std::size_t> stage = stage_of(module, stages);
  if (!parameters.empty() && stage) {
    units.push_back({&module, *stage, {}});
    for (const auto& [parameter_name, parameter] : parameters) units.back().parameters.push_back(parameter);
  }
  if (is_block) return;
  for (const auto& [child_name, child] : module.children()) collect_units(*child, stages, units);
}

std::vector<MeshAxis> sum_axes(const nn::ParameterRecord& record, const MeshShape& mesh) {
  std::vector<MeshAxis> axes;
  for (const MeshAxis axis : kMeshAxes) {
    const AxisLayout layout = record.tensor.layout()[axis];
    if (layout.is_partial()) {
      throw ConfigError(
          fmt::format("ZeRO: the parameter {} has the layout {}; a parameter is never a partial "
                      "sum: make it R, and its gradient is summed over {}",
                      record.name, to_string(record.tensor.layout()), tessera::name(axis)));
    }
    const bool is_data = axis == MeshAxis::kDp || axis == MeshAxis::kCp;
    if (layout.is_replicated() && !is_data && mesh[axis] > 1) axes.push_back(axis);
  }
  return axes;
}

// With tree_sums each unit that uses a parameter has a sum of its own, and these are added in the end: two in
// any order, more only where they are together. And a pass for weights does not say which unit it is in.
void check_shared_units(const ZeroPlan& plan, const std::vector<UnitParameters>& all_units,
                        const ZeroOptions& options) {
  for (const ZeroFlat& flat : plan.flats) {
    const nn::ParameterRecord& record = plan.parameters[flat.parameters[0]].record;
    const auto users = std::ranges::count_if(all_units, [&record](const UnitParameters& unit) {
      return std::ranges::any_of(
          unit.parameters, [&record](const Tensor& parameter) { return parameter.is_same(record.tensor); });
    });
    if (flat.is_shared && users > 2) {
      throw ConfigError(
          fmt::format("ZeRO: with tree_sums, two layers can share a parameter over the stages of a pipeline, "
                      "but '{}' is in {}: the sum over ranks would depend on where they lie; without a "
                      "pipeline it works",
                      record.name, users));
    }
    for (std::size_t stage = 0; stage < plan.num_stages && options.splits_backward; ++stage) {
      const auto here = std::ranges::count_if(
          flat.units, [&plan, stage](std::size_t u) { return plan.units[u].stage == stage; });
      if (here < 2) continue;
      throw ConfigError(
          fmt::format("ZeRO: with tree_sums, '{}' is in {} layers of one stage, and a pass for the gradients "
                      "of weights can't tell them apart; schedules that do not split backward work",
                      record.name, here));
    }
  }
}

}  // namespace

ZeroPlan plan_zero(nn::Module& model, const MeshShape& mesh, const ZeroOptions& options) {
  ZeroPlan plan;
  plan.mesh = mesh;
  plan.ranks = arrange(mesh, options);
  plan.placement = normalised(options.placement, plan.ranks);
  plan.keep_full_gradients = options.keep_full_gradients || options.tree_sums;
  plan.tree_sums = options.tree_sums;
  plan.persistence_threshold = options.persistence_threshold;

  plan.num_stages = std::max<std::size_t>(options.stages.size(), 1);
  plan.num_sharing = options.sharing_group == nullptr ? 1 : options.sharing_group->size();

  std::vector<UnitParameters> units;
  collect_units(model, options.stages, units);
  std::vector<UnitParameters> all;
  if (!options.stages.empty()) {
    collect_units(model, {}, all);
    plan.first_stage = all.empty() ? std::nullopt : stage_of(*all.front().module, options.stages);
  }
  for (const auto& [module, stage, parameters] : units) {
    plan.units.push_back({.name = module->name(), .module = module, .stage = stage, .flats = {}});
  }

  // A flat for each combination of what its parameters must have in common. One that is shared has a flat of
  // its own, so that it is cut alike on the ranks that share it.
  std::map<std::tuple<std::vector<std::size_t>, DType, bool, std::vector<MeshAxis>, std::string>, std::size_t>
      flat_of;
  for (nn::ParameterRecord& record : model.parameter_records()) {
    std::vector<std::size_t> users;
    for (std::size_t u = 0; u < units.size(); ++u) {
      const bool uses = std::ranges::any_of(units[u].parameters, [&record](const Tensor& parameter) {
        return parameter.is_same(record.tensor);
      });
      if (uses) users.push_back(u);
    }
    if (users.empty()) continue;  // another rank's
    const bool trainable = record.tensor.requires_grad();
    const bool is_shared =
        std::ranges::find(options.shared_parameters, record.name) != options.shared_parameters.end();
    const DType dtype = record.tensor.dtype();
    std::vector<MeshAxis> axes = sum_axes(record, mesh);
    const auto [found, is_new] = flat_of.try_emplace(
        {users, dtype, trainable, axes, is_shared ? record.name : std::string()}, plan.flats.size());
    if (is_new) {
      for (const std::size_t u : users) plan.units[u].flats.push_back(plan.flats.size());
      plan.flats.push_back({.parameters = {},
                            .units = users,
                            .sum_axes = std::move(axes),
                            .is_shared = is_shared,
                            .dtype = dtype,
                            .gradient_dtype = accumulation_dtype(dtype),
                            .trainable = trainable});
    }
    ZeroFlat& flat = plan.flats[found->second];
    flat.parameters.push_back(plan.parameters.size());
    plan.parameters.push_back({std::move(record), found->second, flat.elements});
    flat.elements += plan.parameters.back().record.tensor.num_elements();
  }

  // The finest cut decides: a frozen flat has only parameters.
  for (ZeroFlat& flat : plan.flats) {
    const std::int64_t parts =
        plan.ranks.ways(flat.trainable ? plan.placement.optimizer : plan.placement.parameters);
    flat.padded = (flat.elements + parts - 1) / parts * parts;
  }
  if (plan.tree_sums) check_shared_units(plan, all, options);
  return plan;
}

LeafOwners sample_owners(const MeshShape& mesh, std::int64_t num_samples) {
  const int dp = mesh[MeshAxis::kDp], cp = mesh[MeshAxis::kCp];
  LeafOwners owners{.num_leaves = num_samples, .runs = {}};
  for (int rank = 0; rank < dp * cp; ++rank) {
    const std::int64_t begin = shard_begin(num_samples, dp, rank / cp);
    owners.runs.push_back({begin, begin + shard_size(num_samples, dp, rank / cp)});
  }
  return owners;
}

}  // namespace tessera::dist
