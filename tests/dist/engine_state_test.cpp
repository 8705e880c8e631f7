// What an engine's checkpoint holds besides tensors, and that one which does not fit changes nothing.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <optional>

#include "autograd/grad_mode.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "optim/loss_scale.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

const char* const kModel = "layers=2,heads=2,width=8,context=6";

struct Training {
  Mesh mesh;
  std::unique_ptr<nn::LanguageModel> model;
  Engine engine;

  Training(Job& job, const char* spec, const Config& config,
           const std::optional<optim::Schedule>& schedule = std::nullopt)
      : mesh(MeshShape::parse("dp=2"), job.shared_world()),
        model([spec] {
          const DeviceScope on_meta(meta);
          return nn::make_language_model(spec, 32);
        }()),
        engine(*model, config, mesh, [&schedule] {
          EngineOptions options;
          options.schedule = schedule;
          return options;
        }()) {}

  StepReport step() {
    return engine.train_step([](auto, auto, auto, auto inputs, auto targets) {
      std::ranges::fill(inputs, 1);
      std::ranges::fill(targets, 2);
    });
  }
  void train(int steps) {
    for (int i = 0; i < steps; ++i) static_cast<void>(step());
  }
  [[nodiscard]] std::vector<double> elements() {
    std::vector<double> all;
    NamedTensors tensors = engine.zero().pieces();
    for (const auto& moment : engine.optimizer().state()) tensors.push_back(moment);
    for (const auto& [name, tensor] : tensors) {
      for (const double x : tensor.to_vector<double>()) all.push_back(x);
    }
    return all;
  }
};

Config config_in(DType dtype, const char* optimizer = "AdamW") {
  Config config;
  config.dtype = dtype;
  config.zero.stage = 1;
  config.optimizer.type = optimizer;
  config.batch = {.micro_batch = 1, .accumulation = 1};
  config.fp16.initial_scale_power = 30;  // overflows: the scale moves
  config.fp16.hysteresis = 1;
  return config;
}

TEST(EngineState, HasTheLossScalersInF16) {
  const data::TemporaryFolder folder;
  run_thread_ranks(2, [&](Job& job) {
    Training first(job, kModel, config_in(kF16));
    first.train(4);
    const optim::LossScaler::State state = first.engine.loss_scaler().state();
    ASSERT_LT(state.scale, 1 << 30);
    save_checkpoint(folder.path(), first.engine.checkpoint_sources(), job.world());
    Training second(job, kModel, config_in(kF16));
    second.engine.load(CheckpointReader(folder.path()));
    EXPECT_EQ(second.engine.loss_scaler().state(), state);
    EXPECT_EQ(second.engine.steps_done(), 4);
    Training in_f32(job, kModel, config_in(kF32));
    EXPECT_FALSE(in_f32.engine.checkpoint_sources().metadata.contains("loss_scale"));
  });
}

// As DeepSpeed's engine, which calls its scheduler only after an update. What was skipped outlasts a save.
TEST(EngineState, ScheduleStandsStillInStepsThatOverflow) {
  const data::TemporaryFolder folder;
  run_thread_ranks(2, [&](Job& job) {
    const optim::Schedule warmup = optim::CosineWithWarmup{.max_lr = 1.0, .warmup_steps = 99};  // lr k/100
    Training first(job, kModel, config_in(kF16), warmup);
    std::int64_t updates = 0;
    const auto follow = [&](Training& run, int steps) {
      for (int i = 0; i < steps; ++i) {
        const double scale = run.engine.loss_scaler().scale();
        const StepReport report = run.step();
        EXPECT_DOUBLE_EQ(report.lr, 0.01 * static_cast<double>(updates + 1)) << "step " << report.step;
        EXPECT_EQ(report.loss_scale, scale);
        updates += report.skipped ? 0 : 1;
        EXPECT_EQ(run.engine.steps_skipped(), report.step - updates);
      }
    };
    follow(first, 12);
    ASSERT_GT(first.engine.steps_skipped(), 0);
    save_checkpoint(folder.path(), first.engine.checkpoint_sources(), job.world());
    Training second(job, kModel, config_in(kF16), warmup);
    second.engine.load(CheckpointReader(folder.path()));
    EXPECT_EQ(second.engine.steps_skipped(), first.engine.steps_skipped());
    follow(second, 4);
    ASSERT_GT(updates, 0) << "else nothing was shown";
    Training in_f32(job, kModel, config_in(kF32), warmup);
    EXPECT_FALSE(in_f32.step().loss_scale.has_value());
  });
}

TEST(EngineState, RefusesACountOfSkippedStepsThatNoRunHas) {
  for (const char* count : {"-1", "3", "two", ""}) {
    const data::TemporaryFolder folder;
    run_thread_ranks(2, [&](Job& job) {
      Training run(job, kModel, config_in(kF16));
      run.train(2);
      CheckpointSources sources = run.engine.checkpoint_sources();
      sources.metadata["skipped_steps"] = count;
      save_checkpoint(folder.path(), sources, job.world());
      const std::int64_t skipped = run.engine.steps_skipped();
      expect_error<DataError>([&] { run.engine.load(CheckpointReader(folder.path())); },
                              {"'skipped_steps'", "from 0 to 2"});
      EXPECT_EQ(run.engine.steps_skipped(), skipped);
    });
  }
}

