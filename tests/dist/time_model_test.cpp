// The time of a step against sums by hand: parts of a rank, cores that ranks share, and pipelines.

#include "dist/time_model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "dist/pipeline_generators.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

using kernels::KernelKind;

kernels::OpCounts& of(RankStep& step, KernelKind kind) {
  return step.counts_by_kind[static_cast<std::size_t>(kind)];
}

TapeTotal row(const std::string& group, Collective op, int num_ranks, std::int64_t calls,
              std::int64_t sent_bytes) {
  TapeTotal total;
  total.group = group;
  total.op = op;
  total.num_ranks = num_ranks;
  total.calls = calls;
  total.sent_bytes = sent_bytes;
  return total;
}

Rates rates_by_hand() {
  Rates rates;
  rates.kernel_seconds = 1e-3;
  rates.kernels[static_cast<std::size_t>(KernelKind::kProduct)] = {.flops = 100.0, .bytes = 50.0};
  rates.kernels[static_cast<std::size_t>(KernelKind::kAttention)] = {.flops = 10.0};
  rates.kernels[static_cast<std::size_t>(KernelKind::kUpdate)] = {.bytes = 20.0};
  rates.kernels[static_cast<std::size_t>(KernelKind::kOther)] = {.bytes = 40.0};
  rates.links = {{"any", {.latency = 0.25, .bytes = 1000.0}},
                 {"all_reduce", {.latency = 0.5, .bytes = 500.0}},
                 {"all_reduce/8", {.latency = 2.0, .bytes = 100.0}},
                 {"tp", {.latency = 0.125}}};
  return rates;
}

RankStep step_by_hand() {
  RankStep step;
  step.counts.calls = 7;
  of(step, KernelKind::kProduct) = {.calls = 3, .flops = 400, .bytes_read = 60, .bytes_written = 40};
  of(step, KernelKind::kAttention) = {.calls = 2, .flops = 30, .bytes_read = 999};
  of(step, KernelKind::kUpdate) = {.calls = 1, .flops = 999, .bytes_read = 30, .bytes_written = 10};
  of(step, KernelKind::kOther) = {.calls = 1, .flops = 999, .bytes_read = 60, .bytes_written = 20};
  return step;
}

TEST(TimeModel, AddsUpWhatARankDoes) {
  RankStep step = step_by_hand();
  step.traffic = {row("dp", Collective::kAllReduce, 8, 3, 200), row("pp", Collective::kRecv, 4, 5, 0)};
  const StepTime time = time_of(step, rates_by_hand());
  EXPECT_DOUBLE_EQ(time.compute, 400 / 100.0 + 100 / 50.0 + 30 / 10.0);
  EXPECT_DOUBLE_EQ(time.memory, 40 / 20.0 + 80 / 40.0);
  EXPECT_DOUBLE_EQ(time.overhead, 7e-3);
  EXPECT_DOUBLE_EQ(time.communication, 3 * 2.0 + 200 / 100.0);
  EXPECT_DOUBLE_EQ(time.idle, 0.0);
  EXPECT_DOUBLE_EQ(time.seconds(), 9 + 4 + 7e-3 + 8);
}

TEST(TimeModel, TakesTheLinkThatIsMostExact) {
  const Rates rates = rates_by_hand();
  const auto latency = [&](const char* group, Collective op, int num_ranks) {
    return rates.link(row(group, op, num_ranks, 1, 0)).latency;
  };
  EXPECT_EQ(latency("tp", Collective::kAllReduce, 8), 0.125);  // its group
  EXPECT_EQ(latency("dp", Collective::kAllReduce, 8), 2.0);    // its operation over so many ranks
  EXPECT_EQ(latency("dp", Collective::kAllReduce, 4), 0.5);    // its operation
  EXPECT_EQ(latency("dp", Collective::kAllGather, 8), 0.25);
  EXPECT_EQ(Rates{}.link(row("dp", Collective::kAllGather, 8, 1, 0)).latency, 0.0);
}

// Every rank of `mesh` does the same.
DryRun planned(const char* mesh, const RankStep& step) {
  DryRun run;
  run.mesh = MeshShape::parse(mesh);
  const int places = run.mesh[MeshAxis::kPp], each = run.mesh.num_ranks() / places;
  for (int place = 0; place < places; ++place)
    run.classes.push_back(
        {.first_rank = place * each, .last_rank = (place + 1) * each - 1, .first = step, .last = {}});
  return run;
}

TEST(TimeModel, RanksBeyondTheCoresShareThem) {
  const RankStep step = step_by_hand();
  const DryRun run = planned("dp=8", step);
  Rates rates = rates_by_hand();
  const double alone = time_of(step, rates).busy();
  EXPECT_DOUBLE_EQ(predict(run, rates).seconds(), alone);
  rates.cores = 2;
  EXPECT_DOUBLE_EQ(predict(run, rates).seconds(), 4 * alone);
  rates.cores = 100;  // a rank uses one
  EXPECT_DOUBLE_EQ(predict(run, rates).seconds(), alone);
  EXPECT_DOUBLE_EQ(predict(run, rates).idle, 0.0);
}

