// Stages of a model on different ranks train what one rank trains: every schedule, with what else cuts or
// saves.

#include "dist/pipeline.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/pipeline_generators.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "nn/nn.h"
#include "optim/loss_scale.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"
#include "tests/largest_difference.h"
#include "tests/layout_row.h"

namespace tessera::dist {
namespace {

constexpr std::int64_t kVocab = 101, kTime = 9, kBatch = 12;
constexpr const char* kGpt2 = "layers=8,heads=4,width=16,context=9,dropout=0.1";
constexpr const char* kLlama =
    "family=llama,layers=8,heads=4,kv_heads=2,width=16,hidden=22,context=9,dropout=0.1,tied=0";

// A sample is a function of the step and its number; every third has targets that do not count.
void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
          std::span<std::int64_t> targets) {
  for (std::int64_t i = 0; i < count * kTime; ++i) {
    const std::int64_t sample = first + i / kTime, t = i % kTime;
    const auto at = static_cast<std::size_t>(i);
    inputs[at] = (7 * step + 31 * sample + 3 * t * t) % kVocab;
    targets[at] = sample % 3 == 1 && t < 5 ? -100 : (inputs[at] * 5 + t) % kVocab;
  }
}

Config read(const std::string& row) {
  Config config;
  config.dtype = kF64;
  config.optimizer.lr = 3e-3;
  config.batch = {.global = kBatch, .micro_batch = 1};
  return read_layout(row, config);
}

// What one rank of a job trains on: its context, the mesh, and a model that has no memory yet.
struct Rank {
  Rank(Job& job, const MeshShape& shape, const std::string& model_text)
      : context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1, .seed = 3}),
        scope(context),
        mesh(shape, job.shared_world()) {
    const DeviceScope on_meta(meta);
    model = nn::make_language_model(model_text, kVocab);
  }

  RankContext context;
  RankContext::Scope scope;
  Mesh mesh;
  std::unique_ptr<nn::LanguageModel> model;
};

// What is wrong with a run, made in an engine before its first step.
using Mistake = std::function<void(Engine& engine)>;

struct Trained {
  Tensor shared;  // this rank's own copy of what stages on two ranks have
  std::vector<double> losses, norms;
  double evaluated = 0.0;
  std::map<std::string, Tensor> weights, optimizer;
};

Trained train_on(Job& job, const std::string& model_text, const Config& config, int steps,
                 const Mistake& mistake) {
  Rank rank(job, config.mesh, model_text);
  Engine engine(*rank.model, config, rank.mesh);
  if (mistake) mistake(engine);
  Trained result;
  for (int step = 0; step < steps; ++step) {
    // The last one is smaller: not every rank has samples, and few schedules have so few micro-batches.
    const StepReport report = engine.train_step(fill, step + 1 == steps ? 5 : 0);
    result.losses.push_back(report.loss);
    result.norms.push_back(report.grad_norm);
  }
  std::vector<std::int64_t> inputs(2 * kTime), targets(inputs.size());
  fill(99, 0, 2, inputs, targets);
  result.evaluated = engine.evaluate(inputs, targets, 2).sum;
  for (const char* name : {"wte.weight", "embed_tokens.weight"}) {
    if (engine.zero().has(name)) result.shared = engine.zero().whole(name).clone();
  }
  const CheckpointSources sources = engine.checkpoint_sources();
  for (const auto& tensor : sources.model.tensors)
    result.weights[tensor.name] = sources.model.get(tensor.name).clone();
  for (const auto& tensor : sources.optimizer.tensors)
    result.optimizer[tensor.name] = sources.optimizer.get(tensor.name).clone();
  return result;
}

// Of every rank.
std::vector<Trained> train(const std::string& model, const std::string& row, const Mistake& mistake = nullptr,
                           int steps = 5) {
  const Config config = read(row);
  std::vector<Trained> results(static_cast<std::size_t>(config.mesh.num_ranks()));
  run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
    results[static_cast<std::size_t>(job.rank())] = train_on(job, model, config, steps, mistake);
  });
  return results;
}

const Trained& reference(const std::string& model, const std::string& optimizer) {
  static std::map<std::string, Trained> known;
  const std::string key = model + optimizer;
  if (!known.contains(key)) known[key] = train(model, fmt::format("dp=1 pass=12 {}", optimizer)).front();
  return known[key];
}

class PipelineRows : public ::testing::TestWithParam<const char*> {};

