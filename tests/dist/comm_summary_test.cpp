#include "dist/comm_summary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "dist/engine.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

std::int64_t calls(const CommSummary& summary, const std::string& group, Collective op) {
  for (const TapeTotal& row : summary.totals())
    if (row.group == group && row.op == op) return row.calls;
  return 0;
}

TEST(CommSummary, CountsWhatIsSentInStepsAlone) {
  run_thread_ranks(2, [](Job& job) {
    std::vector<float> x(10);
    job.world().all_reduce(buffer_of(x));  // before the first step
    CommSummary summary(job.world());
    for (int step = 0; step < 3; ++step) {
      summary.begin_step();
      job.world().all_reduce(buffer_of(x));
      if (step == 1) job.world().barrier();
      const auto rows = summary.end_step();
      EXPECT_EQ(rows.size(), step == 1 ? 2u : 1u);
      EXPECT_EQ(rows.front().sent_bytes, 40);  // 2 (R-1)/R n b
      job.world().broadcast(buffer_of(x), 0);  // between steps
    }
    EXPECT_EQ(summary.steps(), 3);
    EXPECT_EQ(summary.sent_bytes(), 3 * 40);
    EXPECT_EQ(calls(summary, "world", Collective::kAllReduce), 3);
    EXPECT_EQ(calls(summary, "world", Collective::kBarrier), 1);
    EXPECT_EQ(calls(summary, "world", Collective::kBroadcast), 0);
  });
}

TEST(CommSummary, ForgetsAStepThatDidNotEnd) {
  run_thread_ranks(2, [](Job& job) {
    std::vector<float> x(10);
    CommSummary summary(job.world());
    summary.begin_step();
    job.world().all_reduce(buffer_of(x));
    summary.begin_step();
    job.world().all_reduce(buffer_of(x));
    summary.end_step();
    EXPECT_EQ(summary.sent_bytes(), 40);
  });
}

// Everything but the times: 1,000 all-reduces of 750 f32 and one of 751 in two steps, so 500.5 calls and
// (1000 * 750 + 751) * 4 / 2 bytes a step. The step before them has a broadcast that comes once, and one
// all-reduce.
TEST(CommSummary, PrintsTheMeanOfAStep) {
  run_thread_ranks(2, [](Job& job) {
    std::vector<float> x(750), longer(751);
    CommSummary summary(job.world());
    summary.begin_step();
    job.world().broadcast(buffer_of(x), 0);
    job.world().all_reduce(buffer_of(x));
    summary.end_step();
    const std::string alone = summary.table();
    for (int step = 0; step < 2; ++step) {
      summary.begin_step();
      for (int i = 0; i < 500; ++i) job.world().all_reduce(buffer_of(x));
      if (step == 1) job.world().all_reduce(buffer_of(longer));
      summary.end_step();
    }
    const std::string table = summary.table();
    if (job.rank() != 0) return;
    EXPECT_TRUE(
        table.starts_with("sent by rank 0 of 2, a step (mean of 2, the first apart):\n"
                          "group        operation             calls            bytes    waited ms\n"
                          "world        all_reduce            500.5        1,501,502 "))
        << table;
    EXPECT_NE(table.find("\nall                                500.5        1,501,502 "), std::string::npos)
        << table;
    EXPECT_NE(table.find("  (1.50 MB)\nfirst step                             2            6,000 "),
              std::string::npos)
        << table;
    EXPECT_EQ(table.find("broadcast"), std::string::npos) << table;
    EXPECT_TRUE(alone.starts_with("sent by rank 0 of 2, a step (mean of 1):\n")) << alone;
    EXPECT_NE(alone.find("broadcast"), std::string::npos) << alone;
    EXPECT_EQ(alone.find("first step"), std::string::npos) << alone;
  });
}

