// Training in bf16 with f32 masters: forward and backward in 16 bits, weights kept and updated in 32.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/loss_scale.h"
#include "optim/sgd.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/largest_difference.h"

namespace tessera::optim {
namespace {

constexpr double kRoundoff = 1.0 / 256;  // bf16 keeps 8 bits: rounding changes a number by this part at most

Tensor identity(std::int64_t n, DType dtype) {
  Tensor x = zeros({n, n});
  for (std::int64_t i = 0; i < n; ++i) x.set({i, i}, 1.0);
  return x.to(dtype);
}

// Least squares whose gradient is known: with inputs I the prediction is the weight, and the gradient of
// Σ (W − Y)² is 2 (W − Y).
class LeastSquares {
 public:
  explicit LeastSquares(DType dtype)
      : layer_(kSize, kSize, {.bias = false}),
        inputs_(identity(kSize, dtype)),
        targets_(make_targets().to(dtype)) {
    layer_.to(dtype);
    const NoGrad no_grad;
    Tensor weight = layer_.weight();
    weight.copy_from(make_targets().transpose(0, 1).reshape({kSize, kSize}) *
                     -1.0);  // far away, exact in bf16
  }
  [[nodiscard]] Tensor loss() { return nn::mse_loss(layer_(inputs_), targets_, Reduction::kSum); }
  void backward() { loss().backward(); }
  [[nodiscard]] nn::Linear& layer() { return layer_; }
  [[nodiscard]] static Tensor solution() { return make_targets().transpose(0, 1); }

  static constexpr std::int64_t kSize = 12;

 private:
  // Multiples of 1/64 in [−1, 1]: exact in bf16.
  static Tensor make_targets() {
    std::vector<float> values;
    for (int i = 0; i < kSize * kSize; ++i) values.push_back(static_cast<float>((37 * i) % 129 - 64) / 64.0F);
    return from_vector(values, Shape{kSize, kSize});
  }

