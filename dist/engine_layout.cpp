#include "dist/engine_layout.h"

#include <fmt/format.h>

#include "dist/optimizer_factory.h"
#include "dist/partitioned_activations.h"
#include "dist/ring_attention.h"
#include "dist/ulysses.h"
#include "kernels/error.h"
#include "kernels/readable.h"
#include "nn/causal_self_attention.h"
#include "nn/multi_head_attention.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;

}  // namespace

void check_supported(const nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                     std::int64_t seq) {
  check(config);
  if (mesh.size(MeshAxis::kEp) > 1) {
    throw ConfigError(fmt::format("mesh {}: experts are not supported yet; give those ranks to dp",
                                  mesh.shape().to_string()));
  }
  if (seq > model.context()) {
    throw ConfigError(fmt::format("sequences of {} tokens are longer than the model's context of {}", seq,
                                  model.context()));
  }
  if (seq < mesh.size(kCp)) {
    throw ConfigError(fmt::format("cp = {}: a sequence of {} tokens has none for some ranks; cp = {} works",
                                  mesh.size(kCp), seq, seq));
  }
  if (config.sequence_parallel && mesh.size(kTp) == 1) {
    throw ConfigError(
        "sequence_parallel cuts tokens over the tp ranks, and tp is 1; leave it out, or set tp");
  }
  if (config.sequence_parallel && seq / mesh.size(kCp) < mesh.size(kTp)) {
    throw ConfigError(
        fmt::format("sequence_parallel: {} tokens a rank are fewer than tp = {}; a smaller tp or a "
                    "longer sequence works",
                    seq / mesh.size(kCp), mesh.size(kTp)));
  }
}

SequenceCut cut_sequences(const Config& config, const Mesh& mesh, std::int64_t seq) {
  return config.context_parallel == Config::ContextParallel::kRing
             ? SequenceCut::balanced(seq, mesh.size(kCp))
             : SequenceCut::contiguous(seq, mesh.size(kCp));
}

LaidOut lay_out_for_engine(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                           const EngineOptions& options) {
  model.to(config.dtype);
  const Plan plan = options.plan.empty() ? tensor_parallel_plan(model, mesh.size(kTp)) : options.plan;
  return lay_out(model, plan, mesh,
                 {.sequence_parallel = config.sequence_parallel,
                  .invariant = config.numerics == Config::Numerics::kInvariant});
}

void replace_attention(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                       const SequenceCut& cut) {
  const bool ring = config.context_parallel == Config::ContextParallel::kRing;
  const AttentionFunction function = [ring, cut, &mesh](const Tensor& q, const Tensor& k, const Tensor& v,
                                                        const AttentionConfig& attention) {
    return ring ? ring_attention(q, k, v, attention, mesh, kCp, cut)
                : ulysses_attention(q, k, v, attention, mesh, kCp, cut);
  };
  bool found = false;
  for (nn::Module* module : model.modules()) {
    auto* core = dynamic_cast<nn::AttentionCore*>(module);
    if (core == nullptr) continue;
    core->set_attention(function);
    found = true;
  }
  if (!found) {
    throw ConfigError(
        fmt::format("cp = {}: {} has no attention of nn that could take a cut sequence; give those "
                    "ranks to dp",
                    mesh.size(kCp), model.type_name()));
  }
}

void set_recomputation(nn::LanguageModel& model, const Config& config, const Mesh& mesh) {
  nn::RecomputeConfig recompute;
  switch (config.recompute.mode) {
    case Config::Recompute::Mode::kNone:
      recompute.mode = nn::RecomputeConfig::Mode::kNone;
      break;
    case Config::Recompute::Mode::kSelective:
      recompute.mode = nn::RecomputeConfig::Mode::kSelective;
      break;
    case Config::Recompute::Mode::kFull:
      recompute.mode = nn::RecomputeConfig::Mode::kFull;
      break;
  }
  recompute.every =
      static_cast<int>(config.recompute.every(static_cast<std::int64_t>(model.blocks().size())));
  // Under sequence parallelism a block's input is cut over tp already.
  if (config.recompute.partition_activations && mesh.size(kTp) > 1 && !config.sequence_parallel)
    recompute.saved_inputs = partitioned_over(mesh, kTp);
  if (config.recompute.cpu_checkpointing)
    recompute.saved_inputs = kept_in_host_memory(recompute.saved_inputs);
  model.set_recompute(recompute);
}

