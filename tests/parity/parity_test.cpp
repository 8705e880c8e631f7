// Many ranks train what one rank trains: a table in which a layout is a row (tiers T1, T2, T6; see distance()
// for what is allowed), and mistakes that the table must notice (T5), some of them by layout types alone,
// before any data moves (T0). Whatever several ranks hold is the same bits on each, in every row.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "kernels/error.h"
#include "tests/data/temporary_folder.h"
#include "tests/parity/compare.h"
#include "tests/parity/run.h"

namespace tessera::dist::parity {
namespace {

// The run of one rank, once for each model, dtype and optimizer.
const OneRank& reference(const TrainingRun& run) {
  static std::map<std::string, OneRank> known;
  const Config& config = run.config;
  const std::string key =
      fmt::format("{} {} {} {} {}", run.model, tessera::name(config.dtype), config.optimizer.type,
                  tessera::name(config.optimizer.state_dtype), overflows(run));
  if (!known.contains(key)) {
    TrainingRun alone{.model = run.model, .config = layout("dp=1"), .overflows = run.overflows};
    alone.config.dtype = config.dtype;
    alone.config.optimizer = config.optimizer;
    known[key] = one_rank(alone);
    if (config.dtype == kBF16 || config.dtype == kF16) {
      // What others are measured by must itself have learned what the exact run learned.
      EXPECT_LE(error_of(known[key].run, known[key].exact).weights, 0.05) << key;
      EXPECT_EQ(std::ranges::count(known[key].run.skipped, true), overflows(run) ? 2 : 0);
    }
  }
  return known[key];
}

std::string test_name(const std::string& layout) {
  std::string result;
  for (const char c : layout) result += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return result;
}

class Parity : public ::testing::TestWithParam<const char*> {};

void expect_equal(const std::string& model, const std::string& text) {
  TrainingRun run{.model = model, .config = layout(text)};
  run.overflows = run.config.mesh[MeshAxis::kPp] == 1;
  OneRank alone = reference(run);
  Result trained = run_on_threads(run);
  if (run.config.optimizer.type == "Lion") {
    // Lion steps by the sign of a gradient. That of the keys' biases is 0 but for rounding, since softmax
    // does not see what all keys have in common: its sign is the rounding's, and no loss depends on it.
    for (Result* result : {&trained, &alone.run})
      std::erase_if(result->weights,
                    [](const auto& weight) { return weight.first.ends_with("c_attn.bias"); });
  }
  const Distance d = distance(run, trained, alone);
  ::testing::Test::RecordProperty("distance", fmt::format("{:.2g}: {}", d.value, d.shown));
  EXPECT_LE(d.value, 1.0) << text << ": " << d.shown;
  EXPECT_EQ(trained.broken_replica, "");
  EXPECT_EQ(std::ranges::count(trained.skipped, true), overflows(run) ? 2 : 0);
}

TEST_P(Parity, OfGpt2WithOneRank) { expect_equal(kGpt2, GetParam()); }
TEST_P(Parity, OfLlamaWithOneRank) { expect_equal(kLlama, GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Layouts, Parity,
    ::testing::Values(
        "dp=1", "dp=1 pass=3", "dp=1 zero=3 recompute=full", "dp=2", "dp=2 zero=1", "dp=2 zero=2",
        "dp=2 zero=3", "dp=3 zero=3", "dp=3 zero=2 pass=2", "dp=4 zero=1 pass=1",
        "dp=4 zero=2 pass=1 full-gradients", "dp=5 zero=3 pass=2", "dp=8 zero=3 pass=1 recompute=full",
        "dp=4 mics=2", "dp=4 hpz=2 pass=1", "tp=2", "tp=3", "tp=4", "tp=8", "tp=2 sp",
        "tp=3 sp recompute=full", "tp=4 sp recompute=selective", "tp=2 recompute=full partitioned",
        "tp=2 recompute=full partitioned on-host", "tp=2 zero=3", "dp=2,tp=2", "dp=2,tp=2 zero=1",
        "dp=2,tp=2 zero=2 pass=2", "dp=2,tp=2 zero=3 sp", "dp=2,tp=2 zero=3 sp recompute=full pass=3",
        "dp=3,tp=2 zero=3", "dp=2,tp=3 zero=2 sp pass=1", "dp=2,tp=4 zero=3 recompute=selective", "cp=2",
        "cp=3", "cp=4", "cp=2 ulysses", "cp=3 ulysses", "cp=4 ulysses", "cp=2 zero=3", "cp=3 zero=2 pass=4",
        "cp=2 zero=3 recompute=full", "cp=2 ulysses zero=3 recompute=selective", "dp=2,cp=2 zero=1",
        "dp=2,cp=2 zero=3 pass=2", "dp=2,cp=3 ulysses zero=2", "cp=2,tp=2", "cp=2,tp=2 sp zero=3",
        "cp=2,tp=3 ulysses sp recompute=full", "dp=2,cp=2,tp=2",
        "dp=2,cp=2,tp=2 zero=3 sp pass=1 recompute=full", "dp=2,cp=2,tp=2 ulysses zero=2",
        "dp=3 recompute=full checkpoints=1", "pp=2", "pp=2 pass=1 schedule=gpipe",
        "pp=2 pass=2 schedule=zb-h1", "pp=2,dp=2 zero=1", "pp=2,dp=2 zero=2 pass=1",
        "pp=2,dp=2 zero=3 pass=2 recompute=full", "pp=2,dp=3 zero=2 pass=1 schedule=zb-h1",
        "pp=2,tp=2 pass=3", "pp=2,tp=3 sp pass=1", "pp=2,cp=2 pass=1", "pp=2,cp=2 ulysses pass=4 zero=1",
        "pp=2,dp=2,tp=2 zero=3 pass=1", "pp=2,cp=2,tp=2 sp pass=2 zero=2 recompute=selective"),
    [](const auto& row) { return test_name(row.param); });

// LAMB's norms and Muon's matrices are of whole tensors, whatever is cut.
INSTANTIATE_TEST_SUITE_P(Optimizers, Parity,
                         ::testing::Values("dp=2 zero=1 SGD", "dp=3 zero=3 SGD", "dp=2 zero=2 Adagrad",
                                           "dp=2,tp=2 zero=3 Adagrad", "dp=3 zero=2 Lion", "tp=2 sp Lion",
                                           "dp=2 Lamb", "dp=2 zero=1 Lamb", "dp=3 zero=2 pass=2 Lamb",
                                           "dp=2 zero=3 Lamb", "dp=2,tp=2 zero=3 sp Lamb",
                                           "cp=2,tp=2 zero=2 Lamb", "dp=2 zero=1 Muon", "dp=3 zero=3 Muon",
                                           "dp=2,tp=2 zero=2 Muon", "tp=3 sp Muon", "dp=4 hpz=2 Muon",
                                           "dp=4 mics=2 Lamb"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(InF32, Parity,
                         ::testing::Values("dp=2 f32", "dp=4 zero=3 pass=1 f32", "tp=2 sp f32",
                                           "cp=2 zero=2 f32", "dp=2,cp=2,tp=2 zero=3 sp f32",
                                           "pp=2 pass=1 f32", "pp=2,dp=2,tp=2 zero=2 pass=1 f32"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(InBf16, Parity,
                         ::testing::Values("dp=1 pass=3 bf16", "dp=2 bf16", "dp=2 zero=3 bf16",
                                           "dp=3 zero=2 pass=2 bf16", "dp=8 zero=1 pass=1 bf16", "tp=2 bf16",
                                           "tp=4 bf16", "tp=2 sp bf16", "tp=3 sp recompute=full bf16",
                                           "cp=2 zero=2 bf16", "cp=3 ulysses bf16",
                                           "dp=2,cp=2,tp=2 zero=3 sp bf16", "pp=2 pass=1 bf16",
                                           "pp=2,dp=2 zero=3 pass=2 bf16"),
                         [](const auto& row) { return test_name(row.param); });
// Moments that are rounded at random, each element by what it was: hardly any two layouts round another way.
INSTANTIATE_TEST_SUITE_P(WithBf16State, Parity,
                         ::testing::Values("dp=1 pass=3 bf16-state", "dp=2 bf16-state",
                                           "dp=2 zero=3 bf16-state", "dp=3 zero=2 pass=2 bf16-state",
                                           "dp=8 zero=1 pass=1 bf16-state", "dp=4 hpz=2 bf16-state",
                                           "tp=3 sp recompute=full bf16-state", "cp=3 ulysses bf16-state",
                                           "dp=2,cp=2,tp=2 zero=3 sp bf16-state",
                                           "pp=2,dp=2 zero=3 pass=2 bf16-state"),
                         [](const auto& row) { return test_name(row.param); });
// Two steps overflow, on some ranks or all: every rank of every layout leaves out the same two.
INSTANTIATE_TEST_SUITE_P(InF16, Parity,
                         ::testing::Values("dp=1 pass=3 f16", "dp=2 f16", "dp=2 zero=3 f16",
                                           "dp=3 zero=2 pass=2 f16", "dp=8 zero=1 pass=1 f16",
                                           "dp=4 mics=2 f16", "tp=2 f16", "tp=4 f16", "tp=2 sp f16",
                                           "tp=3 sp recompute=full f16", "cp=2 zero=2 f16",
                                           "cp=3 ulysses f16", "dp=2,cp=2,tp=2 zero=3 sp f16",
                                           "pp=2 pass=1 f16", "pp=2,dp=2 zero=3 pass=2 schedule=zb-h1 f16",
                                           "pp=2,cp=2,tp=2 zero=1 pass=1 sp f16"),
                         [](const auto& row) { return test_name(row.param); });

// --- Checkpoints (T4) --------------------------------------------------------------------------------------

// Ten steps under each layout of a chain, each but the first from what the one before it saved: weights,
// moments and a step count. Dropout and samples go on where they were, since both are functions of the step.
class Resumed : public ::testing::TestWithParam<std::vector<const char*>> {};
INSTANTIATE_TEST_SUITE_P(Layouts, Resumed,
                         ::testing::Values(std::vector{"dp=1", "dp=2,tp=2 zero=3 sp"},
                                           std::vector{"dp=2,tp=2 zero=3 sp", "cp=3 zero=1 pass=4"},
                                           std::vector{"tp=4 recompute=full", "dp=5 zero=3 pass=2"},
                                           std::vector{"dp=4 mics=2", "cp=2,tp=2 zero=2"},
                                           std::vector{"cp=2 ulysses", "dp=4 hpz=2 pass=1", "tp=3 sp"},
                                           std::vector{"dp=3 zero=2 Muon", "tp=2 sp Muon"},
                                           std::vector{"pp=2,dp=2 zero=2 pass=1", "dp=3", "pp=2,tp=2 pass=2"},
                                           std::vector{"dp=2,tp=2 zero=3 f32", "cp=2 zero=1 f32"}),
                         [](const auto& row) {
                           std::string chain;
                           for (const char* text : row.param)
                             chain += (chain.empty() ? "" : "_then_") + test_name(text);
                           return chain;
                         });

TEST_P(Resumed, UnderAnotherLayoutIsTheUninterruptedRun) {
  for (const char* model : {kGpt2, kLlama}) {
    const data::TemporaryFolder folder;
    TrainingRun run{.model = model, .config = {}, .steps = 0};
    Result trained, all;
    for (const char* text : GetParam()) {
      run.config = layout(text);
      run.steps += 10;
      run.save_to = folder.path() / std::to_string(run.steps);
      trained = run_on_threads(run);
      all.losses.insert(all.losses.end(), trained.losses.begin(), trained.losses.end());
      all.grad_norms.insert(all.grad_norms.end(), trained.grad_norms.begin(), trained.grad_norms.end());
      EXPECT_EQ(trained.broken_replica, "");
      run.resume_from = run.save_to;
    }
    trained.losses = all.losses;
    trained.grad_norms = all.grad_norms;
    trained.skipped.assign(all.losses.size(), false);
    const Distance d = distance(run, trained, one_rank(run));
    EXPECT_LE(d.value, 1.0) << d.shown;
  }
}

// --- Overflow in f16 ---------------------------------------------------------------------------------------

// A first scale that is far too large: gradients overflow in each of the four steps by 2^7 or more, whatever
// the layout, so nothing is updated and the scale is halved four times.
class LargeLossScale : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Layouts, LargeLossScale,
                         ::testing::Values("dp=1", "dp=2", "dp=3 zero=3 pass=2", "dp=8 zero=2 pass=1", "tp=2",
                                           "tp=3 sp", "cp=2", "cp=3 ulysses", "dp=2,cp=2,tp=2 zero=3 sp",
                                           "pp=2 pass=1", "pp=2,dp=2 zero=2 schedule=zb-h1 pass=1"),
                         [](const auto& row) { return test_name(row.param); });

TEST_P(LargeLossScale, IsHalvedByAllRanksAndNothingIsUpdated) {
  for (const char* model : {kGpt2, kLlama}) {
    const TrainingRun run{.model = model,
                          .config = layout(fmt::format("{} f16 scale=2^30", GetParam())),
                          .steps = 4,
                          .overflows = false};
    const Result trained = run_on_threads(run);
    EXPECT_EQ(trained.skipped, std::vector<bool>(4, true));
    EXPECT_EQ(trained.loss_scale, 0x1p26);
    EXPECT_EQ(trained.weights, run_alone(run).initial);
    EXPECT_EQ(trained.broken_replica, "");
  }
}

// --- Mistakes ----------------------------------------------------------------------------------------------

// Who notices a mistake: layout types, the comparison with one rank, or the comparison of ranks alone.
enum class Seen { kByTypes, kAgainstOneRank, kBetweenRanks };

struct Mistake {
  Mutant mutant;
  const char* layout;
  Seen seen = Seen::kAgainstOneRank;
  const char* down_to = "bf16";  // rounding of shorter dtypes hides it
  const char* model = kGpt2;
};

class Mutants : public ::testing::TestWithParam<std::pair<const char*, Mistake>> {};

std::vector<std::pair<const char*, Mistake>> mistakes(const char* dtype) {
  const std::vector<Mistake> all{{Mutant::kMeanOfMeans, "dp=2", Seen::kAgainstOneRank, "f16"},
                                 {Mutant::kWrongDivisor, "dp=3 zero=2"},
                                 {Mutant::kIgnoredTargetsCount, "dp=2 zero=1"},
                                 {Mutant::kSharedSampleOffset, "dp=2 zero=3"},
                                 {Mutant::kSharedSamples, "dp=2"},
                                 {Mutant::kSkippedMicroBatch, "dp=2 zero=2 pass=2"},
                                 {Mutant::kUnreducedParameter, "dp=2 zero=1"},
                                 {Mutant::kNoClipping, "dp=2", Seen::kAgainstOneRank, "f16"},
                                 {Mutant::kDecayDropped, "dp=2 zero=3", Seen::kAgainstOneRank, "f32"},
                                 {Mutant::kOwnSeed, "dp=2"},
                                 {Mutant::kNothingTrained, "dp=2"},
                                 {Mutant::kStaleCopy, "dp=2"},
                                 {Mutant::kStaleTiedWeight, "dp=2"},
                                 {Mutant::kStalePositions, "cp=2"},
                                 {Mutant::kShiftedTargets, "cp=2"},
                                 {Mutant::kSharedHeads, "tp=2"},
                                 {Mutant::kBiasAddedTwice, "tp=2"},
                                 {Mutant::kReductionForgotten, "tp=2"},
                                 {Mutant::kUnsummedNorm, "tp=2 sp", Seen::kAgainstOneRank, "f16"},
                                 {Mutant::kUnsummedKeyValue, "tp=4", Seen::kAgainstOneRank, "bf16", kLlama},
                                 {Mutant::kMissedLastUpdate, "dp=2", Seen::kBetweenRanks},
                                 {Mutant::kNudgedReplica, "dp=2", Seen::kBetweenRanks, "f64"},
                                 {Mutant::kNudgedReplica, "dp=4 mics=2", Seen::kBetweenRanks, "f64"},
                                 {Mutant::kNudgedReplica, "cp=2", Seen::kBetweenRanks, "f64"},
                                 {Mutant::kNudgedReplica, "tp=2 sp", Seen::kBetweenRanks, "f64"},
                                 {Mutant::kNudgedReplica, "dp=2,tp=2 zero=3", Seen::kBetweenRanks, "f64"},
                                 {Mutant::kReductionDropped, "tp=2", Seen::kByTypes},
                                 {Mutant::kCopyDropped, "tp=2", Seen::kByTypes},
                                 {Mutant::kInvariantNorm, "tp=2 sp", Seen::kByTypes}};
  const std::vector<std::string_view> by_precision{"f64", "f32", "f16", "bf16"};
  const auto place = [&](std::string_view of) { return std::ranges::find(by_precision, of); };
  std::vector<std::pair<const char*, Mistake>> rows;
  for (const Mistake& mistake : all) {
    if (place(dtype) <= place(mistake.down_to)) rows.emplace_back(dtype, mistake);
  }
  return rows;
}
std::string mistake_name(const ::testing::TestParamInfo<std::pair<const char*, Mistake>>& row) {
  const Mistake& mistake = row.param.second;
  return fmt::format("{}_{}", name(mistake.mutant), test_name(mistake.layout));
}

INSTANTIATE_TEST_SUITE_P(InF64, Mutants, ::testing::ValuesIn(mistakes("f64")), mistake_name);
INSTANTIATE_TEST_SUITE_P(InF32, Mutants, ::testing::ValuesIn(mistakes("f32")), mistake_name);
INSTANTIATE_TEST_SUITE_P(InBf16, Mutants, ::testing::ValuesIn(mistakes("bf16")), mistake_name);
INSTANTIATE_TEST_SUITE_P(InF16, Mutants, ::testing::ValuesIn(mistakes("f16")), mistake_name);

// How far beyond what is allowed a mistake must be, so that no rounding is taken for a catch.
double margin(DType dtype) { return dtype == kF64 ? 1000.0 : dtype == kF32 ? 10.0 : 2.0; }

TEST_P(Mutants, AreCaught) {
  const auto& [dtype, mistake] = GetParam();
  const TrainingRun run{.model = mistake.model,
                        .config = layout(fmt::format("{} {}", mistake.layout, dtype)),
                        .mutant = mistake.mutant};
  if (mistake.seen == Seen::kByTypes) {
    EXPECT_THROW(static_cast<void>(run_on_threads(run)), LayoutError);
    return;
  }
  const Result result = run_on_threads(run);
  const Distance d = distance(run, result, reference(run));
  ::testing::Test::RecordProperty("distance", fmt::format("{:.2g}: {}", d.value, d.shown));
  if (mistake.seen == Seen::kAgainstOneRank) {
    EXPECT_GE(d.value, margin(run.config.dtype)) << d.shown;
  } else {
    EXPECT_LE(d.value, 1.0) << "seen on the first rank as well: " << d.shown;
    EXPECT_NE(result.broken_replica, "");
  }
}

// --- Refusals ----------------------------------------------------------------------------------------------

struct Refused {
  const char* name;
  const char* layout;
  const char* message;
};
class Refusals : public ::testing::TestWithParam<Refused> {};
INSTANTIATE_TEST_SUITE_P(Layouts, Refusals,
                         ::testing::Values(Refused{"MoreStagesThanBlocks", "pp=3", "up to 2 stages work"},
                                           Refused{"SequenceParallelAlone", "dp=2 sp", "tp is 1"},
                                           Refused{"MoreContextRanksThanTokens", "cp=14", "cp = 13 works"}),
                         [](const auto& row) { return std::string(row.param.name); });

TEST_P(Refusals, NameWhatWorks) {
  try {
    static_cast<void>(run_on_threads({.model = kGpt2, .config = layout(GetParam().layout)}));
    FAIL() << "not refused";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tessera::dist::parity
