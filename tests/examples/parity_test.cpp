// The loss of a step, and the weights, are the same whatever the number of ranks, however they are launched
// and however the batch is cut: with dropout, clipping, accumulation and tied embeddings.

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

struct Layout {
  const char* name;
  const char* launcher;
  const char* options;
};

constexpr Layout kThreads[] = {
    {"accumulation", "", "--micro-batch 2"},
    {"uneven micro-batch", "", "--micro-batch 3"},
    {"2 ranks", "", "--ranks 2"},
    {"2 ranks, accumulation", "", "--ranks 2 --micro-batch 2"},
    {"3 ranks", "", "--ranks 3"},
    {"4 ranks, accumulation", "", "--ranks 4 --micro-batch 1"},
    {"12 ranks", "", "--ranks 12"},
    {"ZeRO-3", "", "--ranks 2 --zero 3 --recompute selective"},
    {"tensor parallel", "", "--ranks 3 --mesh tp=3 --recompute"},
    {"data and tensor parallel", "", "--ranks 4 --mesh dp=2,tp=2 --zero 2"},
    {"context parallel", "", "--ranks 2 --mesh cp=2 --zero 3"},
    {"pipeline", "", "--ranks 2 --mesh pp=2 --micro-batch 2 --schedule zb-h1"},
    {"pipeline by time", "", "--ranks 2 --mesh pp=2 --micro-batch 2 --partition time"},
    {"all three", "", "--ranks 8 --mesh dp=2,cp=2,tp=2 --zero 1 --micro-batch 2"}};
constexpr Layout kMpi[] = {
    {"mpiexec -n 2", "mpiexec -n 2", ""},
    {"mpiexec -n 2, accumulation", "mpiexec -n 2", "--micro-batch 3"},
    {"mpiexec -n 4", "mpiexec -n 4", "--micro-batch 1"},
    {"mpiexec -n 4, two axes", "mpiexec -n 4", "--mesh dp=2,tp=2 --zero 3"},
    {"mpiexec -n 4, pipeline", "mpiexec -n 4", "--mesh pp=2,dp=2 --micro-batch 2 --zero 2"}};

class Layouts : public Workplace {
 protected:
  // 0.5 clips every step of this model: its gradient norm is above 1.
  static std::string options(const std::string& dtype) {
    return "--batch 12 --steps 8 --lr 0.01 --dropout 0.2 --clip 0.5 --eval-tokens 64 --progress none "
           "--dtype " +
           dtype;
  }

  void compare(const std::vector<Layout>& layouts, const std::string& dtype, double loss_tolerance,
               double weight_tolerance) {
    ASSERT_EQ(run(train("--out alone --log alone.jsonl " + options(dtype))).status, 0);
    const auto expected = read_log("alone.jsonl");
    const auto weights = read_weights("alone");
    ASSERT_EQ(expected.size(), 8u);
    ASSERT_LT(expected.back()["loss"].get<double>(), expected.front()["loss"].get<double>() - 0.1)
        << "learns nothing";
    ASSERT_GT(expected.front()["grad_norm"].get<double>(), 0.5) << "clipping is not active";
    for (const Layout& layout : layouts) {
      SCOPED_TRACE(layout.name);
      std::filesystem::remove_all(folder_ / "out");
      const Outcome outcome =
          run(train("--out out --log out.jsonl " + options(dtype) + " " + layout.options, layout.launcher));
      ASSERT_EQ(outcome.status, 0) << outcome.all();
      const auto steps = read_log("out.jsonl");
      ASSERT_EQ(steps.size(), expected.size());
      for (std::size_t i = 0; i < steps.size(); ++i) {
        for (const char* figure : {"loss", "grad_norm"}) {
          const double ours = steps[i][figure], theirs = expected[i][figure];
          EXPECT_NEAR(ours, theirs, loss_tolerance * theirs) << figure << " of step " << i + 1;
        }
        EXPECT_EQ(steps[i]["lr"], expected[i]["lr"]);
      }
      const Difference between = difference(weights, read_weights("out"));
      EXPECT_LE(between.largest, weight_tolerance * between.scale);
    }
  }
};

