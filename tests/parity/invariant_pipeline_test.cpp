// Invariant numerics (tier T3) with models in stages: every schedule, beside all else that a layout cuts, has
// the bits of one rank.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/parameter_hash.h"
#include "dist/pipeline.h"
#include "dist/pipeline_generators.h"
#include "dist/pipeline_stages.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/embedding.h"
#include "nn/gpt2.h"
#include "nn/linear.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"
#include "tests/parity/invariant_run.h"

namespace tessera::dist::parity {
namespace {

class InvariantPipeline : public ::testing::TestWithParam<const char*> {};

TEST_P(InvariantPipeline, TiedGpt2HasTheBitsOfOneRank) {
  const InvariantRun run = invariant_run(kDeepGpt2, GetParam());
  EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << GetParam();
}

TEST_P(InvariantPipeline, UntiedLlamaHasTheBitsOfOneRank) {
  const InvariantRun run = invariant_run(kDeepLlama, GetParam());
  EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << GetParam();
}

const auto kNameOfRow = [](const ::testing::TestParamInfo<const char*>& row) { return test_name(row.param); };

INSTANTIATE_TEST_SUITE_P(Schedules, InvariantPipeline,
                         ::testing::Values("pp=2 schedule=gpipe", "pp=2", "pp=2 schedule=interleaved",
                                           "pp=2 schedule=zb-h1", "pp=2 schedule=zb-v", "pp=3 schedule=gpipe",
                                           "pp=3 uniform", "pp=3 schedule=zb-h1", "pp=4",
                                           "pp=4 schedule=interleaved", "pp=4 schedule=zb-h1",
                                           "pp=4 schedule=zb-v", "pp=2 schedule=interleaved chunks=4 uniform",
                                           "pp=8 schedule=1f1b pass=3"),
                         kNameOfRow);
// Fewer micro-batches than ranks, numbers that p does not divide, and passes that fill a schedule up.
INSTANTIATE_TEST_SUITE_P(
    Batches, InvariantPipeline,
    ::testing::Values("pp=3 batch=7", "pp=4 schedule=gpipe batch=7", "pp=4 schedule=interleaved batch=7",
                      "pp=3 schedule=zb-h1 batch=10", "pp=2 schedule=zb-v batch=5 pass=2", "pp=4 batch=1",
                      "pp=2,dp=2 schedule=interleaved batch=7 zero=2", "pp=2,dp=3 schedule=zb-h1 batch=7",
                      "pp=3,dp=2 zero=3 batch=5", "pp=2,dp=3 schedule=zb-v zero=3 batch=4",
                      "pp=2,dp=8 zero=1 batch=5"),
    kNameOfRow);
INSTANTIATE_TEST_SUITE_P(
    Combined, InvariantPipeline,
    ::testing::Values("pp=2,dp=2", "pp=2,dp=2 zero=1 schedule=zb-v", "pp=2,dp=2 zero=2 schedule=zb-h1 pass=2",
                      "pp=2,dp=2 zero=3", "pp=2,dp=2 zero=3 schedule=zb-h1",
                      "pp=3,dp=3 zero=2 schedule=gpipe", "pp=2,dp=3 zero=3 schedule=zb-v",
                      "pp=2,dp=2 zero=3 schedule=interleaved", "pp=4,dp=2 zero=2 schedule=zb-h1",
                      "pp=2,dp=4 hpz=2", "pp=2,dp=4 mics=2 schedule=zb-v",
                      "pp=2,dp=2 zero=2 full-gradients schedule=interleaved", "pp=2,tp=2",
                      "pp=2,tp=2 sp schedule=zb-h1", "pp=3,tp=3 sp zero=1", "pp=2,tp=2 schedule=zb-v",
                      "pp=2,tp=4 sp schedule=interleaved", "pp=2,cp=2 ulysses schedule=zb-h1",
                      "pp=2,cp=2,tp=2 ulysses sp zero=2 schedule=zb-v", "pp=2,dp=2,tp=2 sp zero=3",
                      "pp=2,dp=3,tp=2 zero=2 sp schedule=zb-h1", "pp=2,dp=2,cp=2 ulysses zero=3"),
    kNameOfRow);
INSTANTIATE_TEST_SUITE_P(Savings, InvariantPipeline,
                         ::testing::Values("pp=2 recompute=full", "pp=3,dp=2 zero=3 recompute=full pass=2",
                                           "pp=2 recompute=selective schedule=zb-h1",
                                           "pp=2,tp=2 recompute=full partitioned",
                                           "pp=2,dp=2 zero=2 recompute=selective schedule=zb-v threads=2",
                                           "pp=4 recompute=full schedule=interleaved"),
                         kNameOfRow);
INSTANTIATE_TEST_SUITE_P(TypesAndOptimizers, InvariantPipeline,
                         ::testing::Values("pp=2 bf16", "pp=2,dp=2 zero=3 bf16-state schedule=zb-h1",
                                           "pp=3 bf16 schedule=zb-h1", "pp=2,dp=2 zero=3 bf16 schedule=zb-v",
                                           "pp=2,tp=2 sp bf16 schedule=interleaved", "pp=2,dp=2 zero=2 f16",
                                           "pp=4 f64", "pp=2,dp=2 zero=2 SGD",
                                           "pp=2,dp=2 zero=1 Muon schedule=zb-h1", "pp=3 Lion",
                                           "pp=2,tp=2 Adagrad zero=1"),
                         kNameOfRow);

// The model of the other tables, whose tied weights lie with grouped queries and eight heads.
TEST(InvariantPipelines, HoldForATiedLlama) {
  for (const char* layout : {"pp=2", "pp=2 schedule=zb-h1 bf16", "pp=2,dp=3 zero=3", "pp=2,tp=3 sp zero=1"}) {
    const InvariantRun run = invariant_run(kInvariantLlama, layout);
    EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << layout;
  }
}

// --- Schedules of one's own --------------------------------------------------------------------------------

// All forwards, then the backward passes from the last micro-batch to the first: no stage has its samples in
// their order.
Schedule last_first(const PipelineSize& size) {
  Schedule schedule("last-first", size);
  for (auto& actions : schedule.actions) {
    for (int i = 0; i < schedule.num_micro_batches; ++i) actions.push_back(Action::forward(i));
    for (int i = schedule.num_micro_batches; i-- > 0;) actions.push_back(Action::backward(i));
  }
  add_messages(schedule);
  return schedule;
}

// Weight passes in an order of their own, behind all passes for inputs.
Schedule weights_last(const PipelineSize& size) {
  Schedule schedule("weights-last", size);
  const int m = schedule.num_micro_batches;
  for (auto& actions : schedule.actions) {
    for (int i = 0; i < m; ++i) actions.push_back(Action::forward(i));
    for (int i = 0; i < m; ++i) actions.push_back(Action::backward_input(i));
    for (int i = 0; i < m; i += 2) actions.push_back(Action::backward_weight(i));
    for (int i = 1; i < m; i += 2) actions.push_back(Action::backward_weight(i));
  }
  add_messages(schedule);
  return schedule;
}

TEST(InvariantPipelines, HoldInSchedulesThatTakeSamplesInAnotherOrder) {
  for (const auto& schedule : {last_first, weights_last}) {
    for (const char* model : {kDeepGpt2, kDeepLlama}) {
      for (const char* layout : {"pp=2", "pp=3 batch=7", "pp=2,dp=2 zero=2", "pp=2,dp=3 zero=3 batch=10"}) {
        InvariantRun run = invariant_run(model, layout);
        run.options.pipeline_schedule = schedule;
        EXPECT_EQ(bits_of(run), bits_of_one_rank(run)) << schedule({.ranks = 2}).name << " " << layout;
      }
    }
  }
}

// --- From one layout to another ----------------------------------------------------------------------------

TEST(InvariantPipelines, ContinueOtherLayoutsAsIfTheseHadNotChanged) {
  const struct {
    const char *from, *to;
  } moves[] = {{"pp=2,dp=2 zero=2 schedule=zb-h1", "dp=3 zero=3"},
               {"pp=4 schedule=zb-v bf16", "pp=3,dp=2 zero=1 bf16"},
               {"tp=2 sp", "pp=2,tp=2 schedule=interleaved"},
               {"pp=3 Muon", "dp=2 zero=3 Muon"}};
  for (const auto& [from, to] : moves) {
    const data::TemporaryFolder folder;
    InvariantRun first = invariant_run(kDeepGpt2, from), second = invariant_run(kDeepGpt2, to);
    first.steps = second.steps = 3;
    first.save = second.load = folder.path().string();
    std::vector<std::string> bits = bits_of(first);
    bits.resize(3);
    const std::vector<std::string> rest = bits_of(second);
    bits.insert(bits.end(), rest.begin(), rest.end());
    EXPECT_EQ(bits, bits_of_one_rank(second)) << from << " and then " << to;
  }
}

// --- Mistakes ----------------------------------------------------------------------------------------------

struct PipelineMistake {
  const char *name, *layout;
  void (*make)(Engine& engine);
};
class InvariantPipelineMistakes : public ::testing::TestWithParam<PipelineMistake> {};

// Where one rank has both parts of a tied weight's gradient: those of a sample together, and then the tree.
void add_parts_of_samples(Engine& engine) {
  const Tensor weight = engine.model().find_parameter("wte.weight");
  const auto head_part = std::make_shared<Tensor>();
  // The hook that was added last runs first: before the one that would put the head's part aside.
  engine.model().find_module("lm_head").add_backward_hook([weight, head_part](nn::Module&, auto&&) {
    Tensor grad = weight.grad();
    *head_part = grad.clone();
    grad.zero();
  });
  engine.model().blocks().front()->add_backward_hook(
      [weight, head_part](nn::Module&, auto&&) { weight.grad().add_scaled(*head_part); });
}

// Each sample's gradient of one gain comes a sample too late, and the last two as one.
void push_one_sample_late(Engine& engine) {
  constexpr const char* kGain = "h.5.ln_1.weight";
  if (!engine.zero().has(kGain)) return;
  const Tensor weight = engine.model().find_parameter(kGain);
  const auto before = std::make_shared<Tensor>();
  const auto passes = std::make_shared<int>(0);
  engine.model().blocks()[5]->add_backward_hook([=](nn::Module&, auto&&) {
    Tensor grad = weight.grad();
    const Tensor own = grad.clone();
    grad.zero();
    if (before->defined()) grad.add_scaled(*before);
    *before = own;
    if (++*passes % 12 != 0) return;
    grad.add_scaled(own);
    *before = {};
  });
}

// As if the message to the stage before were of another dtype.
void round_input_gradients(Engine& engine) {
  const int index = engine.mesh().index(MeshAxis::kPp);
  if (index == 0) return;
  const StageParts& stage = engine.pipeline()->stages()[static_cast<std::size_t>(index)];
  engine.model().blocks()[static_cast<std::size_t>(stage.first_block)]->add_forward_pre_hook(
      [](nn::Module&, std::span<Tensor> x) {
        if (x[0].requires_grad())
          register_hook(x[0], [](const Tensor& grad) { return grad.to(kBF16).to(grad.dtype()); });
      });
}

INSTANTIATE_TEST_SUITE_P(
    All, InvariantPipelineMistakes,
    ::testing::Values(PipelineMistake{"TiedPartsAddedSampleBySample", "dp=1", add_parts_of_samples},
                      PipelineMistake{"TiedPartsAddedSampleBySampleOnDataRanks", "dp=2 zero=2",
                                      add_parts_of_samples},
                      PipelineMistake{"GradientUnderTheSampleBehind", "pp=2", push_one_sample_late},
                      PipelineMistake{"GradientUnderTheSampleBehindInChunks", "pp=2 schedule=interleaved",
                                      push_one_sample_late},
                      PipelineMistake{"InputGradientRounded", "pp=2 schedule=zb-h1", round_input_gradients}),
    [](const auto& row) { return std::string(row.param.name); });

TEST_P(InvariantPipelineMistakes, AreNoticed) {
  InvariantRun run = invariant_run(kDeepGpt2, GetParam().layout);
  EXPECT_EQ(bits_of(run), bits_of_one_rank(run));
  run.spoil = GetParam().make;
  EXPECT_NE(bits_of(run), bits_of_one_rank(run));
}

// The gradients of passes that are run in `order`, and are said to be of the samples in `named`.
std::vector<std::vector<float>> gradients_of(const std::vector<std::int64_t>& order,
                                             const std::vector<std::int64_t>& named) {
  std::vector<std::vector<float>> result;
  run_thread_ranks(1, [&](Job& job) {
    RankContext context({.rank = 0, .world_size = 1, .num_threads = 1, .seed = 17});
    const RankContext::Scope scope(context);
    const Mesh mesh(MeshShape{}, job.shared_world());
    const auto model = nn::make_language_model("layers=2,heads=2,width=8,context=6", 31);
    Zero zero(*model, mesh, {.tree_sums = true});
    zero.begin_step(static_cast<std::int64_t>(order.size()));
    for (std::size_t i = 0; i < order.size(); ++i) {
      std::vector<std::int64_t> ids;
      for (std::int64_t t = 0; t < 7; ++t) ids.push_back((order[i] * 11 + t * t * 3) % 31);
      const Tensor loss = model->loss(from_span<std::int64_t>(std::span(ids).first(6), Shape{1, 6}),
                                      from_span<std::int64_t>(std::span(ids).last(6), Shape{1, 6}));
      zero.begin_backward({.last = i + 1 == order.size(), .sample = named[i]});
      loss.backward();
      zero.end_backward();
    }
    zero.finish_gradients();
    for (const auto& [name, piece] : zero.pieces()) result.push_back(piece.grad().to_vector<float>());
  });
  return result;
}

TEST(InvariantSamples, AreAddedInTheirOwnOrderAndNoOther) {
  const std::vector<std::int64_t> in_order{0, 1, 2, 3, 4, 5, 6}, other{3, 1, 6, 0, 5, 2, 4};
  const auto expected = gradients_of(in_order, in_order);
  EXPECT_EQ(gradients_of(other, other), expected);
  EXPECT_NE(gradients_of(other, in_order), expected) << "samples in the order of the schedule";
  EXPECT_NE(gradients_of(in_order, {0, 2, 1, 3, 4, 5, 6}), expected) << "two samples taken for each other";
}

// --- Refusals ----------------------------------------------------------------------------------------------

// A weight in three layers: the embedding and two that are behind the blocks.
class ThreeUses final : public nn::LanguageModel {
 public:
  ThreeUses() : LanguageModel(31, 6, 8) {
    wte_ = &add_module<nn::Embedding>("wte", 31, 8, nn::EmbeddingOptions{});
    for (int i = 0; i < 4; ++i) {
      register_block(add_module<nn::Gpt2Block>(fmt::format("h.{}", i),
                                               nn::Gpt2Config{.layers = 4, .heads = 2, .width = 8}));
    }
    first_ = &add_module<nn::Linear>("first", wte_->weight());
    second_ = &add_module<nn::Linear>("second", wte_->weight());
  }
  [[nodiscard]] std::string description() const override { return "three uses"; }
  [[nodiscard]] Tensor embed(const Tensor& ids, std::int64_t /*first*/) override { return (*wte_)(ids); }
  [[nodiscard]] Tensor head(const Tensor& x) override { return (*first_)(x)*0.5 + (*second_)(x * x); }