// f64, where rounding of a few thousand sums stays far below 1e-10.
void expect_equal(const std::string& model, const std::string& row) {
  std::string optimizer;
  for (const char* each : {"Lamb", "Muon", "SGD"}) {
    if (row.find(each) != std::string::npos) optimizer = each;
  }
  const Trained& one = reference(model, optimizer);
  const std::vector<Trained> ranks = train(model, row);
  for (const Trained& rank : ranks) {
    if (rank.shared.defined()) {
      EXPECT_EQ(rank.shared.to_vector<double>(), ranks.front().shared.to_vector<double>()) << row;
    }
    ASSERT_EQ(rank.losses.size(), one.losses.size());
    for (std::size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(rank.losses[i], one.losses[i], 1e-10 * one.losses[i]) << row << ", step " << i;
      EXPECT_NEAR(rank.norms[i], one.norms[i], 1e-9 * one.norms[i]) << row << ", step " << i;
    }
    EXPECT_NEAR(rank.evaluated, one.evaluated, 1e-9 * one.evaluated) << row;
    ASSERT_EQ(rank.weights.size(), one.weights.size());
    for (const auto& [name, weight] : one.weights)
      EXPECT_LE(largest_difference(rank.weights.at(name), weight), 1e-10) << row << ": " << name;
    ASSERT_EQ(rank.optimizer.size(), one.optimizer.size());
    for (const auto& [name, state] : one.optimizer)
      EXPECT_LE(largest_difference(rank.optimizer.at(name), state), 1e-10) << row << ": " << name;
  }
}

TEST_P(PipelineRows, OfGpt2TrainWhatOneRankTrains) { expect_equal(kGpt2, GetParam()); }
TEST_P(PipelineRows, OfLlamaTrainWhatOneRankTrains) { expect_equal(kLlama, GetParam()); }

std::string test_name(const std::string& row) {
  std::string result;
  for (const char c : row) result += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return result;
}

INSTANTIATE_TEST_SUITE_P(
    All, PipelineRows,
    ::testing::Values(
        "pp=2", "pp=2 schedule=gpipe", "pp=3 uniform", "pp=4 pass=2", "pp=8", "pp=2 schedule=interleaved",
        "pp=3 schedule=interleaved pass=2", "pp=2 schedule=interleaved chunks=4", "pp=2 schedule=zb-h1",
        "pp=3 schedule=zb-h1 pass=2", "pp=2 schedule=zb-v", "pp=4 schedule=zb-v", "pp=2 recompute=full",
        "pp=3 schedule=interleaved pass=2 recompute=full", "pp=2 schedule=zb-v recompute=selective",
        "pp=2,dp=2", "pp=2,dp=2 zero=1", "pp=2,dp=2 zero=2", "pp=2,dp=2 zero=2 full-gradients",
        "pp=2,dp=2 zero=3", "pp=2,dp=3 zero=3 schedule=interleaved", "pp=2,dp=2 zero=2 schedule=zb-h1",
        "pp=2,dp=2 zero=3 schedule=zb-h1", "pp=2,dp=2 zero=3 schedule=zb-v",
        "pp=2,dp=2 zero=2 schedule=zb-v recompute=selective", "pp=2,dp=2 zero=1 schedule=zb-v", "pp=2,tp=2",
        "pp=2,tp=2 sp schedule=zb-h1", "pp=2,tp=2 sp zero=2 recompute=selective", "pp=2,cp=2",
        "pp=2,cp=2 zero=3 schedule=interleaved", "pp=2,cp=2 ulysses schedule=zb-v",
        "pp=2,dp=2,tp=2 zero=3 recompute=full", "pp=2,cp=2,tp=2 sp zero=1 schedule=gpipe",
        "pp=2,dp=2 zero=2 Lamb", "pp=2,dp=2 zero=3 schedule=zb-v Lamb", "pp=2,dp=2 zero=1 Muon",
        "pp=2,dp=4 mics=2 schedule=zb-v", "pp=2,dp=4 hpz=2 schedule=zb-v",
        "pp=2,dp=3 mics=3 schedule=interleaved recompute=full",
        "pp=3,cp=2 zero=3 schedule=zb-v reuse=9999999", "pp=3,dp=2 zero=3 uniform reuse=100000 persist=100",
        "pp=2,dp=3 zero=2 schedule=zb-v full-gradients", "pp=2,dp=2 zero=2 schedule=zb-v Muon",
        "pp=2,tp=3 sp schedule=zb-v zero=2", "pp=2,cp=3 schedule=interleaved zero=2",
        "pp=4,dp=2 schedule=zb-v zero=3", "pp=2,dp=2,tp=2 sp zero=3 schedule=zb-v Muon",
        "pp=3 schedule=interleaved pass=2 Lamb"),
    [](const auto& row) { return test_name(row.param); });

