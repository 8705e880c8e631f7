// Many ranks train what one rank trains: a table in which a layout is a row (tiers T1, T2, T6), and mistakes
// that the table must notice (T5), some of them by layout types alone, before any data moves (T0).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/error.h"
#include "tests/parity/run.h"

namespace tessera::dist::parity {
namespace {

// The run of one rank, once for each model, dtype and optimizer.
const Result& reference(const std::string& model, const Config& config = layout("dp=1")) {
  static std::map<std::string, Result> known;
  const std::string key = fmt::format("{} {} {}", model, tessera::name(config.dtype), config.optimizer.type);
  if (!known.contains(key)) {
    TrainingRun run{.model = model, .config = {}};
    run.config.dtype = config.dtype;
    run.config.optimizer = config.optimizer;
    known[key] = run_alone(run);
  }
  return known[key];
}

std::string test_name(const std::string& layout) {
  std::string result;
  for (const char c : layout) result += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return result;
}

class Parity : public ::testing::TestWithParam<const char*> {};

// f64: rounding of a few thousand sums is far below 1e-10, and so is nothing that a mistake does. f32 (T2):
// losses within 1e-6 of each other, weights and norms within what twenty steps make of a few roundings of
// 6e-8. bf16 (T6): a rounding is 2^-9 = 2e-3 of a value; sums are in f32, so losses, which average over a
// hundred tokens, stay within twice that, and a weight may round the other way: by one unit of numbers below
// 2.
void expect_equal(const std::string& model, const std::string& text) {
  const TrainingRun run{.model = model, .config = layout(text)};
  Result trained = run_on_threads(run), alone = reference(model, run.config);
  if (run.config.optimizer.type == "Lion") {
    // Lion steps by the sign of a gradient. That of the keys' biases is 0 but for rounding, since softmax
    // does not see what all keys have in common: its sign is the rounding's, and no loss depends on it.
    for (Result* result : {&trained, &alone})
      std::erase_if(result->weights,
                    [](const auto& weight) { return weight.first.ends_with("c_attn.bias"); });
  }
  const Difference d = compare(trained, alone);
  const std::string shown =
      fmt::format("{}: losses {:.1e}, norms {:.1e}, weights {:.1e}", text, d.losses, d.norms, d.weights);
  const bool f64 = run.config.dtype == kF64, f32 = run.config.dtype == kF32;
  EXPECT_LE(d.losses, f64 ? 1e-10 : f32 ? 1e-6 : 4e-3) << shown;
  EXPECT_LE(d.norms, f64 ? 1e-10 : f32 ? 2e-5 : 5e-2) << shown;
  EXPECT_LE(d.weights, f64 ? 1e-10 : f32 ? 1e-4 : 1.6e-2) << shown;
}

TEST_P(Parity, OfGpt2WithOneRank) { expect_equal(kGpt2, GetParam()); }
TEST_P(Parity, OfLlamaWithOneRank) { expect_equal(kLlama, GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Layouts, Parity,
    ::testing::Values("dp=1", "dp=1 pass=3", "dp=1 zero=3 recompute=full", "dp=2", "dp=2 zero=1",
                      "dp=2 zero=2", "dp=2 zero=3", "dp=3 zero=3", "dp=3 zero=2 pass=2", "dp=4 zero=1 pass=1",
                      "dp=4 zero=2 pass=1 full-gradients", "dp=5 zero=3 pass=2",
                      "dp=8 zero=3 pass=1 recompute=full", "dp=4 mics=2", "dp=4 hpz=2 pass=1", "tp=2", "tp=3",
                      "tp=4", "tp=8", "tp=2 sp", "tp=3 sp recompute=full", "tp=4 sp recompute=selective",
                      "tp=2 recompute=full partitioned", "tp=2 recompute=full partitioned on-host",
                      "tp=2 zero=3", "dp=2,tp=2", "dp=2,tp=2 zero=1", "dp=2,tp=2 zero=2 pass=2",
                      "dp=2,tp=2 zero=3 sp", "dp=2,tp=2 zero=3 sp recompute=full pass=3", "dp=3,tp=2 zero=3",
                      "dp=2,tp=3 zero=2 sp pass=1", "dp=2,tp=4 zero=3 recompute=selective", "cp=2", "cp=3",
                      "cp=4", "cp=2 ulysses", "cp=3 ulysses", "cp=4 ulysses", "cp=2 zero=3",
                      "cp=3 zero=2 pass=4", "cp=2 zero=3 recompute=full",
                      "cp=2 ulysses zero=3 recompute=selective", "dp=2,cp=2 zero=1",
                      "dp=2,cp=2 zero=3 pass=2", "dp=2,cp=3 ulysses zero=2", "cp=2,tp=2",
                      "cp=2,tp=2 sp zero=3", "cp=2,tp=3 ulysses sp recompute=full", "dp=2,cp=2,tp=2",
                      "dp=2,cp=2,tp=2 zero=3 sp pass=1 recompute=full", "dp=2,cp=2,tp=2 ulysses zero=2",
                      "dp=3 recompute=full checkpoints=1"),
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
                                           "cp=2 zero=2 f32", "dp=2,cp=2,tp=2 zero=3 sp f32"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(InBf16, Parity,
                         ::testing::Values("dp=2 bf16", "dp=2 zero=3 bf16", "tp=2 sp bf16",
                                           "cp=2 zero=2 bf16"),
                         [](const auto& row) { return test_name(row.param); });

// --- Mistakes ----------------------------------------------------------------------------------------------

struct Mistake {
  Mutant mutant;
  const char* layout;
  const char* tier;  // which notices it
};

class Mutants : public ::testing::TestWithParam<Mistake> {};

INSTANTIATE_TEST_SUITE_P(
    All, Mutants,
    ::testing::Values(
        Mistake{Mutant::kMeanOfMeans, "dp=2", "T1"}, Mistake{Mutant::kWrongDivisor, "dp=3 zero=2", "T1"},
        Mistake{Mutant::kIgnoredTargetsCount, "dp=2 zero=1", "T1"},
        Mistake{Mutant::kSharedSampleOffset, "dp=2 zero=3", "T1"},
        Mistake{Mutant::kSharedSamples, "dp=2", "T1"},
        Mistake{Mutant::kSkippedMicroBatch, "dp=2 zero=2 pass=2", "T1"},
        Mistake{Mutant::kUnreducedParameter, "dp=2 zero=1", "T1"}, Mistake{Mutant::kNoClipping, "dp=2", "T1"},
        Mistake{Mutant::kDecayDropped, "dp=2 zero=3", "T1"}, Mistake{Mutant::kOwnSeed, "dp=2", "T1"},
        Mistake{Mutant::kStaleCopy, "dp=2", "T1"}, Mistake{Mutant::kStaleTiedWeight, "dp=2", "T1"},
        Mistake{Mutant::kStalePositions, "cp=2", "T1"}, Mistake{Mutant::kShiftedTargets, "cp=2", "T1"},
        Mistake{Mutant::kSharedHeads, "tp=2", "T1"}, Mistake{Mutant::kBiasAddedTwice, "tp=2", "T1"},
        Mistake{Mutant::kReductionForgotten, "tp=2", "T1"}, Mistake{Mutant::kReductionDropped, "tp=2", "T0"},
        Mistake{Mutant::kCopyDropped, "tp=2", "T0"}, Mistake{Mutant::kInvariantNorm, "tp=2 sp", "T0"}),
    [](const auto& row) { return std::string(name(row.param.mutant)); });

TEST_P(Mutants, AreCaught) {
  const Mistake& mistake = GetParam();
  const TrainingRun run{.model = kGpt2, .config = layout(mistake.layout), .mutant = mistake.mutant};
  std::string caught_by = "none";
  try {
    const Difference d = compare(run_on_threads(run), reference(kGpt2));
    // Far above the bound of the table, so that no rounding is taken for a catch.
    if (d.largest() > 1e-7) caught_by = "T1";
  } catch (const LayoutError&) {
    caught_by = "T0";
  }
  EXPECT_EQ(caught_by, mistake.tier) << name(mistake.mutant);
  RecordProperty("caught_by", caught_by);
}

// --- Refusals ----------------------------------------------------------------------------------------------

struct Refused {
  const char* name;
  const char* layout;
  const char* message;
};
class Refusals : public ::testing::TestWithParam<Refused> {};
INSTANTIATE_TEST_SUITE_P(Layouts, Refusals,
                         ::testing::Values(Refused{"Pipeline", "pp=2", "give those ranks to dp"},
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
