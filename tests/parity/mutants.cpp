#include "tests/parity/mutants.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/zero.h"
#include "nn/attention_core.h"
#include "nn/linear.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/parity/run.h"

namespace tessera::dist::parity {
namespace {

constexpr MeshAxis kDp = MeshAxis::kDp, kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;

std::vector<nn::Linear*> row_parallel_layers(nn::Module& model) {
  std::vector<nn::Linear*> layers;
  for (nn::Module* module : model.modules()) {
    auto* linear = dynamic_cast<nn::Linear*>(module);
    if (linear != nullptr && linear->weight().layout()[kTp].is_sharded() &&
        linear->weight().layout()[kTp].dim() == 1)
      layers.push_back(linear);
  }
  return layers;
}

// The output layer goes on with the weights that it had when this was called.
void keep_tied_weight(Engine& engine) {
  auto& head = dynamic_cast<nn::Linear&>(engine.model().find_module("lm_head"));
  const auto input = std::make_shared<Tensor>();
  head.add_forward_pre_hook([input](nn::Module&, std::span<Tensor> x) { *input = x[0]; });
  head.set_product_hook(
      [input, old = head.weight().detach().clone()](const Tensor&) { return linear(*input, old, {}); });
}

// The gain that updates are spoilt of: whole on every rank of every mesh.
constexpr const char* kSpoiltGain = "h.1.ln_2.weight";

void take_gradient_of_first(Engine& engine, const char* parameter, MeshAxis axis) {
  register_hook(engine.model().find_parameter(parameter),
                [first = engine.mesh().index(axis) == 0](const Tensor& grad) {
                  return first ? grad : zeros_like(grad);
                });
}

// The first of a rank's pieces that is part of what other ranks of tp hold as well.
Tensor piece_of_uncut(Engine& engine) {
  for (const auto& [name, piece] : engine.zero().pieces()) {
    if (piece.num_elements() > 0 && !engine.laid_out().placement(name).is_cut) return piece;
  }
  return {};
}

}  // namespace

const char* name(Mutant mutant) {
  constexpr const char* kNames[] = {"none",
                                    "MeanOfMeans",
                                    "WrongDivisor",
                                    "IgnoredTargetsCount",
                                    "SharedSampleOffset",
                                    "SharedSamples",
                                    "SkippedMicroBatch",
                                    "UnreducedParameter",
                                    "NoClipping",
                                    "DecayDropped",
                                    "OwnSeed",
                                    "NothingTrained",
                                    "StaleCopy",
                                    "MissedLastUpdate",
                                    "NudgedReplica",
                                    "StaleTiedWeight",
                                    "StalePositions",
                                    "ShiftedTargets",
                                    "SharedHeads",
                                    "BiasAddedTwice",
                                    "ReductionForgotten",
                                    "ReductionDropped",
                                    "CopyDropped",
                                    "InvariantNorm",
                                    "UnsummedNorm",
                                    "UnsummedKeyValue"};
  return kNames[static_cast<std::size_t>(mutant)];
}

void spoil_settings(Mutant mutant, Config& config, EngineOptions& options) {
  if (mutant == Mutant::kNoClipping) config.gradient_clipping = 0.0;
  if (mutant == Mutant::kNothingTrained) config.optimizer.lr = 0.0;
  if (mutant == Mutant::kDecayDropped) options.groups = {{.patterns = {"*"}, .weight_decay = 0.0}};
  if (mutant == Mutant::kCopyDropped)
    std::erase_if(options.plan,
                  [](const PlanRow& row) { return row.role == Role::kEnter && row.pattern == "h.*.mlp"; });
}

void spoil_model(Mutant mutant, Engine& engine) {
  const Mesh& mesh = engine.mesh();
  nn::LanguageModel& model = engine.model();
  switch (mutant) {
    case Mutant::kUnreducedParameter:
      take_gradient_of_first(engine, kSpoiltGain, kDp);
      return;
    case Mutant::kUnsummedNorm:
      take_gradient_of_first(engine, "h.0.ln_1.weight", kTp);
      return;
    case Mutant::kUnsummedKeyValue:
      take_gradient_of_first(engine, "layers.0.self_attn.k_proj.weight", kTp);
      return;
    case Mutant::kOwnSeed:
      RankContext::current().seed += static_cast<std::uint64_t>(mesh.world().rank());
      return;
    case Mutant::kStalePositions:
      model.add_forward_pre_hook([](nn::Module&, std::span<Tensor> ids) {
        auto positions = std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(ids[0].dim(1)));
        std::iota(positions->begin(), positions->end(), 0);
        RankContext::current().token_positions = positions;
      });
      return;
    case Mutant::kSharedHeads:
      for (nn::Module* module : model.modules()) {
        if (auto* core = dynamic_cast<nn::AttentionCore*>(module)) core->set_heads(0, 4);
      }
      return;
    case Mutant::kBiasAddedTwice:
      for (nn::Linear* linear : row_parallel_layers(model)) {
        linear->set_product_hook([linear, &mesh](const Tensor& product) {
          return all_reduce(product, mesh, kTp) + linear->bias() * static_cast<double>(mesh.size(kTp) - 1);
        });
      }
      return;
    case Mutant::kReductionForgotten:
      for (nn::Linear* linear : row_parallel_layers(model)) {
        linear->set_product_hook([](const Tensor& product) {
          return Tensor(product).set_layout(product.layout().with(kTp, AxisLayout::invariant()));
        });
      }
      return;
    case Mutant::kReductionDropped:
      for (nn::Linear* linear : row_parallel_layers(model)) linear->set_product_hook(nullptr);
      return;
    case Mutant::kInvariantNorm: {
      Tensor gain = model.find_parameter("h.0.ln_1.weight");
      gain.set_layout(gain.layout().with(kTp, AxisLayout::invariant()));
      return;
    }
    default:
      return;
  }
}