TEST(EngineState, IsUnchangedByACheckpointThatDoesNotFit) {
  struct Case {
    const char* name;
    const char* model;
    const char* optimizer;
    const char* loss_scale;
    const char* message;
  };
  for (const Case& c : {Case{"scale", kModel, "AdamW", "65536 many 1", "not three numbers"},
                        Case{"negative scale", kModel, "AdamW", "-1 0 1", "not one of a run"},
                        Case{"width", "layers=2,heads=2,width=16,context=6", "AdamW", "8 0 1", "the model's"},
                        Case{"fewer layers", "layers=1,heads=2,width=8,context=6", "AdamW", "8 0 1", "h.1"},
                        Case{"optimizer", kModel, "Lion", "8 0 1", "optimizer state"}}) {
    SCOPED_TRACE(c.name);
    const data::TemporaryFolder folder;
    run_thread_ranks(2, [&](Job& job) {
      Training other(job, c.model, config_in(kF16, c.optimizer));
      other.train(2);
      CheckpointSources sources = other.engine.checkpoint_sources();
      sources.metadata["loss_scale"] = c.loss_scale;
      save_checkpoint(folder.path(), sources, job.world());
      Training run(job, kModel, config_in(kF16));
      run.train(1);
      const std::vector<double> before = run.elements();
      const optim::LossScaler::State state = run.engine.loss_scaler().state();
      expect_error<DataError>([&] { run.engine.load(CheckpointReader(folder.path())); }, {c.message});
      EXPECT_EQ(run.elements(), before);
      EXPECT_EQ(run.engine.loss_scaler().state(), state);
      EXPECT_EQ(run.engine.steps_done(), 1);
    });
  }
}

Config in_bf16(int stage, DType state) {
  Config config = config_in(kBF16);
  config.zero.stage = stage;
  config.optimizer.state_dtype = state;
  return config;
}

// name → whole values, of model and optimizer.
std::map<std::string, Tensor> everything(Engine& engine) {
  std::map<std::string, Tensor> all;
  const CheckpointSources sources = engine.checkpoint_sources();
  for (const auto* part : {&sources.model, &sources.optimizer}) {
    for (const auto& info : part->tensors) all[info.name] = part->get(info.name).clone();
  }
  return all;
}

// From f32 state to bf16 state and back, each with another ZeRO stage: masters are what they were, moments
// what fits. Half of the saved masters lie half-way between two weights, where an f32 state's weight is the
// even one of them: a bf16 state takes the other, on all ranks and in all copies, or its masters would be
// others.
TEST(EngineState, GoesFromOneKindOfStateToTheOther) {
  const data::TemporaryFolder first, second;
  run_thread_ranks(2, [&](Job& job) {
    Training full(job, kModel, in_bf16(1, kF32)), half(job, kModel, in_bf16(2, kBF16)),
        back(job, kModel, in_bf16(3, kF32));
    full.train(3);
    for (auto& [name, tensor] : full.engine.optimizer().state()) {
      if (!name.ends_with("/master")) continue;
      const NoGrad no_grad;
      std::vector<float> values = tensor.to_vector<float>();
      for (std::size_t i = 0; i < values.size(); i += 2)
        values[i] = std::bit_cast<float>((std::bit_cast<std::uint32_t>(values[i]) & 0xFFFF0000u) | 0x8000u);
      Tensor(tensor).copy_from(from_vector(values, tensor.shape()));
    }
    save_checkpoint(first.path(), full.engine.checkpoint_sources(), job.world());
    half.engine.load(CheckpointReader(first.path()));
    const auto saved = everything(full.engine), loaded = everything(half.engine);
    std::size_t masters = 0, moved = 0;
    for (const auto& [name, tensor] : saved) {
      const Tensor& other = loaded.at(name);
      if (name.ends_with("/master")) {
        const std::string weight = name.substr(0, name.rfind('/'));
        EXPECT_EQ(other.to_vector<float>(), tensor.to_vector<float>()) << name;
        EXPECT_EQ(loaded.at(weight).to_vector<float>(), optim::bf16_weight_of(tensor).to_vector<float>());
        const auto before = tensor.to(kBF16).to_vector<float>(), now = loaded.at(weight).to_vector<float>();
        for (std::size_t i = 0; i < now.size(); ++i) moved += before[i] != now[i] ? 1 : 0;
        ++masters;
      } else if (name.find("/moment") != std::string::npos) {
        EXPECT_EQ(other.dtype(), kBF16);
        EXPECT_EQ(other.to_vector<float>(), tensor.to(kBF16).to_vector<float>()) << name;
      }
    }
    EXPECT_GT(masters, 10u);
    EXPECT_GT(moved, 100u) << "a quarter of all weights is not the even one";
    // What the next forward pass computes with is what the pieces hold.
    for (const auto& [name, piece] : half.engine.zero().pieces()) {
      if (piece.num_elements() == 0) continue;
      const Tensor own = half.engine.zero().piece(name, loaded.at(name));
      EXPECT_EQ(piece.to_vector<float>(), own.to_vector<float>()) << name;
    }

    save_checkpoint(second.path(), half.engine.checkpoint_sources(), job.world());
    back.engine.load(CheckpointReader(second.path()));
    for (const auto& [name, tensor] : everything(back.engine)) {
      EXPECT_EQ(tensor.dtype(), saved.at(name).dtype()) << name;
      EXPECT_EQ(tensor.to_vector<float>(), loaded.at(name).to_vector<float>()) << name;
    }
    back.train(1);
    half.train(1);
    EXPECT_EQ(back.engine.steps_done(), 4);
    // The moments' values were equal, so is the step: of two states only what is kept of it differs.
    const auto after = everything(back.engine);
    for (const auto& [name, tensor] : everything(half.engine)) {
      if (!name.ends_with("/master")) continue;
      EXPECT_EQ(tensor.to_vector<float>(), after.at(name).to_vector<float>()) << name;
    }
  });
}

}  // namespace
}  // namespace tessera::dist
