// The resolved configuration in words.

#include <fmt/format.h>

#include "dist/config.h"

namespace tessera::dist {
namespace {

std::string line(const char* subject, const std::string& text) {
  return fmt::format("{:<12}{}\n", subject, text);
}

std::string describe_mesh(const Config& config, const MeshShape& mesh) {
  const int ranks = mesh.num_ranks();
  std::string text = fmt::format("{}: {} rank{}", mesh.to_string(), ranks, ranks == 1 ? "" : "s");
  if (mesh[MeshAxis::kTp] > 1 && config.sequence_parallel) text += "; sequence parallel over tp";
  if (mesh[MeshAxis::kCp] > 1) {
    const bool ring = config.context_parallel == Config::ContextParallel::kRing;
    text += fmt::format("; {} attention over cp", ring ? "ring" : "Ulysses");
  }
  if (mesh[MeshAxis::kPp] > 1) {
    text +=
        fmt::format("; pipeline {}, stages equal by {}", config.pipeline.schedule, config.pipeline.partition);
    if (config.pipeline.chunks > 0) text += fmt::format(", {} on each rank", config.pipeline.chunks);
  }
  return text;
}

std::string describe_precision(const Config& config) {
  const std::string wide = config.dtype == kF64 ? "f64" : "f32";
  std::string text = fmt::format("{} parameters and activations; {} gradients", name(config.dtype), wide);
  if (config.dtype == kF16 || config.dtype == kBF16) text += " and masters";
  if (config.optimizer.state_dtype == kBF16) text += "; bf16 moments";
  if (config.dtype != kF16) return text;
  if (config.fp16.loss_scale > 0) return text + fmt::format("; loss scale {}", config.fp16.loss_scale);
  return text + fmt::format("; dynamic loss scale from 2^{}", config.fp16.initial_scale_power);
}

std::string describe_optimizer(const Config& config) {
  const Config::Optimizer& o = config.optimizer;
  std::string text = fmt::format("{}: lr {}", o.type, o.lr);
  const bool has_betas = o.type == "AdamW" || o.type == "Adam" || o.type == "Lion" || o.type == "Lamb";
  if (has_betas) text += fmt::format(", betas {} {}", o.beta1, o.beta2);
  if (o.type == "SGD" || o.type == "Muon") {
    text += fmt::format(", momentum {}{}", o.momentum, o.nesterov ? " (Nesterov)" : "");
  }
  if (o.dampening != 0.0) text += fmt::format(", dampening {}", o.dampening);
  if (o.type != "Lion" && o.type != "SGD" && o.type != "Muon") text += fmt::format(", eps {}", o.epsilon);
  if (o.type == "Lamb") text += fmt::format(", trust ratio {} to {}", o.min_coeff, o.max_coeff);
  if (o.lr_decay != 0.0) text += fmt::format(", lr decay {}", o.lr_decay);
  if (o.initial_accumulator_value != 0.0) text += fmt::format(", sums from {}", o.initial_accumulator_value);
  text += fmt::format(", weight decay {}{}", o.weight_decay, o.decoupled_decay ? "" : " in the gradient");
  if (o.type == "Muon") {
    if (o.adjust_lr_fn != "original") text += fmt::format(", steps scaled by {}", o.adjust_lr_fn);
    text += fmt::format(", {} Newton-Schulz steps; AdamW for the rest: lr {}, betas {} {}, eps {}",
                        o.ns_steps, o.adam_lr.value_or(o.lr), o.beta1, o.beta2, o.epsilon);
  }
  if (config.gradient_clipping > 0) text += fmt::format("; gradient norm up to {}", config.gradient_clipping);
  return text;
}

std::string describe_schedule(const Config::Scheduler& scheduler) {
  std::string params;
  for (const auto& [key, value] : scheduler.params) {
    params += fmt::format("{} {} {}", params.empty() ? ":" : ",", key, value);
  }
  return scheduler.type + params;
}

std::string describe_zero(const Config::Zero& zero, const MeshShape& mesh) {
  const int data_ranks = mesh[MeshAxis::kDp] * mesh[MeshAxis::kCp];
  const char* cut = zero.stage == 1   ? "optimizer state"
                    : zero.stage == 2 ? "gradients, optimizer state"
                                      : "parameters, gradients, optimizer state";
  const bool mics = zero.mics_shard_size > 0 && zero.mics_shard_size < data_ranks;
  std::string text = fmt::format("stage {} over {} data rank{}: {}", zero.stage, data_ranks,
                                 data_ranks == 1 ? "" : "s", cut);
  if (mics) text += fmt::format("; MiCS, groups of {}", zero.mics_shard_size);
  if (zero.hpz_partition_size > 1) {
    text += fmt::format("; hpZ, parameters in groups of {}", zero.hpz_partition_size);
  }
  if (zero.keep_full_gradients && zero.stage >= 2) text += "; gradients whole until the last micro-batch";
  return text;
}

std::string describe_recompute(const Config::Recompute& recompute) {
  if (recompute.mode == Config::Recompute::Mode::kSelective)
    return "selective: norms and activation functions";
  std::string text = "full: blocks";
  if (recompute.number_checkpoints > 0) text += fmt::format(", {} of them", recompute.number_checkpoints);
  if (recompute.partition_activations) text += ", inputs cut over tp";
  if (recompute.cpu_checkpointing) text += ", inputs in host memory";
  return text;
}

}  // namespace

std::string describe(const Config& config, const MeshShape& mesh, const BatchSizes& batch) {
  std::string text = line("mesh", describe_mesh(config, mesh));
  text += line("batch", fmt::format("{} sequence{} = {} micro_batch x {} accumulation x {} dp", batch.global,
                                    batch.global == 1 ? "" : "s", batch.micro_batch, batch.accumulation,
                                    mesh[MeshAxis::kDp]));
  text += line("precision", describe_precision(config));
  if (config.numerics == Config::Numerics::kInvariant)
    text += line("numerics", "invariant: the same bits in every layout; a pass is one sequence");
  text += line("optimizer", describe_optimizer(config));
  if (!config.scheduler.type.empty()) text += line("schedule", describe_schedule(config.scheduler));
  if (config.zero.stage > 0) text += line("ZeRO", describe_zero(config.zero, mesh));
  if (config.recompute.mode != Config::Recompute::Mode::kNone) {
    text += line("recompute", describe_recompute(config.recompute));
  }
  return text;
}

}  // namespace tessera::dist