 private:
  nn::Embedding* wte_;
  nn::Linear *first_, *second_;
};

// What three steps make of it.
std::string three_uses(const std::string& layout, const char* schedule = "1f1b") {
  Config config = invariant_run("", layout).config;
  config.pipeline.schedule = schedule;
  config.batch.micro_batch = 1, config.batch.accumulation = 12 / config.mesh[MeshAxis::kDp];
  std::string bits;
  run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
    RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1, .seed = 17});
    const RankContext::Scope scope(context);
    const Mesh mesh(config.mesh, job.shared_world());
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return std::make_unique<ThreeUses>();
    }();
    Engine engine(*model, config, mesh);
    for (int step = 0; step < 3; ++step) {
      static_cast<void>(engine.train_step([](auto, std::int64_t first, auto, auto inputs, auto targets) {
        for (std::size_t i = 0; i < inputs.size(); ++i) {
          const auto t = static_cast<std::int64_t>(i) + first * 6;
          inputs[i] = t * t % 31;
          targets[i] = t * 7 % 31;
        }
      }));
    }
    const std::uint64_t hash = parameter_hash(engine);
    if (job.is_root()) bits = fmt::format("{:016x}", hash);
  });
  return bits;
}

TEST(InvariantPipelines, WeightsOfThreeLayersHoldWithoutAPipeline) {
  const std::string alone = three_uses("dp=1");
  for (const char* layout : {"dp=2", "dp=3 zero=2", "dp=4 zero=3"})
    EXPECT_EQ(three_uses(layout), alone) << layout;
}

TEST(InvariantPipelines, RefuseSharedWeightsThatHaveNoOrder) {
  const struct {
    const char *schedule, *message;
  } cases[] = {{"1f1b", "without a pipeline it works"},
               {"zb-v", "schedules that do not split backward work"}};
  for (const auto& [schedule, message] : cases) {
    try {
      static_cast<void>(three_uses("pp=2", schedule));
      ADD_FAILURE() << schedule << " is not refused";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  }
}

TEST(InvariantPipelines, RefuseHooksThatHoldPartsOfATiedWeightBack) {
  InvariantRun run = invariant_run(kDeepGpt2, "dp=1");
  run.spoil = [](Engine& engine) {
    register_hook(engine.model().find_parameter("wte.weight"), [](const Tensor& grad) { return grad; });
  };
  EXPECT_THROW(static_cast<void>(bits_of(run)), AutogradError);
}

}  // namespace
}  // namespace tessera::dist::parity
