// ZeRO changes nothing: every placement, on 1, 2, 3, 4 and 8 ranks, trains what a plain loop on one rank
// trains (training.h; it knows nothing of Zero).

#include "dist/zero.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "nn/generate.h"
#include "tensor/context.h"
#include "tests/dist/zero_training.h"

namespace tessera::dist {

// For the messages of GoogleTest.
void PrintTo(const ZeroTraffic& row, std::ostream* out) {
  *out << fmt::format("{} {}: {} calls, {} bytes", row.group, name(row.op), row.calls, row.sent_bytes);
}

namespace testing {
namespace {

constexpr int kSteps = 6;

const Trained& reference(const std::string& model, const std::vector<std::string>& frozen = {}) {
  static std::map<std::pair<std::string, std::vector<std::string>>, Trained> cache;
  auto& result = cache[{model, frozen}];
  if (result.losses.empty()) result = train_alone({.model = model, .steps = kSteps, .frozen = frozen});
  return result;
}

struct Placement {
  const char* name;
  ZeroPlacement placement;
  int ranks_per_shard_group = 0;
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
                     .ranks_per_shard_group = placement.ranks_per_shard_group,
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
  rows.push_back({kStage3, "gpt2", 4, 2, true, false, 5000, 0, 7000});
  return rows;
}

void expect_predicted_memory(const ZeroTrained& rank) {
  const MemoryReport& memory = rank.between_steps;
  EXPECT_EQ(memory.of(MemoryCategory::kParameter).current, rank.predicted_memory.parameters);
  EXPECT_EQ(memory.of(MemoryCategory::kGradient).current, rank.predicted_memory.gradients);
  EXPECT_EQ(memory.of(MemoryCategory::kOptimizerState).current, rank.predicted_memory.optimizer);
  EXPECT_EQ(memory.of(MemoryCategory::kCommunication).current, 0);
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

// The ledger, call by call: the right number of gathers for each unit, also under recomputation (which runs a
// unit's forward pass twice) and of the tied weight, which two units use.
TEST_P(ZeroTrains, WithTheCallsAndBytesThatShapesPredict) {
  for (const ZeroTrained& rank : train_with_zero(GetParam().num_ranks, GetParam().training())) {
    if (GetParam().max_reuse_distance == 0) {
      EXPECT_EQ(rank.traffic, rank.predicted_traffic);
    } else {
      // The tied embedding stays from its first to its second use, in both passes of each micro-batch.
      EXPECT_EQ(rank.traffic[1].calls, rank.predicted_traffic[1].calls - 2 * 3);
    }
  }
}

TEST_P(ZeroTrains, InTheMemoryThatShapesPredict) {
  for (const ZeroTrained& rank : train_with_zero(GetParam().num_ranks, GetParam().training())) {
    expect_predicted_memory(rank);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, ZeroTrains, ::testing::ValuesIn(rows()),
                         [](const ::testing::TestParamInfo<Row>& info) { return info.param.name(); });

// --- The table of docs/zero.md, from its formulas ----------------------------------------------------------

struct Formula {
  Placement placement;
  bool keep_full_gradients;
  double sent_elements;                           // of Ψ (N−1)/N, with 3 micro-batches
  std::int64_t parameters, gradients, optimizer;  // bytes of an element, 16-bit parameters and AdamW; over N:
  bool cuts_parameters, cuts_gradients, cuts_optimizer;
};

class ZeroTable : public ::testing::TestWithParam<Formula> {};

// Llama's weights are not tied, so every parameter is in one unit. All ranks together: what one sends depends
// on where an all-reduce's slices fall.
TEST_P(ZeroTable, HasTheBytesOfThePaper) {
  const Formula& row = GetParam();
  constexpr int kRanks = 4;
  ZeroTraining training{.model = kLlama, .zero = {.placement = row.placement.placement}, .micro_batch = 2};
  training.zero.keep_full_gradients = row.keep_full_gradients;
  const std::vector<ZeroTrained> in_f64 = train_with_zero(kRanks, training);
  std::int64_t padded = 0;
  for (const ZeroFlat& flat : in_f64[0].plan.flats) padded += flat.padded;
  std::int64_t sent = 0;
  for (const ZeroTrained& rank : in_f64) {
    for (const ZeroTraffic& traffic : rank.traffic) sent += traffic.sent_bytes;
  }
  EXPECT_EQ(sent, static_cast<std::int64_t>(row.sent_elements * (kRanks - 1)) * padded * 8);

  training.dtype = kBF16;
  std::int64_t parameters = 0, gradients = 0, optimizer = 0;
  for (const ZeroTrained& rank : train_with_zero(kRanks, training)) {
    parameters += rank.between_steps.of(MemoryCategory::kParameter).current;
    gradients += rank.between_steps.of(MemoryCategory::kGradient).current;
    optimizer += rank.between_steps.of(MemoryCategory::kOptimizerState).current;
  }
  const auto copies = [](bool cut) { return cut ? 1 : kRanks; };
  EXPECT_EQ(parameters, row.parameters * padded * copies(row.cuts_parameters));
  EXPECT_EQ(gradients, row.gradients * padded * copies(row.cuts_gradients));
  EXPECT_EQ(optimizer, row.optimizer * in_f64[0].trained.num_parameters * copies(row.cuts_optimizer));
}

INSTANTIATE_TEST_SUITE_P(Stages, ZeroTable,
                         ::testing::Values(Formula{kStage0, false, 2, 2, 4, 12, false, false, false},
                                           Formula{kStage1, false, 2, 2, 4, 12, false, false, true},
                                           Formula{kStage2, false, 4, 2, 4, 12, false, true, true},
                                           Formula{kStage2, true, 2, 2, 4, 12, false, true, true},
                                           Formula{kStage3, false, 9, 2, 4, 12, true, true, true},
                                           Formula{kStage3, true, 7, 2, 4, 12, true, true, true}),
                         [](const ::testing::TestParamInfo<Formula>& info) {
                           return fmt::format("{}{}", info.param.placement.name,
                                              info.param.keep_full_gradients ? "_fullGradients" : "");
                         });

// --- Never whole -------------------------------------------------------------------------------------------

std::string with_eight_layers(std::string model) {
  const std::string layers = "layers=2";
  return model.replace(model.find(layers), layers.size(), "layers=8");
}

// Eight blocks on four ranks, without prefetching: a fourth of everything and one unit, also while initial
// values are made. Gradients come as a unit's whole buffer and go as a slice; until the other ranks have
// come, that of a block may still be there when the next begins, and that of a tied weight is complete only
// in the end.
TEST(Zero, HasNoMoreOfTheModelThanItsPartAndTheUnitsInUse) {
  for (const std::string& model : {kGpt2, kLlama}) {
    ZeroTraining training{.model = with_eight_layers(model),
                          .zero = {.placement = ZeroPlacement::stage(3), .prefetch_elements = 0},
                          .micro_batch = 2,
                          .steps = 3};
    for (const bool recompute : {false, true}) {
      training.recompute = recompute;
      for (const ZeroTrained& rank : train_with_zero(4, training)) {
        const ZeroMemory& predicted = rank.predicted_memory;
        const std::int64_t whole = rank.trained.num_parameters * 8;
        const std::int64_t peak = rank.between_steps.of(MemoryCategory::kParameter).peak;
        EXPECT_EQ(peak, predicted.parameters + predicted.gathered_parameters);
        EXPECT_LT(peak, whole / 2);
        const MemoryReport& construction = rank.after_construction;
        EXPECT_LE(construction.of(MemoryCategory::kParameter).peak, peak);
        EXPECT_LE(construction.total.peak, peak + predicted.gathered_parameters) << "work space: a parameter";
        EXPECT_LE(rank.between_steps.of(MemoryCategory::kGradient).peak,
                  predicted.gradients + 3 * predicted.gathered_parameters);
        EXPECT_LT(rank.between_steps.of(MemoryCategory::kGradient).peak, whole * 3 / 4);
      }
    }
  }
}

// --- Frozen, evaluated, resumed ----------------------------------------------------------------------------

// A first unit, a whole unit between trainable ones, a part of a unit. A frozen unit is gathered in backward
// passes only if a gradient must go through it.
TEST(Zero, TrainsAroundFrozenParameters) {
  struct Case {
    std::string model;
    std::vector<std::string> frozen;
  };
  for (const Case& c : {Case{kGpt2, {"h.0.*", "h.1.ln_1.*", "h.1.mlp.c_fc.weight", "ln_f.bias"}},
                        Case{kLlama, {"embed_tokens.*", "layers.1.*"}}}) {
    const Trained& alone = reference(c.model, c.frozen);
    for (const Placement& placement : {kStage0, kStage1, kStage2, kStage3, kHpz, kMics}) {
      ZeroTraining training{.model = c.model,
                            .zero = {.placement = placement.placement,
                                     .ranks_per_shard_group = placement.ranks_per_shard_group},
                            .micro_batch = 2,
                            .frozen = c.frozen};
      training.recompute = placement.placement == ZeroPlacement::stage(3);
      for (const ZeroTrained& rank : train_with_zero(4, training)) {
        EXPECT_LE(largest_weight_difference(rank.trained, alone), 1e-12) << placement.name;
        EXPECT_LE(largest_loss_difference(rank.trained, alone), 1e-12) << placement.name;
        expect_predicted_memory(rank);
        EXPECT_EQ(rank.traffic, rank.predicted_traffic) << placement.name;
      }
    }
  }
}

// Evaluation and generation between steps, and a forward pass that no backward pass follows, change nothing
// that is trained; and parameters are gone again afterwards.
TEST(Zero, GathersForEvaluationAndGeneration) {
  std::vector<std::vector<double>> losses;
  std::vector<std::vector<std::int64_t>> tokens_of_first_step;
  for (const Placement& placement : {kStage0, kStage3, kHpz}) {
    std::vector<double> evaluated;
    ZeroTraining training{
        .model = kGpt2,
        .zero = {.placement = placement.placement, .ranks_per_shard_group = placement.ranks_per_shard_group},
        .steps = kSteps};
    training.after_step = [&](nn::LanguageModel& model, Job& job, int step) {
      const MemoryPool& pool = *RankContext::current().pool(cpu);
      const std::int64_t before = pool.report().of(MemoryCategory::kParameter).current;
      static_cast<void>(sum_of_losses(model, 100, 0, 2));
      {
        const NoGrad no_grad;
        model.eval();
        const double loss = sum_of_losses(model, 100 + step, 0, 4).item();
        model.train();
        if (job.rank() == 0) evaluated.push_back(loss);
      }
      const std::vector<std::int64_t> prompt{1, 2, 3};
      const auto generated = nn::generate(model, prompt, {.tokens = 4, .temperature = 0.0});
      if (job.rank() == 0 && step == 0) tokens_of_first_step.push_back(generated);
      EXPECT_EQ(pool.report().of(MemoryCategory::kParameter).current, before);
    };
    for (const ZeroTrained& rank : train_with_zero(4, training)) {
      EXPECT_LE(largest_weight_difference(rank.trained, reference(kGpt2)), 1e-12);
    }
    losses.push_back(evaluated);
  }
  for (const auto& tokens : tokens_of_first_step) EXPECT_EQ(tokens, tokens_of_first_step[0]);
  for (const auto& evaluated : losses) {
    ASSERT_EQ(evaluated.size(), losses[0].size());
    for (std::size_t i = 0; i < evaluated.size(); ++i) EXPECT_NEAR(evaluated[i], losses[0][i], 1e-12);
  }
}

// Whole tensors out of one layout, parts of them into another: 3 steps and 3 steps are 6 steps.
TEST(Zero, ContinuesUnderAnotherPlacementFromWholeTensors) {
  const std::vector<std::pair<int, Placement>> layouts{
      {3, kStage3}, {4, kHpz}, {1, kStage0}, {4, kMics}, {2, kStage1}};
  for (std::size_t i = 0; i < layouts.size(); ++i) {
    const auto& [ranks, placement] = layouts[i];
    const auto& [other_ranks, other] = layouts[(i + 1) % layouts.size()];
    ZeroTraining training{.model = kGpt2, .zero = {.placement = placement.placement}, .steps = 3};
    training.zero.ranks_per_shard_group = placement.ranks_per_shard_group;
    const ZeroSaved saved = train_with_zero(ranks, training)[0].saved;
    training.zero = {.placement = other.placement, .ranks_per_shard_group = other.ranks_per_shard_group};
    training.steps = kSteps;
    training.from = &saved;
    const ZeroTrained continued = train_with_zero(other_ranks, training)[0];
    EXPECT_LE(largest_weight_difference(continued.trained, reference(kGpt2)), 1e-12)
        << placement.name << " to " << other.name;
  }
}

// --- Over tensor parallelism -------------------------------------------------------------------------------

// The local parts of tensor parallelism are cut once more over dp; norms under sequence parallelism are R on
// tp and summed over it.
TEST(Zero, CutsWhatTensorParallelismHasCut) {
  for (const std::string& model : {kGpt2, kLlama}) {
    for (const Placement& placement : {kStage0, kStage1, kStage2, kStage3, kHpz}) {
      for (const bool sequence_parallel : {false, true}) {
        const bool is_hierarchical = placement.ranks_per_shard_group > 0;
        ZeroTraining training{.model = model,
                              .zero = {.placement = placement.placement,
                                       .ranks_per_shard_group = placement.ranks_per_shard_group},
                              .micro_batch = 2,
                              .sequence_parallel = sequence_parallel,
                              .mesh = is_hierarchical ? "dp=4,tp=2" : "dp=2,tp=2"};
        training.recompute = placement.placement == ZeroPlacement::stage(3);
        const std::vector<ZeroTrained> ranks = train_with_zero(is_hierarchical ? 8 : 4, training);
        for (const ZeroTrained& rank : ranks) {
          EXPECT_TRUE(rank.trained.initial_weights == reference(model).initial_weights);
          EXPECT_LE(largest_loss_difference(rank.trained, reference(model)), 1e-12) << placement.name;
          EXPECT_LE(largest_weight_difference(rank.trained, reference(model)), 1e-12) << placement.name;
          EXPECT_TRUE(rank.trained.weights == ranks[0].trained.weights) << "ranks drift apart";
          expect_predicted_memory(rank);
        }
      }
    }
  }
}

// --- Prefetching -------------------------------------------------------------------------------------------

// How many gathers have started when the first block runs in the second step; GPT-2's order is wte, wpe, h.0,
// h.1, ln_f, lm_head with flats of 4,016, 160, 3,280, 3,280, 32 and, tied, 4,016 elements. The tied flat is
// gathered anew once wte has dropped it.
TEST(Zero, PrefetchesInTheRecordedOrderWithinItsLimits) {
  struct Case {
    std::int64_t prefetch_elements, max_live;
    std::int64_t started;  // before h.0's forward
  };
  const std::int64_t kAny = 1'000'000;
  for (const Case& c : {Case{0, kAny, 3}, Case{3'279, kAny, 3}, Case{3'280, kAny, 4}, Case{3'312, kAny, 5},
                        Case{kAny, kAny, 6}, Case{kAny, 6'560, 4}, Case{kAny, 6'559, 3},
                        Case{-1, kAny, 5}}) {  // by default as many as the largest unit has: 4,016

    ZeroTraining training{.model = kGpt2, .zero = {.placement = ZeroPlacement::stage(3)}, .steps = 3};
    training.zero.prefetch_elements = c.prefetch_elements;
    training.zero.max_live_parameters = c.max_live;
    training.prepare = [&c](nn::LanguageModel& model, Job& job) {
      const auto passes = std::make_shared<int>(0);
      model.blocks()[0]->add_forward_pre_hook([&c, &job, passes](nn::Module&, std::span<Tensor>) {
        std::int64_t started = 0;
        for (const TapeTotal& total : job.tape().totals()) {
          if (total.group == "dp.gather" && total.op == Collective::kAllGather) started = total.calls;
        }
        EXPECT_EQ(started, (*passes)++ == 0 ? 3 : c.started)
            << "prefetch " << c.prefetch_elements << ", live " << c.max_live;
      });
    };
    const ZeroTrained rank = train_with_zero(2, training)[0];
    EXPECT_EQ(rank.traffic, rank.predicted_traffic) << "prefetching moves gathers and makes none";
  }
}

}  // namespace
}  // namespace testing
}  // namespace tessera::dist