// A rank has memory for its own stages alone, as much as is said before any is taken; and the bytes that
// ZeRO sends are those of its plan, frozen blocks at the head of a later stage and a weight of two stages
// included.
TEST(Pipeline, HoldsItsOwnStagesAloneAndSendsWhatIsPredicted) {
  for (const char* row :
       {"pp=2", "pp=4", "pp=2,dp=2 zero=1", "pp=2,dp=2 zero=3", "pp=2,dp=2 zero=2 schedule=zb-v",
        "pp=2,dp=2 zero=3 schedule=interleaved", "pp=2,dp=2 zero=3 frozen"}) {
    const std::string text = row;
    const bool frozen = text.ends_with(" frozen");
    const Config config = read(frozen ? text.substr(0, text.size() - 7) + " uniform" : text);
    run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
      Rank rank(job, config.mesh, kGpt2);
      if (frozen) {
        for (Tensor parameter : rank.model->blocks()[4]->parameters()) parameter.set_requires_grad(false);
      }
      Engine engine(*rank.model, config, rank.mesh);
      const auto held = [&] {
        return rank.context.pool(cpu)->report().of(MemoryCategory::kParameter).current;
      };
      EXPECT_EQ(held(), engine.zero().predicted_memory(16).parameters) << row;
      for (const auto& [name, parameter] : rank.model->named_parameters())
        EXPECT_EQ(parameter.device() == meta, !engine.zero().has(name)) << row << ": " << name;
      static_cast<void>(engine.train_step(fill));
      job.tape().reset_totals();
      static_cast<void>(engine.train_step(fill));
      EXPECT_EQ(held(), engine.zero().predicted_memory(16).parameters) << row;
      const auto passes = static_cast<int>(kBatch / rank.mesh.size(MeshAxis::kDp));
      for (const ZeroTraffic& each : engine.zero().predicted_traffic(passes)) {
        EXPECT_EQ(job.tape().total_sent_bytes(each.group, each.op), each.sent_bytes)
            << row << ": " << each.group << " " << name(each.op);
      }
    });
  }
}

// --- Mistakes ----------------------------------------------------------------------------------------------

// How far a run is from one rank's, in what every rank is told and in copies of one weight.
double distance(const std::vector<Trained>& ranks, const Trained& one) {
  double largest = 0.0;
  for (const Trained& rank : ranks) {
    for (std::size_t i = 0; i < one.losses.size(); ++i) {
      largest = std::max(largest, std::abs(rank.losses[i] / one.losses[i] - 1.0));
      largest = std::max(largest, std::abs(rank.norms[i] / one.norms[i] - 1.0));
    }
    for (const auto& [name, weight] : one.weights)
      largest = std::max(largest, largest_difference(rank.weights.at(name), weight));
    if (rank.shared.defined() && ranks.front().shared.defined())
      largest = std::max(largest, largest_difference(rank.shared, ranks.front().shared));
  }
  return largest;
}

int pp_index(const Engine& engine) { return engine.mesh().index(MeshAxis::kPp); }

// The first block of this rank's stage, through which all of its input goes.
nn::Block& first_block(Engine& engine) {
  const StageParts& stage = engine.pipeline()->stages()[static_cast<std::size_t>(pp_index(engine))];
  return *engine.model().blocks()[static_cast<std::size_t>(stage.first_block)];
}

void change_input(Engine& engine, std::function<Tensor(const Tensor&)> change) {
  if (pp_index(engine) == 0) return;
  first_block(engine).add_forward_pre_hook(
      [change = std::move(change)](nn::Module&, std::span<Tensor> tensors) {
        tensors[0] = change(tensors[0]);
      });
}

// After each update, which the first of twelve forward passes of a step follows, the parameter is as it was.
void hold_still(Engine& engine, const std::string& parameter) {
  for (const auto& [name, piece] : engine.zero().pieces()) {
    if (name != parameter) continue;
    const Tensor first = piece.detach().clone();
    first_block(engine).add_forward_pre_hook(
        [piece = piece.detach(), first, passes = std::make_shared<int>(0)](nn::Module&, std::span<Tensor>) {
          if ((*passes)++ % 12 != 0) return;
          const NoGrad no_grad;
          Tensor(piece).copy_from(first);
        });
  }
}

