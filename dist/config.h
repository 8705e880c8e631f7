#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "dist/config_file.h"
#include "dist/mesh.h"
#include "kernels/dtype.h"

namespace tessera::dist {

/// How a global batch is cut: batch = micro_batch · accumulation · dp. Ranks of one place on dp, those of tp
/// and cp, work on the same sequences.
struct BatchSizes {
  std::int64_t global = 0;        ///< train_batch_size: sequences per optimizer step
  std::int64_t micro_batch = 0;   ///< train_micro_batch_size_per_gpu: sequences per dp rank and pass
  std::int64_t accumulation = 0;  ///< gradient_accumulation_steps: passes per step

  /// Where sizes that are given come from, for messages: a flag, say. Empty: the key above.
  std::string global_from{};
  std::string micro_batch_from{};
};

/// Fills in what is 0. Any two decide the third; of the batch alone, the largest micro-batch up to
/// `largest_micro_batch`; of nothing, one sequence for each dp rank.
///
/// Errors    ConfigError that shows the equation with the numbers, the nearest batch that would work, and
///           where each number comes from.
/// Example   resolve_batch_sizes({.global = 32, .micro_batch = 4}, resolve_mesh(config, 8)[MeshAxis::kDp]);
[[nodiscard]] BatchSizes resolve_batch_sizes(const BatchSizes& given, std::int64_t dp,
                                             std::int64_t largest_micro_batch = 8);

/// The same for a mesh. Of the batch alone a pipeline gets micro-batches so small that there are two for each
/// of its ranks, if there are so many sequences: with fewer, ranks mostly wait.
[[nodiscard]] BatchSizes resolve_batch_sizes(const BatchSizes& given, const MeshShape& mesh,
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

  /// What a type does not have stands at its default.
  struct Optimizer {
    /// AdamW, Adam (means AdamW, as in DeepSpeed, unless adam_w_mode is false), SGD, Adagrad, Lion, Lamb,
    /// Muon
    std::string type = "AdamW";
    double lr = 1e-3;
    double beta1 = 0.9, beta2 = 0.95;  ///< Adam, Lion, Lamb; of Muon, for what it leaves to AdamW
    double epsilon = 1e-8;             ///< Adam, Adagrad, Lamb; of Muon, as beta1
    double weight_decay = 0.1;
    double momentum = 0.0;  ///< SGD, Muon
    double dampening = 0.0;
    bool nesterov = false;                         ///< SGD, Muon
    bool decoupled_decay = true;                   ///< of Adam: adam_w_mode
    double max_coeff = 10.0, min_coeff = 0.01;     ///< of Lamb: ends of its trust ratio
    double lr_decay = 0.0;                         ///< of Adagrad
    double initial_accumulator_value = 0.0;        ///< of Adagrad
    std::optional<double> adam_lr = std::nullopt;  ///< of Muon, for what it leaves to AdamW; none: lr
    std::int64_t ns_steps = 5;                     ///< of Muon: Newton-Schulz steps
    /// Of Muon, how long a matrix's step is beside lr: original, match_rms_adamw or spectral_unclamped
    std::string adjust_lr_fn = "original";
    /// Of Adam and AdamW: kBF16 keeps the state of bf16 parameters in 16-bit numbers
    /// (bf16.bf16_optimizer_states).
    DType state_dtype = kF32;
  } optimizer;

  struct Scheduler {
    /// LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR; empty: the program's default
    std::string type;
    std::map<std::string, double> params;
    std::string warmup_type = "log";  ///< of WarmupLR and WarmupDecayLR: "log" or "linear"
  } scheduler;

  DType dtype = kF32;  ///< of parameters and activations: bf16.enabled, fp16.enabled

  /// "numerics": "fast", or "invariant": losses, gradient norms and parameters have the same bits in every
  /// layout (docs/invariance.md), which takes time.
  enum class Numerics : std::uint8_t { kFast, kInvariant };
  Numerics numerics = Numerics::kFast;

  struct Fp16 {
    double loss_scale = 0.0;  ///< 0: dynamic
    std::int64_t initial_scale_power = 16, loss_scale_window = 1000, hysteresis = 2;
    double min_loss_scale = 1.0;
  } fp16;

  /// "mesh": "dp=2,tp=2"; or tensor_parallel.autotp_size (tp) and sequence_parallel_size (cp, Ulysses).
  MeshShape mesh;
  bool dp_given = false;  ///< false and mesh[dp] = 1: what the other axes leave of the ranks becomes dp
  /// tensor_parallel.sequence_parallel: tokens are cut over tp between the layers that tp cuts.
  bool sequence_parallel = false;
  enum class ContextParallel : std::uint8_t { kRing, kUlysses };
  ContextParallel context_parallel = ContextParallel::kRing;  ///< context_parallel.method

  /// zero_optimization. Sizes in elements.
  struct Zero {
    int stage = 0;
    std::int64_t prefetch_bucket_size = -1;        ///< stage3_prefetch_bucket_size; −1: the largest unit
    std::int64_t param_persistence_threshold = 0;  ///< stage3_param_persistence_threshold
    std::int64_t max_live_parameters = 1'000'000'000;  ///< stage3_max_live_parameters
    std::int64_t max_reuse_distance = 0;               ///< stage3_max_reuse_distance
    /// zero_hpz_partition_size: data ranks over which parameters are cut; 1: no hpZ
    std::int64_t hpz_partition_size = 1;
    std::int64_t mics_shard_size = 0;  ///< data ranks over which MiCS cuts; 0: no MiCS
    /// Ours: gradients stay whole until the last micro-batch and are sent once, where stages 2 and 3 would
    /// cut them after each.
    bool keep_full_gradients = false;
  } zero;

  /// activation_checkpointing, and ours: "recompute".
  struct Recompute {
    enum class Mode : std::uint8_t { kNone, kSelective, kFull };
    Mode mode = Mode::kNone;
    std::int64_t number_checkpoints = 0;  ///< blocks that run again, at most; 0: all
    bool partition_activations = false;   ///< kept inputs cut over tp
    bool cpu_checkpointing = false;       ///< kept inputs in host memory
    /// Blocks 0, n, 2n, ... run again, of a model of so many: n = ⌈num_blocks / number_checkpoints⌉.
    [[nodiscard]] std::int64_t every(std::int64_t num_blocks) const noexcept {
      if (number_checkpoints == 0 || number_checkpoints >= num_blocks) return 1;
      return (num_blocks + number_checkpoints - 1) / number_checkpoints;
    }
  } recompute;

  /// pipeline; its number of stages is the mesh's pp times chunks.
  struct Pipeline {
    std::string schedule = "1f1b";         ///< gpipe, 1f1b, interleaved, zb-h1, zb-v
    std::string partition = "parameters";  ///< or uniform, time
    std::int64_t chunks = 0;               ///< stages on each rank; 0: what the schedule has by itself
  } pipeline;

  DType grad_accum_dtype = kF32;  ///< data_types.grad_accum_dtype

  /// "memory_check", ours: refuse a run whose parameters, gradients and optimizer state do not fit into what
  /// the hosts have left. False where it errs: with swap, or memory that others are about to give back.
  bool memory_check = true;

  /// Reads its keys from `file`; a program that has keys of its own reads them too and then calls
  /// file.refuse_unknown().
  ///
  /// Errors    ConfigError for a value out of range, for two spellings of one setting that differ, and for
  ///           what Tessera does not do (yet), with the reason and what works instead. Settings that
  ///           contradict each other are for `check`: the program may change some first.
  [[nodiscard]] static Config read(ConfigFile& file);
};

/// Every rule that is about more than one setting. resolve_mesh and Engine call it, so that a setting which
/// flags or a program changed after a file was read is looked at as well.
///
/// Errors    ConfigError: hpZ with MiCS, or one of them at a stage that does not cut parameters; how blocks
///           run again, where none do; bf16 state of parameters that are not bf16, or of an optimizer
///           without.
void check(const Config& config);

/// The mesh for this many ranks: dp is filled up where it was not given.
///
/// Errors    ConfigError: what `check` finds; the axes' product is not the number of ranks (the equation and
///           the nearest meshes that work are shown); shard groups of hpZ or MiCS that do not divide the data
///           ranks dp · cp.
/// Example   "mesh": "tp=2" on 8 ranks  →  dp=4,tp=2
[[nodiscard]] MeshShape resolve_mesh(const Config& config, int num_ranks);

/// The resolved configuration for a person: a line for each subject, what is switched off left out.
///
///     mesh        dp=2,tp=2: 4 ranks
///     batch       32 sequences = 4 micro_batch x 4 accumulation x 2 dp
///     precision   bf16 parameters and activations; f32 gradients and masters
///     optimizer   AdamW: lr 0.001, betas 0.9 0.95, eps 1e-08, weight decay 0.1; gradient norm up to 1
///     ZeRO        stage 2 over 2 data ranks: gradients, optimizer state
[[nodiscard]] std::string describe(const Config& config, const MeshShape& mesh, const BatchSizes& batch);

}  // namespace tessera::dist
