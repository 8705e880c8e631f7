#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "dist/config_file.h"
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

  /// Reads its keys from `file`; a program that has keys of its own reads them too and then calls
  /// file.refuse_unknown().
  [[nodiscard]] static Config read(ConfigFile& file);
};

}  // namespace tessera::dist