struct NamedMistake {
  const char* name;
  Mistake make;
};

void PrintTo(const NamedMistake& mistake, std::ostream* out) { *out << mistake.name; }

const NamedMistake kMistakes[] = {
    {"LostGradient",  // of the first micro-batch's input
     [](Engine& engine) {
       change_input(engine, [passes = std::make_shared<int>(0)](const Tensor& x) {
         return (*passes)++ % 12 == 0 ? x.detach() + x * 0.0 : x;
       });
     }},
    {"GradientSentTwice",
     [](Engine& engine) { change_input(engine, [](const Tensor& x) { return x * 2.0 - x.detach(); }); }},
    {"ActivationOfTheMicroBatchBefore",
     [](Engine& engine) {
       change_input(engine, [before = std::make_shared<Tensor>()](const Tensor& x) {
         const Tensor taken = before->defined() && before->shape() == x.shape() ? *before : x.detach();
         *before = x.detach().clone();
         return taken + (x - x.detach());
       });
     }},
    {"ActivationRounded",
     [](Engine& engine) {  // as a message of another dtype would be
       change_input(engine, [](const Tensor& x) { return x + (x.detach().to(kBF16).to(kF64) - x.detach()); });
     }},
    {"MasksOfTheFirstMicroBatch",
     [](Engine& engine) {
       for (nn::Block* block : engine.model().blocks()) {
         block->add_forward_pre_hook(
             [](nn::Module&, std::span<Tensor>) { RankContext::current().sample_offset = 0; });
       }
     }},
    {"SharedGradientNotSummed",  // the last stage's part of it is lost
     [](Engine& engine) {
       if (pp_index(engine) + 1 < engine.mesh().size(MeshAxis::kPp)) return;
       register_hook(engine.model().find_parameter("wte.weight"),
                     [](const Tensor& grad) { return zeros_like(grad); });
     }},
    {"SharedGradientOfTheFirstStageNotSummed",
     [](Engine& engine) {
       if (pp_index(engine) > 0) return;
       register_hook(engine.model().find_parameter("wte.weight"),
                     [](const Tensor& grad) { return zeros_like(grad); });
     }},
    {"StaleSharedWeight",
     [](Engine& engine) {
       if (pp_index(engine) + 1 == engine.mesh().size(MeshAxis::kPp)) hold_still(engine, "wte.weight");
     }},
    {"StaleWeight",
     [](Engine& engine) {
       if (pp_index(engine) == 1) hold_still(engine, "h.5.ln_1.weight");
     }},
    {"LossCountedByTwoStages",
     [](Engine& engine) {
       change_input(engine, [](const Tensor& x) { return x; });
       engine.loss_scaler() = optim::LossScaler::constant(pp_index(engine) == 0 ? 1.0 : 2.0);
     }},
};

class PipelineMistakes : public ::testing::TestWithParam<NamedMistake> {};
INSTANTIATE_TEST_SUITE_P(All, PipelineMistakes, ::testing::ValuesIn(kMistakes),
                         [](const auto& each) { return std::string(each.param.name); });

// The bound of the rows is 1e-10: a mistake is a thousand times above it.
TEST_P(PipelineMistakes, AreNoticed) {
  for (const char* row : {"pp=2 uniform", "pp=2 uniform schedule=zb-h1"}) {
    const double found = distance(train(kGpt2, row, GetParam().make), reference(kGpt2, ""));
    EXPECT_GT(found, 1e-7) << row;
  }
}

// Orders that no pipeline may run are refused before anything moves.
TEST(PipelineMistakes, OfScheduleAreRefused) {
  const struct {
    const char* name;
    std::function<void(std::vector<std::vector<Action>>&)> spoil;
  } cases[] = {
      {"swapped order of two forwards", [](auto& actions) { std::swap(actions[1][1], actions[1][4]); }},
      {"skipped micro-batch",
       [](auto& actions) {
         std::erase_if(actions[0], [](const Action& a) { return a.micro_batch == 2; });
         std::erase_if(actions[1], [](const Action& a) { return a.micro_batch == 2; });
       }},
      {"dropped receive",
       [](auto& actions) {
         std::erase_if(actions[0], [](const Action& a) {
           return a.kind == ActionKind::kRecvGradient && a.micro_batch == 1;
         });
       }},
      {"backward twice", [](auto& actions) { actions[1].push_back(Action::backward(0)); }},
  };
  for (const auto& [name, spoil] : cases) {
    run_thread_ranks(2, [&, spoil = spoil, name = name](Job& job) {
      const Config config = read("pp=2");
      Rank rank(job, config.mesh, kGpt2);
      EngineOptions options;
      options.pipeline_schedule = [&](const PipelineSize& size) {
        Schedule schedule = schedule_1f1b(size);
        spoil(schedule.actions);
        return schedule;
      };
      EXPECT_THROW(const Engine engine(*rank.model, config, rank.mesh, options), ConfigError) << name;
    });
  }
}