// The only differences are orders of sums. A gradient of rounding error size still moves Adam's weights by a
// fraction of lr in f32, so weights get 1e-4 there (0.01 · 8 steps, damped); in f64 they stay at 1e-10.
TEST_F(Layouts, OfThreadsGiveTheLossesAndWeightsOfOneRankInF64) {
  compare({std::begin(kThreads), std::end(kThreads)}, "f64", 1e-10, 1e-10);
}

TEST_F(Layouts, OfThreadsGiveTheLossesAndWeightsOfOneRankInF32) {
  compare({std::begin(kThreads), std::end(kThreads)}, "f32", 1e-6, 1e-4);
}

TEST_F(Layouts, UnderMpiGiveTheLossesAndWeightsOfOneRankInF64) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  compare({std::begin(kMpi), std::end(kMpi)}, "f64", 1e-10, 1e-10);
}

TEST_F(Layouts, UnderMpiGiveTheLossesAndWeightsOfOneRankInF32) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  compare({std::begin(kMpi), std::end(kMpi)}, "f32", 1e-6, 1e-4);
}

// A checkpoint is of whole tensors: what one layout saves, any other goes on from.
TEST_F(Layouts, GoOnFromWhatAnotherLayoutSaved) {
  const std::string settings =
      "--batch 12 --lr 0.01 --warmup 0 --min-lr 0.01 --dropout 0.2 --eval-tokens 64 "
      "--progress none --dtype f64 ";
  ASSERT_EQ(run(train("--out alone --steps 6 --log alone.jsonl " + settings)).status, 0);
  const auto expected = read_log("alone.jsonl");
  ASSERT_EQ(run(train("--out out --steps 2 --log out.jsonl --ranks 4 --mesh dp=2,tp=2 --zero 3 " + settings))
                .status,
            0);
  ASSERT_EQ(
      run(train("--out out --steps 4 --log out.jsonl --ranks 3 --mesh cp=3 --zero 1 --resume " + settings))
          .status,
      0);
  const Outcome last = run(
      train("--out out --steps 6 --log out.jsonl --resume --comm-summary --ranks 2 --zero 2 " + settings));
  ASSERT_EQ(last.status, 0) << last.all();
  EXPECT_NE(last.out.find("reduce_scatter"), std::string::npos) << last.out;
  const auto steps = read_log("out.jsonl");
  ASSERT_EQ(steps.size(), expected.size());
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const double ours = steps[i]["loss"], theirs = expected[i]["loss"];
    EXPECT_NEAR(ours, theirs, 1e-10 * theirs) << "step " << i + 1;
  }
  const Difference between = difference(read_weights("alone"), read_weights("out"));
  EXPECT_LE(between.largest, 1e-10 * between.scale);
}

TEST_F(Layouts, HaveTheSameLossesWithoutABatchSizeGiven) {
  const std::string options = "--steps 2 --progress none --dtype f64 ";
  ASSERT_EQ(run(train("--out a --log a.jsonl " + options)).status, 0);
  ASSERT_EQ(run(train("--out b --log b.jsonl --ranks 4 " + options)).status, 0);
  const auto a = read_log("a.jsonl"), b = read_log("b.jsonl");
  ASSERT_EQ(b.size(), 2u);
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double loss = a.at(i)["loss"];
    EXPECT_NEAR(b[i]["loss"].get<double>(), loss, 1e-10 * loss);
  }
}

TEST_F(Layouts, OfALlamaGiveTheLossesOfOneRank) {
  const std::string options =
      " gpt2_train --data data --threads 1 --model "
      "family=llama,layers=2,heads=4,kv_heads=2,width=16,context=16 --batch 4 "
      "--steps 3 --progress none --dtype f64 ";
  ASSERT_EQ(run(options + "--out a --log a.jsonl").status, 0);
  ASSERT_EQ(run(options + "--out b --log b.jsonl --ranks 2 --micro-batch 1").status, 0);
  const auto a = read_log("a.jsonl"), b = read_log("b.jsonl");
  ASSERT_EQ(b.size(), 3u);
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double loss = a.at(i)["loss"];
    EXPECT_NEAR(b[i]["loss"].get<double>(), loss, 1e-10 * loss);
  }
}

}  // namespace
}  // namespace tessera::programs
