#include "optim/loss_scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/error.h"

namespace tessera::optim {
namespace {

// A run with a constant scale that leaves out every step would otherwise go on, and learn nothing, to its
// end.
constexpr int kMaxOverflowsOfConstant = 100;

[[noreturn]] void throw_stuck(const std::string& why, std::string_view first_non_finite) {
  throw NonFiniteError(
      fmt::format("loss scaling: {}, and gradients are still not finite{}{}: the model diverges, or "
                  "its activations leave the range of f16; a lower learning rate, clipping or bf16 "
                  "may help",
                  why, first_non_finite.empty() ? "" : "; the first is that of ", first_non_finite));
}

}  // namespace

LossScaler LossScaler::constant(double scale) {
  if (!(scale > 0.0) || !std::isfinite(scale)) {
    throw ConfigError(
        fmt::format("loss scaling: a constant scale must be positive and finite, got {}", scale));
  }
  LossScaler scaler;
  scaler.state_.scale = scale;
  return scaler;
}

LossScaler LossScaler::dynamic(const DynamicLossScale& options) {
  const double initial = std::ldexp(1.0, options.initial_scale_power);
  if (options.loss_scale_window < 1 || options.hysteresis < 1) {
    throw ConfigError(
        fmt::format("loss scaling: loss_scale_window and hysteresis must be at least 1, got {} and {}",
                    options.loss_scale_window, options.hysteresis));
  }
  if (!std::isfinite(initial) || !(options.min_loss_scale > 0.0) || initial < options.min_loss_scale) {
    throw ConfigError(
        fmt::format("loss scaling: the first scale, 2^{}, must be finite and at least min_loss_scale, {}, "
                    "which must be positive",
                    options.initial_scale_power, options.min_loss_scale));
  }
  LossScaler scaler;
  scaler.dynamic_ = true;
  scaler.options_ = options;
  scaler.state_ = {.scale = initial, .steps_without_overflow = 0, .hysteresis_left = options.hysteresis};
  return scaler;
}

bool LossScaler::update(bool finite, std::string_view first_non_finite) {
  if (!dynamic_) {
    overflows_in_a_row_ = finite ? 0 : overflows_in_a_row_ + 1;
    if (overflows_in_a_row_ == kMaxOverflowsOfConstant) {
      throw_stuck(fmt::format("{} steps in a row overflowed at the constant scale {}", overflows_in_a_row_,
                              state_.scale),
                  first_non_finite);
    }
    return finite;
  }

  if (!finite) {
    if (state_.hysteresis_left > 1) {
      --state_.hysteresis_left;
    } else {
      if (state_.scale == options_.min_loss_scale) {
        throw_stuck(fmt::format("the scale is at its minimum of {}", state_.scale), first_non_finite);
      }
      state_.scale = std::max(state_.scale / 2.0, options_.min_loss_scale);
    }
    state_.steps_without_overflow = 0;
    return false;
  }

  // The counter is looked at before it grows: the step that begins a count is never the window's last.
  const bool window_is_over =
      state_.steps_without_overflow > 0 && state_.steps_without_overflow % options_.loss_scale_window == 0;
  if (window_is_over) state_.scale *= 2.0;
  if (window_is_over || options_.consecutive_hysteresis) state_.hysteresis_left = options_.hysteresis;
  ++state_.steps_without_overflow;
  return true;
}

void LossScaler::load_state(const State& state) {
  if (!(state.scale > 0.0) || !std::isfinite(state.scale) || state.steps_without_overflow < 0 ||
      state.hysteresis_left < 1) {
    throw DataError(
        fmt::format("loss scaling: a saved state of scale {}, {} steps without overflow, hysteresis {} is "
                    "not one of a run",
                    state.scale, state.steps_without_overflow, state.hysteresis_left));
  }
  state_ = state;
}

}  // namespace tessera::optim
