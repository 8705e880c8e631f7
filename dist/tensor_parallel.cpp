#include "dist/tensor_parallel.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/indexing.h"
#include "dist/collectives.h"
#include "dist/invariant_heads.h"
#include "dist/invariant_linear.h"
#include "dist/invariant_tokens.h"
#include "dist/vocab_parallel.h"
#include "kernels/error.h"
#include "kernels/suggest.h"
#include "nn/causal_self_attention.h"
#include "nn/embedding.h"
#include "nn/gpt2.h"
#include "nn/layer_norm.h"
#include "nn/linear.h"
#include "nn/llama.h"
#include "nn/multi_head_attention.h"
#include "nn/rms_norm.h"
#include "nn/token_positions.h"
#include "optim/parameter_groups.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;
constexpr int kTokenDim = 1;  // of [B, T, D]

// --- Doors: what happens to activations --------------------------------------------------------------------

// Invariant layers reduce their own gradients: what comes in is I, and needs no copy_to_ranks.
Tensor enter(const Tensor& x, const Mesh& mesh, const TensorParallelOptions& options) {
  if (options.invariant) return options.sequence_parallel ? gather_tokens(x, mesh, kTp, tokens_over_tp()) : x;
  return options.sequence_parallel ? all_gather(x, kTokenDim, mesh, kTp, tokens_over_tp())
                                   : copy_to_ranks(x, mesh, kTp);
}

Tensor leave(const Tensor& partial, const Mesh& mesh, const TensorParallelOptions& options) {
  if (options.sequence_parallel && !options.invariant) return reduce_scatter(partial, kTokenDim, mesh, kTp);
  const Tensor sum = all_reduce(partial, mesh, kTp);
  return options.sequence_parallel ? cut_tokens(sum, mesh, kTp) : sum;
}

nn::ForwardHook on_first(std::function<Tensor(const Tensor&)> change) {
  return [change = std::move(change)](nn::Module&, std::span<Tensor> tensors) {
    tensors[0] = change(tensors[0]);
  };
}

// While a model runs on ids [B, T], RankContext::sequence_length is T: cut tensors don't tell how long their
// sequences are. Where a sequence is cut over cp as well, ids are a part, and whoever cut them has said it.
void tell_sequence_length(nn::Module& model) {
  const auto before = std::make_shared<std::int64_t>(0);
  model.add_forward_pre_hook([before](nn::Module&, std::span<Tensor> inputs) {
    RankContext& context = RankContext::current();
    *before = context.sequence_length;
    const bool are_ids = !inputs.empty() && inputs[0].dims() == 2 && inputs[0].dtype() == kI64;
    if (context.token_positions == nullptr && are_ids) context.sequence_length = inputs[0].dim(1);
  });
  model.add_forward_hook(
      [before](nn::Module&, std::span<Tensor>) { RankContext::current().sequence_length = *before; });
}

// Which key/value head each of a rank's query heads reads, as few of them as attention can share evenly.
std::vector<std::int64_t> heads_read(std::int64_t query_heads, std::int64_t key_heads, int num_ranks,
                                     int rank) {
  const std::int64_t begin = shard_begin(query_heads, num_ranks, rank);
  const std::int64_t count = shard_size(query_heads, num_ranks, rank);
  std::vector<std::int64_t> of_each;
  for (std::int64_t h = begin; h < begin + count; ++h) of_each.push_back(h / (query_heads / key_heads));
  std::vector<std::int64_t> distinct = of_each;
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const std::int64_t share = distinct.empty() ? 1 : count / static_cast<std::int64_t>(distinct.size());
  for (std::int64_t i = 0; i < count; ++i) {
    const auto group = static_cast<std::size_t>(i / share);
    if (group >= distinct.size() || distinct[group] != of_each[static_cast<std::size_t>(i)]) return of_each;
  }
  return distinct;
}

// R → S(2): of keys or values of all heads [B, T, G·K], those that this rank's queries read.
Tensor select_heads(const Tensor& x, std::int64_t key_heads, const std::vector<std::int64_t>& heads) {
  const std::int64_t width = x.dim(-1) / key_heads;
  std::vector<Tensor> chosen;
  for (const std::int64_t head : heads) chosen.push_back(x.slice(2, head * width, (head + 1) * width));
  const Tensor own = chosen.empty() ? x.slice(2, 0, 0) : concat(chosen, 2);
  if (!RankContext::current().check_layouts) return own;
  return Tensor(own).set_layout(x.layout().with(kTp, AxisLayout::sharded(2, AxisLayout::Order::kPacked)));
}

}  // namespace