// --- Bytes -------------------------------------------------------------------------------------------------

// What a rank sends along pp in one step: for each of its stages that has a next one elsewhere b·T·D of
// activations a micro-batch, for each that has one before it elsewhere as many of gradients.
TEST(Pipeline, SendsTheBytesOfItsFormula) {
  struct Case {
    const char* row;
    int ranks;
    std::vector<int> forward, backward;  // stages of each rank that send activations, and gradients
  };
  const Case cases[] = {
      {"pp=2 schedule=gpipe", 2, {1, 0}, {0, 1}},
      {"pp=3 pass=2", 3, {1, 1, 0}, {0, 1, 1}},
      {"pp=2 schedule=interleaved", 2, {2, 1}, {1, 2}},  // and back from the last rank to the first
      {"pp=2 schedule=zb-v", 2, {1, 1}, {1, 1}},         // the turn is on one rank
  };
  for (const Case& c : cases) {
    run_thread_ranks(c.ranks, [&](Job& job) {
      const Config config = read(c.row);
      Rank rank(job, config.mesh, kLlama);  // nothing is shared
      Engine engine(*rank.model, config, rank.mesh);
      const StepReport report = engine.train_step(fill);
      const auto r = static_cast<std::size_t>(job.rank());
      EXPECT_EQ(report.sent_bytes.at("pp"), (c.forward[r] + c.backward[r]) * kBatch * kTime * 16 * 8)
          << c.row;
    });
  }
}

TEST(Pipeline, SumsGradientsOfASharedWeightOverTheTwoRanksThatHaveIt) {
  run_thread_ranks(3, [](Job& job) {
    const Config config = read("pp=3");
    Rank rank(job, config.mesh, kGpt2);
    Engine engine(*rank.model, config, rank.mesh);
    const StepReport report = engine.train_step(fill);
    // An all-reduce of two ranks: each sends as many bytes as the weight has.
    const auto sent = report.sent_bytes.find(kSharingGroupName);
    if (job.rank() == 1) {
      EXPECT_EQ(sent, report.sent_bytes.end());
    } else {
      EXPECT_EQ(sent->second, kVocab * 16 * 8);
    }
    EXPECT_EQ(engine.zero().has("wte.weight"), job.rank() != 1);
    EXPECT_EQ(engine.zero().has("ln_f.weight"), job.rank() == 2);
  });
}

// --- Memory ------------------------------------------------------------------------------------------------

// Bytes of activations at the peak of a step, by rank.
std::vector<std::int64_t> peak_activations(const std::string& row) {
  const Config config = read(row);
  std::vector<std::int64_t> peaks(static_cast<std::size_t>(config.mesh.num_ranks()));
  run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
    Rank rank(job, config.mesh, "layers=8,heads=4,width=32,context=9");
    Engine engine(*rank.model, config, rank.mesh);
    static_cast<void>(engine.train_step(fill));
    MemoryPool& pool = *rank.context.pool(cpu);
    pool.reset_peak();
    static_cast<void>(engine.train_step(fill));
    peaks[static_cast<std::size_t>(job.rank())] =
        pool.report().by_category[static_cast<std::size_t>(MemoryCategory::kActivation)].peak;
  });
  return peaks;
}

// GPipe holds m micro-batches on every rank, 1F1B min(m, p − r) on rank r. Beside them stand the values of
// the pass under way, so ratios are of differences between two numbers of micro-batches.
TEST(Pipeline, HoldsAsManyMicroBatchesAsItsScheduleSays) {
  const std::vector<std::int64_t> gpipe = peak_activations("pp=4 uniform schedule=gpipe"),
                                  small = peak_activations("pp=4 uniform schedule=gpipe pass=3"),
                                  steady = peak_activations("pp=4 uniform");
  ASSERT_EQ(gpipe.size(), 4u);
  for (std::size_t r = 1; r + 1 < 4; ++r) {
    // 12 micro-batches of one sequence, and 4 of three: the same 12 sequences.
    EXPECT_NEAR(static_cast<double>(small[r]) / static_cast<double>(gpipe[r]), 1.0, 0.15) << "rank " << r;
    // A twelfth of what GPipe holds is one micro-batch; the pass under way is one more at most.
    const double one = static_cast<double>(gpipe[r]) / 12.0;
    const double held = static_cast<double>(4 - r);
    EXPECT_GE(static_cast<double>(steady[r]), 0.9 * held * one) << "rank " << r;
    EXPECT_LE(static_cast<double>(steady[r]), (held + 1.0) * one) << "rank " << r;
  }
}

