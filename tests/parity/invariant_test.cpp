// Invariant numerics (tier T3): every layout, every way to cut the batch and every number of threads gives
// the bits of one rank with one thread: of each step's loss and gradient norm, and of all parameters. And two
// runs of one layout are equal to the bit in Fast numerics as well.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "dist/collectives.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/layer_norm.h"
#include "nn/linear.h"
#include "tensor/context.h"
#include "tests/data/temporary_folder.h"
#include "tests/parity/invariant_run.h"

namespace tessera::dist::parity {
namespace {

void expect_bits_of_one_rank(const std::string& model, const std::string& text) {
  const InvariantRun run = invariant_run(model, text);
  EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << text;
}

class Invariant : public ::testing::TestWithParam<const char*> {};

TEST_P(Invariant, Gpt2HasTheBitsOfOneRank) { expect_bits_of_one_rank(kInvariantGpt2, GetParam()); }
TEST_P(Invariant, LlamaHasTheBitsOfOneRank) { expect_bits_of_one_rank(kInvariantLlama, GetParam()); }

INSTANTIATE_TEST_SUITE_P(Accumulation, Invariant,
                         ::testing::Values("dp=1 pass=1", "dp=1 pass=2", "dp=1 pass=5", "dp=1 threads=2",
                                           "dp=1 threads=3 pass=4", "dp=1 recompute=full",
                                           "dp=1 recompute=selective pass=3"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(DataParallel, Invariant,
                         ::testing::Values("dp=2", "dp=2 zero=1", "dp=2 zero=2 pass=2", "dp=2 zero=3 pass=4",
                                           "dp=3", "dp=3 zero=1 pass=1", "dp=3 zero=2", "dp=3 zero=3 pass=3",
                                           "dp=4 pass=2", "dp=4 zero=1", "dp=4 zero=2 pass=1", "dp=4 zero=3",
                                           "dp=5 zero=2 pass=2", "dp=5 zero=3", "dp=8 pass=1", "dp=8 zero=1",
                                           "dp=8 zero=2", "dp=8 zero=3",
                                           "dp=3 zero=3 recompute=full threads=2",
                                           "dp=2 zero=2 full-gradients"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(ShardGroups, Invariant,
                         ::testing::Values("dp=4 mics=2", "dp=4 hpz=2 pass=1", "dp=6 mics=3 pass=1",
                                           "dp=4,tp=2 hpz=2 sp"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(TensorParallel, Invariant,
                         ::testing::Values("tp=2", "tp=3", "tp=4", "tp=2 sp", "tp=3 sp", "tp=4 sp pass=2",
                                           "tp=2 zero=3 recompute=full", "tp=3 recompute=full partitioned",
                                           "tp=3 sp recompute=selective threads=2", "dp=2,tp=2",
                                           "dp=2,tp=2 zero=1 sp", "dp=2,tp=3 zero=2 pass=2",
                                           "dp=3,tp=2 zero=3 sp recompute=full", "dp=2,tp=4 zero=3 sp"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(ContextParallel, Invariant,
                         ::testing::Values("cp=2 ulysses", "cp=4 ulysses zero=3", "dp=2,cp=2 ulysses zero=2",
                                           "cp=2 ulysses recompute=full pass=3", "cp=2,tp=2 ulysses",
                                           "cp=2,tp=2 ulysses sp zero=1",
                                           "dp=3,cp=2 ulysses zero=3 threads=2",
                                           "dp=2,cp=2,tp=2 ulysses zero=3 sp recompute=selective"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(Optimizers, Invariant,
                         ::testing::Values("dp=3 zero=2 SGD", "dp=2 zero=3 Adagrad", "dp=3 zero=1 Lion",
                                           "dp=3 Lamb", "dp=2 zero=1 Lamb", "dp=3 zero=3 Lamb bf16",
                                           "tp=3 sp Lamb", "dp=2,tp=2 zero=2 Lamb pass=2", "dp=4 hpz=2 Lamb",
                                           "cp=2 ulysses zero=1 Lamb", "dp=3 zero=2 Lamb f64 threads=2",
                                           "dp=2 zero=3 Muon", "dp=3 zero=1 Muon", "tp=3 sp Muon",
                                           "dp=2,tp=2 zero=2 Adagrad", "tp=4 sp Lion"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(OtherTypes, Invariant,
                         ::testing::Values("dp=3 zero=2 f64", "dp=3 zero=3 bf16 pass=2",
                                           "dp=4 bf16 threads=2", "tp=3 sp bf16", "dp=2,tp=2 zero=2 bf16",
                                           "cp=2 ulysses bf16", "tp=4 sp f64", "dp=2,tp=2 zero=2 f16"),
                         [](const auto& row) { return test_name(row.param); });
INSTANTIATE_TEST_SUITE_P(Bf16State, Invariant,
                         ::testing::Values("dp=1 pass=2 threads=2 bf16-state", "dp=2 bf16-state",
                                           "dp=3 zero=1 bf16-state", "dp=3 zero=2 pass=2 bf16-state",
                                           "dp=4 zero=3 bf16-state threads=2", "dp=4 mics=2 bf16-state",
                                           "dp=4 hpz=2 pass=1 bf16-state", "tp=3 sp bf16-state",
                                           "dp=2,tp=2 zero=2 bf16-state", "cp=2 ulysses zero=3 bf16-state"),
                         [](const auto& row) { return test_name(row.param); });

// More heads than some ranks get, and ranks without any.
TEST(Invariant, HoldsWhereRanksHaveNoHeads) {
  for (const char* layout : {"tp=6 sp", "tp=8", "tp=8 sp zero=3"})
    expect_bits_of_one_rank(kInvariantGpt2, layout);
}

// The last batch of an epoch: some ranks have no sample of it, and pass all the same.
TEST(Invariant, HoldsForABatchOfWhichSomeRanksHaveNothing) {
  const auto bits = [](const char* layout) {
    InvariantRun run = invariant_run(kInvariantGpt2, layout);
    run.batch = 5;
    return bits_of(run);
  };
  const std::vector<std::string> alone = bits("dp=1");
  for (const char* layout : {"dp=8", "dp=8 zero=3", "dp=6 zero=2", "dp=4,tp=2 zero=1 sp", "dp=6 hpz=2"})
    EXPECT_EQ(bits(layout), alone) << layout;
}

// Another order of the same sums, and so another rounding: thousands of additions in f64 and six steps stay
// far below 1e-11, where a part that is lost or counted twice is not.
TEST(Invariant, TrainsWhatFastNumericsTrain) {
  for (const char* model : {kInvariantGpt2, kDeepLlama}) {
    for (const char* optimizer : {"", "Lamb", "Muon"}) {
      const std::string row = fmt::format("dp=1 f64 {}", optimizer);
      const auto bits = bits_of(invariant_run(model, row)),
                 fast = bits_of(invariant_run(model, row + " fast"));
      for (std::size_t i = 0; i < 6; ++i) {
        double loss = 0, norm = 0, fast_loss = 0, fast_norm = 0;
        ASSERT_EQ(std::sscanf(bits[i].c_str(), "step %*d: loss %la norm %la", &loss, &norm), 2) << bits[i];
        ASSERT_EQ(std::sscanf(fast[i].c_str(), "step %*d: loss %la norm %la", &fast_loss, &fast_norm), 2);
        EXPECT_NEAR(loss / fast_loss, 1.0, 1e-11) << model << " " << row << ", step " << i;
        EXPECT_NEAR(norm / fast_norm, 1.0, 1e-11) << model << " " << row << ", step " << i;
      }
    }
  }
}

// Layout types are checks alone: no sum depends on whether they are made.
TEST(Invariant, HoldsWithoutLayoutChecks) {
  for (const char* layout : {"dp=2,tp=2 sp", "cp=2,tp=2 ulysses zero=3", "pp=2,tp=2 sp schedule=zb-h1"}) {
    InvariantRun run = invariant_run(kInvariantLlama, layout);
    run.spoil = [](Engine&) { RankContext::current().check_layouts = false; };
    EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << layout;
  }
}

// Key/value heads that several query heads read: as many as ranks, fewer, and copies of them over cp.
TEST(Invariant, HoldsForGroupedQueries) {
  for (const char* kv_heads : {"1", "2", "4"}) {
    const std::string model = fmt::format(
        "family=llama,layers=2,heads=8,kv_heads={},width=32,hidden=22,context=13,dropout=0.1", kv_heads);
    for (const char* layout :
         {"tp=2 sp", "tp=3", "tp=4 zero=3 recompute=full", "tp=6 sp", "tp=8 recompute=selective",
          "dp=2,tp=3 zero=1", "cp=2 ulysses", "cp=3 ulysses zero=3 recompute=full", "cp=2,tp=3 ulysses sp"})
      expect_bits_of_one_rank(model, layout);
  }
}

// Sizes at which kernels cut their work: several passes over K, several tiles of queries and of the
// vocabulary, and threads that have something to do.
TEST(Invariant, HoldsAtSizesThatKernelsCut) {
  for (const char* model : {"layers=2,heads=6,width=96,context=150,dropout=0.1",
                            "family=llama,layers=2,heads=6,kv_heads=3,width=96,hidden=643,context=150"}) {
    const auto bits = [&](const char* layout) {
      InvariantRun run = invariant_run(model, layout);
      run.vocab = 1031, run.time = 150, run.batch = 5, run.steps = 2;
      return bits_of(run);
    };
    const std::vector<std::string> alone = bits("dp=1");
    for (const char* layout : {"dp=1 threads=2", "dp=1 threads=3", "dp=3 zero=2 threads=2",
                               "tp=3 sp threads=2", "dp=2,tp=2 zero=3", "cp=3 ulysses threads=2",
                               "cp=2,tp=3 ulysses sp", "pp=2 schedule=zb-h1 threads=2"})
      EXPECT_EQ(bits(layout), alone) << model << " " << layout;
  }
}

// --- From one layout to another ----------------------------------------------------------------------------

struct Move {
  const char *from, *to;
};
class InvariantMoves : public ::testing::TestWithParam<Move> {};
INSTANTIATE_TEST_SUITE_P(Layouts, InvariantMoves,
                         ::testing::Values(Move{"dp=2 zero=1", "tp=3 sp"}, Move{"tp=4 zero=3", "dp=3 zero=2"},
                                           Move{"dp=2,cp=2 ulysses", "dp=5 zero=3 pass=1"},
                                           Move{"dp=2,tp=2 zero=3 sp bf16", "cp=2 ulysses bf16"},
                                           Move{"dp=3 zero=3 bf16-state", "dp=2,tp=2 zero=1 sp bf16-state"},
                                           Move{"tp=2 bf16-state", "dp=4 hpz=2 bf16-state"},
                                           Move{"dp=3 zero=3 Muon", "tp=2 Muon"}),
                         [](const auto& row) {
                           return test_name(row.param.from) + "_to_" + test_name(row.param.to);
                         });

TEST_P(InvariantMoves, ContinueAsIfTheLayoutHadNotChanged) {
  for (const char* model : {kInvariantGpt2, kInvariantLlama}) {
    const data::TemporaryFolder folder;
    InvariantRun first = invariant_run(model, GetParam().from), second = invariant_run(model, GetParam().to);
    first.steps = second.steps = 3;
    first.save = second.load = folder.path().string();
    std::vector<std::string> bits = bits_of(first);
    bits.resize(3);
    const std::vector<std::string> rest = bits_of(second);
    bits.insert(bits.end(), rest.begin(), rest.end());
    EXPECT_EQ(bits, bits_of_one_rank(second)) << GetParam().from << " and then " << GetParam().to;
  }
}

// --- Mistakes ----------------------------------------------------------------------------------------------

struct Mistake {
  const char *name, *layout;
  void (*make)(Engine& engine);
};
class InvariantMistakes : public ::testing::TestWithParam<Mistake> {};

template <class Module, class F>
void for_each_module(Engine& engine, F&& f) {
  for (nn::Module* module : engine.model().modules()) {
    if (auto* typed = dynamic_cast<Module*>(module)) f(*typed);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, InvariantMistakes,
    ::testing::Values(
        // Products whose blocking depends on their size, on threads and on the CPU.
        Mistake{"ProductsByOneDnn", "dp=2",
                [](Engine&) { RankContext::current().kernels.invariant_products = false; }},
        // Each rank's part of a contraction as one product, and the parts in the order of ranks.
        Mistake{"PartsOfRanksAsLeaves", "tp=3",
                [](Engine& engine) {
                  const Mesh& mesh = engine.mesh();
                  for_each_module<nn::Linear>(engine, [&mesh](nn::Linear& linear) {
                    if (linear.name() != "h.0.mlp.c_proj") return;
                    linear.set_function(nullptr);
                    linear.set_product_hook(
                        [&mesh](const Tensor& y) { return all_reduce(y, mesh, MeshAxis::kTp); });
                  });
                }},
        // A norm's gain from the sums that each rank made of its own tokens.
        Mistake{"NormsOfOwnTokens", "tp=2 sp",
                [](Engine& engine) {
                  for_each_module<nn::LayerNorm>(engine,
                                                 [](nn::LayerNorm& norm) { norm.set_token_ranks(nullptr); });
                }},
        // What a mistake in values looks like here.
        Mistake{"OwnSeedOfDropout", "dp=2",
                [](Engine& engine) {
                  RankContext::current().seed += static_cast<std::uint64_t>(engine.mesh().world().rank());
                }}),
    [](const auto& row) { return std::string(row.param.name); });

TEST_P(InvariantMistakes, AreNoticed) {
  // Wide enough for products that go to oneDNN, and for several passes over K.
  InvariantRun run = invariant_run("layers=1,heads=4,width=96,context=13,dropout=0.1", GetParam().layout);
  EXPECT_EQ(bits_of(run), bits_of_one_rank(run));
  run.spoil = GetParam().make;
  EXPECT_NE(bits_of(run), bits_of_one_rank(run));
}

// --- Bytes -------------------------------------------------------------------------------------------------

// What gradients and parameters send is predicted from shapes; products over tp are on another group.
TEST(Invariant, SendsBetweenDataRanksWhatIsPredicted) {
  for (const char* layout : {"dp=2", "dp=3 zero=1", "dp=4 zero=2 pass=1", "dp=6 zero=3", "dp=2,tp=2 zero=1",
                             "dp=4 hpz=2", "dp=4 mics=2", "pp=2,dp=2 zero=2", "pp=2,dp=2 schedule=zb-h1"}) {
    InvariantRun run = invariant_run(kInvariantGpt2, layout);
    run.steps = 3;  // the first records the order of gathers
    run.inspect = [&](Engine& engine, Job& job) {
      job.tape().reset_totals();
      static_cast<void>(engine.train_step(
          [&](auto, auto, auto, auto inputs, auto targets) {
            std::ranges::fill(inputs, 1);
            std::ranges::fill(targets, 2);
          },
          run.batch));
      const int samples = static_cast<int>(run.batch) / engine.mesh().size(MeshAxis::kDp);
      for (const ZeroTraffic& row : engine.zero().predicted_traffic(samples)) {
        EXPECT_EQ(job.tape().total_sent_bytes(row.group, row.op), row.sent_bytes)
            << layout << ": " << row.group << " " << name(row.op);
      }
    };
    static_cast<void>(bits_of(run));
  }
}

// --- Fast numerics -----------------------------------------------------------------------------------------

// What the tables above can notice: without the mode, nearly every way to cut a run has bits of its own.
TEST(FastNumerics, DifferInBitsFromLayoutToLayout) {
  const char* const layouts[] = {"dp=1 pass=1", "dp=1 pass=5", "dp=2", "dp=2 zero=3 pass=2",
                                 "dp=3 zero=1", "dp=4 zero=2", "dp=5", "dp=8 zero=3",
                                 "tp=2",        "tp=3 sp",     "tp=4", "dp=2,tp=2",
                                 "cp=2",        "cp=2 ulysses"};
  const std::vector<std::string> alone = bits_of(invariant_run(kInvariantGpt2, "dp=1 fast"));
  std::string equal;
  for (const char* text : layouts) {
    if (bits_of(invariant_run(kInvariantGpt2, std::string(text) + " fast")) == alone)
      equal += std::string(text) + "; ";
  }
  EXPECT_EQ(equal, "") << "these have the bits of one rank in Fast numerics, and prove nothing above";
}

class FastNumericsRuns : public ::testing::TestWithParam<const char*> {};

TEST_P(FastNumericsRuns, AreEqualToTheBitFromRunToRun) {
  for (const char* model : {kInvariantGpt2, kInvariantLlama}) {
    const InvariantRun run = invariant_run(model, std::string(GetParam()) + " fast");
    EXPECT_EQ(bits_of(run), bits_of(run)) << GetParam();
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, FastNumericsRuns,
                         ::testing::Values("dp=1 threads=3", "dp=3 zero=1 threads=2", "dp=2 zero=2 pass=2",
                                           "dp=4 zero=3 recompute=full", "tp=3 sp", "cp=2", "cp=3 ulysses",
                                           "dp=2,tp=2 zero=3 sp threads=2", "dp=2,cp=2,tp=2 zero=2",
                                           "dp=4 hpz=2 Lamb", "dp=2 bf16", "dp=3 zero=1 Muon"),
                         [](const auto& row) { return test_name(row.param); });

// --- Refusals ----------------------------------------------------------------------------------------------

struct Refused {
  const char* name;
  const char* layout;
  const char* message;
};
class InvariantRefusals : public ::testing::TestWithParam<Refused> {};
INSTANTIATE_TEST_SUITE_P(Layouts, InvariantRefusals,
                         ::testing::Values(Refused{"TensorRanks", "tp=5", "tp = 4 works"},
                                           Refused{"Ring", "cp=2", "ulysses"},
                                           Refused{"RingInAPipeline", "pp=2,cp=2", "ulysses"}),
                         [](const auto& row) { return std::string(row.param.name); });

TEST_P(InvariantRefusals, NameWhatWorks) {
  try {
    static_cast<void>(bits_of(invariant_run(kInvariantLlama, GetParam().layout)));
    FAIL() << "not refused";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tessera::dist::parity
