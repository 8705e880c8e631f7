#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "dist/config_file.h"
#include "dist/mesh.h"
#include "kernels/dtype.h"

namespace tessera::dist {

/// How a global batch is cut: batch = micro_batch · accumulation · ranks.
struct BatchSizes {
  std::int64_t global = 0;        ///< train_batch_size: sequences per optimizer step
  std::int64_t micro_batch = 0;   ///< train_micro_batch_size_per_gpu: sequences per rank and pass
  std::int64_t accumulation = 0;  ///< gradient_accumulation_steps: passes per step
};

/// Fills in what is 0. Any two decide the third; of the batch alone, the largest micro-batch up to
/// `largest_micro_batch`; of nothing, one sequence for each rank.
///
/// Errors    ConfigError that shows the equation with the numbers, and the nearest batch that would work.
[[nodiscard]] BatchSizes resolve_batch_sizes(const BatchSizes& given, std::int64_t ranks,
                                             std::int64_t largest_micro_batch = 8);

/// Settings of a training run, under the keys that DeepSpeed's users know (docs/config.md lists them).
///
///     { "train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0,
///       "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}},
///       "scheduler": {"type": "WarmupCosineLR",
///                     "params": {"total_num_steps": 1000, "warmup_num_steps": 50}},
///       "bf16": {"enabled": true} }
struct Config {
  BatchSizes batch;
  double gradient_clipping = 1.0;  ///< largest global gradient norm; 0 switches it off
  std::int64_t steps_per_print = 10;

  struct Optimizer {
    /// AdamW, Adam (means AdamW, as in DeepSpeed, unless adam_w_mode is false), SGD
    std::string type = "AdamW";
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
    double momentum = 0.0;
    bool nesterov = false;
    bool decoupled_decay = true;
  } optimizer;

  struct Scheduler {
    /// LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR; empty: the program's default
    std::string type;
    std::map<std::string, double> params;
    std::string warmup_type = "log";  ///< of WarmupLR and WarmupDecayLR: "log" or "linear"
  } scheduler;

  DType dtype = kF32;  ///< of parameters and activations: bf16.enabled, fp16.enabled

  struct Fp16 {
    double loss_scale = 0.0;  ///< 0: dynamic
    std::int64_t initial_scale_power = 16, loss_scale_window = 1000, hysteresis = 2;
    double min_loss_scale = 1.0;
  } fp16;

  /// "mesh": "dp=2,tp=2"; or tensor_parallel.autotp_size (tp) and sequence_parallel_size (cp, Ulysses). What
  /// is left of the ranks becomes dp.
  MeshShape mesh;
  bool mesh_given = false;  ///< false: all ranks are dp
  bool sequence_parallel =
      false;  ///< tensor_parallel.sequence_parallel: tokens cut over tp outside of layers
  enum class ContextParallel : std::uint8_t { kRing, kUlysses };
  ContextParallel context_parallel = ContextParallel::kRing;  ///< context_parallel.method

  /// zero_optimization. Sizes in elements.
  struct Zero {
    int stage = 0;
    bool overlap_comm = true;  ///< reduce while the backward pass runs
    std::int64_t reduce_bucket_size = 500'000'000;
    std::int64_t allgather_bucket_size = 500'000'000;
    std::int64_t prefetch_bucket_size = 50'000'000;    ///< stage3_prefetch_bucket_size
    std::int64_t param_persistence_threshold = 0;      ///< stage3_param_persistence_threshold
    std::int64_t max_live_parameters = 1'000'000'000;  ///< stage3_max_live_parameters
    std::int64_t hpz_partition_size = 1;  ///< zero_hpz_partition_size: ranks that share parameters
    std::int64_t mics_shard_size = 0;     ///< ranks over which MiCS cuts; 0: all (no MiCS)
    /// Ours: stage 2 keeps whole gradients until the last micro-batch and sends them once.
    bool keep_full_gradients = false;
  } zero;

  /// activation_checkpointing, and ours: "recompute".
  struct Recompute {
    enum class Mode : std::uint8_t { kNone, kSelective, kFull };
    Mode mode = Mode::kNone;
    std::int64_t every = 1;              ///< number_checkpoints, turned around: every n-th block
    bool partition_activations = false;  ///< saved inputs cut over tp
    bool cpu_checkpointing = false;      ///< saved inputs kept in host memory
  } recompute;

  DType grad_accum_dtype = kF32;  ///< data_types.grad_accum_dtype

  /// Reads its keys from `file`; a program that has keys of its own reads them too and then calls
  /// file.refuse_unknown().
  [[nodiscard]] static Config read(ConfigFile& file);
};

}  // namespace tessera::dist
