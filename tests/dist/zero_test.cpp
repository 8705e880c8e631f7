// ZeRO changes nothing: every placement, on 1, 2, 3, 4 and 8 ranks, trains what a plain loop on one rank
// trains (training.h; it knows nothing of Zero).

#include "dist/zero.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/error.h"
#include "tests/dist/zero_training.h"

namespace tessera::dist::testing {
namespace {

constexpr int kSteps = 6;

const Trained& reference(const std::string& model, DType dtype = kF64) {
  static std::map<std::pair<std::string, DType>, Trained> cache;
  auto& result = cache[{model, dtype}];
  if (result.losses.empty()) result = train_alone({.model = model, .dtype = dtype, .steps = kSteps});
  return result;
}

struct Placement {
  const char* name;
  ZeroPlacement placement;
  int shard_size = 0;
};

const Placement kStage0{"stage0", ZeroPlacement::stage(0)}, kStage1{"stage1", ZeroPlacement::stage(1)},
    kStage2{"stage2", ZeroPlacement::stage(2)}, kStage3{"stage3", ZeroPlacement::stage(3)},
    kMics{"mics", ZeroPlacement::mics(), 2}, kHpz{"hpz", ZeroPlacement::hpz(), 2};

struct Row {
  Placement placement;
  const char* model;  // "gpt2" or "llama"
  int num_ranks;
  std::int64_t micro_batch;  // 0: no accumulation
  bool recompute = false;
  bool keep_full_gradients = false;
  std::int64_t prefetch_elements = 50'000'000;
  std::int64_t persistence_threshold = 0;
  std::int64_t max_reuse_distance = 0;

  [[nodiscard]] std::string name() const {
    std::string text = fmt::format("{}_{}_{}ranks", placement.name, model, num_ranks);
    if (micro_batch > 0) text += fmt::format("_in{}Passes", kGlobalBatch / num_ranks / micro_batch);
    if (recompute) text += "_recompute";
    if (keep_full_gradients) text += "_fullGradients";
    if (prefetch_elements != 50'000'000) text += fmt::format("_prefetch{}", prefetch_elements);
    if (persistence_threshold > 0) text += "_persistent";
    if (max_reuse_distance > 0) text += "_reuse";
    return text;
  }
  [[nodiscard]] ZeroTraining training() const {
    return {.model = std::string(model) == "gpt2" ? kGpt2 : kLlama,
            .zero = {.placement = placement.placement,
                     .shard_size = placement.shard_size,
                     .keep_full_gradients = keep_full_gradients,
                     .prefetch_elements = prefetch_elements,
                     .persistence_threshold = persistence_threshold,
                     .max_reuse_distance = max_reuse_distance},
            .micro_batch = micro_batch,
            .steps = kSteps,
            .recompute = recompute};
  }
};

std::vector<Row> rows() {
  std::vector<Row> rows;
  // Every stage × ranks, with 3 passes where the share of 24 sequences allows it.
  for (const Placement& stage : {kStage0, kStage1, kStage2, kStage3}) {
    for (const int num_ranks : {1, 2, 3, 4, 8}) {
      const std::int64_t in_three = kGlobalBatch / num_ranks % 3 == 0 ? kGlobalBatch / num_ranks / 3 : 0;
      rows.push_back({stage, "gpt2", num_ranks, 0});
      rows.push_back({stage, "gpt2", num_ranks, in_three == 0 ? 1 : in_three, true});
      rows.push_back({stage, "llama", num_ranks, in_three == 0 ? 2 : in_three});
    }
  }
  for (const Placement& placement : {kMics, kHpz}) {
    rows.push_back({placement, "gpt2", 4, 0});
    rows.push_back({placement, "gpt2", 4, 2, true});
    rows.push_back({placement, "llama", 4, 2});
    rows.push_back({placement, "gpt2", 8, 1});
    rows.push_back({placement, "gpt2", 4, 2, false, true});
  }
  rows.push_back({kStage2, "gpt2", 3, 2, false, true});
  rows.push_back({kStage3, "gpt2", 3, 2, true, true});
  rows.push_back({kStage3, "gpt2", 4, 2, true, false, 0});
  rows.push_back({kStage3, "llama", 3, 2, false, false, 4000});
  rows.push_back({kStage3, "gpt2", 3, 2, true, false, 0, 300});
  rows.push_back({kStage3, "gpt2", 4, 2, true, false, 5000, 0, 4000});
  return rows;
}

class ZeroTrains : public ::testing::TestWithParam<Row> {};

// In f64 a sum in another order differs by about 1e-16, and 6 steps of AdamW at a learning rate of 1e-3 leave
// that below 1e-14; any real mistake is above 1e-8 (see the mutants of data_parallel_test.cpp).
TEST_P(ZeroTrains, WhatAPlainLoopOnOneRankTrains) {
  const ZeroTraining training = GetParam().training();
  const Trained& alone = reference(training.model);
  const std::vector<ZeroTrained> ranks = train_with_zero(GetParam().num_ranks, training);
  for (const ZeroTrained& rank : ranks) {
    EXPECT_TRUE(rank.trained.initial_weights == alone.initial_weights) << "equal to the last bit";
    EXPECT_LE(largest_loss_difference(rank.trained, alone), 1e-12);
    EXPECT_LE(largest_weight_difference(rank.trained, alone), 1e-12);
    for (std::size_t i = 0; i < alone.grad_norms.size(); ++i) {
      EXPECT_NEAR(rank.trained.grad_norms[i], alone.grad_norms[i], 1e-12);
      EXPECT_GT(rank.trained.grad_norms[i], kMaxNorm) << "clipping is to be active in each step";
    }
    EXPECT_TRUE(rank.trained.weights == ranks[0].trained.weights) << "ranks drift apart";
  }
}

INSTANTIATE_TEST_SUITE_P(Table, ZeroTrains, ::testing::ValuesIn(rows()),
                         [](const ::testing::TestParamInfo<Row>& info) { return info.param.name(); });

}  // namespace
}  // namespace tessera::dist::testing