  nn::Linear layer_;
  Tensor inputs_, targets_;
};

Tensor master_of(Optimizer& optimizer) {
  for (const auto& [name, tensor] : optimizer.state()) {
    if (name.ends_with("/master")) return tensor;
  }
  return {};
}

// Let w be the f32 run's weight, m the master and e = |m − w|. In bf16 the gradient is 2·(bf16(m) − y), the
// difference rounded once more: it is wrong by at most 2u(|m| + |d|), with d the difference and u = 2⁻⁸. So
//   e ← (1 − 2 lr) e + 2 lr · u(|m| + |d|),   hence always   e ≤ u · max(|m| + |d|) = u · (1 + 2) = 3u,
// because |y| ≤ 1 and the run goes straight from −y'(|y'| ≤ 1) towards y. (f32's own rounding is 2⁻¹⁶ of
// that.)
TEST(MixedPrecision, MastersFollowAnF32RunWithinTheRoundingOfItsGradients) {
  LeastSquares exact(kF32), low(kBF16);
  Sgd exact_optimizer(exact.layer().named_parameters(), {.lr = 1.0 / 64});
  Sgd low_optimizer(low.layer().named_parameters(), {.lr = 1.0 / 64});
  for (int step = 0; step < 400; ++step) {
    exact.backward();
    low.backward();
    exact_optimizer.step();
    low_optimizer.step();
    exact_optimizer.zero_grad();
    low_optimizer.zero_grad();
    const Tensor master = master_of(low_optimizer);
    ASSERT_EQ(master.dtype(), kF32);
    ASSERT_LE(largest_difference(master, exact.layer().weight()), 3 * kRoundoff) << "step " << step;
    ASSERT_EQ(largest_difference(low.layer().weight(), master.to(kBF16)), 0.0) << "step " << step;
  }
  // (1 − 1/32)⁴⁰⁰ · 2 = 6e-6 is left of the way in f32.
  EXPECT_LE(largest_difference(exact.layer().weight(), LeastSquares::solution()), 1e-5);
  EXPECT_LE(largest_difference(low.layer().weight(), LeastSquares::solution()), 3 * kRoundoff + 1e-5);
}

// What masters are for. Between 1/2 and 1 bf16's numbers are 2⁻⁸ apart, so a step of lr·2d rounds away once
// 2d/64 < 2⁻⁹, that is from d = 1/16 on: the same run without masters stops that far from the solution.
TEST(MixedPrecision, WithoutMastersTheSameRunStopsWhereStepsRoundAway) {
  LeastSquares low(kBF16);
  Tensor weight = low.layer().weight();
  for (int step = 0; step < 400; ++step) {
    low.backward();
    const NoGrad no_grad;
    weight.copy_from(weight.to(kF32) - low.layer().weight().grad() * (1.0 / 64));
    low.layer().zero_grad();
  }
  EXPECT_GT(largest_difference(weight, LeastSquares::solution()), 1.0 / 20);
}

// 300 steps of 2⁻¹² each, far below the spacing of 2⁻⁷ above 1 and of 2⁻⁸ below: not one is lost, and the
// visible weight goes the same way in steps of its own size.
TEST(MixedPrecision, StepsBelowTheResolutionAddUp) {
  Tensor p = from_vector<float>({1.0F}).to(kBF16);
  p.set_requires_grad();
  Sgd optimizer({p}, {.lr = 1.0});
  double previous = 1.0;
  int moves = 0;
  for (int step = 1; step <= 300; ++step) {
    p.set_grad(from_vector<float>({1.0F / 4096}));
    optimizer.step();
    ASSERT_EQ(master_of(optimizer).item(), 1.0 - step / 4096.0);
    ASSERT_NEAR(p.item(), 1.0 - step / 4096.0, 1.0 / 512);  // half a spacing
    if (p.item() != previous) ++moves;
    previous = p.item();
  }
  EXPECT_EQ(moves, 19);  // 300/4096 of the way in spacings of 1/256 = 18.75
}

// The largest gradient is 2·2 at first: times 2¹⁴ it is above f16's 65504, times 2¹³ it is not. From 2²⁴ the
// scale is halved 11 times, after one overflow that the hysteresis forgives: 12 steps are left out, and
// nothing of them stays. After that all is as in bf16, with f16's u = 2⁻¹¹.
TEST(MixedPrecision, F16LeavesOutStepsUntilTheLossScaleFitsAndThenFollowsF32) {
  LeastSquares exact(kF32), low(kF16);
  const Tensor first = low.layer().weight().clone();
  Sgd exact_optimizer(exact.layer().named_parameters(), {.lr = 1.0 / 64});
  Sgd low_optimizer(low.layer().named_parameters(), {.lr = 1.0 / 64});
  LossScaler scaler = LossScaler::dynamic({.initial_scale_power = 24});
  int left_out = 0, done = 0;
  while (done < 400 && left_out < 100) {
    (low.loss() * scaler.scale()).backward();
    const GradNorm norm = global_grad_norm(low_optimizer.parameters(), 1.0 / scaler.scale());
    if (scaler.update(norm.finite(), norm.non_finite)) {
      low_optimizer.step({.grad_scale = norm.grad_scale});
      exact.backward();
      exact_optimizer.step();
      exact_optimizer.zero_grad();
      ASSERT_LE(largest_difference(master_of(low_optimizer), exact.layer().weight()), 3.0 / 2048)
          << "step " << done;
      ++done;
    } else {
      ++left_out;
      ASSERT_EQ(largest_difference(low.layer().weight(), first), 0.0);
    }
    low_optimizer.zero_grad();
  }
  EXPECT_EQ(left_out, 12);
  EXPECT_EQ(scaler.scale(), 8192.0);
  EXPECT_LE(largest_difference(low.layer().weight(), LeastSquares::solution()), 3.0 / 2048 + 1e-5);
}

// Losses of the first and of the last step.
std::pair<double, double> train_gpt2(DType dtype, int steps) {
  RankContext context;  // so that both runs begin with equal weights
  const RankContext::Scope scope(context);
  const auto model = nn::make_language_model("layers=2,heads=2,width=32,context=16", 50);
  model->to(dtype);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 4 * 17; ++i) ids.push_back((i * i + 3 * i) % 50);
  const Tensor all = from_vector(ids, Shape{4, 17});
  const Tensor x = all.slice(1, 0, 16), y = all.slice(1, 1, 17);
  AdamW optimizer(model->named_parameters(), {.lr = 2e-4, .weight_decay = 0.0});
  std::vector<double> losses;
  for (int step = 0; step <= steps; ++step) {
    const Tensor loss = model->loss(x, y);
    losses.push_back(loss.item());
    loss.backward();
    optimizer.step();
    model->zero_grad();
  }
  return {losses.front(), losses.back()};
}

// Logits of a fresh GPT-2 are of order 0.1 and lie behind some 20 roundings of 2⁻⁸ / √3 each, hence are off
// by about 0.1 · √20 · 2⁻⁸ / √3 = 1e-3; the loss is a mean over 64 of them. Gradients have relative errors of
// the order √20 · 2⁻⁸ / √3 = 1 %, which Adam's step inherits, so the way down differs by that order: 5 % are
// allowed.
TEST(MixedPrecision, Gpt2LearnsInBf16AsInF32) {
  const auto [first, last] = train_gpt2(kF32, 60);
  const auto [first_low, last_low] = train_gpt2(kBF16, 60);
  EXPECT_NEAR(first_low, first, 1e-3);
  EXPECT_GT(first - last, 0.5) << "the task must teach something";
  EXPECT_NEAR(first_low - last_low, first - last, 0.05 * (first - last));
}

}  // namespace
}  // namespace tessera::optim
