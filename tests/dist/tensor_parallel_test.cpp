// A model laid over tp ranks by a plan has the loss and the gradients of the whole model, and sends the bytes
// that the papers say; a plan that leaves something out is refused on the first step.

#include "dist/tensor_parallel.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "dist/vocab_parallel.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "nn/language_model.h"
#include "nn/model_factory.h"
#include "nn/sequential.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/largest_difference.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;
constexpr std::int64_t kVocab = 251, kBatch = 3, kTime = 10;  // a prime, and lengths that few ranks divide
constexpr double kRounding = 1e-12;                           // f64, sums of a few hundred numbers about 1

struct Case {
  const char* name;
  const char* model;
  int ranks;
  bool sequence_parallel = false;
  bool recompute = false;
  bool selective = false;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

struct Result {
  double loss = 0.0;
  std::map<std::string, Tensor> weights, gradients;
};

std::pair<Tensor, Tensor> batch() {
  std::vector<std::int64_t> ids, targets;
  for (std::int64_t i = 0; i < kBatch * kTime; ++i) {
    ids.push_back((i * 37 + 11) % kVocab);
    targets.push_back(i % 7 == 3 ? -100 : (i * 53 + 250) % kVocab);
  }
  return {from_vector(ids, Shape{kBatch, kTime}), from_vector(targets, Shape{kBatch, kTime})};
}

Result whole_model(const std::string& spec) {
  RankContext context({.seed = 17});
  const RankContext::Scope scope(context);
  context.step = 4;
  context.sample_offset = 5;
  const auto model = nn::make_language_model(spec, kVocab);
  model->to(kF64);
  const auto [ids, targets] = batch();
  const Tensor loss = model->loss(ids, targets, Reduction::kSum);
  loss.backward();
  Result result{.loss = loss.item(), .weights = {}, .gradients = {}};
  for (const auto& [name, tensor] : model->named_parameters()) {
    result.weights[name] = tensor.detach();
    result.gradients[name] = tensor.grad();
  }
  return result;
}

MeshShape tp_mesh(int ranks) {
  MeshShape shape;
  shape.set(kTp, ranks);
  return shape;
}

std::unique_ptr<nn::LanguageModel> on_meta(const std::string& spec) {
  const DeviceScope scope(meta);
  auto model = nn::make_language_model(spec, kVocab);
  model->to(kF64);
  return model;
}

class TensorParallelModel : public ::testing::TestWithParam<Case> {};

constexpr const char* kGpt2 = "layers=2,heads=4,width=16,context=10,dropout=0.2";
constexpr const char* kLlama =
    "family=llama,layers=2,heads=4,kv_heads=2,width=16,hidden=22,context=10,dropout=0.2";
constexpr const char* kUntied =
    "family=llama,layers=1,heads=6,kv_heads=3,width=12,hidden=10,context=10,tied=0";

INSTANTIATE_TEST_SUITE_P(
    Layouts, TensorParallelModel,
    ::testing::Values(
        Case{"GPT-2 tp 1", kGpt2, 1}, Case{"GPT-2 tp 2", kGpt2, 2}, Case{"GPT-2 tp 3", kGpt2, 3},
        Case{"GPT-2 tp 4", kGpt2, 4}, Case{"GPT-2 tp 8", kGpt2, 8}, Case{"GPT-2 tp 2 sp", kGpt2, 2, true},
        Case{"GPT-2 tp 3 sp", kGpt2, 3, true}, Case{"GPT-2 tp 4 sp recompute", kGpt2, 4, true, true},
        Case{"GPT-2 tp 8 sp", kGpt2, 8, true}, Case{"GPT-2 tp 3 recompute", kGpt2, 3, false, true},
        Case{"Llama tp 2", kLlama, 2}, Case{"Llama tp 3", kLlama, 3}, Case{"Llama tp 4", kLlama, 4},
        Case{"Llama tp 8", kLlama, 8}, Case{"Llama tp 2 sp", kLlama, 2, true},
        Case{"Llama tp 3 sp", kLlama, 3, true}, Case{"Llama tp 4 sp recompute", kLlama, 4, true, true},
        Case{"Llama untied tp 2", kUntied, 2}, Case{"Llama untied tp 4 sp", kUntied, 4, true},
        Case{"GPT-2 tp 3 selective", kGpt2, 3, false, false, true},
        Case{"GPT-2 tp 3 sp selective", kGpt2, 3, true, false, true},
        Case{"Llama tp 4 sp selective", kLlama, 4, true, false, true}));

TEST_P(TensorParallelModel, HasTheLossAndGradientsOfTheWholeModel) {
  const Case& c = GetParam();
  const Result expected = whole_model(c.model);
  run_thread_ranks(c.ranks, [&](Job& job) {
    RankContext& context = RankContext::current();
    context.seed = 17;
    context.step = 4;
    context.sample_offset = 5;
    const Mesh mesh(tp_mesh(job.size()), job.shared_world());
    const auto model = on_meta(c.model);
    const LaidOut laid_out = lay_out(*model, tensor_parallel_plan(*model, job.size()), mesh,
                                     {.sequence_parallel = c.sequence_parallel});
    materialize(*model, laid_out);
    model->set_recompute({.mode = c.selective   ? nn::RecomputeConfig::Mode::kSelective
                                  : c.recompute ? nn::RecomputeConfig::Mode::kFull
                                                : nn::RecomputeConfig::Mode::kNone});
    for (const auto& [name, tensor] : model->named_parameters()) {
      EXPECT_EQ(largest_difference(laid_out.whole(name, tensor, mesh), expected.weights.at(name)), 0.0)
          << name;
    }
    const auto [ids, targets] = batch();
    const Tensor loss = vocab_parallel_cross_entropy(model->logits(ids), targets, kVocab, mesh, kTp,
                                                     {.reduction = Reduction::kSum});
    EXPECT_NEAR(loss.item(), expected.loss, kRounding * std::abs(expected.loss));
    EXPECT_EQ(context.sequence_length, 0) << "what the model was told by its ids is over";
    loss.backward();
    for (const auto& [name, tensor] : model->named_parameters()) {
      Tensor gradient = tensor.grad();
      // What a layout says of a gradient: R's is a part of a sum.
      if (tensor.layout()[kTp].is_replicated()) gradient = all_reduce(gradient, mesh.group(kTp));
      EXPECT_LE(largest_difference(laid_out.whole(name, gradient, mesh), expected.gradients.at(name)),
                kRounding * 100)
          << name;
    }
  });
}

// --- Bytes -------------------------------------------------------------------------------------------------

// Of one pass over a GPT-2 of L blocks: each rank sends 2(t−1)/t of [B, T, D] for an all-reduce.
TEST(TensorParallelBytes, AreFourAllReducesABlockAndTwoOutside) {
  for (const bool sequence_parallel : {false, true}) {
    run_thread_ranks(2, [&](Job& job) {
      const Mesh mesh(tp_mesh(2), job.shared_world());
      const auto model = on_meta(kGpt2);
      const LaidOut laid_out =
          lay_out(*model, tensor_parallel_plan(*model, 2), mesh, {.sequence_parallel = sequence_parallel});
      materialize(*model, laid_out);
      job.tape().reset_totals();
      const auto [ids, targets] = batch();
      vocab_parallel_cross_entropy(model->logits(ids), targets, kVocab, mesh, kTp,
                                   {.reduction = Reduction::kSum})
          .backward();
      const std::int64_t activation = kBatch * kTime * 16 * 8;  // [B, T, D] in f64
      const std::int64_t losses = 3 * kBatch * kTime * 8;       // the largest lse; the sum and the target
      const Tape& tape = job.tape();
      const std::int64_t blocks = 2;
      // Forward: 2 a block and the embedding; backward: 2 a block and the output layer.
      const std::int64_t reductions = 4 * blocks + 2;
      if (!sequence_parallel) {
        EXPECT_EQ(tape.total_sent_bytes("tp", Collective::kAllReduce), reductions * activation + losses);
        EXPECT_EQ(tape.total_sent_bytes(), tape.total_sent_bytes("tp", Collective::kAllReduce));
      } else {
        // The same bytes as pairs of half an all-reduce each. The gather of the output layer's input stands
        // opposite to the embedding's scatter, in both directions.
        EXPECT_EQ(tape.total_sent_bytes("tp", Collective::kReduceScatter), reductions * activation / 2);
        EXPECT_EQ(tape.total_sent_bytes("tp", Collective::kAllGather), reductions * activation / 2);
        EXPECT_EQ(tape.total_sent_bytes("tp", Collective::kAllReduce), losses);
      }
    });
  }
}

// --- Activations kept --------------------------------------------------------------------------------------

// The table of tests/nn/recompute_test.cpp, over t = 2 ranks. Within the doors, qkv 3N, o N, f 4N and g 4N
// are cut by heads and columns. Outside, without sequence parallelism, x, a, s and m (N each) are whole on
// every rank; with it they are cut by tokens, and what is gathered of a and m is whole where it is kept.
TEST(TensorParallelActivations, AreTheBytesOfThePapers) {
  using Mode = nn::RecomputeConfig::Mode;
  struct Row {
    Mode mode;
    bool sequence_parallel;
    double kept;       // in N
    int more_gathers;  // of N in a block's backward pass
  };
  for (const Row& row :
       {Row{Mode::kNone, false, 4 + 12.0 / 2, 0}, Row{Mode::kSelective, false, 2 + 8.0 / 2, 0},
        Row{Mode::kNone, true, 2 + 14.0 / 2, 0}, Row{Mode::kSelective, true, 10.0 / 2, 2},
        Row{Mode::kFull, false, 1, 0}, Row{Mode::kFull, true, 1.0 / 2, 2}}) {
    run_thread_ranks(2, [&](Job& job) {
      RankContext& context = RankContext::current();
      context.sequence_length = kTime;
      const Mesh mesh(tp_mesh(2), job.shared_world());
      const auto model = on_meta(kGpt2);
      const LaidOut laid_out = lay_out(*model, tensor_parallel_plan(*model, 2), mesh,
                                       {.sequence_parallel = row.sequence_parallel});
      materialize(*model, laid_out);
      model->set_recompute({.mode = row.mode});
      const auto in_use = [&] { return context.pool(cpu)->report().of(MemoryCategory::kActivation).current; };
      const std::int64_t elements = kBatch * kTime * 16, tokens = kBatch * kTime;
      // Statistics of two norms over this rank's tokens, and lse over its heads: f64, as everything here.
      const std::int64_t statistics =
          row.mode == Mode::kFull ? 0 : 4 * (row.sequence_parallel ? tokens / 2 : tokens) + tokens * 4 / 2;
      const Tensor x = model->embed(batch().first, 0);
      const std::int64_t before = in_use();
      const Tensor y = model->run_block(0, x);
      // x was there before and counts for the block; y counts for the next one.
      EXPECT_EQ(in_use() - before,
                8 * (static_cast<std::int64_t>(row.kept * static_cast<double>(elements)) + statistics))
          << "mode " << static_cast<int>(row.mode) << (row.sequence_parallel ? ", sequence parallel" : "");
      job.tape().reset_totals();
      sum(y).backward();
      // The gradients of the block's two scatters and of the embedding's, and what is gathered again.
      const std::int64_t gathers = row.sequence_parallel ? 3 + row.more_gathers : 0;
      EXPECT_EQ(job.tape().total_sent_bytes("tp", Collective::kAllGather), gathers * elements * 8 / 2);
    });
  }
}

// --- Wrong plans -------------------------------------------------------------------------------------------

struct WrongPlan {
  const char* name;
  std::function<void(Plan&)> spoil;
  const char* message;
  bool sequence_parallel = false;
};
void PrintTo(const WrongPlan& c, std::ostream* out) { *out << c.name; }

void remove(Plan& plan, const std::string& pattern, Role role) {
  std::erase_if(plan, [&](const PlanRow& row) { return row.pattern == pattern && row.role == role; });
}

class WrongTensorParallelPlan : public ::testing::TestWithParam<WrongPlan> {};

INSTANTIATE_TEST_SUITE_P(
    Plans, WrongTensorParallelPlan,
    ::testing::Values(WrongPlan{"no copy at the door", [](Plan& p) { remove(p, "h.*.attn", Role::kEnter); },
                                "copy_to_ranks"},
                      WrongPlan{"no copy before the MLP", [](Plan& p) { remove(p, "h.*.mlp", Role::kEnter); },
                                "copy_to_ranks"},
                      WrongPlan{"second layer whole",
                                [](Plan& p) { remove(p, "h.*.mlp.c_proj", Role::kRow); }, "linear"},
                      WrongPlan{"output layer whole, tied",
                                [](Plan& p) { remove(p, "lm_head", Role::kVocabulary); }, "copy_to_ranks"},
                      WrongPlan{"norms invariant on cut tokens",
                                [](Plan& p) { remove(p, "h.*.ln_?", Role::kTokens); }, "laid out as R", true},
                      WrongPlan{"positions invariant on cut tokens",
                                [](Plan& p) { remove(p, "wpe", Role::kTokens); }, "laid out as R", true}));

TEST_P(WrongTensorParallelPlan, IsRefusedOnTheFirstPass) {
  const WrongPlan& c = GetParam();
  run_thread_ranks(2, [&](Job& job) {
    const Mesh mesh(tp_mesh(2), job.shared_world());
    const auto model = on_meta("layers=1,heads=2,width=8,context=10");
    Plan plan = tensor_parallel_plan(*model, 2);
    c.spoil(plan);
    materialize(*model, lay_out(*model, plan, mesh, {.sequence_parallel = c.sequence_parallel}));
    const auto [ids, targets] = batch();
    try {
      static_cast<void>(vocab_parallel_cross_entropy(model->logits(ids), targets, kVocab, mesh, kTp));
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {  // shapes tell in one of the cases
      EXPECT_NE(std::string(error.what()).find(c.message), std::string::npos) << error.what();
    }
  });
}

TEST(TensorParallelPlan, NamesTheNearestModuleForAPatternThatMatchesNone) {
  run_thread_ranks(1, [&](Job& job) {
    const Mesh mesh(tp_mesh(1), job.shared_world());
    const auto model = on_meta(kGpt2);
    try {
      static_cast<void>(lay_out(*model, {{"h.*.mlp.c_fx", Role::kColumn}}, mesh));
      FAIL();
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("c_fc"), std::string::npos) << error.what();
    }
  });
}

TEST(TensorParallelPlan, RefusesAModelThatHasMemory) {
  run_thread_ranks(1, [&](Job& job) {
    const Mesh mesh(tp_mesh(1), job.shared_world());
    const auto model = nn::make_language_model(kGpt2, kVocab);
    EXPECT_THROW(static_cast<void>(lay_out(*model, {}, mesh)), DeviceError);
  });
}

// A user's own module in a few lines.
class TwoLayers final : public nn::UnaryModule {
 public:
  TwoLayers() : up_(add_module<nn::Linear>("up", 6, 10)), down_(add_module<nn::Linear>("down", 10, 6)) {}
  Tensor forward(const Tensor& x) override { return down_(relu(up_(x))); }

 private:
  nn::Linear& up_;
  nn::Linear& down_;
};

TEST(TensorParallelPlan, LaysOutAModuleOfAUsersOwn) {
  TwoLayers whole;
  const Tensor x = normal({5, 6}, 0, 1, "x");
  const Tensor expected = whole(x);
  run_thread_ranks(3, [&](Job& job) {
    const Mesh mesh(tp_mesh(3), job.shared_world());
    const DeviceScope on_meta(meta);
    TwoLayers model;
    const LaidOut laid_out =
        lay_out(model, {{"", Role::kEnter}, {"up", Role::kColumn}, {"down", Role::kRow}}, mesh);
    const DeviceScope on_cpu(cpu);
    materialize(model, laid_out);
    EXPECT_EQ(model.find_parameter("up.weight").shape(), (Shape{job.rank() == 0 ? 4 : 3, 6}));
    const Tensor y = model(x);
    EXPECT_TRUE(y.layout().is_invariant());
    EXPECT_LE(max(abs(y.detach() - expected.detach())).item(), 1e-6);
  });
}

}  // namespace
}  // namespace tessera::dist
