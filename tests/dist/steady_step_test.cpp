// A training step that is like the one before needs no memory from the system: neither the pool, nor the C
// library below it, nor anything else in the process asks for any.

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "autograd/ops.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "nn/model_factory.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/dist/system_requests.h"

namespace tessera::dist {
namespace {

// Dropout, tied embeddings, and buffers from a few bytes to 1 MiB of logits, on both sides of the size from
// which malloc asks the system (128 KiB).
const char* const kModel = "layers=2,heads=2,width=64,context=64,dropout=0.1";
constexpr std::int64_t kVocab = 1021, kTime = 64, kBatch = 4;
constexpr int kWarmUp = 8, kSteps = 32;
// The C library's heaps of threads grow by pages. They do so once more, now and then, when ranks happen to
// free small things in another order than before: twice in 64 steps at most, by 32 KiB together, were seen.
// What a step asks for by itself it asks for 32 times; a buffer of a tensor's size is 128 KiB at least.
constexpr std::int64_t kToleratedRequests = 4, kToleratedBytes = 128 << 10;

std::int64_t pool_requests() { return RankContext::current().pool(cpu)->report().system_allocations; }
std::int64_t pool_bytes() { return RankContext::current().pool(cpu)->report().total.current; }

class SteadyStep : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = testing::count_system_requests();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

// Else every test below would pass.
TEST_F(SteadyStep, IsMeasuredByAMeterThatCounts) {
  const std::int64_t before = testing::num_system_requests();
  const std::unique_ptr<void, decltype(&std::free)> large(std::malloc(std::size_t{64} << 20), &std::free);
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(testing::num_system_requests() - before, 1) << "malloc maps what is above 32 MiB, always";
  EXPECT_GE(testing::system_requests_bytes(), std::int64_t{64} << 20);
}

TEST_F(SteadyStep, OfTheVisibleLoopAsksForNothing) {
  for (const DType dtype : {kF32, kBF16}) {
    SCOPED_TRACE(name(dtype));
    const auto model = nn::make_language_model(kModel, kVocab);
    model->to(dtype);
    optim::AdamW optimizer(model->named_parameters(), {.lr = 1e-3, .weight_decay = 0.1},
                           optim::no_decay_for_biases_and_norms());
    const Tensor ids = zeros({kBatch, kTime}, {.dtype = kI64});
    const auto step = [&] {
      const Tensor loss = model->loss(ids, ids);
      loss.backward();
      const optim::GradNorm norm = optim::global_grad_norm(optimizer.parameters());
      optimizer.step({.grad_scale = optim::clip_factor(norm, 0.05) * norm.grad_scale});
      optimizer.zero_grad();
      return loss.item();
    };
    double first_loss = step(), last_loss = 0.0;
    for (int i = 1; i < kWarmUp; ++i) static_cast<void>(step());
    const std::int64_t system = testing::num_system_requests(), pool = pool_requests(), bytes = pool_bytes();
    for (int i = 0; i < kSteps; ++i) last_loss = step();
    EXPECT_EQ(testing::num_system_requests(), system);
    EXPECT_EQ(pool_requests(), pool);
    EXPECT_EQ(pool_bytes(), bytes) << "a step leaves something behind";
    EXPECT_LT(last_loss, first_loss) << "nothing was trained";
  }
}

struct Row {
  std::string name;
  int ranks;
  std::string mesh;
  std::function<void(Config&)> change;
};

void PrintTo(const Row& row, std::ostream* stream) { *stream << row.name; }

std::vector<Row> rows() {
  const auto stage = [](int number) { return [number](Config& config) { config.zero.stage = number; }; };
  return {
      {"Alone", 1, "dp=1", stage(0)},
      {"Dp2Zero0", 2, "dp=2", stage(0)},
      {"Dp2Zero1", 2, "dp=2", stage(1)},
      {"Dp2Zero2", 2, "dp=2", stage(2)},
      {"Dp2Zero3", 2, "dp=2", stage(3)},
      {"Dp2Zero3Recompute", 2, "dp=2",
       [](Config& config) {
         config.zero.stage = 3;
         config.recompute.mode = Config::Recompute::Mode::kFull;
       }},
      {"Dp2Invariant", 2, "dp=2", [](Config& config) { config.numerics = Config::Numerics::kInvariant; }},
      {"Tp2", 2, "tp=2", stage(0)},
      {"Tp2SequenceParallel", 2, "tp=2", [](Config& config) { config.sequence_parallel = true; }},
      {"Cp2", 2, "cp=2", stage(0)},
      {"Pp2", 2, "pp=2", stage(0)},
  };
}

class EngineStep : public SteadyStep, public ::testing::WithParamInterface<std::tuple<Row, DType>> {};

TEST_P(EngineStep, AsksForNothing) {
  const auto& [row, dtype] = GetParam();
  Config config;
  config.dtype = dtype;
  config.gradient_clipping = 0.05;
  config.batch = {.micro_batch = 1, .accumulation = kBatch / 2};
  config.mesh = MeshShape::parse(row.mesh);
  row.change(config);
  run_thread_ranks(row.ranks, [&, &row = row](Job& job) {
    const Mesh mesh(config.mesh, job.shared_world());
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model(kModel, kVocab);
    }();
    Engine engine(*model, config, mesh);
    const auto step = [&] {
      return engine.train_step([](auto, std::int64_t first, auto, auto inputs, auto targets) {
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          inputs[i] = (first + static_cast<std::int64_t>(i)) % kVocab;
          targets[i] = (inputs[i] + 1) % kVocab;
        }
      });
    };
    const double first_loss = step().loss;
    double last_loss = 0.0;
    for (int i = 1; i < kWarmUp; ++i) static_cast<void>(step());
    const std::int64_t pool = pool_requests(), bytes = pool_bytes();
    // All ranks count the same calls: none may be before or behind its measured steps meanwhile.
    job.world().barrier();
    const std::int64_t requests = testing::num_system_requests();
    const std::int64_t requested_bytes = testing::system_requests_bytes();
    job.world().barrier();
    for (int i = 0; i < kSteps; ++i) last_loss = step().loss;
    job.world().barrier();
    EXPECT_LE(testing::num_system_requests() - requests, kToleratedRequests);
    EXPECT_LT(testing::system_requests_bytes() - requested_bytes, kToleratedBytes);
    job.world().barrier();
    EXPECT_EQ(pool_requests(), pool) << "rank " << job.rank();
    EXPECT_EQ(pool_bytes(), bytes) << "rank " << job.rank() << ": a step leaves something behind";
    EXPECT_LT(last_loss, first_loss) << "nothing was trained";
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, EngineStep,
                         ::testing::Combine(::testing::ValuesIn(rows()), ::testing::Values(kF32, kBF16)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" + name(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tessera::dist
