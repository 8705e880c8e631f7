#include "tests/parity/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/engine.h"
#include "dist/optimizer_factory.h"
#include "dist/pipeline.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "optim/clip.h"
#include "optim/loss_scale.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/layout_row.h"
#include "tests/parity/replicas.h"
#include "tests/parity/samples.h"

namespace tessera::dist::parity {
namespace {

constexpr MeshAxis kDp = MeshAxis::kDp, kTp = MeshAxis::kTp;
constexpr Samples kSamples{.vocab = kVocab, .time = kTime, .batch = kGlobalBatch};
constexpr std::uint64_t kSeed = 17;
constexpr double kMaxNorm = 0.05;  // below every norm of these runs: clipping is active in each step

// In f16 two steps overflow. In the first the loss of what shares a pass with sample 5 counts 2^14 times, so
// that a gradient of a logit is 2^28 / 113 targets, far beyond 65504, and nothing behind it is finite. In the
// second one gradient of one matrix is not, on the one rank of the first tp and cp index that has sample 5:
// the others see it in no piece of theirs, or in few.
// Otherwise all gradients of these runs fit up to a scale of 2^19, where which layout overflows first would
// depend on how long partial sums are; the scale is 2^14 and less.
constexpr std::int64_t kLossOverflows = 3, kMatrixOverflows = 11;

bool has_spike(std::int64_t first, std::int64_t count) { return first <= 5 && 5 < first + count; }

double loss_spike(const TrainingRun& run, std::int64_t step, std::int64_t first, std::int64_t count) {
  return overflows(run) && step == kLossOverflows && has_spike(first, count) ? 0x1p14 : 1.0;
}

// `active` says whether the pass under way is the one.
void add_matrix_spike(nn::Module& model, const std::shared_ptr<bool>& active) {
  for (const auto& [name, tensor] : model.named_parameters()) {
    if (name != "h.1.mlp.c_fc.weight" && name != "layers.1.mlp.up_proj.weight") continue;
    register_hook(tensor, [active](const Tensor& grad) {
      return *active ? grad * std::numeric_limits<double>::infinity() : grad;
    });
  }
}

optim::LossScaler make_scaler(const Config& config) {
  if (config.dtype != kF16) return optim::LossScaler::constant(1.0);
  return optim::LossScaler::dynamic({.initial_scale_power = static_cast<int>(config.fp16.initial_scale_power),
                                     .loss_scale_window = config.fp16.loss_scale_window,
                                     .hysteresis = static_cast<int>(config.fp16.hysteresis)});
}

// Puts masters in the place of 16-bit weights, of which they are to be the longer form.
void take_masters(const NamedTensors& masters, const Config& config, Result& result) {
  for (auto& [name, values] : result.weights) {
    const auto found =
        std::ranges::find_if(masters, [&name](const auto& state) { return state.first == name + "/master"; });
    if (found == masters.end()) continue;
    const Tensor rounded = config.optimizer.state_dtype == kBF16 ? optim::bf16_weight_of(found->second)
                                                                 : found->second.to(config.dtype);
    if (values != rounded.to_vector<double>()) result.broken_replica = name + " is not its master, rounded";
    values = found->second.to_vector<double>();
  }
}

NamedValues values_of(const NamedTensors& tensors) {
  NamedValues values;
  for (const auto& [name, tensor] : tensors) values.emplace_back(name, tensor.to_vector<double>());
  return values;
}

}  // namespace

std::int64_t count_targets(std::int64_t first, std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int64_t sample = first; sample < first + count; ++sample) sum += kSamples.num_targets(sample);
  return sum;
}

void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
          std::span<std::int64_t> targets) {
  kSamples.fill(step, first, count, inputs, targets);
}

void with_engine(const TrainingRun& run, Job& job, const std::function<void(Engine& engine)>& use) {
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
  config.gradient_clipping = kMaxNorm;
  EngineOptions options;
  options.plan = tensor_parallel_plan(*model, mesh.size(kTp));
  spoil_settings(run.mutant, config, options);
  Engine engine(*model, config, mesh, options);
  spoil_model(run.mutant, engine);
  if (!run.resume_from.empty()) engine.load(CheckpointReader(run.resume_from));
  use(engine);
}