// --- Laying out --------------------------------------------------------------------------------------------

class TensorParallel {
 public:
  TensorParallel(nn::Module& model, const Mesh& mesh, const TensorParallelOptions& options)
      : model_(model), mesh_(mesh), options_(options) {
    options_.sequence_parallel = options.sequence_parallel && mesh.size(kTp) > 1;
    for (const nn::ParameterRecord& record : model.parameter_records()) {
      if (record.tensor.device() != meta) {
        throw DeviceError(
            fmt::format("lay_out: '{}' has memory already; build the model under DeviceScope(meta), "
                        "lay it out, and materialise it then",
                        record.name));
      }
      Layout layout;
      if (mesh.size(MeshAxis::kDp) > 1) layout = layout.with(MeshAxis::kDp, AxisLayout::replicated());
      if (mesh.size(MeshAxis::kCp) > 1) layout = layout.with(MeshAxis::kCp, AxisLayout::replicated());
      Tensor(record.tensor).set_layout(layout);
      Placement& place = places_[record.name];
      place.whole_shape = record.tensor.shape();
      place.num_ranks = mesh.size(kTp);
      place.rank = mesh.index(kTp);
    }
  }

  void apply(const PlanRow& row) {
    const std::vector<nn::Module*> modules = matching(row.pattern);
    if (mesh_.size(kTp) == 1 && !options_.invariant) return;
    for (nn::Module* module : modules) apply(row, *module);
  }

  /// After all rows: what Invariant numerics do where tokens are cut.
  void bring_tokens_together() {
    const TokenRanksPtr ranks = token_ranks(mesh_, options_.sequence_parallel);
    if (!options_.invariant || (mesh_.size(kTp) == 1 && mesh_.size(MeshAxis::kCp) == 1)) return;
    for (nn::Module* module : model_.modules()) {
      if (auto* norm = dynamic_cast<nn::LayerNorm*>(module)) {
        norm->set_token_ranks(ranks);
      } else if (auto* rms_norm = dynamic_cast<nn::RmsNorm*>(module)) {
        rms_norm->set_token_ranks(ranks);
      } else if (dynamic_cast<nn::Embedding*>(module) == nullptr && !invariant_linears_.contains(module) &&
                 !module->own_parameters().empty()) {
        throw ConfigError(
            fmt::format("lay_out: how the gradients of '{}', a {}, are summed over tokens is not known, so "
                        "they would not be invariant; layers of the plan, norms and embeddings work, or tp "
                        "= cp = 1",
                        module->name(), module->type_name()));
      }
    }
  }

  std::map<std::string, Placement> take_places() { return std::move(places_); }
  [[nodiscard]] std::map<std::string, Layout> layouts() const {
    std::map<std::string, Layout> layouts;
    for (const auto& [name, tensor] : model_.named_parameters()) layouts[name] = tensor.layout();
    return layouts;
  }

 private:
  [[nodiscard]] std::vector<nn::Module*> matching(const std::string& pattern) const {
    std::vector<nn::Module*> found;
    std::vector<std::string> names;
    for (nn::Module* module : model_.modules()) {
      if (optim::matches(pattern, module->name())) found.push_back(module);
      names.push_back(module->name());
    }
    if (found.empty()) {
      throw ConfigError(fmt::format("lay_out: the plan's '{}' matches no module of {}; the nearest is '{}'",
                                    pattern, model_.type_name(), nearest_name(pattern, names)));
    }
    return found;
  }

  template <class T>
  T& as(nn::Module& module, const char* what) const {
    if (auto* typed = dynamic_cast<T*>(&module)) return *typed;
    throw ConfigError(
        fmt::format("lay_out: '{}' is to be {}, but it is a {}", module.name(), what, module.type_name()));
  }

