// What a dry run says of a layout is what a run of it does: bytes by category, now and at most, and bytes,
// calls and elements by group and operation, on every rank, to the last one.

#include "dist/dry_run.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>

#include "dist/job.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tests/expect_error.h"
#include "tests/layout_row.h"

namespace tessera::dist {
namespace {

// Nothing divides evenly: neither the vocabulary, nor tokens, nor the hidden units of Llama.
constexpr std::int64_t kVocab = 101, kTime = 10, kBatch = 12;
constexpr const char* kGpt2 = "layers=4,heads=4,width=16,context=10,dropout=0.1";
constexpr const char* kLlama =
    "family=llama,layers=4,heads=4,kv_heads=2,width=16,hidden=22,context=10,dropout=0.1,tied=0";

struct Row {
  const char* layout;
  const char* model = kGpt2;
};

Config read(const std::string& layout) {
  Config config;
  config.batch = {.global = kBatch, .micro_batch = 2};
  return read_layout(layout, config);
}

void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
          std::span<std::int64_t> targets) {
  for (std::int64_t i = 0; i < count * kTime; ++i) {
    const auto at = static_cast<std::size_t>(i);
    inputs[at] = (7 * step + 31 * (first + i / kTime) + 3 * (i % kTime)) % kVocab;
    targets[at] = (inputs[at] * 5 + i) % kVocab;
  }
}

// The second step on each rank, computed and sent.
std::vector<RankStep> measure(const Row& row, const Config& config, std::int64_t num_samples) {
  std::vector<RankStep> ranks(static_cast<std::size_t>(config.mesh.num_ranks()));
  run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
    const Mesh mesh(config.mesh, job.shared_world());
    std::unique_ptr<nn::LanguageModel> model;
    {
      const DeviceScope on_meta(meta);
      model = nn::make_language_model(row.model, kVocab);
    }
    Engine engine(*model, config, mesh);
    RankStep& rank = ranks[static_cast<std::size_t>(job.rank())];
    static_cast<void>(engine.train_step(fill, num_samples));
    rank.traffic = engine.train_step(fill, num_samples).traffic;
    rank.memory = engine.memory();
  });
  return ranks;
}

std::string text_of(const std::vector<TapeTotal>& traffic) {
  std::string text;
  for (const TapeTotal& each : traffic)
    text += fmt::format("{} {}: {} calls, {} elements, {} bytes\n", each.group, name(each.op), each.calls,
                        each.elements, each.sent_bytes);
  return text;
}

std::string text_of(const MemoryReport& memory) {
  std::string text;
  for (std::size_t c = 0; c < kNumMemoryCategories; ++c) {
    const auto category = static_cast<MemoryCategory>(c);
    // Scratch of kernels depends on threads and instruction set; on meta there is none.
    if (category == MemoryCategory::kWorkspace) continue;
    text += fmt::format("{}: {} now, {} at most\n", name(category), memory.of(category).current,
                        memory.of(category).peak);
  }
  return text;
}

// What is printed before a run begins, of a run: to the byte between steps, and no less than the peak within
// one.
void expect_within_prediction(const MemoryReport& measured, const ZeroMemory& predicted, bool in_stages,
                              const std::string& where) {
  const MemoryUse& parameters = measured.of(MemoryCategory::kParameter);
  const MemoryUse& gradients = measured.of(MemoryCategory::kGradient);
  EXPECT_EQ(parameters.current, predicted.parameters) << where;
  EXPECT_EQ(gradients.current, predicted.gradients) << where;
  EXPECT_LE(parameters.peak,
            predicted.parameters + predicted.gathered_parameters + predicted.prefetched_parameters)
      << where;
  // A bound that is far off says nothing: 2 units in 6 are what the last of a pass does not need any more.
  EXPECT_GE(2 * parameters.peak,
            predicted.parameters + predicted.gathered_parameters + predicted.prefetched_parameters)
      << where;
  EXPECT_GE(2 * gradients.peak, predicted.gradients + predicted.full_gradients) << where;
  if (in_stages) return;  // what they hand over are gradients, too
  EXPECT_LE(gradients.peak, predicted.gradients + predicted.full_gradients) << where;
}

