#pragma once

// Loss scaling for f16 training (Micikevicius et al., 2018): gradients of a loss multiplied by `scale` do not
// vanish in f16's small range; the update divides by it again. The scale grows until gradients overflow, and
// then steps back.
//
//   optim::LossScaler scaler = optim::LossScaler::dynamic({});
//   (loss * scaler.scale()).backward();
//   const auto norm = optim::global_grad_norm(optimizer.parameters(), 1.0 / scaler.scale());
//   if (scaler.update(norm.finite(), norm.non_finite)) {              // otherwise this step is left out
//     optimizer.step({.grad_scale = optim::clip_factor(norm, 1.0) * norm.grad_scale});
//   }

#include <cstdint>
#include <string_view>

namespace tessera::optim {

/// DeepSpeed's keys and defaults. Errors of the constructor below: ConfigError for a value out of range.
struct DynamicLossScale {
  int initial_scale_power = 16;           ///< the first scale is 2^16
  std::int64_t loss_scale_window = 1000;  ///< steps without overflow between two doublings
  int hysteresis = 2;                     ///< overflows that it takes to halve the scale for the first time
  double min_loss_scale = 1.0;
  bool consecutive_hysteresis = false;  ///< every step without overflow refills the hysteresis
};

/// The scale of the loss, and what overflows do to it. As DeepSpeed 0.19.8's DynamicLossScaler, exactly:
///
///   overflow      If more than one overflow is left in the hysteresis, one is used up. Otherwise the scale
///                 is halved, not below the minimum. Counting of steps without overflow starts again.
///   no overflow   After one step that starts the count, every loss_scale_window-th doubles the scale and
///                 refills the hysteresis: the first doubling comes with step loss_scale_window + 1 without
///                 overflow.
///
/// Calling   Every rank gives the same `finite` (reduce it first), so every rank has the same scale.
class LossScaler {
 public:
  /// A scale that never changes; 1 is no scaling.
  [[nodiscard]] static LossScaler constant(double scale);
  [[nodiscard]] static LossScaler dynamic(const DynamicLossScale& options);
  /// DeepSpeed's `fp16.loss_scale`: 0 means dynamic.
  [[nodiscard]] static LossScaler from_config(double loss_scale, const DynamicLossScale& options) {
    return loss_scale == 0.0 ? dynamic(options) : constant(loss_scale);
  }

  /// What to multiply the loss by.
  [[nodiscard]] double scale() const noexcept { return state_.scale; }
  [[nodiscard]] bool is_dynamic() const noexcept { return dynamic_; }

  /// To be told once a step whether all gradients were finite. Returns that: false means, leave this update
  /// out.
  ///
  /// Errors    NonFiniteError, naming `first_non_finite`, if they were not and nothing is left to try: a
  ///           dynamic scale is at its minimum with the hysteresis used up, or a constant one overflowed 100
  ///           times in a row.
  bool update(bool finite, std::string_view first_non_finite = {});

  /// For checkpoints.
  struct State {
    double scale = 1.0;
    std::int64_t steps_without_overflow = 0;
    int hysteresis_left = 1;
    friend bool operator==(const State&, const State&) = default;
  };
  [[nodiscard]] const State& state() const noexcept { return state_; }
  /// Errors    DataError for a scale or a count that no run can have.
  void load_state(const State& state);

 private:
  LossScaler() = default;

  bool dynamic_ = false;
  DynamicLossScale options_;
  State state_;
  int overflows_in_a_row_ = 0;  // of a constant scale
};

}  // namespace tessera::optim
