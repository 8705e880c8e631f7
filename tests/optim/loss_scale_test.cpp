#include "optim/loss_scale.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/error.h"
#include "tests/optim/deepspeed_values.h"

namespace tessera::optim {
namespace {

TEST(LossScaler, ReplaysDeepSpeedsScriptedOverflowsExactly) {
  for (const reference::LossScaleValues& expected : reference::kLossScaleValues) {
    LossScaler scaler = LossScaler::dynamic({.initial_scale_power = expected.initial_scale_power,
                                             .loss_scale_window = expected.loss_scale_window,
                                             .hysteresis = expected.hysteresis,
                                             .min_loss_scale = expected.min_loss_scale,
                                             .consecutive_hysteresis = expected.consecutive_hysteresis});
    const std::string script = expected.overflows;
    for (std::size_t i = 0; i < script.size(); ++i) {
      const bool finite = script[i] != 'x';
      if (i == expected.scales.size()) {  // where DeepSpeed gives up
        EXPECT_THROW(scaler.update(finite), NonFiniteError) << expected.name;
        break;
      }
      EXPECT_EQ(scaler.update(finite), finite);
      EXPECT_EQ(scaler.scale(), expected.scales[i]) << expected.name << " step " << i;
    }
  }
}

TEST(LossScaler, ReplaysALongRunWithTheDefaults) {
  LossScaler scaler = LossScaler::dynamic({});
  EXPECT_EQ(scaler.scale(), 65536.0);
  std::vector<std::pair<std::int64_t, double>> changes;
  for (std::int64_t i = 0; i < 8000; ++i) {
    const auto& at = reference::kLongRunOverflows;
    const double before = scaler.scale();
    scaler.update(std::find(at.begin(), at.end(), i) == at.end());
    if (scaler.scale() != before) changes.emplace_back(i, scaler.scale());
  }
  EXPECT_EQ(changes, reference::kLongRunChanges);
}

TEST(LossScaler, StuckAtTheMinimumNamesTheFirstGradientThatIsNotFinite) {
  LossScaler scaler = LossScaler::dynamic({.initial_scale_power = 0, .hysteresis = 1});
  try {
    scaler.update(false, "h.3.attn.c_proj.weight");
    FAIL() << "nothing was thrown";
  } catch (const NonFiniteError& error) {
    EXPECT_NE(std::string(error.what()).find("h.3.attn.c_proj.weight"), std::string::npos) << error.what();
  }
  EXPECT_EQ(scaler.scale(), 1.0);
}

TEST(LossScaler, AConstantScaleStaysAndGivesUpAfterAHundredOverflows) {
  LossScaler scaler = LossScaler::from_config(128.0, {});
  EXPECT_FALSE(scaler.is_dynamic());
  for (int round = 0; round < 2; ++round) {  // the second round starts from 0 again
    for (int i = 0; i < 99; ++i) EXPECT_FALSE(scaler.update(false));
    if (round == 0) {
      EXPECT_TRUE(scaler.update(true));
    }
  }
  EXPECT_EQ(scaler.scale(), 128.0);
  EXPECT_THROW(scaler.update(false, "w"), NonFiniteError);
}

TEST(LossScaler, ASavedScalerContinues) {
  const DynamicLossScale options{.initial_scale_power = 6, .loss_scale_window = 3};
  LossScaler uninterrupted = LossScaler::dynamic(options), resumed = LossScaler::dynamic(options);
  const std::string script = "..x...xx....x.....xx.x...";
  for (std::size_t i = 0; i < script.size(); ++i) {
    if (i > 0) {
      LossScaler next = LossScaler::dynamic(options);
      next.load_state(resumed.state());
      resumed = next;
    }
    uninterrupted.update(script[i] != 'x');
    resumed.update(script[i] != 'x');
    EXPECT_EQ(resumed.state(), uninterrupted.state()) << "step " << i;
  }
  EXPECT_THROW(resumed.load_state({.scale = 0.0}), DataError);
}

TEST(LossScaler, MistakesAreRefused) {
  EXPECT_THROW((void)LossScaler::constant(0.0), ConfigError);
  EXPECT_THROW((void)LossScaler::dynamic({.loss_scale_window = 0}), ConfigError);
  EXPECT_THROW((void)LossScaler::dynamic({.hysteresis = 0}), ConfigError);
  EXPECT_THROW((void)LossScaler::dynamic({.initial_scale_power = 2, .min_loss_scale = 8.0}), ConfigError);
  EXPECT_TRUE(LossScaler::from_config(0.0, {}).is_dynamic());
}

}  // namespace
}  // namespace tessera::optim
