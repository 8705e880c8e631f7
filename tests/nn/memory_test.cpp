// What training takes of memory at most: the buffers that a naive implementation has and this one must not.

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "autograd/backward.h"
#include "autograd/graph.h"
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

// A table [V, D] that has a gradient takes the rows of a batch into it. A second table of zeros to add would
// cost as much as the weight itself, and a pass over both; the sum must be that sum all the same, to the bit.
TEST(Memory, RowsOfAnEmbeddingGoIntoTheGradientThatIsThere) {
  constexpr std::int64_t kVocab = 5000, kWidth = 16;
  for (const DType dtype : {kF32, kBF16}) {
    Tensor table = normal({kVocab, kWidth}, 0.0, 1.0, "table").to(dtype).detach();
    table.set_requires_grad();
    const Tensor ids = from_vector(std::vector<std::int64_t>{7, 4999, 7, 0, 7}, Shape{5});
    const Tensor dy = normal({5, kWidth}, 0.0, 1.0, "dy").to(dtype);
    const Tensor before = normal({kVocab, kWidth}, 0.0, 1.0, "before");
    table.set_grad(before.clone());
    const Tensor y = embedding(table, ids);
    const Tensor alone = gradients(std::span(&y, 1), std::span(&dy, 1), std::span(&table, 1), true)[0];
    ASSERT_TRUE(alone.defined()) << "gradients() are never added to the leaf";
    EXPECT_EQ(table.grad().to_vector<float>(), before.to_vector<float>());

    const std::int64_t table_bytes = kVocab * kWidth * 4;
    EXPECT_LT(peak_bytes([&] { backward(y, dy, {.retain_graph = true}); }), table_bytes / 8) << name(dtype);
    EXPECT_EQ(table.grad().to_vector<float>(), (before + alone).to_vector<float>()) << name(dtype);

    // A hook must see the gradient of its pass alone, so there it is made and added.
    Tensor seen;
    register_hook(table, [&seen](const Tensor& gradient) { return seen = gradient.clone(), Tensor(); });
    table.set_grad(before.clone());
    EXPECT_GE(peak_bytes([&] { backward(y, dy); }), table_bytes) << name(dtype);
    EXPECT_EQ(seen.to_vector<float>(), alone.to_vector<float>()) << name(dtype);
    EXPECT_EQ(table.grad().to_vector<float>(), (before + alone).to_vector<float>()) << name(dtype);
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

// A step like GPT-2's, at a size where nearly all lies in large blocks: activations make room for gradients
// of other sizes, and an optimizer's state comes after the first step. What is held from the system stays
// within a few percent of what was in use at once. (Blocks kept by size alone hold a fifth more than that.)
TEST(Memory, OfTheSystemIsHardlyMoreThanTheStepsPeak) {
  RankContext context;
  const RankContext::Scope scope(context);
  context.kernels.num_threads = 2;
  MemoryPool& pool = *context.pool(cpu);
  for (const DType dtype : {kF32, kBF16}) {
    const auto model = make_language_model("layers=3,heads=4,width=384,context=128", 9000);
    model->to(dtype);
    const Tensor ids = zeros({4, 128}, {.dtype = kI64});
    std::vector<Tensor> state;
    const auto step = [&] {
      model->loss(ids, ids).backward();
      const CategoryScope category(MemoryCategory::kOptimizerState);
      for (const auto& [name, parameter] : model->named_parameters()) {
        if (state.size() < 2 * model->named_parameters().size()) {
          state.push_back(zeros(parameter.shape()));
          state.push_back(zeros(parameter.shape()));
        }
      }
      model->zero_grad();
    };
    step();
    step();
    pool.reset_peak();
    const MemoryReport before = pool.report();
    step();
    const MemoryReport after = pool.report();
    EXPECT_EQ(after.system_allocations, before.system_allocations) << name(dtype);
    EXPECT_EQ(after.reserved, before.reserved) << name(dtype);
    EXPECT_GE(after.reserved, after.total.peak) << name(dtype);
    EXPECT_LT(static_cast<double>(after.reserved), 1.1 * static_cast<double>(after.total.peak))
        << name(dtype) << ": " << after.reserved << " bytes for a peak of " << after.total.peak;
    pool.trim();  // the next type begins with its own
  }
}

}  // namespace
}  // namespace tessera::nn
