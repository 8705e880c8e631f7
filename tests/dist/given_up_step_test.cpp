// A step that meets an exception and is tried again: nothing of the attempt may be in the step that follows.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>
#include <ostream>

#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "kernels/random_key.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tests/expect_error.h"
#include "tests/largest_difference.h"

namespace tessera::dist::testing {
namespace {

constexpr std::int64_t kVocabulary = 31, kContext = 6;
constexpr int kPasses = 2;  // of a step

enum class Where {
  kNowhere,
  kSource,             // the second pass's samples cannot be read
  kForward,            // in a block of the second pass
  kLoss,               // the second pass's loss is NaN
  kBetweenPasses,      // the program's own
  kFirstBackward,      // in a block, with reductions and gathers of other blocks under way
  kLastBackward,       // the same
  kBackwardSomewhere,  // the same, on each rank in another block
  kBeforeStep,         // all passes are done
  kReplacedGradient,   // the program put a gradient in the place of another, then failed
  kGradient,           // a gradient is NaN: step() says so
  kEvaluation,         // between two steps
};
constexpr Where kEverywhere[] = {
    Where::kSource,
    Where::kForward,
    Where::kLoss,
    Where::kBetweenPasses,
    Where::kFirstBackward,
    Where::kLastBackward,
    Where::kBackwardSomewhere,
    Where::kBeforeStep,
    Where::kReplacedGradient,
    Where::kGradient,
    Where::kEvaluation,
};

struct Case {
  const char* name;
  const char* mesh;
  int stage;
  bool keep_full_gradients = false;
  bool recompute = false;
  bool invariant = false;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
constexpr Case kCases[] = {
    {.name = "Alone", .mesh = "dp=1", .stage = 0},
    {.name = "Stage0", .mesh = "dp=2", .stage = 0},
    {.name = "Stage1", .mesh = "dp=2", .stage = 1},
    {.name = "Stage2", .mesh = "dp=2", .stage = 2},
    {.name = "Stage2KeepingFullGradients", .mesh = "dp=2", .stage = 2, .keep_full_gradients = true},
    {.name = "Stage3", .mesh = "dp=2", .stage = 3},
    {.name = "Stage3Recomputed", .mesh = "dp=3", .stage = 3, .recompute = true},
    {.name = "Stage1Tensor", .mesh = "dp=2,tp=2", .stage = 1},
    {.name = "Stage3Context", .mesh = "dp=2,cp=2", .stage = 3},
    {.name = "InvariantAlone", .mesh = "dp=1", .stage = 0, .invariant = true},
    {.name = "InvariantStage2", .mesh = "dp=2", .stage = 2, .invariant = true},
    {.name = "InvariantStage3", .mesh = "dp=3", .stage = 3, .invariant = true},
};

struct Trained {
  std::vector<double> losses, norms;
  std::vector<std::pair<std::string, std::vector<double>>> weights;
  std::int64_t parameter_bytes = 0, gradient_bytes = 0;  // between steps
};

class Faults {
 public:
  Faults(Where where, Engine& engine) : where_(where), engine_(engine) {
    for (const int block : {0, 1, 2}) {
      nn::Module& module = engine.model().find_module(fmt::format("h.{}", block));
      module.add_forward_pre_hook([this, block](nn::Module&, std::span<Tensor> x) { forward(block, x[0]); });
      register_hook(engine.model().find_parameter(fmt::format("h.{}.ln_1.weight", block)),
                    [this, block](const Tensor& gradient) { return backward(block, gradient); });
    }
  }

  void source(std::int64_t call) const {
    if (armed_ && where_ == Where::kSource && call == 1) throw DataError("injected");
  }

  // One attempt at a step, which fails.
  void attempt(const SampleSource& samples) {
    armed_ = true;
    pass_ = 0;
    for (const MicroBatch& micro_batch : engine_.micro_batches(samples)) {
      if (pass_ == 1 && where_ == Where::kBetweenPasses) throw DataError("injected");
      if (pass_ == 1 && where_ == Where::kReplacedGradient) {
        Tensor parameter = engine_.model().find_parameter("h.1.ln_1.bias");
        parameter.set_grad(parameter.grad().defined() ? parameter.grad().clone() : Tensor());
        throw DataError("injected");
      }
      engine_.backward(engine_.forward(micro_batch));
      ++pass_;
    }
    if (where_ == Where::kBeforeStep) throw DataError("injected");
    static_cast<void>(engine_.step());
  }
  void arm() noexcept { armed_ = true; }
  void disarm() noexcept { armed_ = false; }

