#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera::optim {
namespace {

// Half a cosine: 1 at progress 0, 0 at progress 1 and after.
double half_cosine(double progress) {
  return (1.0 + std::cos(std::numbers::pi * std::min(progress, 1.0))) / 2.0;
}

// DeepSpeed's warm-up, 0 to 1: `iteration` is its last_batch_iteration, step − 1. Before its scheduler's
// first call the rate is the smallest.
double warmup_fraction(WarmupType type, std::int64_t iteration, std::int64_t num_steps) {
  if (iteration < 0) return 0.0;
  if (type == WarmupType::kLinear) return static_cast<double>(iteration) / static_cast<double>(num_steps);
  return std::log(static_cast<double>(iteration + 1)) / std::log(static_cast<double>(num_steps));
}

// log(1) = 0 would be divided by.
std::int64_t at_least_two(std::int64_t warmup_num_steps) {
  return std::max<std::int64_t>(2, warmup_num_steps);
}

std::int64_t second_step_size(const OneCycle& s) {
  return s.cycle_second_step_size.value_or(s.cycle_first_step_size);
}

// Height in OneCycle's triangle, 0 to 1 and back; nothing once the cycle is over.
std::optional<double> cycle_height(const OneCycle& s, std::int64_t step) {
  const std::int64_t total = s.cycle_first_step_size + second_step_size(s);
  if (step > total) return std::nullopt;
  const auto at = static_cast<double>(step);
  if (step <= s.cycle_first_step_size) return at / static_cast<double>(s.cycle_first_step_size);
  return static_cast<double>(total - step) / static_cast<double>(second_step_size(s));
}

// 1 + rate · (steps since the cycle's end) / size, or 1 if there is no decay.
double decay_factor(const OneCycle& s, double rate, std::int64_t step) {
  if (rate == 0.0 || s.decay_step_size == 0) return 1.0;
  const std::int64_t since_end = step - (s.cycle_first_step_size + second_step_size(s));
  return 1.0 + rate * static_cast<double>(since_end) / static_cast<double>(s.decay_step_size);
}

}  // namespace

double ConstantLR::lr(std::int64_t) const { return constant_lr; }

double CosineWithWarmup::lr(std::int64_t step) const {
  if (step < warmup_steps)
    return max_lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps + 1);
  if (step >= total_steps) return min_lr;
  const double progress =
      static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
  return min_lr + (max_lr - min_lr) * half_cosine(progress);
}

double LRRangeTest::lr(std::int64_t step) const {
  const double intervals = lr_range_test_staircase
                               ? static_cast<double>(step / lr_range_test_step_size)
                               : static_cast<double>(step) / static_cast<double>(lr_range_test_step_size);
  return lr_range_test_min_lr * (1.0 + lr_range_test_step_rate * intervals);
}

double OneCycle::lr(std::int64_t step) const {
  if (const auto height = cycle_height(*this, step))
    return cycle_min_lr + (cycle_max_lr - cycle_min_lr) * *height;
  return cycle_min_lr / decay_factor(*this, decay_lr_rate, step);
}

std::optional<double> OneCycle::momentum(std::int64_t step) const {
  if (!cycle_momentum) return std::nullopt;
  if (step == 0) return cycle_min_mom;
  if (const auto height = cycle_height(*this, step))
    return cycle_max_mom - (cycle_max_mom - cycle_min_mom) * *height;
  return cycle_max_mom * decay_factor(*this, decay_mom_rate, step);
}

double WarmupLR::lr(std::int64_t step) const {
  const std::int64_t num_warmup = at_least_two(warmup_num_steps);
  const double fraction = step <= num_warmup ? warmup_fraction(warmup_type, step - 1, num_warmup) : 1.0;
  return warmup_min_lr + (warmup_max_lr - warmup_min_lr) * fraction;
}

double WarmupDecayLR::lr(std::int64_t step) const {
  const std::int64_t num_warmup = at_least_two(warmup_num_steps);
  double fraction = 0.0;
  if (step <= num_warmup) {
    fraction = warmup_fraction(warmup_type, step - 1, num_warmup);
  } else {
    const auto left = static_cast<double>(total_num_steps - (step - 1));
    fraction =
        std::max(0.0, left / static_cast<double>(std::max<std::int64_t>(1, total_num_steps - num_warmup)));
  }
  return warmup_min_lr + (warmup_max_lr - warmup_min_lr) * fraction;
}

double WarmupCosineLR::lr(std::int64_t step) const {
  const std::int64_t num_warmup = at_least_two(warmup_num_steps);
  if (step == 0)
    return 0.0;  // DeepSpeed's rate before its scheduler's first call, whatever warmup_min_ratio is
  if (step <= num_warmup) {
    const double fraction = warmup_fraction(warmup_type, step - 1, num_warmup);
    return base_lr * (warmup_min_ratio + (1.0 - warmup_min_ratio) * fraction);
  }
  const double progress = static_cast<double>(step - num_warmup) /
                          static_cast<double>(std::max<std::int64_t>(1, total_num_steps - num_warmup));
  return base_lr * std::max(0.0, cos_min_ratio + (1.0 - cos_min_ratio) * half_cosine(progress));
}

double lr_at(const Schedule& schedule, std::int64_t step) {
  return std::visit([step](const auto& s) { return s.lr(step); }, schedule);
}

std::optional<double> momentum_at(const Schedule& schedule, std::int64_t step) {
  const auto* cycle = std::get_if<OneCycle>(&schedule);
  return cycle == nullptr ? std::nullopt : cycle->momentum(step);
}

}  // namespace tessera::optim
