#include "tests/parity/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/engine.h"
#include "dist/optimizer_factory.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "kernels/random_key.h"
#include "nn/attention_core.h"
#include "nn/linear.h"
#include "nn/model_factory.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::parity {
namespace {

constexpr MeshAxis kDp = MeshAxis::kDp, kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;
constexpr std::int64_t kIgnored = -100;
constexpr std::uint64_t kSeed = 17;
constexpr double kMaxNorm = 0.05;  // below every norm of these runs: clipping is active in each step

std::int64_t token(std::int64_t step, std::int64_t sample, std::int64_t t) {
  const auto stream = static_cast<std::uint64_t>((step * kGlobalBatch + sample) * (kTime + 1) + t);
  return static_cast<std::int64_t>(kernels::random_key_bits({.seed = 5, .stream = stream}) % kVocab);
}

// All of a sample's targets count, or three of them, or (one sample of each batch) none.
std::int64_t num_targets(std::int64_t sample) { return sample == 7 ? 0 : sample % 5 == 0 ? 3 : kTime; }

std::int64_t count_targets(std::int64_t first, std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int64_t sample = first; sample < first + count; ++sample) sum += num_targets(sample);
  return sum;
}

void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
          std::span<std::int64_t> targets) {
  for (std::int64_t i = 0; i < count * kTime; ++i) {
    const std::int64_t sample = first + i / kTime, t = i % kTime;
    inputs[static_cast<std::size_t>(i)] = token(step, sample, t);
    targets[static_cast<std::size_t>(i)] = t < num_targets(sample) ? token(step, sample, t + 1) : kIgnored;
  }
}

double relative(double a, double b) {
  const double d = std::abs(a - b) / std::max(1e-3, std::abs(b));
  return std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
}

// --- Mistakes ----------------------------------------------------------------------------------------------

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

// Mistakes that are made once, in what the engine has set up.
void spoil_model(Mutant mutant, Engine& engine) {
  const Mesh& mesh = engine.mesh();
  nn::LanguageModel& model = engine.model();
  switch (mutant) {
    case Mutant::kUnreducedParameter:
      register_hook(
          model.find_parameter("h.1.ln_2.weight"),
          [first = mesh.index(kDp) == 0](const Tensor& grad) { return first ? grad : zeros_like(grad); });
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

// Mistakes in one pass: in what it is given.
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

// Mistakes in the number by which a loss is divided, as a factor.
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

// The output layer goes on with the weights that it had when this was called.
void keep_tied_weight(Engine& engine) {
  auto& head = dynamic_cast<nn::Linear&>(engine.model().find_module("lm_head"));
  const auto input = std::make_shared<Tensor>();
  head.add_forward_pre_hook([input](nn::Module&, std::span<Tensor> x) { *input = x[0]; });
  head.set_product_hook(
      [input, old = head.weight().detach().clone()](const Tensor&) { return linear(*input, old, {}); });
}

}  // namespace

const char* name(Mutant mutant) {
  constexpr const char* kNames[] = {
      "none",          "MeanOfMeans",       "WrongDivisor",       "IgnoredTargetsCount", "SharedSampleOffset",
      "SharedSamples", "SkippedMicroBatch", "UnreducedParameter", "NoClipping",          "DecayDropped",
      "OwnSeed",       "StaleCopy",         "StaleTiedWeight",    "StalePositions",      "ShiftedTargets",
      "SharedHeads",   "BiasAddedTwice",    "ReductionForgotten", "ReductionDropped",    "CopyDropped",
      "InvariantNorm"};
  return kNames[static_cast<std::size_t>(mutant)];
}

Result run_on_mesh(const TrainingRun& run, Job& job) {
  // One of its own: a second model of one context would have other random streams.
  RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1, .seed = kSeed});
  const RankContext::Scope scope(context);
  const Mesh mesh(run.config.mesh, job.shared_world());
  const auto model = [&] {
    const DeviceScope on_meta(meta);
    return nn::make_language_model(run.model, kVocab);
  }();
  Config config = run.config;
  // A batch that dp does not divide is one that ends early: the last step of an epoch.
  const std::int64_t share = shard_size(kGlobalBatch, mesh.size(kDp), 0);
  if (config.batch.micro_batch == 0) config.batch.micro_batch = share;
  config.batch.accumulation = (share + config.batch.micro_batch - 1) / config.batch.micro_batch;
  config.gradient_clipping = run.mutant == Mutant::kNoClipping ? 0.0 : kMaxNorm;
  EngineOptions options;
  options.plan = tensor_parallel_plan(*model, mesh.size(kTp));
  if (run.mutant == Mutant::kDecayDropped) options.groups = {{.patterns = {"*"}, .weight_decay = 0.0}};
  if (run.mutant == Mutant::kCopyDropped)
    std::erase_if(options.plan,
                  [](const PlanRow& row) { return row.role == Role::kEnter && row.pattern == "h.*.mlp"; });
  Engine engine(*model, config, mesh, options);
  spoil_model(run.mutant, engine);

  const std::int64_t own_first = shard_begin(kGlobalBatch, mesh.size(kDp), mesh.index(kDp));
  const SampleSource source = [&](std::int64_t step, std::int64_t first, std::int64_t count, auto inputs,
                                  auto targets) {
    fill(step, run.mutant == Mutant::kSharedSamples ? first - own_first : first, count, inputs, targets);
  };
  Result result;
  for (int step = 0; step < run.steps; ++step) {
    bool is_first = true;
    for (MicroBatch& pass : engine.micro_batches(source, kGlobalBatch)) {
      spoil_pass(run.mutant, engine, own_first, pass);
      const Tensor loss = engine.forward(pass);
      const double factor = wrong_scale(run.mutant, engine, pass, is_first);
      engine.backward(factor == 1.0 ? loss : loss * factor);
      is_first = false;
    }
    const bool stale = run.mutant == Mutant::kStaleCopy && mesh.index(kDp) == 1;
    Tensor copy = model->parameters().front();
    const Tensor before = stale ? copy.detach().clone() : Tensor();
    const StepReport report = engine.step();
    if (stale) {
      const NoGrad no_grad;
      copy.copy_from(before);
    }
    if (run.mutant == Mutant::kStaleTiedWeight && step == 0) keep_tied_weight(engine);
    result.losses.push_back(report.loss);
    result.grad_norms.push_back(report.grad_norm);
  }
  const CheckpointSources sources = engine.checkpoint_sources();
  for (const auto& info : sources.model.tensors)
    result.weights.emplace_back(info.name, sources.model.get(info.name).to_vector<double>());
  return result;
}