void spoil_pass(Mutant mutant, const Engine& engine, std::int64_t own_first, MicroBatch& pass) {
  if (mutant == Mutant::kSharedSampleOffset) pass.first_sample -= own_first;
  if (mutant == Mutant::kShiftedTargets) {
    const Mesh& mesh = engine.mesh();
    std::vector<std::int64_t> inputs(static_cast<std::size_t>(pass.ids.dim(0) * kTime)),
        targets(inputs.size());
    fill(engine.steps_done(), pass.first_sample, pass.ids.dim(0), inputs, targets);
    const Tensor whole = from_vector(targets, Shape{pass.ids.dim(0), kTime});
    const std::int64_t begin = shard_begin(kTime, mesh.size(kCp), mesh.index(kCp));
    const std::int64_t size = std::min(pass.ids.dim(1), kTime - begin);
    pass.targets.slice(1, 0, pass.ids.dim(1))
        .copy_from(whole.slice(1, begin + size - pass.ids.dim(1), begin + size));
  }
}

double wrong_scale(Mutant mutant, const Engine& engine, const MicroBatch& pass, bool is_first) {
  const double dp = engine.mesh().size(kDp);
  const auto global = static_cast<double>(count_targets(0, kGlobalBatch));
  switch (mutant) {
    case Mutant::kMeanOfMeans:
      return global / dp / static_cast<double>(count_targets(pass.first_sample, pass.ids.dim(0)));
    case Mutant::kWrongDivisor:
      return 1.0 / dp;
    case Mutant::kIgnoredTargetsCount:
      return global / static_cast<double>(kGlobalBatch * kTime);
    case Mutant::kSkippedMicroBatch:
      return is_first ? 0.0 : 1.0;
    default:
      return 1.0;
  }
}

SpoiltUpdate::SpoiltUpdate(Mutant mutant, Engine& engine, bool is_last) : mutant_(mutant), engine_(engine) {
  const Communicator& world = engine.mesh().world();
  if (world.rank() != world.size() - 1) return;
  if (mutant == Mutant::kStaleCopy) copy_ = engine.model().parameters().front();
  if (mutant == Mutant::kMissedLastUpdate && is_last) copy_ = engine.model().find_parameter(kSpoiltGain);
  if (mutant == Mutant::kNudgedReplica) copy_ = piece_of_uncut(engine);
  if (copy_.defined()) before_ = copy_.detach().clone();
}

void SpoiltUpdate::after() {
  if (mutant_ == Mutant::kStaleTiedWeight && engine_.steps_done() == 1) keep_tied_weight(engine_);
  if (!copy_.defined()) return;
  const NoGrad no_grad;
  if (mutant_ != Mutant::kNudgedReplica) return copy_.copy_from(before_);
  Tensor element = copy_.detach().reshape({-1}).slice(0, 0, 1);
  element.fill(element.item() * (1.0 + std::numeric_limits<double>::epsilon()));
}

}  // namespace tessera::dist::parity
