// What ZeRO does where a model is not one straight line: units that some ranks skip or nobody uses, weights
// that lie in special ways on tp, optimizers that ask for whole tensors, calls in a wrong order.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <map>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/job.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "nn/activations.h"
#include "nn/linear.h"
#include "nn/sequential.h"
#include "optim/adam.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::testing {
namespace {

constexpr std::int64_t kWidth = 5, kLayers = 4;

/// Residual layers, each a unit, of which any may be left out.
class Stack : public nn::Module {
 public:
  Stack() {
    for (std::int64_t i = 0; i < kLayers; ++i) {
      layers_.push_back(&add_module<nn::Linear>(fmt::format("layers.{}", i), kWidth, kWidth));
    }
  }
  Tensor operator()(const Tensor& x, const std::vector<std::int64_t>& path) {
    return run_hooks(
        [&](const Tensor& input) {
          Tensor y = input;
          for (const std::int64_t i : path) y = y + gelu((*layers_[static_cast<std::size_t>(i)])(y));
          return y;
        },
        x);
  }

 private:
  std::vector<nn::Linear*> layers_;
};

const std::vector<ZeroPlacement> kPlacements{ZeroPlacement::stage(0), ZeroPlacement::stage(1),
                                             ZeroPlacement::stage(2), ZeroPlacement::stage(3),
                                             ZeroPlacement::mics(),   ZeroPlacement::hpz()};

ZeroOptions options_of(const ZeroPlacement& placement, int num_ranks) {
  return {.placement = placement,
          .ranks_per_shard_group = num_ranks % 2 == 0 ? 2 : 0,
          .prefetch_elements = 1000,
          .patience = std::chrono::milliseconds(50)};  // units are skipped here: some waits are in vain
}

Tensor input_of(int step, int sample) {
  return normal({2, kWidth}, 0.0, 1.0, fmt::format("input {} {}", step, sample),
                {.dtype = kF64, .device = cpu});
}

/// Trains on `num_ranks` ranks; sample s goes the way of path(step, s); samples are dealt out to the ranks.
using Path = std::function<std::vector<std::int64_t>(int step, int sample)>;
constexpr int kSamples = 4, kSteps = 4;
constexpr double kLearningRate = 0.01, kDecay = 0.1;
std::vector<std::pair<std::string, std::vector<double>>> train_stack(int num_ranks,
                                                                     const ZeroPlacement& placement,
                                                                     const Path& path) {
  std::vector<std::pair<std::string, std::vector<double>>> weights;
  run_thread_ranks(num_ranks, [&](Job& job) {
    const Mesh mesh(MeshShape::parse(fmt::format("dp={}", num_ranks)), job.shared_world());
    RankContext context({.rank = job.rank(), .world_size = num_ranks, .seed = 3});
    const RankContext::Scope scope(context);
    const auto model = [] {
      const DeviceScope on_meta(meta);
      return std::make_unique<Stack>();
    }();
    model->to(kF64);
    Zero zero(*model, mesh, options_of(placement, num_ranks));
    optim::AdamW optimizer(zero.pieces(), {.lr = kLearningRate, .weight_decay = kDecay});
    for (int step = 0; step < kSteps; ++step) {
      const int per_rank = kSamples / num_ranks;
      for (int i = 0; i < per_rank; ++i) {
        const int sample = job.rank() * per_rank + i;
        const Tensor y = (*model)(input_of(step, sample), path(step, sample));
        const Tensor loss = sum(y * y);
        zero.begin_backward(i == per_rank - 1);
        if (loss.requires_grad()) loss.backward();
        zero.end_backward();
      }
      zero.finish_gradients();
      optimizer.step();
      zero.after_update();
      zero.zero_gradients();
    }
    for (const ZeroParameter& parameter : zero.plan().parameters) {
      const Tensor whole = zero.whole(parameter.record.name);
      if (job.rank() == 0) weights.emplace_back(parameter.record.name, whole.to_vector<double>());
    }
  });
  return weights;
}

void expect_equal_on_all_placements(const Path& path) {
  const auto alone = train_stack(1, ZeroPlacement::stage(0), path);
  for (const ZeroPlacement& placement : kPlacements) {
    for (const int num_ranks : {1, 2, 4}) {
      const auto weights = train_stack(num_ranks, placement, path);
      ASSERT_EQ(weights.size(), alone.size());
      for (std::size_t i = 0; i < alone.size(); ++i) {
        for (std::size_t j = 0; j < alone[i].second.size(); ++j) {
          ASSERT_NEAR(weights[i].second[j], alone[i].second[j], 1e-12)
              << fmt::format("{} on {} ranks, spreads {} {} {}", alone[i].first, num_ranks,
                             static_cast<int>(placement.parameters), static_cast<int>(placement.gradients),
                             static_cast<int>(placement.optimizer));
        }
      }
    }
  }
}

// Trap 19. Every rank goes another way, in the first step already: collectives still match, and where
// gathers of two layers of equal size could be taken for each other, they are not.
TEST(ZeroBehaviour, MatchesCollectivesOfRanksThatSkipDifferentUnits) {
  expect_equal_on_all_placements([](int step, int sample) {
    std::vector<std::int64_t> path;
    for (std::int64_t i = 0; i < kLayers; ++i) {
      if ((i + step + sample) % 3 != 0) path.push_back(i);
    }
    return path;
  });
}

// One rank has nothing to do at all.
TEST(ZeroBehaviour, MatchesCollectivesOfARankThatUsesNoUnit) {
  expect_equal_on_all_placements([](int, int sample) {
    return sample == 3 ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{0, 1, 2, 3};
  });
}

// The order of execution is not that of registration, and one unit runs twice in a pass (trap 18).
TEST(ZeroBehaviour, LearnsAnOrderOfUnitsThatIsNotTheModels) {
  expect_equal_on_all_placements([](int, int) { return std::vector<std::int64_t>{2, 0, 2, 3, 1}; });
}

// With gathers under way for three units ahead, one of which is used twice: ranks that skip its first use
// must not gather the others in another order than those that have it in hand.
TEST(ZeroBehaviour, PrefetchesInOneOrderOnRanksThatSkipUsesOfAUnit) {
  expect_equal_on_all_placements([](int step, int sample) -> std::vector<std::int64_t> {
    if (step == 0) return {2, 0, 2, 3, 1};
    if (sample % 2 == 0) return {2, 0, 3, 1};
    return {0, 2, 3, 1};
  });
  expect_equal_on_all_placements([](int step, int sample) -> std::vector<std::int64_t> {
    if (step == 0 || sample == 0) return {0, 2, 3, 2, 1};
    if (sample == 1) return {2, 3, 2, 1};
    if (sample == 2) return {0, 3, 2, 1};
    return {2, 3, 1};
  });
}

// Trap 18. A tied weight of a unit that runs inside of another which uses it as well: gathered by whichever
// comes first, and there until the last is done, forward and backward; then it is gone.
class Nested : public nn::Module {
 public:
  Nested()
      : inner_(add_module<nn::Linear>("inner", kWidth, kWidth)),
        again_(tie_parameter("again", inner_.weight())),
        gain_(add_parameter("gain", {kWidth}, nn::Init::ones())) {}
  Tensor operator()(const Tensor& x) {
    return run_hooks([this](const Tensor& input) { return gelu(linear(inner_(input), again_, {}) * gain_); },
                     x);
  }