Result run_on_threads(const TrainingRun& run) {
  Result result;
  run_thread_ranks(run.config.mesh.num_ranks(), [&](Job& job) {
    Result own = run_on_mesh(run, job);
    if (job.is_root()) result = std::move(own);
  });
  return result;
}

Result run_alone(const TrainingRun& run) {
  RankContext context({.seed = kSeed});
  const RankContext::Scope scope(context);
  const auto model = nn::make_language_model(run.model, kVocab);
  model->to(run.config.dtype);
  const auto optimizer = make_optimizer(run.config.optimizer, model->named_parameters(),
                                        optim::no_decay_for_biases_and_norms(), /*exchange=*/nullptr);
  std::vector<std::int64_t> inputs(static_cast<std::size_t>(kGlobalBatch * kTime)), targets(inputs.size());
  Result result;
  for (int step = 0; step < run.steps; ++step) {
    context.step = static_cast<std::uint64_t>(step);
    fill(step, 0, kGlobalBatch, inputs, targets);
    const Shape shape{kGlobalBatch, kTime};
    const Tensor loss = model->loss(from_vector(inputs, shape), from_vector(targets, shape));
    loss.backward();
    const optim::GradNorm norm = optim::global_grad_norm(optimizer->parameters());
    optimizer->step({.grad_scale = optim::clip_factor(norm, kMaxNorm)});
    optimizer->zero_grad();
    result.losses.push_back(loss.item());
    result.grad_norms.push_back(norm.value);
  }
  for (const auto& [parameter, tensor] : model->state())
    result.weights.emplace_back(parameter, tensor.to_vector<double>());
  return result;
}

double Difference::largest() const { return std::max({losses, norms, weights}); }

Difference compare(const Result& a, const Result& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.losses.size() != b.losses.size() || a.weights.size() != b.weights.size() || a.losses.empty())
    return {kInfinity, kInfinity, kInfinity};
  Difference difference;
  for (std::size_t i = 0; i < a.losses.size(); ++i) {
    difference.losses = std::max(difference.losses, relative(a.losses[i], b.losses[i]));
    difference.norms = std::max(difference.norms, relative(a.grad_norms[i], b.grad_norms[i]));
  }
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    const auto& [name_a, values_a] = a.weights[i];
    const auto& [name_b, values_b] = b.weights[i];
    if (name_a != name_b || values_a.size() != values_b.size()) return {kInfinity, kInfinity, kInfinity};
    for (std::size_t j = 0; j < values_a.size(); ++j) {
      const double d = std::abs(values_a[j] - values_b[j]);
      difference.weights = std::max(difference.weights, std::isnan(d) ? kInfinity : d);
    }
  }
  return difference;
}

Config layout(const std::string& text) {
  Config config;
  config.dtype = kF64;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::string value = word.substr(word.find('=') + 1);
    if (word == "sp") {
      config.sequence_parallel = true;
    } else if (word == "SGD" || word == "Adagrad" || word == "Lion" || word == "Lamb" || word == "Muon") {
      config.optimizer.type = word;
      if (word == "SGD" || word == "Muon") config.optimizer.momentum = 0.9;
    } else if (word == "ulysses") {
      config.context_parallel = Config::ContextParallel::kUlysses;
    } else if (word == "f32" || word == "bf16") {
      config.dtype = word == "f32" ? kF32 : kBF16;
    } else if (word == "full-gradients") {
      config.zero.keep_full_gradients = true;
    } else if (word == "partitioned") {
      config.recompute.partition_activations = true;
    } else if (word == "on-host") {
      config.recompute.cpu_checkpointing = true;
    } else if (word.starts_with("zero=")) {
      config.zero.stage = std::stoi(value);
    } else if (word.starts_with("mics=")) {
      config.zero.stage = 3, config.zero.mics_shard_size = std::stoi(value);
    } else if (word.starts_with("hpz=")) {
      config.zero.stage = 3, config.zero.hpz_partition_size = std::stoi(value);
    } else if (word.starts_with("pass=")) {
      config.batch.micro_batch = std::stoi(value);
    } else if (word == "recompute=full") {
      config.recompute.mode = Config::Recompute::Mode::kFull;
    } else if (word == "recompute=selective") {
      config.recompute.mode = Config::Recompute::Mode::kSelective;
    } else if (word.starts_with("checkpoints=")) {
      config.recompute.number_checkpoints = std::stoi(value);
    } else {
      config.mesh = MeshShape::parse(word);
    }
  }
  return config;
}

}  // namespace tessera::dist::parity