namespace {

// What the gradients of weights would need a second time, in a pass of their own.
std::string split_refusal(const Config& config, const Mesh& mesh) {
  using Mode = Config::Recompute::Mode;
  if (config.recompute.mode == Mode::kFull) {
    return "with recompute full each half would run its blocks again; \"1f1b\" works with it, and this one "
           "with "
           "recompute selective";
  }
  const bool cuts_parameters = config.zero.stage == 3 && mesh.size(MeshAxis::kDp) * mesh.size(kCp) > 1;
  if (config.recompute.mode == Mode::kSelective && cuts_parameters) {
    return "with recompute selective and ZeRO stage 3 the half for weights would gather parameters a third "
           "time; "
           "\"1f1b\" works with both, and this one with one of the two";
  }
  return "";
}

}  // namespace

std::unique_ptr<Pipeline> make_pipeline(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                                        const EngineOptions& options, std::vector<double> part_parameters,
                                        std::int64_t num_passes) {
  if (mesh.size(MeshAxis::kPp) == 1) return nullptr;
  auto pipeline =
      std::make_unique<Pipeline>(model, mesh,
                                 PipelineOptions{.schedule = config.pipeline.schedule,
                                                 .custom_schedule = options.pipeline_schedule,
                                                 .chunks = static_cast<int>(config.pipeline.chunks),
                                                 .partition = parse_partition(config.pipeline.partition),
                                                 .part_parameters = std::move(part_parameters),
                                                 .part_seconds = options.part_seconds,
                                                 .sequence_parallel = config.sequence_parallel,
                                                 .split_refusal = split_refusal(config, mesh)});
  static_cast<void>(pipeline->micro_batches_for(num_passes));  // refuses now, not in the first step
  return pipeline;
}

ZeroOptions zero_options(const Config& config, const Mesh& mesh, const LaidOut& laid_out,
                         const Pipeline* pipeline) {
  ZeroOptions options;
  if (pipeline != nullptr) {
    options.stages = pipeline->own_modules();
    options.shared_parameters = pipeline->shared_parameters();
    options.sharing_group = pipeline->sharing_group();
    options.splits_backward = pipeline->splits_backward();
  }
  options.placement = ZeroPlacement::stage(config.zero.stage);
  if (config.zero.mics_shard_size > 0) {
    options.placement = ZeroPlacement::mics();
    options.ranks_per_shard_group = static_cast<int>(config.zero.mics_shard_size);
  } else if (config.zero.hpz_partition_size > 1) {
    options.placement = ZeroPlacement::hpz();
    options.ranks_per_shard_group = static_cast<int>(config.zero.hpz_partition_size);
  }
  options.keep_full_gradients = config.zero.keep_full_gradients;
  options.tree_sums = config.numerics == Config::Numerics::kInvariant;
  options.max_live_parameters = config.zero.max_live_parameters;
  options.prefetch_elements = config.zero.prefetch_bucket_size;
  options.persistence_threshold = config.zero.param_persistence_threshold;
  options.max_reuse_distance = config.zero.max_reuse_distance;
  options.tensor_parts.whole = [&laid_out, &mesh](const std::string& name, const Tensor& local) {
    return laid_out.whole(name, local, mesh);
  };
  options.tensor_parts.part = [&laid_out](const std::string& name, const Tensor& whole) {
    return laid_out.placement(name).own_part(whole);
  };
  return options;
}

ZeroMemory predict_memory(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                          const ZeroOptions& zero) {
  const ZeroPlan plan = plan_zero(model, mesh.shape(), zero);
  const int data_rank = mesh.group(MeshAxis::kDp, kCp).rank();
  return predict_memory(plan, zero, data_rank, optimizer_bytes_per_element(config.optimizer, config.dtype));
}

std::string describe_memory(const ZeroMemory& memory, const Mesh& mesh) {
  const auto exact = [](std::int64_t bytes) {
    return fmt::format("{} bytes ({})", with_commas(bytes), with_byte_unit(bytes));
  };
  std::string text = fmt::format(
      "memory      rank {} of {} holds {} between steps:\n"
      "  parameters {}, gradients {}, optimizer {}",
      mesh.world().rank(), mesh.world().size(), exact(memory.held()), exact(memory.parameters),
      exact(memory.gradients), exact(memory.optimizer));
  if (memory.gathered_parameters > 0)
    text += fmt::format("\n  within a step its largest unit, gathered: {}; ahead of use up to {}",
                        exact(memory.gathered_parameters), exact(memory.prefetched_parameters));
  const bool in_stages = mesh.size(MeshAxis::kPp) > 1;
  if (memory.full_gradients > 0)
    text += fmt::format("\n  within a step gradients that are not cut yet: {} {}",
                        in_stages ? "about" : "up to", exact(memory.full_gradients));
  return text +
         fmt::format(
             "\n  not counted: activations{} and messages; a dry run (gpt2_train --dry-run) has every byte",
             in_stages ? ", what stages hand over" : "");
}

}  // namespace tessera::dist