void expect_foretold(const Row& row, std::int64_t num_samples = 0) {
  const Config config = read(row.layout);
  const DryRunOptions options{.make_model = [&row] { return nn::make_language_model(row.model, kVocab); },
                              .config = config,
                              .mesh = config.mesh,
                              .engine = {},
                              .num_samples = num_samples};
  const std::vector<RankStep> measured = measure(row, config, num_samples);
  for (int rank = 0; rank < config.mesh.num_ranks(); ++rank) {
    const RankStep foretold = dry_run_rank(options, rank);
    const RankStep& real = measured[static_cast<std::size_t>(rank)];
    EXPECT_EQ(text_of(foretold.memory), text_of(real.memory)) << row.layout << ", rank " << rank;
    EXPECT_EQ(text_of(foretold.traffic), text_of(real.traffic)) << row.layout << ", rank " << rank;
    EXPECT_GT(foretold.counts.flops, 0u);
    expect_within_prediction(real.memory, foretold.predicted, config.mesh[MeshAxis::kPp] > 1,
                             fmt::format("{}, rank {}", row.layout, rank));
  }
}

class DryRunRows : public ::testing::TestWithParam<Row> {};

TEST_P(DryRunRows, ForetellBytesOfARun) { expect_foretold(GetParam()); }

std::string test_name(const ::testing::TestParamInfo<Row>& info) {
  std::string result = info.param.model == kLlama ? "llama_" : "";
  for (const char* c = info.param.layout; *c != '\0'; ++c)
    result += std::isalnum(static_cast<unsigned char>(*c)) != 0 ? *c : '_';
  return result;
}

INSTANTIATE_TEST_SUITE_P(
    All, DryRunRows,
    ::testing::Values(Row{"dp=1"}, Row{"dp=1 bf16 recompute=full on-host"},
                      Row{"dp=1 f16 recompute=selective", kLlama}, Row{"dp=2"}, Row{"dp=3 zero=1 bf16"},
                      Row{"dp=3 zero=2"}, Row{"dp=4 pass=1 zero=2 full-gradients bf16"}, Row{"dp=3 zero=3"},
                      Row{"dp=3 zero=3 bf16 recompute=full", kLlama}, Row{"dp=2 zero=3 persist=3000"},
                      Row{"dp=4 pass=1 zero=3 hpz=2"}, Row{"dp=4 pass=1 mics=2 zero=3"}, Row{"tp=2"},
                      Row{"tp=3 sp", kGpt2}, Row{"tp=4 recompute=full partitioned"},
                      Row{"tp=2 sp recompute=selective", kLlama}, Row{"cp=2"},
                      Row{"cp=3 recompute=full", kLlama}, Row{"cp=2 ulysses zero=3", kLlama},
                      Row{"pp=2 pass=1"}, Row{"pp=3 schedule=gpipe pass=1"},
                      Row{"pp=2 schedule=interleaved pass=1", kLlama}, Row{"pp=2 schedule=zb-h1 pass=1 bf16"},
                      Row{"pp=2 schedule=zb-v pass=1"}, Row{"pp=4 pass=2 recompute=full"},
                      Row{"pp=2,dp=2 zero=2 pass=1"}, Row{"pp=2,dp=2 zero=3 pass=1 schedule=zb-h1"},
                      Row{"pp=2,tp=2 sp pass=2 zero=1"}, Row{"pp=2,cp=2 pass=2", kLlama},
                      Row{"dp=2,tp=2 zero=3 sp bf16"}, Row{"pp=2,dp=2,tp=2 zero=3 recompute=full pass=2"},
                      Row{"dp=2,cp=2 zero=2", kLlama}, Row{"dp=2 zero=2 Muon"}, Row{"dp=2 zero=3 Lamb bf16"},
                      Row{"dp=2,tp=2 SGD"}, Row{"dp=1 bf16-state"}, Row{"dp=3 zero=1 bf16-state"},
                      Row{"dp=3 zero=3 bf16-state", kLlama}, Row{"pp=2,dp=2 zero=2 pass=1 bf16-state"},
                      Row{"dp=2,tp=2 zero=3 sp bf16-state"}),
    test_name);