 private:
  nn::Linear& inner_;
  Tensor again_, gain_;
};

TEST(ZeroBehaviour, KeepsATiedWeightUntilItsLastUserIsDone) {
  for (const ZeroPlacement& placement : kPlacements) {
    run_thread_ranks(2, [&](Job& job) {
      const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
      RankContext context({.rank = job.rank(), .world_size = 2, .seed = 3});
      const RankContext::Scope scope(context);
      const auto model = [] {
        const DeviceScope on_meta(meta);
        return std::make_unique<Nested>();
      }();
      model->to(kF64);
      Zero zero(*model, mesh, options_of(placement, 2));
      std::map<std::string, std::vector<double>> expected;
      {
        Nested whole;
        whole.to(kF64);
        for (const auto& [name, tensor] : whole.named_parameters()) {
          const NoGrad no_grad;
          Tensor(tensor).copy_from(zero.whole(name));
        }
        sum(whole(input_of(0, 0))).backward();
        for (const auto& [name, tensor] : whole.named_parameters())
          expected[name] = (tensor.grad() * 2.0).to_vector<double>();  // of two ranks
      }
      for (int step = 0; step < 3; ++step) {  // the first records, the others follow what it recorded
        const Tensor loss = sum((*model)(input_of(0, 0)));
        zero.begin_backward(true);
        loss.backward();
        zero.end_backward();
        zero.finish_gradients();
        for (const auto& [name, piece] : zero.pieces()) {
          const std::vector<double> gradient = zero.whole(name, piece.grad()).to_vector<double>();
          ASSERT_EQ(gradient.size(), expected.at(name).size());
          for (std::size_t i = 0; i < gradient.size(); ++i)
            EXPECT_NEAR(gradient[i], expected[name][i], 1e-13);
        }
        zero.after_update();
        zero.zero_gradients();
        const MemoryReport memory = context.pool(cpu)->report();
        EXPECT_EQ(memory.of(MemoryCategory::kParameter).current, zero.predicted_memory(0).parameters);
      }
    });
  }
}

// A unit that nobody uses has gradient 0 in every layout, and AdamW takes w to w·(1 − lr·decay) in each step.
// From the second step on nobody gathers it.
TEST(ZeroBehaviour, GivesUnusedParametersGradientZero) {
  const Path path = [](int, int) { return std::vector<std::int64_t>{0, 2, 3}; };
  expect_equal_on_all_placements(path);
  RankContext context({.seed = 3});
  const RankContext::Scope scope(context);
  const auto initial = [] {
    const DeviceScope on_meta(meta);
    return std::make_unique<Stack>();
  }();
  initial->to(kF64);
  initial->materialize();
  const double kept = std::pow(1.0 - kLearningRate * kDecay, kSteps);
  for (const ZeroPlacement& placement : {ZeroPlacement::stage(0), ZeroPlacement::stage(3)}) {
    for (const auto& [name, values] : train_stack(2, placement, path)) {
      const auto before = initial->find_parameter(name).to_vector<double>();
      double largest = 0.0;
      for (std::size_t j = 0; j < values.size(); ++j)
        largest = std::max(largest, std::abs(values[j] - before[j] * kept));
      if (name.starts_with("layers.1.")) {
        EXPECT_LE(largest, 1e-15) << name;  // kSteps roundings of values below 1
      } else {
        EXPECT_GT(largest, 1e-3) << name;
      }
    }
  }
}

// What a program puts in the place of a gradient between passes, or drops, is what is reduced; also of a unit
// that the last pass does not use.
TEST(ZeroBehaviour, ReducesGradientsThatWereReplacedOrDropped) {
  for (const ZeroPlacement& placement :
       {ZeroPlacement::stage(0), ZeroPlacement::stage(1), ZeroPlacement::stage(2)}) {
    run_thread_ranks(2, [&](Job& job) {
      const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
      Stack model;
      Zero zero(model, mesh, {.placement = placement, .keep_full_gradients = true});
      const Tensor x = ones({1, kWidth});
      for (const bool last : {false, true}) {
        const Tensor loss =
            sum(model(x, last ? std::vector<std::int64_t>{0} : std::vector<std::int64_t>{0, 1, 2}));
        zero.begin_backward(last);
        if (last) {
          Tensor replaced = model.find_parameter("layers.1.bias"),
                 dropped = model.find_parameter("layers.2.bias");
          replaced.set_grad(full({kWidth}, 10.0));
          dropped.set_grad({});
        }
        loss.backward();
        zero.end_backward();
      }
      zero.finish_gradients();
      for (const auto& [name, piece] : zero.pieces()) {
        for (const double g : piece.grad().to_vector<double>()) {
          if (name == "layers.1.bias") {
            EXPECT_DOUBLE_EQ(g, 20.0) << name;
          } else if (name == "layers.2.bias" || name.starts_with("layers.3")) {
            EXPECT_DOUBLE_EQ(g, 0.0) << name;
          } else if (name == "layers.0.bias" || name == "layers.2.weight") {
            EXPECT_NE(g, 0.0) << name;
          }
        }
      }
    });
  }
}

// --- Layouts on further axes -------------------------------------------------------------------------------

/// Three losses, of three parameters as they may lie on tp: `split` is cut (each rank has elements of its
/// own), `shared` is R (each rank has a part of its gradient), `same` is I (its gradient is whole on each).
class OnTp : public nn::Module {
 public:
  OnTp()
      : split(add_parameter("split", {3}, nn::Init::ones(), kF64)),
        shared(add_parameter("shared", {5}, nn::Init::ones(), kF64)),
        same(add_parameter("same", {2}, nn::Init::ones(), kF64)) {}
  std::array<Tensor, 3> operator()(const Tensor& factors) {
    return run_hooks(
        [this](const Tensor& f) {
          const double mine = f.at({0});
          return std::array<Tensor, 3>{sum(split * mine), sum(shared * mine), sum(same * f.at({1}))};
        },
        factors);
  }
  Tensor split, shared, same;
};

// dp=2, tp=2, rank r gives `split` and `shared` the gradient r + 1, `same` the gradient dp + 1. Sums:
//   split of tp t   over dp        (t + 1) + (t + 3)
//   shared          over dp and tp 1 + 2 + 3 + 4
//   same            over dp        1 + 2
TEST(ZeroBehaviour, DerivesFurtherSumsFromLayoutsAndCountsEveryElementOnce) {
  for (const ZeroPlacement& placement : kPlacements) {
    run_thread_ranks(4, [&](Job& job) {
      const Mesh mesh(MeshShape::parse("dp=2,tp=2"), job.shared_world());
      const DeviceScope on_meta(meta);
      OnTp model;
      model.split.set_layout(Layout().with(MeshAxis::kTp, AxisLayout::sharded(0)));
      model.shared.set_layout(Layout().with(MeshAxis::kTp, AxisLayout::replicated()));
      Zero zero(model, mesh, {.placement = placement});
      const int dp = mesh.index(MeshAxis::kDp), tp = mesh.index(MeshAxis::kTp);
      const double mine = 2.0 * dp + tp + 1.0;
      for (int pass = 0; pass < 2; ++pass) {
        const auto losses = model(from_vector<double>({mine, dp + 1.0}));
        // Each rank's losses are its own summands, those of replicated parameters too.
        const std::vector<Tensor> counted_once(losses.size(), ones({}, {.dtype = kF64, .device = cpu}));
        zero.begin_backward(pass == 1);
        backward(losses, counted_once);
        zero.end_backward();
      }
      zero.finish_gradients();

      const double of_split = 2.0 * (2.0 * tp + 4.0), of_shared = 2.0 * 10.0, of_same = 2.0 * 3.0;
      const std::vector<std::string> names{"split", "shared", "same"};
      std::vector<double> sums;
      for (const std::string& name : names) {
        const auto found =
            std::ranges::find_if(zero.pieces(), [&name](const auto& piece) { return piece.first == name; });
        const double expected = name == "split" ? of_split : name == "shared" ? of_shared : of_same;
        double sum = 0.0;
        for (const double g : found->second.grad().to_vector<double>()) {
          EXPECT_DOUBLE_EQ(g, expected) << name;
          sum += g;
        }
        sums.push_back(sum);
      }
      // 3 elements on each of two tp ranks, 5 and 2 that count once.
      const double squares = 3 * 64.0 + 3 * 144.0 + 5 * 400.0 + 2 * 36.0;
      EXPECT_DOUBLE_EQ(zero.global_grad_sum_of_squares(), squares);
      zero.exchange().sum_over_pieces(names, sums);
      EXPECT_DOUBLE_EQ(sums[0], 3 * 8.0 + 3 * 12.0);
      EXPECT_DOUBLE_EQ(sums[1], 5 * 20.0);
      EXPECT_DOUBLE_EQ(sums[2], 2 * 6.0);
      EXPECT_EQ(job.tape().total_sent_bytes("tp", Collective::kAllReduce) > 0, true);
    });
  }
}

TEST(ZeroBehaviour, RefusesAParameterThatIsAPartialSum) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("tp=2"), job.shared_world());
    OnTp model;
    model.shared.set_layout(Layout().with(MeshAxis::kTp, AxisLayout::partial()));
    EXPECT_THROW(Zero(model, mesh, {}), ConfigError);
  });
}