// Four ranks on two hosts, dp=2,tp=2: tp inside of them. What is over hosts is dp and the world.
TEST(CommSummary, SaysWhichGroupsReachOverHosts) {
  run_thread_ranks(4, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2,tp=2"), job.shared_world(),
                    {.host = job.rank() < 2 ? "alpha" : "beta"});
    CommSummary summary(job.world());
    summary.begin_step();
    std::vector<float> x(100);
    mesh.group(MeshAxis::kTp).all_reduce(buffer_of(x));
    mesh.group(MeshAxis::kDp).all_reduce(buffer_of(x));
    mesh.group(MeshAxis::kDp).barrier();
    mesh.world().all_reduce(buffer_of(x));
    summary.end_step();
    const std::string table = std::regex_replace(summary.table(), std::regex("[0-9]+\\.[0-9]{3}"), "t");
    if (job.rank() != 0) return;
    EXPECT_EQ(std::regex_replace(table, std::regex(" +"), " "),
              "sent by rank 0 of 4 on 2 hosts, a step (mean of 1):\n"
              "group operation calls bytes waited ms\n"
              "dp all_reduce 1 400 t over 2 hosts\n"
              "dp barrier 1 0 t over 2 hosts\n"
              "tp all_reduce 1 400 t\n"
              "world all_reduce 1 600 t over 2 hosts\n"
              "over hosts 3 1,000 t\n"
              "all 4 1,400 t (1.40 kB)");
  });
}

// ZeRO-1 sends 2 Ψ (N-1)/N elements (docs/zero.md): half of them to reduce-scatter gradients, half to gather
// parameters. All flats of this model are even, so there is no padding.
TEST(CommSummary, OfAnEngineIsTheClosedFormOfZeroOne) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
    RankContext context({.rank = job.rank(), .world_size = 2});
    const RankContext::Scope scope(context);
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model("layers=2,heads=2,width=8,context=6", 32);
    }();
    Config config;
    config.zero.stage = 1;
    config.batch = {.micro_batch = 1, .accumulation = 3};
    Engine engine(*model, config, mesh);
    const SampleSource samples = [](auto, auto, auto, auto inputs, auto targets) {
      std::ranges::fill(inputs, 1);
      std::ranges::fill(targets, 2);
    };
    const std::vector<std::int64_t> ids(6, 1);
    for (int step = 0; step < 4; ++step) {
      static_cast<void>(engine.train_step(samples));
      static_cast<void>(engine.evaluate(ids, ids, 1));
      const CheckpointSources sources = engine.checkpoint_sources();
      for (const auto& tensor : sources.optimizer.tensors)
        static_cast<void>(sources.optimizer.get(tensor.name));
    }
    const SampleSource broken = [](auto, std::int64_t first, auto, auto, auto) {
      if (first % 3 == 1) throw DataError("injected");
    };
    EXPECT_THROW(static_cast<void>(engine.train_step(broken)), DataError);

    const std::int64_t psi = model->num_parameters();
    EXPECT_EQ(psi, 32 * 8 + 6 * 8 + 2 * (12 * 8 * 8 + 13 * 8) + 2 * 8);
    const CommSummary& summary = engine.comm_summary();
    ASSERT_EQ(summary.steps(), 4);
    for (const TapeTotal& row : summary.totals()) {
      if (row.group != "dp") continue;
      EXPECT_TRUE(row.op == Collective::kReduceScatter || row.op == Collective::kAllGather) << name(row.op);
      EXPECT_EQ(row.sent_bytes, 4 * psi * 4 / 2) << name(row.op);
    }
    // The world agrees on the number of targets and on the norm, and gathers the report's figures. Set-up
    // made groups, and is not in it.
    EXPECT_EQ(calls(summary, "world", Collective::kAllReduce), 4 * 2);
    EXPECT_EQ(calls(summary, "world", Collective::kAllGather), 4);
    EXPECT_EQ(calls(summary, "world", Collective::kSplit), 0);
  });
}

}  // namespace
}  // namespace tessera::dist