namespace {

Result train(const TrainingRun& run, Engine& engine) {
  const Mesh& mesh = engine.mesh();
  Communicator& world = mesh.world();
  const std::int64_t own_first = shard_begin(kGlobalBatch, mesh.size(kDp), mesh.index(kDp));
  const SampleSource source = [&](std::int64_t step, std::int64_t first, std::int64_t count, auto inputs,
                                  auto targets) {
    fill(step, run.mutant == Mutant::kSharedSamples ? first - own_first : first, count, inputs, targets);
  };
  Result result;
  Replicas replicas;
  const auto add_step = [&](const StepReport& report) {
    replicas.add(report, engine.loss_scaler().scale());
    result.losses.push_back(report.loss);
    result.grad_norms.push_back(report.grad_norm);
    result.skipped.push_back(report.skipped);
  };
  const auto matrix_spike = std::make_shared<bool>(false);
  const bool may_spike = overflows(run) && mesh.index(kTp) == 0 && mesh.index(MeshAxis::kCp) == 0;
  add_matrix_spike(engine.model(), matrix_spike);
  for (std::int64_t step = engine.steps_done(); step < run.steps; ++step) {
    bool is_first = true;
    if (engine.pipeline() != nullptr) {  // has no single passes to spoil; tests/dist/pipeline_test.cpp does
      if (run.mutant != Mutant::kNone || overflows(run))
        throw Error("parity: nothing can be spoilt in the passes of a pipeline");
      add_step(engine.train_step(source, kGlobalBatch));
      continue;
    }
    for (MicroBatch& pass : engine.micro_batches(source, kGlobalBatch)) {
      spoil_pass(run.mutant, engine, own_first, pass);
      const Tensor loss = engine.forward(pass);
      const double factor = wrong_scale(run.mutant, engine, pass, is_first) *
                            loss_spike(run, step, pass.first_sample, pass.ids.dim(0));
      *matrix_spike = may_spike && step == kMatrixOverflows && has_spike(pass.first_sample, pass.ids.dim(0));
      engine.backward(factor == 1.0 ? loss : loss * factor);
      is_first = false;
    }
    SpoiltUpdate spoilt_update(run.mutant, engine, /*is_last=*/step == run.steps - 1);
    const StepReport report = engine.step();
    spoilt_update.after();
    add_step(report);
  }
  result.loss_scale = engine.loss_scaler().scale();
  const CheckpointSources sources = engine.checkpoint_sources();
  NamedTensors masters;
  for (const auto& info : sources.model.tensors)
    result.weights.emplace_back(info.name, sources.model.get(info.name).to_vector<double>());
  for (const auto& info : sources.optimizer.tensors) {
    if (info.name.ends_with("/master")) masters.emplace_back(info.name, sources.optimizer.get(info.name));
  }
  take_masters(masters, run.config, result);
  replicas.add(sources);
  if (engine.pipeline() != nullptr) {  // a checkpoint takes the first of two copies
    for (const std::string& name : engine.pipeline()->shared_parameters()) {
      const Tensor first = sources.model.get(name);
      replicas.add_copy(name, engine.zero().has(name) ? engine.zero().whole(name) : first);
    }
  }
  if (const std::string difference = replicas.first_difference(world); !difference.empty())
    result.broken_replica = difference;
  if (!run.save_to.empty()) save_checkpoint(run.save_to, sources, world);
  return result;
}

}  // namespace

Result run_on_mesh(const TrainingRun& run, Job& job) {
  Result result;
  with_engine(run, job, [&](Engine& engine) { result = train(run, engine); });
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

namespace {

// `rounded_to` is what initial weights are rounded to, `left_out` what steps do not update.
Result train_alone(const TrainingRun& run, DType rounded_to, const std::vector<bool>& left_out) {
  RankContext context({.seed = kSeed});
  const RankContext::Scope scope(context);
  const auto model = nn::make_language_model(run.model, kVocab);
  model->to(rounded_to);
  model->to(run.config.dtype);
  const auto optimizer = make_optimizer(run.config.optimizer, model->named_parameters(),
                                        optim::no_decay_for_biases_and_norms(), /*exchange=*/nullptr);
  optim::LossScaler scaler = make_scaler(run.config);
  std::vector<std::int64_t> inputs(static_cast<std::size_t>(kGlobalBatch * kTime)), targets(inputs.size());
  const auto matrix_spike = std::make_shared<bool>(false);
  add_matrix_spike(*model, matrix_spike);
  Result result;
  result.initial = values_of(model->state());
  for (int step = 0; step < run.steps; ++step) {
    context.step = static_cast<std::uint64_t>(step);
    fill(step, 0, kGlobalBatch, inputs, targets);
    const Shape shape{kGlobalBatch, kTime};
    const Tensor loss = model->loss(from_vector(inputs, shape), from_vector(targets, shape));
    const double scale = scaler.scale();
    *matrix_spike = overflows(run) && step == kMatrixOverflows;
    (loss * (scale * loss_spike(run, step, 0, kGlobalBatch))).backward();
    const optim::GradNorm norm = optim::global_grad_norm(optimizer->parameters(), 1.0 / scale);
    const bool skip = !scaler.update(norm.finite(), norm.non_finite);
    if (!skip && (left_out.empty() || !left_out[static_cast<std::size_t>(step)]))
      optimizer->step({.grad_scale = optim::clip_factor(norm.value, kMaxNorm) / scale});
    optimizer->zero_grad();
    result.losses.push_back(loss.item());
    result.grad_norms.push_back(norm.value);
    result.skipped.push_back(skip);
  }
  result.loss_scale = scaler.scale();
  result.weights = values_of(model->state());
  take_masters(optimizer->state(), run.config, result);
  return result;
}

}  // namespace

Result run_alone(const TrainingRun& run) { return train_alone(run, run.config.dtype, {}); }

Result run_exactly(const TrainingRun& run, const std::vector<bool>& left_out) {
  TrainingRun exact = run;
  exact.config.dtype = kF64;
  exact.config.optimizer.state_dtype = kF32;  // as far as f64 parameters have that: f64
  Result result = train_alone(exact, run.config.dtype, left_out);
  result.skipped = left_out;
  return result;
}

Config layout(const std::string& text) {
  Config config;
  config.dtype = kF64;
  config.fp16.initial_scale_power = 14;
  config.fp16.hysteresis = 1;
  return read_layout(text, config);
}

}  // namespace tessera::dist::parity
