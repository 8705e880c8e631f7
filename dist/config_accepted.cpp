// Keys that DeepSpeed's users have in their files and that are no settings here. A value that asks for
// nothing is accepted, any other is refused: nothing is dropped in silence.

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "dist/config_sections.h"
#include "kernels/error.h"

namespace tessera::dist::detail {
namespace {

constexpr const char* kOffload =
    "offload is not supported yet; \"none\" works. ZeRO stages 1 to 3 cut the same bytes over the ranks";
constexpr const char* kCpuOffload =
    "offload is not supported yet, and this is the old name of offload_optimizer and offload_param; false "
    "works";
constexpr const char* kQuantized =
    "quantized communication is not supported yet; false works. zero_hpz_partition_size and mics_shard_size "
    "keep "
    "traffic inside of hosts, and change no bit";
constexpr const char* kSharpSums =
    "gradients are sent in fp32: sums in 16 bits are inexact; \"fp32\" works, or leave it out";
constexpr const char* kMonitor =
    "not supported yet; false works. gpt2_train's \"log\" and \"csv\" write each step";
constexpr const char* kElastic =
    "not supported yet; false works. A checkpoint loads on any number of ranks, and train_batch_size keeps "
    "the "
    "training the same there";
constexpr const char* kAutotuning =
    "not supported yet; false works. Bytes are predicted, and printed at the start";
constexpr const char* kByTheModel = "the model's own plan says how its layers are cut; leave it out";
constexpr const char* kNone = "";  // any value asks for nothing, so none is refused

constexpr auto kKeys = std::to_array<AcceptedKey>({
    {"", "wall_clock_breakdown", "false",
     "not supported yet; false works. The tape has the time of each call"},
    {"", "memory_breakdown", "false",
     "not supported yet; false works. gpt2_train's \"log\" has bytes by category"},
    {"", "dump_state", "boolean", kNone},
    {"", "communication_data_type", "\"fp32\"", kSharpSums},
    {"", "seq_parallel_comm_data_type", "\"fp32\"", kSharpSums},
    {"", "fp32_allreduce", "boolean", kNone},
    {"", "prescale_gradients", "false",
     "gradients are summed, and the update divides, which loses nothing; false works"},
    {"", "gradient_predivide_factor", "1", "gradients are summed, and the update divides; 1 works"},
    {"", "sparse_gradients", "false", "gradients of embeddings are dense; false works"},
    {"", "disable_allgather", "false", "parameters are gathered by all-gather; false works"},
    {"", "graph_harvesting", "false", "not supported; false works"},
    {"", "dataloader_drop_last", "boolean", kNone},
    {"", "zero_allow_untested_optimizer", "boolean", kNone},
    {"", "zero_force_ds_cpu_optimizer", "boolean", kNone},
    {"", "vocabulary_size", "", "the model's vocabulary comes from its tokenizer; leave it out"},
    {"", "sparse_attention", "", "attention is dense; leave it out"},
    {"", "compression_training", "", "not supported; leave it out"},
    {"", "bfloat16", "", "DeepSpeed's old name; write bf16"},

    {"bf16", "immediate_grad_update", "boolean", kNone},
    {"bf16", "check_grad_overflow", "false",
     "bf16 has fp32's range; false works, or fp16 with its loss scale"},
    {"bf16", "bf16_master_weights_and_grads", "false",
     "masters and sums of gradients are fp32; false works, also beside bf16_optimizer_states"},
    {"fp16", "auto_cast", "false", "inputs are token ids, which are never cast; false works"},
    {"fp16", "consecutive_hysteresis", "false", "not supported: hysteresis is refilled when the scale grows"},
    {"fp16", "fp16_master_weights_and_grads", "false", "masters and sums of gradients are fp32; false works"},
    {"fp16", "fused_mode", "boolean", kNone},

    // A message is of one unit, a block, and goes out as soon as its turn comes.
    {"zero_optimization", "overlap_comm", "boolean", kNone},
    {"zero_optimization", "reduce_bucket_size", "integer", kNone},
    {"zero_optimization", "allgather_bucket_size", "integer", kNone},
    {"zero_optimization", "contiguous_gradients", "true", "gradients lie in flat buffers; true works"},
    {"zero_optimization", "reduce_scatter", "true",
     "cut gradients are reduced by reduce-scatter; true works"},
    {"zero_optimization", "allgather_partitions", "true",
     "parameters are gathered by all-gather; true works"},
    {"zero_optimization", "use_multi_rank_bucket_allreduce", "boolean", kNone},
    {"zero_optimization", "round_robin_gradients", "boolean", kNone},
    {"zero_optimization", "sub_group_size", "integer", kNone},
    {"zero_optimization", "load_from_fp32_weights", "true", "checkpoints keep fp32 masters; true works"},
    {"zero_optimization", "elastic_checkpoint", "boolean", kNone},
    {"zero_optimization", "legacy_stage1", "false", "there is one implementation of stage 1; false works"},
    {"zero_optimization", "ignore_unused_parameters", "true",
     "a parameter that no rank used has gradient 0, and decays; true works"},
    {"zero_optimization", "memory_efficient_linear", "boolean", kNone},
    {"zero_optimization", "override_module_apply", "boolean", kNone},
    {"zero_optimization", "pipeline_loading_checkpoint", "false",
     "a checkpoint loads into any layout; false works"},
    {"zero_optimization", "stage3_model_persistence_threshold", "9223372036854775807",
     "there is no bound on it; stage3_param_persistence_threshold alone says what stays gathered"},
    {"zero_optimization", "stage3_module_granularity_threshold", "0",
     "blocks are gathered as a whole; 0 works"},
    {"zero_optimization", "stage3_use_all_reduce_for_fetch_params", "false",
     "parameters are gathered by all-gather; false works"},
    {"zero_optimization", "stage3_gather_16bit_weights_on_model_save", "boolean", kNone},
    {"zero_optimization", "stage3_gather_fp16_weights_on_model_save", "boolean", kNone},
    {"zero_optimization", "mics_hierarchical_params_gather", "false",
     "parameters are gathered inside of a shard group only; false works"},
    {"zero_optimization", "zero_quantized_weights", "false", kQuantized},
    {"zero_optimization", "zero_quantized_nontrainable_weights", "false", kQuantized},
    {"zero_optimization", "zero_quantized_gradients", "false", kQuantized},
    {"zero_optimization", "zeropp_loco_param", "", kQuantized},
    {"zero_optimization", "cpu_offload", "false", kCpuOffload},
    {"zero_optimization", "cpu_offload_param", "false", kCpuOffload},
    {"zero_optimization", "cpu_offload_use_pin_memory", "boolean", kNone},
    {"zero_optimization.offload_optimizer", "device", "\"none\"", kOffload},
    {"zero_optimization.offload_optimizer", "nvme_path", "text", kNone},
    {"zero_optimization.offload_optimizer", "pin_memory", "boolean", kNone},
    {"zero_optimization.offload_optimizer", "buffer_count", "integer", kNone},
    {"zero_optimization.offload_optimizer", "ratio", "number", kNone},
    {"zero_optimization.offload_optimizer", "pipeline", "boolean", kNone},
    {"zero_optimization.offload_optimizer", "pipeline_read", "boolean", kNone},
    {"zero_optimization.offload_optimizer", "pipeline_write", "boolean", kNone},
    {"zero_optimization.offload_optimizer", "fast_init", "boolean", kNone},
    {"zero_optimization.offload_param", "device", "\"none\"", kOffload},
    {"zero_optimization.offload_param", "nvme_path", "text", kNone},
    {"zero_optimization.offload_param", "pin_memory", "boolean", kNone},
    {"zero_optimization.offload_param", "buffer_count", "integer", kNone},
    {"zero_optimization.offload_param", "buffer_size", "integer", kNone},
    {"zero_optimization.offload_param", "max_in_cpu", "integer", kNone},

    // Of use to offload alone.
    {"aio", "block_size", "integer", kNone},
    {"aio", "queue_depth", "integer", kNone},
    {"aio", "thread_count", "integer", kNone},
    {"aio", "intra_op_parallelism", "integer", kNone},
    {"aio", "single_submit", "boolean", kNone},
    {"aio", "overlap_events", "boolean", kNone},
    {"aio", "use_gds", "false", "offload is not supported yet; false works"},

    {"tensor_parallel", "tp_overlap_comm", "false", "not supported yet; false works"},
    {"tensor_parallel", "partition_config", "", kByTheModel},
    {"tensor_parallel", "preset_model", "", kByTheModel},
    {"tensor_parallel", "injection_policy_tuple", "", kByTheModel},
    {"tensor_parallel", "keep_module_on_host", "boolean", kNone},
    {"tensor_parallel", "kernel_inject", "false", "there is one set of kernels; false works"},
    {"tensor_parallel.tp", "tp_size", "1", "write tensor_parallel.autotp_size, or \"mesh\": \"tp=2\""},
    {"tensor_parallel.tp", "tp_grain_size", "integer", kNone},

    {"pipeline", "seed_layers", "boolean", kNone},
    {"pipeline", "activation_checkpoint_interval", "0", "write \"recompute\": \"full\" instead"},
    {"pipeline", "pipe_partitioned", "boolean", kNone},
    {"pipeline", "grad_partitioned", "boolean", kNone},

    {"activation_checkpointing", "contiguous_memory_optimization", "boolean", kNone},
    {"activation_checkpointing", "synchronize_checkpoint_boundary", "false", "not supported; false works"},
    {"activation_checkpointing", "profile", "false", "not supported yet; false works"},

    {"checkpoint", "tag_validation", "text", kNone},
    {"checkpoint", "load_universal", "boolean", kNone},
    {"checkpoint", "use_node_local_storage", "false", "all ranks see one folder of checkpoints; false works"},
    {"checkpoint", "writer", "", "not supported; leave it out"},
    {"checkpoint.parallel_write", "pipeline_stage", "boolean", kNone},

    {"tensorboard", "enabled", "false", kMonitor},
    {"tensorboard", "output_path", "text", kNone},
    {"tensorboard", "job_name", "text", kNone},
    {"csv_monitor", "enabled", "false", kMonitor},
    {"csv_monitor", "output_path", "text", kNone},
    {"csv_monitor", "job_name", "text", kNone},
    {"wandb", "enabled", "false", kMonitor},
    {"wandb", "group", "text", kNone},
    {"wandb", "team", "text", kNone},
    {"wandb", "project", "text", kNone},
    {"comms_logger", "enabled", "false", "not supported yet; false works. The tape has every call"},
    {"comms_logger", "verbose", "boolean", kNone},
    {"comms_logger", "prof_all", "boolean", kNone},
    {"comms_logger", "debug", "boolean", kNone},
    {"flops_profiler", "enabled", "false", "not supported yet; false works"},
    {"flops_profiler", "recompute_fwd_factor", "number", kNone},
    {"flops_profiler", "profile_step", "integer", kNone},
    {"flops_profiler", "module_depth", "integer", kNone},
    {"flops_profiler", "top_modules", "integer", kNone},
    {"flops_profiler", "detailed", "boolean", kNone},
    {"flops_profiler", "output_file", "text", kNone},

    {"elasticity", "enabled", "false", kElastic},
    {"elasticity", "max_train_batch_size", "integer", kNone},
    {"elasticity", "micro_batch_sizes", "numbers", kNone},
    {"elasticity", "min_gpus", "integer", kNone},
    {"elasticity", "max_gpus", "integer", kNone},
    {"elasticity", "min_time", "integer", kNone},
    {"elasticity", "version", "number", kNone},
    {"elasticity", "prefer_larger_batch", "boolean", kNone},
    {"elasticity", "ignore_non_elastic_batch_info", "boolean", kNone},
    {"elasticity", "num_gpus_per_node", "integer", kNone},
    {"elasticity", "model_parallel_size", "integer", kNone},

    {"autotuning", "enabled", "false", kAutotuning},
    {"autotuning", "results_dir", "text", kNone},
    {"autotuning", "exps_dir", "text", kNone},
    {"autotuning", "overwrite", "boolean", kNone},
    {"autotuning", "metric", "text", kNone},
    {"autotuning", "start_profile_step", "integer", kNone},
    {"autotuning", "end_profile_step", "integer", kNone},
    {"autotuning", "fast", "boolean", kNone},
    {"autotuning", "max_train_batch_size", "integer", kNone},
    {"autotuning", "min_train_batch_size", "integer", kNone},
    {"autotuning", "max_train_micro_batch_size_per_gpu", "integer", kNone},
    {"autotuning", "min_train_micro_batch_size_per_gpu", "integer", kNone},
    {"autotuning", "mp_size", "integer", kNone},
    {"autotuning", "num_tuning_micro_batch_sizes", "integer", kNone},
    {"autotuning", "tuner_type", "text", kNone},
    {"autotuning", "tuner_early_stopping", "integer", kNone},
    {"autotuning", "tuner_num_trials", "integer", kNone},
    {"autotuning", "arg_mappings", "", kAutotuning},
});

constexpr const char* kFeature = "not supported; false works, or leave the section out";
constexpr auto kSections = std::to_array<AcceptedSection>({
    {"amp", "not supported; bf16.enabled or fp16.enabled is mixed precision, with fp32 masters"},
    {"torch_autocast", "not supported; bf16.enabled or fp16.enabled is mixed precision, with fp32 masters"},
    {"comet", kMonitor},
    {"curriculum_learning", kFeature},
    {"data_efficiency", kFeature},
    {"eigenvalue", kFeature},
    {"hybrid_engine", kFeature},
    {"nebula", kFeature},
    {"progressive_layer_drop", kFeature},
});

// Numbers are equal whatever their spelling: 1, 1.0, 1e0.
bool is_same_json(const std::string& a, const std::string& b) {
  if (a == b) return true;
  char *end_a = nullptr, *end_b = nullptr;
  const double x = std::strtod(a.c_str(), &end_a), y = std::strtod(b.c_str(), &end_b);
  const bool numbers = !a.empty() && !b.empty() && *end_a == '\0' && *end_b == '\0';
  return numbers && x == y;
}

}  // namespace

std::span<const AcceptedKey> accepted_keys() { return kKeys; }
std::span<const AcceptedSection> accepted_sections() { return kSections; }

void check_accepted(ConfigFile& section, const AcceptedKey& row) {
  const std::string_view accepted = row.accepted;
  // The typed readers refuse values of other types.
  if (accepted == "boolean") return static_cast<void>(section.boolean(row.key));
  if (accepted == "integer") return static_cast<void>(section.integer(row.key));
  if (accepted == "number") return static_cast<void>(section.number(row.key));
  if (accepted == "numbers") return static_cast<void>(section.numbers(row.key));
  if (accepted == "text") return static_cast<void>(section.text(row.key));
  const auto value = section.json(row.key);
  if (value && !is_same_json(*value, row.accepted)) section.refuse(row.key, row.reason);
}

void read_accepted_keys(ConfigFile& file) {
  for (const AcceptedKey& row : kKeys) {
    ConfigFile section = file;
    for (std::string_view rest = row.section; !rest.empty();) {
      const std::string_view name = rest.substr(0, rest.find('.'));
      section = section.section(std::string(name));
      rest.remove_prefix(std::min(name.size() + 1, rest.size()));
    }
    check_accepted(section, row);
  }
  for (const AcceptedSection& row : kSections) {
    ConfigFile section = file.section(row.section);
    if (section.boolean("enabled").value_or(false)) section.refuse("enabled", row.reason);
    section.ignore_rest();
  }
}

}  // namespace tessera::dist::detail