// --- Generation --------------------------------------------------------------------------------------------

TEST(Pipeline, GeneratesTheTokensOfOneRank) {
  const auto generate = [](const std::string& row) {
    const Config config = read(row);
    std::vector<std::vector<std::int64_t>> tokens(static_cast<std::size_t>(config.mesh.num_ranks()));
    run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
      Rank rank(job, config.mesh, kGpt2);
      Engine engine(*rank.model, config, rank.mesh);
      static_cast<void>(engine.train_step(fill));
      const std::vector<std::int64_t> prompt{3, 14, 15};
      auto& own = tokens[static_cast<std::size_t>(job.rank())];
      own = engine.generate(prompt, {.tokens = 12, .temperature = 0.9, .top_k = 20, .seed = 5});
      const auto again = engine.generate(
          prompt, {.tokens = 12, .temperature = 0.9, .top_k = 20, .seed = 5, .use_cache = false});
      EXPECT_EQ(own, again) << row;
    });
    return tokens;
  };
  const std::vector<std::int64_t> one = generate("dp=1").front();
  EXPECT_EQ(one.size(), 12u);
  for (const char* row : {"pp=3", "pp=2 schedule=interleaved", "pp=2 schedule=zb-v", "pp=2,dp=2 zero=3",
                          "tp=2", "pp=2,tp=2 zero=1"}) {
    for (const auto& tokens : generate(row)) EXPECT_EQ(tokens, one) << row;
  }
}

// --- Stages ------------------------------------------------------------------------------------------------

TEST(PipelineStages, AreCutByWhatTheyCost) {
  const auto text = [](const std::vector<StageParts>& stages) { return to_string(stages); };
  EXPECT_EQ(text(cut_uniformly(5, 2)), "stage 0: embedding, blocks 0-2 | stage 1: blocks 3-4, head");
  EXPECT_EQ(text(cut_into_stages(std::vector<double>{9, 1, 1, 1, 1, 0}, 2)),
            "stage 0: embedding, block 0 | stage 1: blocks 1-3, head");
  EXPECT_EQ(text(cut_into_stages(std::vector<double>{0, 1, 1, 1, 1, 0}, 3)),
            "stage 0: embedding, blocks 0-1 | stage 1: block 2 | stage 2: block 3, head");
  EXPECT_EQ(text(cut_into_stages(std::vector<double>{0, 5, 1, 1, 1, 4}, 3)),
            "stage 0: embedding, block 0 | stage 1: blocks 1-2 | stage 2: block 3, head");
  expect_error<ConfigError>([] { static_cast<void>(cut_uniformly(3, 4)); },
                            {"3 blocks", "4 stages", "up to 3"});
  const auto require = [](std::int64_t num_blocks, const char* schedule, int ranks) {
    require_enough_blocks(num_blocks, make_schedule(schedule, {.ranks = ranks, .micro_batches = 4}));
  };
  EXPECT_NO_THROW(require(4, "zb-v", 2));
  expect_error<ConfigError>(
      [&] { require(4, "zb-v", 4); },
      {"4 blocks can't be cut into 8 stages (pp x chunks = 4 x 2)", "pp = 2 at most, or schedule \"1f1b\""});
  EXPECT_NO_THROW(require(4, "1f1b", 4));
  expect_error<ConfigError>([&] { require(4, "1f1b", 8); }, {"up to 4 stages work: pp = 4 at most"});
  EXPECT_THROW(require(1, "zb-v", 2), ConfigError);
  expect_error<ConfigError>([] { static_cast<void>(parse_partition("unifrom")); },
                            {"did you mean 'uniform'?"});
}

