#pragma once

// Learning rates as pure functions of the step: nothing to save, nothing to resume.
//
//   const optim::Schedule schedule = optim::CosineWithWarmup{
//       .max_lr = 6e-4, .min_lr = 6e-5, .warmup_steps = 100, .total_steps = 5000};
//   for (std::int64_t step = 0; step < 5000; ++step) {
//     optimizer.set_lr(optim::lr_at(schedule, step));
//     ...
//   }
//
// `step` counts the updates done before this one: 0 for the first. The five schedules of DeepSpeed have its
// parameter names, its defaults, and the values that its engine gives to the same update (its scheduler is
// one call behind the optimizer: update `step` runs at last_batch_iteration = step - 1). Checked against
// DeepSpeed 0.19.8.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace tessera::optim {

/// The same at every step.
struct ConstantLR {
  double constant_lr = 1e-3;
  [[nodiscard]] double lr(std::int64_t step) const;
};

/// Linear to max_lr at step `warmup_steps`, then half a cosine to min_lr at `total_steps`, then min_lr:
///
///   step < w    max_lr · (step + 1) / (w + 1)         (never 0: the first step counts)
///   step ≥ w    min_lr + (max_lr − min_lr) · (1 + cos(π · (step − w) / (total_steps − w))) / 2
///
/// Source    Loshchilov & Hutter, "SGDR", 2017; as GPT-3 used it (Brown et al., 2020, appendix B).
struct CosineWithWarmup {
  double max_lr = 6e-4;
  double min_lr = 0.0;
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 1000;
  [[nodiscard]] double lr(std::int64_t step) const;
};

/// Finds the largest stable rate: it grows from a small one without end (Smith, 2018).
/// lr = min_lr · (1 + rate · step / size); with the staircase, step / size is rounded down.
struct LRRangeTest {
  double lr_range_test_min_lr = 1e-3;
  std::int64_t lr_range_test_step_size = 2000;
  double lr_range_test_step_rate = 1.0;
  bool lr_range_test_staircase = false;
  [[nodiscard]] double lr(std::int64_t step) const;
};

/// One triangle from cycle_min_lr up to cycle_max_lr and back, momentum the other way, then decay (Smith,
/// 2018): lr = cycle_min_lr / (1 + decay_lr_rate · n / decay_step_size) n steps after the cycle's last. The
/// decay is off while its rate or decay_step_size is 0.
struct OneCycle {
  double cycle_min_lr = 0.01;
  double cycle_max_lr = 0.1;
  double decay_lr_rate = 0.0;
  std::int64_t cycle_first_step_size = 2000;
  std::optional<std::int64_t> cycle_second_step_size = std::nullopt;  ///< default: as the first
  std::int64_t decay_step_size = 0;
  bool cycle_momentum = true;
  double cycle_min_mom = 0.8;
  double cycle_max_mom = 0.9;
  double decay_mom_rate = 0.0;
  [[nodiscard]] double lr(std::int64_t step) const;
  /// For Optimizer::set_momentum; nothing if cycle_momentum is false. DeepSpeed leaves the first update at
  /// cycle_min_mom, because its scheduler has not run yet, and so do we.
  [[nodiscard]] std::optional<double> momentum(std::int64_t step) const;
};

enum class WarmupType : std::uint8_t {
  kLog,     ///< log(step) / log(warmup_num_steps)
  kLinear,  ///< (step − 1) / warmup_num_steps
};

/// From warmup_min_lr to warmup_max_lr over warmup_num_steps (at least 2), then constant.
struct WarmupLR {
  double warmup_min_lr = 0.0;
  double warmup_max_lr = 1e-3;
  std::int64_t warmup_num_steps = 1000;
  WarmupType warmup_type = WarmupType::kLog;
  [[nodiscard]] double lr(std::int64_t step) const;
};

/// WarmupLR, then linear to warmup_min_lr at total_num_steps.
struct WarmupDecayLR {
  std::int64_t total_num_steps = 1000;
  double warmup_min_lr = 0.0;
  double warmup_max_lr = 1e-3;
  std::int64_t warmup_num_steps = 1000;
  WarmupType warmup_type = WarmupType::kLog;
  [[nodiscard]] double lr(std::int64_t step) const;
};

/// Ratios of base_lr: from warmup_min_ratio to 1, then half a cosine to cos_min_ratio at total_num_steps;
/// constant after that (DeepSpeed's would rise again).
struct WarmupCosineLR {
  double base_lr = 1e-3;  ///< DeepSpeed takes the optimizer's
  std::int64_t total_num_steps = 1000;
  double warmup_min_ratio = 0.0;
  std::int64_t warmup_num_steps = 1000;
  double cos_min_ratio = 1e-4;
  WarmupType warmup_type = WarmupType::kLog;
  [[nodiscard]] double lr(std::int64_t step) const;
};

using Schedule = std::variant<ConstantLR, CosineWithWarmup, LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR,
                              WarmupCosineLR>;

/// Learning rate of the update with `step` updates before it.
[[nodiscard]] double lr_at(const Schedule& schedule, std::int64_t step);
/// Momentum of that update, where the schedule cycles it.
[[nodiscard]] std::optional<double> momentum_at(const Schedule& schedule, std::int64_t step);

/// A schedule of DeepSpeed's from a configuration's `type` and `params`; flags are 0 or 1. `base_lr` is the
/// optimizer's: what WarmupCosineLR multiplies, and WarmupLR's default maximum.
///
/// Errors    ConfigError: an unknown type or parameter (the known ones are listed); total_num_steps missing;
///           a count that is not a positive whole number, or total_num_steps not above warmup_num_steps;
///           stair counts of OneCycle other than 0 (DeepSpeed reads them and does nothing).
[[nodiscard]] Schedule make_schedule(const std::string& type, const std::map<std::string, double>& params,
                                     std::string_view warmup_type, double base_lr);

}  // namespace tessera::optim
