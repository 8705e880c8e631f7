// What training takes of memory at most: the buffers that a naive implementation has and this one must not.

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "autograd/ops.h"
#include "nn/nn.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

// Bytes in use at most while `run` runs, above what was in use before it: of all categories together.
std::int64_t peak_bytes(const std::function<void()>& run) {
  MemoryPool& pool = *RankContext::current().pool(cpu);
  pool.reset_peak();
  const std::int64_t before = pool.report().total.current;
  run();
  return pool.report().total.peak - before;
}

// Logits [N, V] are much the largest tensor of a language model's step. Probabilities, their logarithm and
// the gradient are three more in a textbook; here the gradient takes the logits' place.
TEST(Memory, TheLossAndItsGradientTakeOneBufferOfTheLogitsSize) {
  constexpr std::int64_t kRows = 64, kVocab = 5000, kWidth = 16;
  for (const DType dtype : {kF32, kBF16}) {
    Linear head(kWidth, kVocab, {.bias = false});
    head.to(dtype);
    Tensor x = uniform({kRows, kWidth}, -1.0, 1.0, "x").to(dtype);
    x.set_requires_grad();
    const Tensor targets = zeros({kRows}, {.dtype = kI64});
    const std::int64_t logits_bytes = kRows * kVocab * static_cast<std::int64_t>(size_bytes(dtype));
    // Beside the logits: the weight's gradient (f32), and what a product takes to pack a panel.
    const std::int64_t weight_gradient = kVocab * kWidth * 4;
    const std::int64_t largest = logits_bytes + weight_gradient + logits_bytes / 2;
    const std::int64_t peak = peak_bytes([&] { cross_entropy(head(x), targets).backward(); });
    EXPECT_GE(peak, logits_bytes);
    EXPECT_LT(peak, largest) << name(dtype);
    EXPECT_LT(peak_bytes([&] {
                Tensor logits = head(x);
                const Tensor loss = cross_entropy(std::move(logits), targets);
                loss.backward();
              }),
              largest)
        << name(dtype) << ", moved";
    // Logits that the caller can still look at must not change: that costs a second buffer.
    EXPECT_GT(peak_bytes([&] {
                const Tensor logits = head(x);
                cross_entropy(logits, targets).backward();
              }),
              2 * logits_bytes)
        << name(dtype) << ", kept";
  }
}

// A model's own loss must let go of its logits for that. With V = 20,000 they are 95 % of all activations.
TEST(Memory, AModelsLossHoldsItsLogitsOnce) {
  const auto model = make_language_model("layers=1,heads=2,width=16,context=64", 20000);
  const Tensor ids = zeros({1, 64}, {.dtype = kI64});
  const std::int64_t logits_bytes = 64 * 20000 * 4;
  const std::int64_t parameters = model->num_parameters() * 4;
  const std::int64_t peak = peak_bytes([&] { model->loss(ids, ids).backward(); });
  EXPECT_GE(peak, logits_bytes);
  EXPECT_LT(peak, logits_bytes + parameters + logits_bytes / 2);
}

// One head's T×T scores alone would take T²·4 bytes = 4 MiB here; the mask of dropout, the scores' gradient
// and every further head as much again. All that attention needs grows with T.
TEST(Memory, AttentionNeverHoldsAMatrixOfTimeByTime) {
  constexpr std::int64_t kTime = 1024, kHeads = 4, kGroups = 2, kHeadWidth = 16;
  for (const double dropout : {0.0, 0.1}) {
    for (const bool causal : {true, false}) {
      Tensor q = uniform({1, kTime, kHeads, kHeadWidth}, -1.0, 1.0, "q");
      Tensor k = uniform({1, kTime, kGroups, kHeadWidth}, -1.0, 1.0, "k");
      Tensor v = uniform({1, kTime, kGroups, kHeadWidth}, -1.0, 1.0, "v");
      for (Tensor* x : {&q, &k, &v}) x->set_requires_grad();
      AttentionConfig config;
      config.causal = causal;
      config.dropout = dropout;
      const std::int64_t forward = peak_bytes([&] { (void)attention(q, k, v, config); });
      const std::int64_t both = peak_bytes([&] { sum(attention(q, k, v, config)).backward(); });
      const std::int64_t scores_bytes = kTime * kTime * 4;
      EXPECT_LT(forward, scores_bytes / 2) << "causal " << causal << ", dropout " << dropout;
      EXPECT_LT(both, scores_bytes / 2) << "causal " << causal << ", dropout " << dropout;
    }
  }
}

TEST(Memory, OfAttentionGrowsWithTimeAndNotWithItsSquare) {
  const auto peak_of = [](std::int64_t time) {
    Gpt2Block block({.vocab = 1, .context = time, .heads = 2, .width = 16});
    Tensor x = uniform({1, time, 16}, -1.0, 1.0, "x");
    x.set_requires_grad();
    return static_cast<double>(peak_bytes([&] { sum(block(x)).backward(); }));
  };
  // Twice the time, twice the activations, and scratch memory that stays or doubles: never four times.
  EXPECT_LT(peak_of(2048) / peak_of(1024), 2.1);
}

// A second step needs no new memory from the system: all that the first freed is used again.
TEST(Memory, ASteadyStepAsksTheSystemForNothing) {
  const auto model = make_language_model("layers=2,heads=2,width=32,context=64,dropout=0.1", 300);
  const Tensor ids = zeros({2, 64}, {.dtype = kI64});
  const auto step = [&] {
    model->loss(ids, ids).backward();
    model->zero_grad();
  };
  step();
  step();
  const MemoryReport before = RankContext::current().pool(cpu)->report();
  for (int i = 0; i < 3; ++i) step();
  const MemoryReport after = RankContext::current().pool(cpu)->report();
  EXPECT_EQ(after.system_allocations, before.system_allocations);
  EXPECT_EQ(after.total.current, before.total.current) << "a step leaves something behind";
}

}  // namespace
}  // namespace tessera::nn
