// A value that is not finite, on one rank of a model that ranks share: every rank names its layer, and the
// step can be tried again.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <regex>

#include "autograd/ops.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Case {
  const char* name;
  const char* mesh;
  int zero = 0;
  const char* place;  // of the last rank
  bool sequence_parallel = false;
  bool invariant = false;
  bool fp16 = false;
  int num_passes = 2;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

Config config_of(const Case& c) {
  Config config;
  config.mesh = MeshShape::parse(c.mesh);
  config.batch = {.micro_batch = 1, .accumulation = c.num_passes};
  config.zero.stage = c.zero;
  config.sequence_parallel = c.sequence_parallel;
  if (c.invariant) config.numerics = Config::Numerics::kInvariant;
  if (c.fp16) config.dtype = kF16;
  config.fp16.loss_scale = 128;
  return config;
}

// A rank's engine, whose blocks can be made to overflow on the last rank.
struct Training {
  Mesh mesh;
  std::unique_ptr<nn::LanguageModel> model;
  Engine engine;
  bool armed = false;

  Training(Job& job, const Case& c)
      : mesh(MeshShape::parse(c.mesh), job.shared_world()),
        model([] {
          RankContext::current().num_root_modules = 0;  // both start from the same weights
          const DeviceScope on_meta(meta);
          return nn::make_language_model("layers=2,heads=2,width=8,context=6,dropout=0.1", 32);
        }()),
        engine(*model, config_of(c), mesh) {
    if (job.rank() != job.size() - 1) return;
    for (nn::Module* module : model->modules()) {
      if (module->name() != "h.1.mlp.c_fc") continue;
      module->add_forward_pre_hook([this](nn::Module&, std::span<Tensor> inputs) {
        if (armed) inputs[0] = inputs[0] * kInf;
      });
    }
  }
  StepReport step() {
    return engine.train_step([](auto step, auto first, auto, auto inputs, auto targets) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        inputs[i] = static_cast<std::int64_t>((7 * i + static_cast<std::size_t>(step + first)) % 32);
        targets[i] = static_cast<std::int64_t>((5 * i + static_cast<std::size_t>(first)) % 32);
      }
    });
  }
};

class NonFiniteLoss : public ::testing::TestWithParam<Case> {};

TEST_P(NonFiniteLoss, NamesRankLayerAndTensorOnEveryRankAndCanBeTriedAgain) {
  const Case& c = GetParam();
  const int num_ranks = MeshShape::parse(c.mesh).num_ranks();
  const std::regex expected("step 2: the loss is (NaN|infinite): on rank " + std::to_string(num_ranks - 1) +
                            " \\(" + c.place +
                            "\\), the first value that is not finite is in the output of "
                            "'h\\.1\\.mlp\\.c_fc': -?(inf|nan) at element \\[0, 0, .*");
  run_thread_ranks(num_ranks, [&](Job& job) {
    Training tried(job, c), plain(job, c);
    static_cast<void>(tried.step());
    static_cast<void>(plain.step());
    tried.armed = true;
    try {
      static_cast<void>(tried.step());
      ADD_FAILURE() << "no error on rank " << job.rank();
    } catch (const NonFiniteError& error) {
      EXPECT_TRUE(std::regex_match(error.what(), expected)) << error.what();
    }
    tried.armed = false;
    for (int step = 0; step < 2; ++step) {
      const StepReport again = tried.step(), expected_report = plain.step();
      EXPECT_EQ(again.step, expected_report.step);
      EXPECT_EQ(again.loss, expected_report.loss);
      EXPECT_EQ(again.grad_norm, expected_report.grad_norm);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, NonFiniteLoss,
    ::testing::Values(Case{"tp", "tp=2", 0, "tp 1"}, Case{"sequence_parallel", "tp=2", 0, "tp 1", true},
                      Case{"cp", "cp=2", 0, "cp 1"}, Case{"zero_3", "dp=2", 3, "dp 1"},
                      Case{"pp", "pp=2", 0, "pp 1"}, Case{"pp_zero_2", "pp=2,dp=2", 2, "pp 1, dp 1"},
                      Case{"dp_tp_zero_1", "dp=2,tp=2", 1, "dp 1, tp 1"},
                      Case{"dp_tp_zero_3_f16", "dp=2,tp=2", 3, "dp 1, tp 1", false, false, true},
                      Case{"invariant_tp", "tp=2", 0, "tp 1", false, true}),
    [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

// A weight that is not finite itself: named on all ranks, though only one has it.
TEST(NonFiniteParameter, IsNamedWhereItsPieceLies) {
  for (const Case& c : {Case{"tp", "tp=2", 0, "tp 1"}, Case{"zero_3", "dp=2", 3, "dp 1"}}) {
    run_thread_ranks(2, [&](Job& job) {
      Training run(job, c);
      static_cast<void>(run.step());
      for (const auto& [name, piece] : run.engine.zero().pieces()) {
        if (job.rank() == 1 && name == "h.0.mlp.c_proj.weight")
          Tensor(piece.detach()).slice(0, 0, 1).fill(std::numeric_limits<double>::quiet_NaN());
      }
      try {
        static_cast<void>(run.step());
        ADD_FAILURE() << "no error";
      } catch (const NonFiniteError& error) {
        EXPECT_NE(std::string(error.what())
                      .find("on rank 1 (" + std::string(c.place) +
                            "), the first value that is not finite is in the parameter "
                            "'h.0.mlp.c_proj.weight'"),
                  std::string::npos)
            << error.what();
      }
    });
  }
}

}  // namespace
}  // namespace tessera::dist