// The dearest stage of the cut against that of every other way to cut.
TEST(PipelineStages, NoOtherCutHasACheaperDearestStage) {
  const std::vector<double> costs{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
  const std::size_t blocks = costs.size() - 2;
  const auto dearest = [&](const std::vector<std::size_t>& ends) {
    double largest = 0.0;
    std::size_t begin = 0;
    for (const std::size_t end : ends) {
      double sum = begin == 0 ? costs.front() : 0.0;
      for (std::size_t b = begin; b < end; ++b) sum += costs[b + 1];
      if (end == blocks) sum += costs.back();
      largest = std::max(largest, sum);
      begin = end;
    }
    return largest;
  };
  for (const int stages : {2, 3, 4}) {
    std::vector<std::size_t> chosen;
    for (const StageParts& stage : cut_into_stages(costs, stages))
      chosen.push_back(static_cast<std::size_t>(stage.end_block));
    double best = 1e9;
    const std::function<void(std::vector<std::size_t>)> extend = [&](std::vector<std::size_t> ends) {
      if (static_cast<int>(ends.size()) == stages - 1) {
        ends.push_back(blocks);
        best = std::min(best, dearest(ends));
        return;
      }
      for (std::size_t end = (ends.empty() ? 0 : ends.back()) + 1; end < blocks; ++end) {
        auto more = ends;
        more.push_back(end);
        extend(more);
      }
    };
    extend({});
    EXPECT_EQ(dearest(chosen), best) << stages << " stages";
  }
}

// --- Refusals ----------------------------------------------------------------------------------------------

TEST(Pipeline, RefusesWhatDoesNotWorkWithTheNearestThatDoes) {
  const struct {
    const char* row;
    std::initializer_list<std::string> message;
  } cases[] = {
      {"pp=2 schedule=zb-h1 recompute=full", {"splits backward passes", "\"1f1b\" works"}},
      {"pp=2,dp=2 zero=3 schedule=zb-v recompute=selective", {"ZeRO stage 3", "\"1f1b\" works"}},
      {"pp=2 schedule=interleaved chunks=5", {"8 blocks", "10 stages", "up to 8"}},
      {"pp=2 schedule=zigzag", {"zigzag", "zb-v"}},
  };
  for (const auto& [row, message] : cases) {
    run_thread_ranks(read(row).mesh.num_ranks(), [&, row = row, message = message](Job& job) {
      const Config config = read(row);
      Rank rank(job, config.mesh, kGpt2);
      expect_error<ConfigError>([&] { const Engine engine(*rank.model, config, rank.mesh); }, message);
    });
  }
}

// A schedule may not say one thing for 12 micro-batches and another for 5.
TEST(Pipeline, RefusesStagesThatMoveWithTheNumberOfMicroBatches) {
  run_thread_ranks(2, [](Job& job) {
    const Config config = read("pp=2");
    Rank rank(job, config.mesh, kGpt2);
    EngineOptions options;
    options.pipeline_schedule = [](const PipelineSize& size) {
      return size.micro_batches < 6 ? schedule_interleaved(size) : schedule_zb_v(size);
    };
    expect_error<ConfigError>(
        [&] {
          Engine engine(*rank.model, config, rank.mesh, options);
          static_cast<void>(engine.train_step(fill, 4));
        },
        {"where stages lie"});
  });
}

TEST(Pipeline, TakesOneRanksSecondsForAll) {
  run_thread_ranks(2, [](Job& job) {
    Rank rank(job, MeshShape::parse("pp=2"), kGpt2);
    std::vector<double> seconds(10, 1.0);
    seconds[static_cast<std::size_t>(job.rank()) * 9] = 5.0;  // the embedding on rank 0, the head on rank 1
    const Pipeline pipeline(*rank.model, rank.mesh,
                            {.partition = PipelinePartition::kTime, .part_seconds = seconds});
    EXPECT_EQ(to_string(pipeline.stages()), "stage 0: embedding, blocks 0-1 | stage 1: blocks 2-7, head");
    seconds[3] = std::nan("");
    EXPECT_THROW(
        Pipeline(*rank.model, rank.mesh, {.partition = PipelinePartition::kTime, .part_seconds = seconds}),
        ConfigError);
  });
}

// One head for two tensor-parallel ranks: the second has nothing of the attention, so its blocks are small
// beside its embedding. Ranks that cut by what they hold would wait for each other in different stages.
TEST(Pipeline, CutsStagesAlikeWhereTensorRanksHoldPiecesOfDifferentSizes) {
  const char* const model = "layers=6,heads=1,width=4,context=9";
  const auto stages = [model](const char* row) {
    const Config config = read(row);
    std::vector<std::string> cuts(static_cast<std::size_t>(config.mesh.num_ranks()));
    run_thread_ranks(config.mesh.num_ranks(), [&](Job& job) {
      Rank rank(job, config.mesh, model);
      Engine engine(*rank.model, config, rank.mesh);
      cuts[static_cast<std::size_t>(job.rank())] = to_string(engine.pipeline()->stages());
    });
    return cuts;
  };
  for (const char* schedule : {"1f1b", "interleaved", "zb-v"}) {
    const std::string whole = stages(fmt::format("pp=2 schedule={}", schedule).c_str()).front();
    EXPECT_EQ(stages(fmt::format("pp=2,tp=2 schedule={}", schedule).c_str()), std::vector(4, whole));
  }
}

// A model with a parameter of its own, and with its blocks in a container.
class OddModel final : public nn::LanguageModel {
 public:
  explicit OddModel(bool own_parameter) : LanguageModel(kVocab, kTime, 16) {
    wte_ = &add_module<nn::Embedding>("wte", kVocab, 16, nn::EmbeddingOptions{});
    h_ = &add_module<Blocks>("h");
    for (nn::Block* block : h_->blocks) register_block(*block);
    head_ = &add_module<nn::Linear>("head", 16, kVocab, nn::LinearOptions{.bias = false});
    if (own_parameter) scale_ = add_parameter("scale", {16}, nn::Init::constant(1.0));
  }
  [[nodiscard]] std::string description() const override { return "odd"; }
  [[nodiscard]] Tensor embed(const Tensor& ids, std::int64_t /*first*/) override { return (*wte_)(ids); }
  [[nodiscard]] Tensor head(const Tensor& x) override { return (*head_)(scale_.defined() ? x * scale_ : x); }

 private:
  struct Blocks final : nn::Module {
    Blocks() {
      for (int i = 0; i < 4; ++i)
        blocks.push_back(&add_module<nn::Gpt2Block>(fmt::format("{}", i),
                                                    nn::Gpt2Config{.layers = 4, .heads = 2, .width = 16}));
    }
    std::vector<nn::Block*> blocks;
  };
  nn::Embedding* wte_;
  Blocks* h_;
  nn::Linear* head_;
  Tensor scale_;
};

TEST(Pipeline, FindsBlocksInAContainerAndRefusesAParameterOfNoStage) {
  run_thread_ranks(2, [](Job& job) {
    RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1});
    const RankContext::Scope scope(context);
    const Mesh mesh(MeshShape::parse("pp=2"), job.shared_world());
    const DeviceScope on_meta(meta);
    OddModel model(false);
    const Pipeline pipeline(model, mesh, {.partition = PipelinePartition::kUniform});
    EXPECT_TRUE(pipeline.shared_parameters().empty());
    EXPECT_EQ(pipeline.own_modules().front().size(), 3u);  // two blocks, and the embedding or the head
    OddModel with_own(true);
    expect_error<ConfigError>([&] { const Pipeline refused(with_own, mesh, {}); }, {"'scale'", "no stage"});
  });
}