  void apply(const PlanRow& row, nn::Module& module) {
    switch (row.role) {
      case Role::kEnter:
        module.add_forward_pre_hook(
            [this_mesh = &mesh_, options = options_](nn::Module& entered, std::span<Tensor> tensors) {
              const auto through = [=](const Tensor& x) { return enter(x, *this_mesh, options); };
              // The gathered sequence is t times what this rank keeps: gathered again in the backward pass
              // where memory counts more than traffic (Korthikanti et al., 2022).
              const bool again = options.sequence_parallel && entered.recomputes_cheap_values();
              tensors[0] = again ? recomputed(through, tensors[0]) : through(tensors[0]);
            });
        return;
      case Role::kColumn:
        return column(as<nn::Linear>(module, "an nn::Linear whose outputs are cut"), row);
      case Role::kRow:
        return row_parallel(as<nn::Linear>(module, "an nn::Linear whose inputs are cut"), row);
      case Role::kVocabulary:
        return vocabulary(module);
      case Role::kHeads:
        return heads(row, module);
      case Role::kKeyValue:
        return key_value(as<nn::Linear>(module, "an nn::Linear that gives keys or values"), row);
      case Role::kTokens:
        for (const auto& [name, tensor] : module.own_parameters()) replicate_for_tokens(tensor);
        return;
    }
  }

  void column(nn::Linear& linear, const PlanRow& row) {
    make_invariant(linear, LinearCut::kOutputs, row);
    for (auto& [name, tensor] : linear.own_parameters()) cut(tensor, {0, row.blocks, row.units});
  }

  // The leaves of its sums are what the cuts of all numbers of ranks leave, and these may differ in units.
  void make_invariant(nn::Linear& linear, LinearCut side, const PlanRow& row) {
    if (!options_.invariant) return;
    const int dim = side == LinearCut::kOutputs ? 0 : 1;
    std::vector<ContractionLeaves::RankCut> cuts;
    for (const int ranks : kLeafRanks) {
      const PlanRow other = row_on(ranks, row);
      const bool is_key_value = other.role == Role::kKeyValue;
      if (is_key_value && other.units < ranks) continue;
      cuts.push_back({ranks, {dim, is_key_value ? 1 : other.blocks, other.units}});
    }
    const std::int64_t size = places_.at(name_of(linear.weight())).whole_shape[dim];
    const bool is_whole = row.role == Role::kKeyValue && row.units < mesh_.size(kTp);
    linear.set_function(invariant_linear(side, ContractionLeaves(size, std::move(cuts)), mesh_, is_whole));
    invariant_linears_.insert(&linear);
  }

  // The row of the plan for another number of ranks, where the plan is one of ours.
  [[nodiscard]] PlanRow row_on(int ranks, const PlanRow& row) {
    if (!plans_.contains(ranks)) {
      const bool is_ours = dynamic_cast<const nn::Gpt2*>(&model_) != nullptr ||
                           dynamic_cast<const nn::Llama*>(&model_) != nullptr;
      plans_[ranks] = is_ours ? tensor_parallel_plan(model_, ranks) : Plan();
    }
    for (const PlanRow& other : plans_[ranks]) {
      if (other.pattern == row.pattern && other.role == row.role) return other;
    }
    return row;
  }

  void row_parallel(nn::Linear& linear, const PlanRow& row) {
    if (options_.invariant) {
      // Summed, and given its bias, for all tokens: the bias is I.
      const Cut how{1, row.blocks, row.units};
      make_invariant(linear, LinearCut::kInputs, row);
      cut(linear.weight(), how);
      if (options_.sequence_parallel)
        linear.add_forward_hook(
            on_first([mesh = &mesh_](const Tensor& y) { return cut_tokens(y, *mesh, kTp); }));
      return;
    }
    for (auto& [name, tensor] : linear.own_parameters()) {
      if (name == "weight") {
        cut(tensor, {1, row.blocks, row.units});
      } else {
        replicate_for_tokens(tensor);  // added once, after the reduction
      }
    }
    linear.set_product_hook([mesh = &mesh_, options = options_](const Tensor& product) {
      return leave(product, *mesh, options);
    });
  }