// Ranks without samples, and fewer passes than a schedule takes.
TEST(DryRun, ForetellsASmallLastBatch) {
  expect_foretold({"dp=3 zero=2"}, 2);
  expect_foretold({"pp=2,dp=2 schedule=interleaved pass=1"}, 5);
}

TEST(DryRun, TellsWhenMemoryIsAtItsPeak) {
  const Config config = read("dp=2 pass=2");
  const RankStep step = dry_run_rank({.make_model = [] { return nn::make_language_model(kGpt2, kVocab); },
                                      .config = config,
                                      .mesh = config.mesh,
                                      .engine = {}},
                                     0);
  // Activations of all blocks are there, and the largest gradient of all comes: that of the logits.
  EXPECT_EQ(step.memory.peak_moment, "Backward of micro-batch 0");
  std::int64_t sum = 0;
  for (const std::int64_t bytes : step.memory.at_peak) sum += bytes;
  EXPECT_EQ(sum, step.memory.total.peak);
}

TEST(DryRun, ShowsFirstAndLastRankOfAStageWhereTheyDiffer) {
  const auto planned = [](const char* layout) {
    const Config config = read(layout);
    return dry_run({.make_model = [] { return nn::make_language_model(kGpt2, 104); },
                    .config = config,
                    .mesh = config.mesh,
                    .engine = {}});
  };
  const DryRun even = planned("pp=2,dp=2 pass=1");
  ASSERT_EQ(even.classes.size(), 2u);
  EXPECT_EQ(even.classes[1].first.rank, 2);
  EXPECT_FALSE(even.classes[0].last || even.classes[1].last);
  // Four heads over three ranks.
  const DryRun uneven = planned("pp=2,tp=3 pass=1");
  ASSERT_TRUE(uneven.classes[0].last);
  EXPECT_EQ(uneven.classes[0].last->rank, 2);
  EXPECT_GT(uneven.classes[0].first.memory.total.peak, uneven.classes[0].last->memory.total.peak);
  EXPECT_EQ(uneven.schedule->name, "1f1b");
}

TEST(DryRun, RefusesWhatARunRefuses) {
  Config config = read("pp=8 pass=1");
  const DryRunOptions options{.make_model = [] { return nn::make_language_model(kGpt2, kVocab); },
                              .config = config,
                              .mesh = config.mesh,
                              .engine = {}};
  expect_error<ConfigError>([&] { static_cast<void>(dry_run(options)); },
                            {"4 blocks can't be cut into 8 stages"});
}

// GPT-3's sizes (Brown et al., 2020) on 1,024 ranks: within 10 seconds and 1 GB.
TEST(DryRun, Plans175BillionParametersOn1024RanksInSeconds) {
  const auto begin = std::chrono::steady_clock::now();
  Config config;
  config.mesh = MeshShape::parse("pp=8,dp=16,tp=8");
  config.dtype = kBF16;
  config.zero.stage = 1;
  config.batch = {.global = 1536, .micro_batch = 1};
  config.recompute.mode = Config::Recompute::Mode::kSelective;
  const DryRun run = dry_run(
      {.make_model =
           [] { return nn::make_language_model("layers=96,heads=96,width=12288,context=2048", 50257); },
       .config = config,
       .mesh = config.mesh,
       .engine = {}});
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  EXPECT_GT(run.num_parameters, 174'000'000'000);
  EXPECT_EQ(run.classes.size(), 8u);
  // 12·D² + 13·D of a block, 12 blocks of them, over 8 ranks; biases and norms are not cut.
  EXPECT_NEAR(static_cast<double>(run.classes[3].first.num_elements), 12.0 * 12 * 12288 * 12288 / 8, 2e6);
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{:.1f} s, {} MB\n", taken.count(), usage.ru_maxrss / 1000);
#ifdef NDEBUG
  EXPECT_LE(taken.count(), 10.0);
#endif
  EXPECT_LE(usage.ru_maxrss, 1'000'000);  // kB
}

}  // namespace
}  // namespace tessera::dist