// Ranks of a pipeline are in different passes when an exception comes, so the step can't be tried again.
TEST(Pipeline, CannotGoOnAfterAStepThatAnExceptionEnded) {
  std::string second;
  const auto program = [&second](Job& job) {
    const Config config = read("pp=2 schedule=gpipe");
    Rank rank(job, config.mesh, kGpt2);
    Engine engine(*rank.model, config, rank.mesh);
    int passes = 0;
    if (job.rank() == 0) {
      first_block(engine).add_forward_pre_hook([&passes](nn::Module&, std::span<Tensor>) {
        if (++passes == 3) throw DataError("a hook's own");
      });
    }
    try {
      static_cast<void>(engine.train_step(fill));
    } catch (const DataError&) {
      try {
        static_cast<void>(engine.train_step(fill));
      } catch (const CommError& error) {
        second = error.what();
        throw;
      }
    }
  };
  EXPECT_THROW(run_thread_ranks(2, program), Error);
  EXPECT_NE(second.find("a new job from the last checkpoint"), std::string::npos) << second;
}

TEST(Pipeline, HasNoPartsOfAPassToCall) {
  run_thread_ranks(2, [](Job& job) {
    const Config config = read("pp=2");
    Rank rank(job, config.mesh, kGpt2);
    Engine engine(*rank.model, config, rank.mesh);
    const auto passes = engine.micro_batches(fill);
    expect_error<AutogradError>([&] { static_cast<void>(engine.forward(passes.front())); },
                                {"pp = 2", "train_step"});
  });
}

}  // namespace
}  // namespace tessera::dist