  void vocabulary(nn::Module& module) {
    const Tensor weight = module.find_parameter("weight");
    const std::int64_t count = whole_rows(weight);
    auto* linear = dynamic_cast<nn::Linear*>(&module);
    if (linear != nullptr) make_invariant(*linear, LinearCut::kOutputs, {"", Role::kVocabulary});
    cut(weight, {0, 1, 0});
    if (dynamic_cast<nn::Embedding*>(&module) != nullptr) {
      const bool together = options_.invariant && mesh_.size(MeshAxis::kCp) > 1;
      if (together) {
        module.add_forward_pre_hook(on_first([mesh = &mesh_](const Tensor& ids) {
          return gather_tokens(ids, *mesh, MeshAxis::kCp, RankContext::current().sequence_length);
        }));
      }
      module.add_forward_pre_hook(on_first(
          [mesh = &mesh_, count](const Tensor& ids) { return mask_foreign_ids(ids, count, *mesh, kTp); }));
      module.add_forward_hook(on_first(
          [mesh = &mesh_, options = options_](const Tensor& y) { return leave(y, *mesh, options); }));
      if (together) cut_embedded_over_cp(module, weight.dim(0));  // before the hook that was added before
      return;
    }
    static_cast<void>(
        as<nn::Linear>(module, "an nn::Embedding or an nn::Linear whose rows are the vocabulary"));
    module.add_forward_pre_hook(
        on_first([mesh = &mesh_, options = options_](const Tensor& x) { return enter(x, *mesh, options); }));
  }

  // The gradient of a row of the table is then a sum over all tokens, in their order.
  void cut_embedded_over_cp(nn::Module& embedding, std::int64_t num_rows) {
    const auto rows = std::make_shared<Tensor>();  // from the door in to the door out
    embedding.add_forward_pre_hook(on_first([rows](const Tensor& ids) {
      *rows = ids;
      return ids;
    }));
    embedding.add_forward_hook(on_first([mesh = &mesh_, rows, num_rows](const Tensor& y) {
      return cut_embedded_tokens(y, std::exchange(*rows, {}), num_rows, *mesh);
    }));
  }

  void heads(const PlanRow& row, nn::Module& module) {
    // Query heads of a unit: several, where a unit is a key/value head with the queries that read it.
    const auto tell = [&](auto& attention) {
      const std::int64_t per_unit = row.blocks;
      attention.set_heads(shard_begin(row.units, mesh_.size(kTp), mesh_.index(kTp)) * per_unit,
                          row.units * per_unit);
    };
    if (auto* packed = dynamic_cast<nn::CausalSelfAttention*>(&module)) return tell(*packed);
    tell(as<nn::MultiHeadAttention>(module, "an attention of nn"));
  }

  // row.units key/value heads, row.blocks query heads for each.
  void key_value(nn::Linear& linear, const PlanRow& row) {
    if (options_.invariant) return invariant_key_value(linear, row);
    if (row.units >= mesh_.size(kTp)) return column(linear, {row.pattern, Role::kColumn, 1, row.units});
    for (auto& [name, tensor] : linear.own_parameters()) set_tp(tensor, AxisLayout::replicated());
    const std::vector<std::int64_t> chosen =
        heads_read(row.units * row.blocks, row.units, mesh_.size(kTp), mesh_.index(kTp));
    linear.add_forward_hook(on_first(
        [chosen, key_heads = row.units](const Tensor& y) { return select_heads(y, key_heads, chosen); }));
  }

  void invariant_key_value(nn::Linear& linear, const PlanRow& row) {
    make_invariant(linear, LinearCut::kOutputs, row);
    const bool is_whole = row.units < mesh_.size(kTp);
    for (auto& [name, tensor] : linear.own_parameters())
      if (!is_whole) cut(tensor, {0, 1, row.units});
    if (row.blocks == 1 && !is_whole) return;
    const GroupedHeads heads{row.units * row.blocks, row.units, is_whole};
    linear.add_forward_hook(on_first([mesh = &mesh_, heads](const Tensor& y) {
      // Without gradients, attention reads keys that are there once, unless a rank's query heads do not fit.
      return RankContext::current().grad_enabled || heads.keys_are_whole
                 ? copy_for_query_heads(y, heads, *mesh)
                 : y;
    }));
  }

  void replicate_for_tokens(const Tensor& parameter) {
    if (options_.sequence_parallel) set_tp(parameter, AxisLayout::replicated());
  }

  static void set_tp(Tensor parameter, AxisLayout tp) {
    parameter.set_layout(parameter.layout().with(kTp, tp));
  }

  [[nodiscard]] const std::string& name_of(const Tensor& parameter) {
    if (names_.empty()) names_ = model_.named_parameters();
    for (const auto& [name, tensor] : names_) {
      if (tensor.is_same(parameter)) return name;
    }
    throw ConfigError("lay_out: a parameter of the plan belongs to another model");
  }

  [[nodiscard]] std::int64_t whole_rows(const Tensor& parameter) {
    return places_.at(name_of(parameter)).whole_shape[0];
  }