// --- Whole tensors -----------------------------------------------------------------------------------------

TEST(ZeroBehaviour, JoinsWholeTensorsOfPiecesAndCutsThemAgain) {
  for (const int num_ranks : {1, 3, 4}) {
    for (const ZeroPlacement& placement : kPlacements) {
      run_thread_ranks(num_ranks, [&](Job& job) {
        const Mesh mesh(MeshShape::parse(fmt::format("dp={}", num_ranks)), job.shared_world());
        const DeviceScope on_meta(meta);
        nn::Linear model(7, 5);
        Zero zero(model, mesh, options_of(placement, num_ranks));
        const Tensor original = zero.whole("weight");
        EXPECT_EQ(original.shape(), (Shape{5, 7}));
        std::int64_t held = 0;
        for (const auto& [name, piece] : zero.pieces()) {
          // A moment in another dtype than the parameter's.
          const Tensor whole = zero.whole(name, piece.detach().to(kF64));
          EXPECT_EQ(whole.dtype(), kF64);
          EXPECT_EQ(whole.to_vector<float>(), zero.whole(name).to_vector<float>()) << name;
          EXPECT_EQ(zero.piece(name, whole).to_vector<float>(), piece.to_vector<float>()) << name;
          EXPECT_EQ(zero.piece(name, whole).shape(), piece.shape()) << name;
          held += piece.num_elements();
        }
        EXPECT_LE(held, (40 + num_ranks - 1) / num_ranks * num_ranks);
        zero.load("weight", original.clone() * 2.0);
        const Tensor x = ones({1, 7}, {.device = cpu});
        const NoGrad no_grad;
        const Tensor expected = linear(x, original * 2.0, zero.whole("bias"));
        EXPECT_EQ(model(x).to_vector<float>(), expected.to_vector<float>());
        EXPECT_THROW(static_cast<void>(zero.whole("wieght")), IndexError);
        EXPECT_THROW(zero.load("weight", ones({7, 5}, {.device = cpu})), ShapeError);
        EXPECT_THROW(static_cast<void>(zero.whole("weight", ones({99}, {.device = cpu}))), ShapeError);
      });
    }
  }
}