 private:
  void forward(int block, Tensor& x) const {
    if (!armed_ || block != 1) return;
    if (where_ == Where::kEvaluation) throw DataError("injected");
    if (pass_ != 1) return;
    if (where_ == Where::kForward) throw DataError("injected");
    if (where_ == Where::kLoss) x = x * std::numeric_limits<double>::quiet_NaN();
  }
  [[nodiscard]] Tensor backward(int block, const Tensor& gradient) const {
    if (!armed_) return gradient;
    const int rank = engine_.mesh().index(MeshAxis::kDp);
    const bool fails = (where_ == Where::kFirstBackward && pass_ == 0 && block == 1) ||
                       (where_ == Where::kLastBackward && pass_ == 1 && block == 1) ||
                       (where_ == Where::kBackwardSomewhere && pass_ == 1 && block == 2 - rank);
    if (fails) throw DataError("injected");
    return where_ == Where::kGradient && block == 1 ? gradient * std::numeric_limits<double>::quiet_NaN()
                                                    : gradient;
  }

  Where where_;
  Engine& engine_;
  bool armed_ = false;
  int pass_ = 0;
};

// Three steps; before the first and the last one an attempt that fails.
Trained train(const Case& c, Where where, Job& job) {
  RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1, .seed = 4});
  const RankContext::Scope scope(context);
  Config config;
  config.mesh = MeshShape::parse(c.mesh);
  config.zero.stage = c.stage;
  config.zero.keep_full_gradients = c.keep_full_gradients;
  config.recompute.mode = c.recompute ? Config::Recompute::Mode::kFull : Config::Recompute::Mode::kNone;
  // A pass of Invariant numerics is a sample.
  config.batch = {.micro_batch = c.invariant ? 1 : 2, .accumulation = kPasses};
  if (c.invariant) config.numerics = Config::Numerics::kInvariant;
  config.gradient_clipping = 0.5;
  config.dtype = kF64;
  const Mesh mesh(config.mesh, job.shared_world());
  const auto model = [] {
    const DeviceScope on_meta(meta);
    return nn::make_language_model("layers=3,heads=2,width=8,context=6,dropout=0.1", kVocabulary);
  }();
  Engine engine(*model, config, mesh);
  Faults faults(where, engine);
  std::int64_t call = 0;
  const SampleSource samples = [&](std::int64_t step, std::int64_t first, std::int64_t, auto inputs,
                                   auto targets) {
    faults.source(call++);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto stream = static_cast<std::uint64_t>(step * 1000 + first * kContext) + i;
      inputs[i] =
          static_cast<std::int64_t>(kernels::random_key_bits({.seed = 9, .stream = stream}) % kVocabulary);
      targets[i] = (inputs[i] + 1) % kVocabulary;
    }
  };

  Trained run;
  for (int step = 0; step < 3; ++step) {
    if (where == Where::kEvaluation) {
      const std::vector<std::int64_t> ids(kContext, 1);
      faults.arm();
      EXPECT_THROW(static_cast<void>(engine.evaluate(ids, ids, 1)), DataError);
    } else if (where != Where::kNowhere && step != 1) {
      call = 0;
      EXPECT_THROW(faults.attempt(samples), Error);
    }
    faults.disarm();
    const StepReport report = engine.train_step(samples);
    EXPECT_EQ(report.step, step + 1);
    run.losses.push_back(report.loss);
    run.norms.push_back(report.grad_norm);
  }
  const MemoryReport memory = context.pool(cpu)->report();
  run.parameter_bytes = memory.of(MemoryCategory::kParameter).current;
  run.gradient_bytes = memory.of(MemoryCategory::kGradient).current;
  for (const ZeroParameter& parameter : engine.zero().plan().parameters) {
    run.weights.emplace_back(parameter.record.name,
                             engine.zero().whole(parameter.record.name).to_vector<double>());
  }
  return run;
}