TEST(TimeModel, WaitsForTheSlowestRank) {
  RankStep step = step_by_hand(), slow = step;
  of(slow, KernelKind::kProduct).flops += 800;  // 8 s more
  DryRun run = planned("dp=4", step);
  run.classes[0].last = slow;
  Rates rates = rates_by_hand();
  const double alone = time_of(step, rates).busy();
  // The ranks between are taken to lie between: 4 s more on average.
  EXPECT_DOUBLE_EQ(predict(run, rates).seconds(), alone + 8);
  EXPECT_DOUBLE_EQ(predict(run, rates).idle, 4.0);
  // On two cores others work meanwhile.
  rates.cores = 2;
  EXPECT_DOUBLE_EQ(predict(run, rates).seconds(), 2 * (alone + 4));
  EXPECT_DOUBLE_EQ(predict(run, rates).idle, 0.0);
}

// 1F1B over p stages with m micro-batches takes (m + p − 1)/m of a stage's passes (Narayanan et al., 2021),
// then what ends a step: here the update of 2 s and a sum over dp of 4 s.
TEST(TimeModel, BubbleOfAPipelineIsIdleUnlessOthersFillIt) {
  RankStep step = step_by_hand();
  step.traffic = {row("dp", Collective::kAllReduce, 8, 2, 0)};
  DryRun run = planned("pp=4,dp=8", step);
  run.schedule = make_schedule("1f1b", {.ranks = 4, .micro_batches = 8});
  Rates rates = rates_by_hand();
  const double busy = time_of(step, rates).busy(), passes = busy - 2 - 4;
  EXPECT_NEAR(predict(run, rates).seconds(), passes * 11 / 8 + 2 + 4, 1e-9);
  EXPECT_NEAR(predict(run, rates).idle, passes * 3 / 8, 1e-9);
  rates.cores = 16;  // two ranks for each: all of them have work all the time
  EXPECT_NEAR(predict(run, rates).seconds(), 2 * busy, 1e-9);
  EXPECT_NEAR(predict(run, rates).idle, 0.0, 1e-9);
}

// A stage sends to the next one in its own time, so messages are part of the passes that a bubble is made
// of; and so is what ZeRO sends in each of them.
TEST(TimeModel, MessagesMakeTheBubbleOfAPipelineLonger) {
  RankStep step = step_by_hand();
  step.traffic = {row("dp", Collective::kAllGather, 8, 2, 0), row("pp", Collective::kSend, 4, 4, 0)};
  DryRun run = planned("pp=4,dp=8", step);
  run.schedule = make_schedule("1f1b", {.ranks = 4, .micro_batches = 8});
  const Rates rates = rates_by_hand();
  const double busy = time_of(step, rates).busy();
  const double gathers = static_cast<double>(step.traffic[0].calls) * rates.link(step.traffic[0]).latency;
  ASSERT_GT(gathers, 0.0);
  EXPECT_NEAR(predict(run, rates).seconds(), (busy - 2 - gathers) * 11 / 8 + 2 + gathers, 1e-9);
  run.gathers_in_passes = true;
  EXPECT_NEAR(predict(run, rates).seconds(), (busy - 2) * 11 / 8 + 2, 1e-9);
}

TEST(TimeModel, NoFasterRateMakesAStepLonger) {
  for (const char* mesh : {"dp=8", "dp=2,tp=2,pp=2", "pp=4,cp=2"}) {
    Config config;
    config.mesh = MeshShape::parse(mesh);
    config.batch = {.global = 16, .micro_batch = 1};
    DryRunOptions options;
    options.make_model = [] { return nn::make_language_model("layers=4,heads=4,width=16,context=8", 64); };
    options.config = config;
    options.mesh = config.mesh;
    const DryRun run = dry_run(options);
    Rates rates = rates_by_hand();
    rates.cores = 2;
    const double before = predict(run, rates).seconds();
    // Counts of the kinds are those of all kernels.
    const RankStep& step = run.classes[0].first;
    std::uint64_t flops = 0, calls = 0;
    for (const kernels::OpCounts& counts : step.counts_by_kind) {
      EXPECT_GT(counts.calls, 0u) << mesh;
      flops += counts.flops;
      calls += counts.calls;
    }
    EXPECT_EQ(flops, step.counts.flops);
    EXPECT_EQ(calls, step.counts.calls);
    const auto expect_shorter = [&](const char* what, auto change) {
      Rates faster = rates;
      change(faster);
      EXPECT_LT(predict(run, faster).seconds(), before) << mesh << ": " << what;
    };
    expect_shorter("calls", [](Rates& r) { r.kernel_seconds /= 2; });
    expect_shorter("latency", [](Rates& r) { r.links["any"].latency /= 2, r.links["tp"].latency /= 2; });
    expect_shorter("cores", [](Rates& r) { r.cores = 0; });
    for (std::size_t kind = 0; kind < kernels::kNumKernelKinds; ++kind)
      expect_shorter("kernels", [kind](Rates& r) { r.kernels[kind].flops *= 2, r.kernels[kind].bytes *= 2; });
  }
}

TEST(TimeModel, RatesGoThroughAFile) {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("rates_{}.json", ::getpid());
  const auto write = [&](const std::string& text) { std::ofstream(path) << text; };
  Rates rates = rates_by_hand();
  rates.cores = 3;
  write(rates.json());
  EXPECT_EQ(Rates::load(path).json(), rates.json());
  const DryRun run = planned("dp=8", step_by_hand());
  EXPECT_NEAR(predict(run, Rates::load(path)).seconds(), predict(run, rates).seconds(), 1e-6);
  write(R"({"links": {"any": {"us": 0}}})");
  expect_error<ConfigError>([&] { static_cast<void>(Rates::load(path)); }, {"us", "above 0"});
  write(R"({"kernels": {"products": {"gflops": 5}}})");
  expect_error<ConfigError>([&] { static_cast<void>(Rates::load(path)); }, {"products", "'product'"});
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace tessera::dist