// Values that were there before are kept, and initial values go through `fill`, one parameter at a time.
TEST(ZeroBehaviour, KeepsValuesThatAreThereAndFillsOthers) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
    nn::Linear loaded(3, 2);
    const std::vector<float> before = loaded.weight().to_vector<float>();
    Zero kept(loaded, mesh, {.placement = ZeroPlacement::stage(3)});
    EXPECT_EQ(kept.whole("weight").to_vector<float>(), before);

    const DeviceScope on_meta(meta);
    nn::Linear model(3, 2);
    std::vector<std::string> filled;
    Zero zero(model, mesh, {.placement = ZeroPlacement::stage(3)},
              [&filled](const nn::ParameterRecord& record, Tensor& local) {
                filled.push_back(record.name);
                local.fill(static_cast<double>(filled.size()));
              });
    EXPECT_EQ(filled, (std::vector<std::string>{"weight", "bias"}));
    EXPECT_EQ(zero.whole("weight").to_vector<float>(), std::vector<float>(6, 1.0f));
    EXPECT_EQ(zero.whole("bias").to_vector<float>(), std::vector<float>(2, 2.0f));
  });
}

// --- Misuse ------------------------------------------------------------------------------------------------

TEST(ZeroBehaviour, RefusesImpossiblePlacementsWithTheNearestThatWorks) {
  const MeshShape mesh = MeshShape::parse("dp=4");
  nn::Linear model(3, 2);
  const auto message_of = [&](const ZeroOptions& options) -> std::string {
    try {
      static_cast<void>(plan_zero(model, mesh, options));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THROW(static_cast<void>(ZeroPlacement::stage(4)), ConfigError);
  EXPECT_NE(
      message_of({.placement = {Spread::kAll, Spread::kWhole, Spread::kAll}}).find("nearest: all, all, all"),
      std::string::npos);
  EXPECT_NE(message_of({.placement = ZeroPlacement::mics(), .ranks_per_shard_group = 3}).find("4 data ranks"),
            std::string::npos);
  EXPECT_EQ(message_of({.placement = ZeroPlacement::mics(), .ranks_per_shard_group = 2}), "");
}

TEST(ZeroBehaviour, RefusesCallsInAnotherOrder) {
  for (const int stage : {0, 2, 3}) {
    run_thread_ranks(2, [stage](Job& job) {
      const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
      nn::Sequential model;
      model.add<nn::Linear>(3, 2);
      model.add<nn::Linear>(2, 2);
      Zero zero(model, mesh, {.placement = ZeroPlacement::stage(stage)});
      const Tensor x = ones({4, 3});
      EXPECT_THROW(zero.end_backward(), AutogradError);
      EXPECT_THROW(zero.finish_gradients(), AutogradError);
      EXPECT_THROW(sum(model(x)).backward(), AutogradError) << "not announced";
      zero.zero_gradients();
      const Tensor loss = sum(model(x));
      zero.begin_backward(true);
      EXPECT_THROW(zero.begin_backward(true), AutogradError);
      EXPECT_THROW(zero.after_update(), AutogradError);
      loss.backward();
      zero.end_backward();
      EXPECT_THROW(zero.begin_backward(false), AutogradError) << "finish_gradients() is missing";
      zero.finish_gradients();
      const std::vector<float> once = zero.pieces().back().second.grad().to_vector<float>();
      // The next step begins from zero, called zero_gradients() or not.
      const Tensor again = sum(model(x));
      zero.begin_backward(true);
      again.backward();
      zero.end_backward();
      zero.finish_gradients();
      EXPECT_EQ(zero.pieces().back().second.grad().to_vector<float>(), once);
      model.find_parameter("0.weight").set_requires_grad(false);
      EXPECT_THROW(zero.begin_backward(true), ConfigError) << "frozen too late";
    });
  }
}

TEST(ZeroBehaviour, RefusesAForwardPassWithinABackwardPassAndASecondBackwardPass) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
    nn::Sequential model;
    model.add<nn::Linear>(3, 2);
    Zero zero(model, mesh, {.placement = ZeroPlacement::stage(3)});
    const Tensor loss = sum(model(ones({4, 3}))), other = sum(model(ones({4, 3})));
    zero.begin_backward(true);
    EXPECT_THROW(static_cast<void>(model(ones({4, 3}))), AutogradError);
    loss.backward();
    EXPECT_THROW(other.backward(), AutogradError);
    zero.zero_gradients();
  });
}