std::vector<Trained> train_all(const Case& c, Where where) {
  const int num_ranks = MeshShape::parse(c.mesh).num_ranks();
  std::vector<Trained> runs(static_cast<std::size_t>(num_ranks));
  run_thread_ranks(num_ranks,
                   [&](Job& job) { runs[static_cast<std::size_t>(job.rank())] = train(c, where, job); });
  return runs;
}

class GivenUpStep : public ::testing::TestWithParam<Case> {};

// Bitwise: the same sums in the same order, of the same values.
TEST_P(GivenUpStep, LeavesNothingInTheNext) {
  const std::vector<Trained> expected = train_all(GetParam(), Where::kNowhere);
  for (const Where where : kEverywhere) {
    const std::vector<Trained> runs = train_all(GetParam(), where);
    for (std::size_t rank = 0; rank < runs.size(); ++rank) {
      SCOPED_TRACE(fmt::format("failure {} on rank {}", static_cast<int>(where), rank));
      EXPECT_EQ(runs[rank].losses, expected[rank].losses);
      EXPECT_EQ(runs[rank].norms, expected[rank].norms);
      EXPECT_EQ(runs[rank].weights, expected[rank].weights);
      EXPECT_EQ(runs[rank].parameter_bytes, expected[rank].parameter_bytes);
      EXPECT_EQ(runs[rank].gradient_bytes, expected[rank].gradient_bytes);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, GivenUpStep, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

// Passes of a step that was given up no longer count.
TEST(Engine, CountsNoPassOfAStepThatWasGivenUp) {
  run_thread_ranks(1, [](Job& job) {
    const Mesh mesh(MeshShape{}, job.shared_world());
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model("layers=1,heads=2,width=8,context=6", kVocabulary);
    }();
    Config config;
    config.batch = {.micro_batch = 1, .accumulation = 2};
    Engine engine(*model, config, mesh);
    const SampleSource samples = [](auto, auto, auto, auto inputs, auto targets) {
      std::ranges::fill(inputs, 1);
      std::ranges::fill(targets, 2);
    };
    const auto passes = engine.micro_batches(samples);
    engine.backward(engine.forward(passes[0]));
    const SampleSource broken = [](auto, auto, auto, auto, auto) { throw DataError("injected"); };
    EXPECT_THROW(static_cast<void>(engine.micro_batches(broken)), DataError);
    EXPECT_THROW(engine.backward(engine.forward(passes[1])), AutogradError);
  });
}

// Whoever goes on in the same step is told the way out, which is a way out.
TEST(Engine, NamesTheWayOutOfABackwardPassThatFailed) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model("layers=1,heads=2,width=8,context=6", kVocabulary);
    }();
    Config config;
    config.batch = {.micro_batch = 1, .accumulation = 2};
    Engine engine(*model, config, mesh);
    bool armed = false;
    register_hook(model->find_parameter("h.0.ln_1.weight"), [&armed](const Tensor& gradient) {
      if (armed) throw DataError("injected");
      return gradient;
    });
    const SampleSource samples = [](auto, auto, auto, auto inputs, auto targets) {
      std::ranges::fill(inputs, 1);
      std::ranges::fill(targets, 2);
    };
    for (const std::size_t failing : {std::size_t{0}, std::size_t{1}}) {
      const auto passes = engine.micro_batches(samples);
      for (std::size_t i = 0; i < failing; ++i) engine.backward(engine.forward(passes[i]));
      const Tensor loss = engine.forward(passes[failing]);
      armed = true;
      EXPECT_THROW(engine.backward(loss), DataError);
      armed = false;
      expect_error<AutogradError>([&] { engine.backward(engine.forward(passes[1])); },
                                  {"Engine::backward", "exception", "micro_batches()"});
      expect_error<AutogradError>([&] { static_cast<void>(engine.step()); },
                                  {"Engine::step", "micro_batches()"});
    }
    EXPECT_EQ(engine.train_step(samples).step, 1);
  });
}

}  // namespace
}  // namespace tessera::dist::testing
