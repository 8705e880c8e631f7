#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "kernels/error.h"
#include "tests/optim/deepspeed_values.h"
#include "tests/optim/pytorch_values.h"

namespace tessera::optim {
namespace {

// Both sides round the same few operations on numbers of the rate's size, in another order: 16 · 2⁻⁵³ ≈
// 2e-15.
TEST(Schedule, RatesAndMomentaAreDeepSpeeds) {
  for (const reference::ScheduleValues& expected : reference::kScheduleValues) {
    const Schedule schedule =
        make_schedule(expected.type, expected.params, expected.warmup_type, reference::kBaseLr);
    for (std::size_t step = 0; step < expected.lr.size(); ++step) {
      const double want = expected.lr[step];
      EXPECT_NEAR(lr_at(schedule, static_cast<std::int64_t>(step)), want, 2e-15 * std::max(want, 0.1))
          << expected.name << " step " << step;
    }
    EXPECT_EQ(momentum_at(schedule, 0).has_value(), !expected.momentum.empty()) << expected.name;
    for (std::size_t step = 0; step < expected.momentum.size(); ++step) {
      EXPECT_NEAR(momentum_at(schedule, static_cast<std::int64_t>(step)).value_or(-1.0),
                  expected.momentum[step], 2e-15)
          << expected.name << " step " << step;
    }
  }
}

// PyTorch's warm-up and cosine are recurrences: each step rounds once or twice more, so after 23 of them some
// 50 · 2⁻⁵³ ≈ 5e-15 of the largest rate.
TEST(Schedule, CosineWithWarmupIsPyTorchs) {
  for (const reference::PyTorchSchedule& expected : reference::kPyTorchCosines) {
    const Schedule schedule = CosineWithWarmup{.max_lr = expected.max_lr,
                                               .min_lr = expected.min_lr,
                                               .warmup_steps = expected.warmup_steps,
                                               .total_steps = expected.total_steps};
    for (std::size_t step = 0; step < expected.lr.size(); ++step) {
      EXPECT_NEAR(lr_at(schedule, static_cast<std::int64_t>(step)), expected.lr[step],
                  5e-15 * expected.max_lr)
          << expected.name << " step " << step;
    }
  }
}

// max 0.8, min 0.2, 3 steps of warm-up: 0.8 · 1/4, 2/4, 3/4; then from 0.8 over 8 steps, half-way at step 3
// + 4.
TEST(Schedule, CosineWithWarmupByHand) {
  const Schedule schedule =
      CosineWithWarmup{.max_lr = 0.8, .min_lr = 0.2, .warmup_steps = 3, .total_steps = 11};
  const struct {
    std::int64_t step;
    double lr;
  } cases[] = {{0, 0.2},
               {1, 0.4},
               {2, 0.6},
               {3, 0.8},
               {5, 0.5 + 0.3 * std::numbers::sqrt2 / 2},
               {7, 0.5},
               {9, 0.5 - 0.3 * std::numbers::sqrt2 / 2},
               {11, 0.2},
               {1000, 0.2}};
  for (const auto& c : cases) EXPECT_NEAR(lr_at(schedule, c.step), c.lr, 1e-15) << "step " << c.step;
  EXPECT_FALSE(momentum_at(schedule, 0).has_value());
}

TEST(Schedule, CosineWithoutWarmupStartsAtTheMaximum) {
  EXPECT_EQ((CosineWithWarmup{.max_lr = 0.8, .total_steps = 10}.lr(0)), 0.8);
  EXPECT_EQ((CosineWithWarmup{.max_lr = 0.8, .warmup_steps = 10, .total_steps = 10}.lr(10)), 0.0);
}

// DeepSpeed's own cosine would climb again.
TEST(Schedule, WarmupCosineStaysAtItsMinimumAfterTheLastStep) {
  const WarmupCosineLR schedule{
      .base_lr = 1.0, .total_num_steps = 20, .warmup_num_steps = 5, .cos_min_ratio = 0.25};
  EXPECT_NEAR(schedule.lr(20), 0.25, 1e-15);
  EXPECT_NEAR(schedule.lr(30), 0.25, 1e-15);
}

TEST(Schedule, OneCycleCanLeaveMomentumAlone) {
  const Schedule schedule = make_schedule("OneCycle", {{"cycle_momentum", 0}}, "log", 0.1);
  EXPECT_FALSE(momentum_at(schedule, 3).has_value());
}

TEST(Schedule, MistakesAreRefused) {
  const struct {
    const char* type;
    std::map<std::string, double> params;
    const char* warmup_type;
    const char* expected;  // part of the message
  } cases[] = {
      {"Cosine", {}, "log", "WarmupCosineLR"},
      {"WarmupLR", {{"warmup_steps", 3}}, "log", "warmup_num_steps"},
      {"WarmupLR", {{"warmup_num_steps", 2.5}}, "log", "whole number"},
      {"WarmupLR", {{"warmup_num_steps", -1}}, "log", "at least 1"},
      {"WarmupLR", {}, "exp", "log or linear"},
      {"WarmupDecayLR", {{"warmup_num_steps", 5}}, "log", "total_num_steps is missing"},
      {"WarmupDecayLR", {{"warmup_num_steps", 5}, {"total_num_steps", 5}}, "log", "above warmup_num_steps"},
      {"WarmupCosineLR", {{"total_num_steps", 10}}, "log", "above warmup_num_steps (1000)"},
      {"OneCycle", {{"cycle_first_stair_count", 3}}, "log", "cycle_first_stair_count"},
      {"LRRangeTest", {{"lr_range_test_step_size", 0}}, "log", "at least 1"},
  };
  for (const auto& c : cases) {
    try {
      (void)make_schedule(c.type, c.params, c.warmup_type, 0.1);
      ADD_FAILURE() << c.type << ": nothing was thrown; expected " << c.expected;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(c.expected), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace tessera::optim
