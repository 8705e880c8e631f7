// A configuration by its keys, to compare it.

#include <fmt/format.h>

#include "dist/same_settings.h"

namespace tessera::dist {
namespace {

void add_optimizer(const Config::Optimizer& o, Settings& settings) {
  settings["optimizer.type"] = o.type;
  const auto add = [&settings](const char* key, const auto& value) {
    settings[fmt::format("optimizer.params.{}", key)] = fmt::format("{}", value);
  };
  add("lr", o.lr);
  add("betas", fmt::format("[{}, {}]", o.beta1, o.beta2));
  add("eps", o.epsilon);
  add("weight_decay", o.weight_decay);
  add("momentum", o.momentum);
  add("dampening", o.dampening);
  add("nesterov", o.nesterov);
  add("adam_w_mode", o.decoupled_decay);
  add("max_coeff", o.max_coeff);
  add("min_coeff", o.min_coeff);
  add("lr_decay", o.lr_decay);
  add("initial_accumulator_value", o.initial_accumulator_value);
  if (o.adam_lr) add("adam_lr", *o.adam_lr);  // else it is lr
  add("ns_steps", o.ns_steps);
  add("adjust_lr_fn", o.adjust_lr_fn);
}

void add_zero(const Config::Zero& z, Settings& settings) {
  const auto add = [&settings](const char* key, const auto& value) {
    settings[fmt::format("zero_optimization.{}", key)] = fmt::format("{}", value);
  };
  add("stage", z.stage);
  add("stage3_prefetch_bucket_size", z.prefetch_bucket_size);
  add("stage3_param_persistence_threshold", z.param_persistence_threshold);
  add("stage3_max_live_parameters", z.max_live_parameters);
  add("stage3_max_reuse_distance", z.max_reuse_distance);
  add("zero_hpz_partition_size", z.hpz_partition_size);
  add("mics_shard_size", z.mics_shard_size);
  add("keep_full_gradients", z.keep_full_gradients);
}

const char* word(Config::Recompute::Mode mode) {
  switch (mode) {
    case Config::Recompute::Mode::kNone:
      return "none";
    case Config::Recompute::Mode::kSelective:
      return "selective";
    case Config::Recompute::Mode::kFull:
      return "full";
  }
  return "";
}

}  // namespace

Settings settings_of(const Config& config) {
  Settings settings;
  const auto add = [&settings](const std::string& key, const auto& value) {
    settings[key] = fmt::format("{}", value);
  };
  // 0 is a size that was not given.
  const auto add_size = [&](const char* key, std::int64_t size) {
    settings[key] = size == 0 ? "left out" : fmt::format("{}", size);
  };
  add_size("train_batch_size", config.batch.global);
  add_size("train_micro_batch_size_per_gpu", config.batch.micro_batch);
  add_size("gradient_accumulation_steps", config.batch.accumulation);
  add("gradient_clipping", config.gradient_clipping);
  add("steps_per_print", config.steps_per_print);
  add_optimizer(config.optimizer, settings);
  add("scheduler.type", config.scheduler.type.empty() ? "left out" : config.scheduler.type);
  add("scheduler.params.warmup_type", config.scheduler.warmup_type);
  for (const auto& [key, value] : config.scheduler.params) add("scheduler.params." + key, value);
  add("dtype", name(config.dtype));
  add("numerics", config.numerics == Config::Numerics::kInvariant ? "invariant" : "fast");
  add("bf16.bf16_optimizer_states", config.optimizer.state_dtype == kBF16);
  add("fp16.loss_scale", config.fp16.loss_scale);
  add("fp16.initial_scale_power", config.fp16.initial_scale_power);
  add("fp16.loss_scale_window", config.fp16.loss_scale_window);
  add("fp16.hysteresis", config.fp16.hysteresis);
  add("fp16.min_loss_scale", config.fp16.min_loss_scale);
  add("data_types.grad_accum_dtype", name(config.grad_accum_dtype));
  add("mesh", config.mesh.to_string() + (config.dp_given ? "" : ", dp left out"));
  add("tensor_parallel.sequence_parallel", config.sequence_parallel);
  add("context_parallel.method",
      config.context_parallel == Config::ContextParallel::kRing ? "ring" : "ulysses");
  add_zero(config.zero, settings);
  add("recompute", word(config.recompute.mode));
  add("activation_checkpointing.number_checkpoints", config.recompute.number_checkpoints);
  add("activation_checkpointing.partition_activations", config.recompute.partition_activations);
  add("activation_checkpointing.cpu_checkpointing", config.recompute.cpu_checkpointing);
  add("pipeline.schedule", config.pipeline.schedule);
  add("pipeline.partition", config.pipeline.partition);
  add("pipeline.chunks", config.pipeline.chunks);
  add("memory_check", config.memory_check);
  return settings;
}

}  // namespace tessera::dist