  // A tied weight is met twice and cut once; both must ask for the same.
  void cut(Tensor parameter, const Cut& how) {
    if (mesh_.size(kTp) == 1) return;
    Placement& place = places_.at(name_of(parameter));
    if (place.is_cut) {
      if (place.cut == how) return;
      throw ConfigError(
          fmt::format("lay_out: '{}' is tied, and the plan cuts it in two ways", name_of(parameter)));
    }
    place.is_cut = true;
    place.cut = how;
    parameter.rebind(empty(place.own_shape(), {.dtype = parameter.dtype(), .device = meta}));
    set_tp(parameter, AxisLayout::sharded(how.dim, how.blocks == 1 ? AxisLayout::Order::kInOrder
                                                                   : AxisLayout::Order::kPacked));
  }

  nn::Module& model_;
  const Mesh& mesh_;
  TensorParallelOptions options_;
  std::set<const nn::Module*> invariant_linears_;
  std::map<int, Plan> plans_;  // by number of tp ranks, as far as asked for
  NamedTensors names_;
  std::map<std::string, Placement> places_;
};

LaidOut lay_out(nn::Module& model, const Plan& plan, const Mesh& mesh, const TensorParallelOptions& options) {
  TensorParallel work(model, mesh, options);
  RankContext& context = RankContext::current();
  for (const MeshAxis axis : kMeshAxes)
    context.mesh[static_cast<std::size_t>(axis)] = {mesh.index(axis), mesh.size(axis)};
  const bool sequence_parallel = options.sequence_parallel && mesh.size(kTp) > 1;
  if (sequence_parallel) tell_sequence_length(model);
  for (const PlanRow& row : plan) work.apply(row);
  work.bring_tokens_together();
  LaidOut result;
  result.layouts_ = work.layouts();
  result.placements_ = work.take_places();
  result.sequence_parallel_ = sequence_parallel;
  return result;
}

void materialize(nn::Module& model, const LaidOut& laid_out) {
  const CategoryScope category(MemoryCategory::kParameter);
  for (const nn::ParameterRecord& record : model.parameter_records()) {
    Tensor values = empty(record.tensor.shape(), {.dtype = record.tensor.dtype()});
    laid_out.placement(record.name).fill_initial(record, values);
    Tensor parameter = record.tensor;
    parameter.rebind(values);
    Storage storage = parameter.storage();
    storage.set_name(record.name);
  }
  model.materialize();  // buffers
}

const Placement* LaidOut::find(const std::string& parameter) const {
  const auto found = placements_.find(parameter);
  return found == placements_.end() ? nullptr : &found->second;
}

const Placement& LaidOut::placement(const std::string& parameter) const {
  const auto found = placements_.find(parameter);
  if (found == placements_.end())
    throw IndexError(fmt::format("lay_out: there is no parameter '{}'", parameter));
  return found->second;
}

std::string LaidOut::to_string() const {
  std::string text = fmt::format("{:<40} {:<16} {:<16} {}\n", "parameter", "whole", "here", "layout");
  for (const auto& [name, place] : placements_) {
    text += fmt::format("{:<40} {:<16} {:<16} {}\n", name, tessera::to_string(place.whole_shape),
                        tessera::to_string(place.own_shape()), tessera::to_string(layouts_.at(name)));
  }
  return text;
}

Tensor LaidOut::whole(const std::string& parameter, const Tensor& part, const Mesh& mesh) const {
  const Placement& place = placement(parameter);
  if (!place.is_cut) return part.detach().clone();
  const LayoutChecks no_layout_checks(false);
  // Parts may differ in length: they travel padded to the longest, which is the first.
  Placement first = place;
  first.rank = 0;
  const CategoryScope category(MemoryCategory::kCommunication);
  const std::int64_t padded = first.own_shape().num_elements();
  Tensor mine = zeros({padded}, {.dtype = part.dtype()});
  mine.slice(0, 0, part.num_elements()).copy_from(part.detach().contiguous().reshape({part.num_elements()}));
  const Tensor all = all_gather(mine, 0, mesh.group(kTp));
  Tensor whole = empty(place.whole_shape, {.dtype = part.dtype()});
  for (int r = 0; r < place.num_ranks; ++r) {
    Placement other = place;
    other.rank = r;
    const Shape shape = other.own_shape();
    place.put_part(whole, all.slice(0, r * padded, r * padded + shape.num_elements()).reshape(shape), r);
  }
  return whole;
}

}  // namespace tessera::dist