// An exception on all ranks in the middle of a pass leaves a model that trains on.
TEST(ZeroBehaviour, GoesOnAfterAStepThatAnExceptionEnded) {
  for (const int stage : {0, 2, 3}) {
    run_thread_ranks(2, [stage](Job& job) {
      const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
      RankContext::current().seed = 9;
      nn::Sequential model;
      model.add<nn::Linear>(3, 4);
      nn::Linear& second = model.add<nn::Linear>(4, 2);
      model.add<nn::Linear>(2, 2);
      Zero zero(model, mesh, {.placement = ZeroPlacement::stage(stage)});
      bool forward_fails = false, backward_fails = false;
      second.add_forward_pre_hook([&](nn::Module&, std::span<Tensor>) {
        if (forward_fails) throw DataError("no forward");
      });
      second.add_backward_hook([&](nn::Module&, std::span<const Tensor>) {
        if (backward_fails) throw DataError("no backward");
      });
      const auto gradients = [&] {
        const Tensor loss = sum(model(ones({4, 3})));
        zero.begin_backward(true);
        loss.backward();
        zero.end_backward();
        zero.finish_gradients();
        std::vector<std::vector<float>> values;
        for (const auto& [name, piece] : zero.pieces()) values.push_back(piece.grad().to_vector<float>());
        zero.after_update();
        zero.zero_gradients();
        return values;
      };
      const auto expected = gradients();
      const MemoryPool& pool = *RankContext::current().pool(cpu);
      const std::int64_t parameters = pool.report().of(MemoryCategory::kParameter).current;
      const std::int64_t of_gradients = pool.report().of(MemoryCategory::kGradient).current;
      forward_fails = true;
      EXPECT_THROW(gradients(), DataError);
      forward_fails = false;
      EXPECT_EQ(gradients(), expected);
      backward_fails = true;
      EXPECT_THROW(gradients(), DataError);
      backward_fails = false;
      zero.zero_gradients();
      EXPECT_EQ(gradients(), expected);
      EXPECT_EQ(pool.report().of(MemoryCategory::kParameter).current, parameters);
      EXPECT_EQ(pool.report().of(MemoryCategory::kGradient).current, of_gradients);
    });
  }
}

// What was gathered and is gone says so, with its name and what to do.
TEST(ZeroBehaviour, NamesAParameterThatIsUsedOutsideOfItsUnit) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2"), job.shared_world());
    nn::Linear model(3, 2);
    const Zero zero(model, mesh, {.placement = ZeroPlacement::stage(3)});
    try {
      static_cast<void>(model.weight().to_vector<float>());
      ADD_FAILURE() << "read a parameter that is not there";
    } catch (const StorageError& error) {
      EXPECT_NE(std::string(error.what()).find("weight"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("ZeRO"), std::string::npos) << error.what();
    }
  });
}

}  // namespace
}  // namespace tessera::dist::testing
