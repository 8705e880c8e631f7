// Adam's state in 16-bit numbers beside its state in f32: the same masters, moments that are rounded at
// random, half the bytes, and runs that go from the one to the other.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"
#include "tests/largest_difference.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

using Doubles = std::vector<double>;

Tensor named(const NamedTensors& tensors, const std::string& name) {
  for (const auto& [other, tensor] : tensors) {
    if (other == name) return tensor;
  }
  ADD_FAILURE() << "there is no " << name;
  return {};
}

AdamConfig with_state(DType state, double lr = 1e-3) { return {.lr = lr, .state_dtype = state}; }

// Values and gradients of many sizes; not dyadic, so that every rounding has something to do.
Doubles uneven(int n, double scale, int turn) {
  Doubles values;
  for (int i = 0; i < n; ++i) values.push_back(scale * std::sin(1.0 + 1.7 * i + 0.9 * turn));
  return values;
}

constexpr int kCount = 300;

struct Trained {
  explicit Trained(DType state, double lr = 1e-3)
      : p(parameter(uneven(kCount, 1.0, 0), kBF16)), optimizer({{"p", p}}, with_state(state, lr)) {}
  void step(int turn) {
    give_grad(p, uneven(kCount, 0.1, turn + 1));
    optimizer.step();
  }
  [[nodiscard]] Doubles master() { return named(optimizer.state(), "p/master").to_vector<double>(); }

  Tensor p;
  AdamW optimizer;
};

// The first step finds both moments 0, so it is the same to the bit; after it moments differ, and masters
// still hold each step in full.
TEST(Bf16State, MastersAreTheF32Masters) {
  Trained full(kF32), half(kBF16);
  EXPECT_EQ(full.master(), half.master());
  full.step(0), half.step(0);
  EXPECT_EQ(full.master(), half.master());
  EXPECT_EQ(full.p.to_vector<double>(), half.p.to_vector<double>());
}

// Steps of Adam are about lr long whatever the gradient is: 300 of 2⁻¹⁵ are far below bf16's spacing of 2⁻⁷
// above 1, and none may be lost. With a constant gradient m̂/√v̂ is 1 in exact arithmetic: a rounding of m,
// of at most 2⁻⁸ to 2⁻⁷, is forgotten at the rate of β₁, and one of v at that of β₂, so the sum of all steps
// is off by a few parts in a thousand; 2 % are allowed.
TEST(Bf16State, StepsBelowTheResolutionAddUp) {
  Tensor p = parameter({1.0, 2.0, -1.5}, kBF16);
  AdamW optimizer({{"p", p}}, {.lr = 1.0 / 32768, .weight_decay = 0.0, .state_dtype = kBF16});
  for (int step = 0; step < 300; ++step) {
    give_grad(p, {0.3, -0.7, 1e-4});
    optimizer.step();
    const Tensor master = named(optimizer.state(), "p/master");
    EXPECT_LE(largest_difference(master, p), 1.0 / 128);  // half a spacing between 2 and 4
  }
  const Doubles masters = named(optimizer.state(), "p/master").to_vector<double>();
  const double way = 300.0 / 32768;
  EXPECT_NEAR(masters[0], 1.0 - way, 0.02 * way);
  EXPECT_NEAR(masters[1], 2.0 + way, 0.02 * way);
  EXPECT_NEAR(masters[2], -1.5 - way, 0.02 * way);
}

TEST(Bf16State, TakesWeightsThatWereLoadedBeforeTheFirstStepOrAfterAReset) {
  Trained run(kBF16);
  const auto load_then_step = [&](double value) {
    {
      const NoGrad no_grad;
      run.p.fill(value);
    }
    run.step(0);
    for (const double master : run.master()) EXPECT_NEAR(master, value, 2e-2);
  };
  load_then_step(5.0);
  const Doubles before = run.master();
  EXPECT_NE(before, named({{"p", run.p}}, "p").to_vector<double>()) << "there are low halves to forget";
  run.optimizer.reset_masters();
  EXPECT_EQ(run.master(), run.p.to_vector<double>());
  load_then_step(9.0);
}

TEST(Bf16State, HasSixBytesAnElementOnAnyDevice) {
  for (const Device device : {cpu, meta}) {
    RankContext context;
    const RankContext::Scope scope(context);
    Tensor a = zeros({30, 40}, {.dtype = kBF16, .device = device}),
           b = zeros({}, {.dtype = kBF16, .device = device});
    a.set_requires_grad();
    b.set_requires_grad();
    AdamW optimizer({{"a", a}, {"b", b}}, with_state(kBF16));
    const auto state_bytes = [&] {
      return context.pool(device)->report().of(MemoryCategory::kOptimizerState).current;
    };
    EXPECT_EQ(state_bytes(), 6 * 1201);
    a.set_grad(zeros({30, 40}, {.dtype = kF32, .device = device}));
    optimizer.step();
    static_cast<void>(optimizer.state());
    EXPECT_EQ(state_bytes(), 6 * 1201);
  }
}

TEST(Bf16State, IsRefusedWhereThereIsNoSuchState) {
  for (const DType dtype : {kF64, kF32, kF16}) {
    const NamedTensors parameters{{"q", parameter({1.0}, kBF16)}, {"p", parameter({1.0}, dtype)}};
    expect_error<DTypeError>(
        [&] { const AdamW optimizer(parameters, with_state(kBF16)); },
        {"AdamW: state_dtype bf16", "p is " + std::string(name(dtype)), "leave state_dtype out"});
  }
  expect_error<ConfigError>(
      [] {
        const Adam optimizer({{"p", parameter({1.0}, kBF16)}}, with_state(kF16));
      },
      {"Adam: state_dtype must be f32", "f16"});
}

// --- Checkpoints

NamedTensors copies(const NamedTensors& state) {
  NamedTensors copies;
  for (const auto& [name, tensor] : state) copies.emplace_back(name, tensor.clone());
  return copies;
}

TEST(Bf16State, SavedAndContinuedIsTheRunThatWasNotInterrupted) {
  Trained first(kBF16), second(kBF16), alone(kBF16);
  for (int t = 0; t < 5; ++t) first.step(t), alone.step(t);
  {
    const NoGrad no_grad;
    second.p.copy_from(first.p);
  }
  second.optimizer.load_state(copies(first.optimizer.state()));
  for (int t = 5; t < 10; ++t) second.step(t), alone.step(t);
  for (const auto& [name, tensor] : alone.optimizer.state())
    EXPECT_EQ(tensor.to_vector<double>(), named(second.optimizer.state(), name).to_vector<double>()) << name;
  EXPECT_EQ(alone.p.to_vector<double>(), second.p.to_vector<double>());
}

// Masters go over as they are, moments by rounding to the nearest (2⁻⁸) one way and exactly the other way.
TEST(Bf16State, ConvertsToAndFromF32State) {
  Trained full(kF32), half(kBF16), back(kF32);
  for (int t = 0; t < 5; ++t) full.step(t);
  half.optimizer.load_state(copies(full.optimizer.state()));
  back.optimizer.load_state(copies(half.optimizer.state()));
  EXPECT_EQ(half.master(), full.master());
  EXPECT_EQ(back.master(), full.master());
  EXPECT_EQ(half.p.to_vector<double>(), full.p.to_vector<double>()) << "no master is half-way";
  for (const char* moment : {"p/moment1", "p/moment2"}) {
    const Tensor exact = named(full.optimizer.state(), moment), kept = named(half.optimizer.state(), moment);
    EXPECT_EQ(kept.dtype(), kBF16);
    EXPECT_EQ(kept.to_vector<double>(), exact.to(kBF16).to_vector<double>());
    EXPECT_EQ(named(back.optimizer.state(), moment).to_vector<double>(), kept.to_vector<double>());
  }
  EXPECT_EQ(named(back.optimizer.state(), "p/step").item<std::int64_t>(), 5);
}

// 1 + 2⁻⁸ lies half-way between 1 and 1 + 2⁻⁷: an f32 state has 1 as its weight, the even one, and a bf16
// state needs the other to have the same master. 1 + 3·2⁻⁸ goes up either way.
TEST(Bf16State, SetsTheWeightOfAMasterThatIsHalfWay) {
  const Doubles masters{1 + 1.0 / 256, -1 - 1.0 / 256, 1 + 3.0 / 256};
  const Doubles away{1 + 1.0 / 128, -1 - 1.0 / 128, 1 + 1.0 / 64}, even{1.0, -1.0, 1 + 1.0 / 64};
  Tensor p = parameter(even, kBF16);
  AdamW optimizer({{"p", p}}, with_state(kBF16));
  NamedTensors state = copies(optimizer.state());
  const Tensor master = from_vector<double>(masters).to(kF32);
  for (auto& [name, tensor] : state) {
    if (name == "p/master") tensor = master;
  }
  optimizer.load_state(state);
  EXPECT_EQ(named(optimizer.state(), "p/master").to_vector<double>(), masters);
  EXPECT_EQ(p.to_vector<double>(), away);
  EXPECT_EQ(bf16_weight_of(master).to_vector<double>(), away);
  EXPECT_EQ(master.to(kBF16).to_vector<double>(), even);
}

// --- Training

struct Losses {
  Doubles values;
  [[nodiscard]] double way() const { return values.front() - values.back(); }
};

// Everything that is learnt is in 80 sequences, of which a step sees 8.
Losses train_gpt2(DType dtype, DType state, int steps) {
  RankContext context;  // so that all runs begin with equal weights
  const RankContext::Scope scope(context);
  const auto model = nn::make_language_model("layers=2,heads=2,width=32,context=16", 50);
  model->to(kBF16);  // also where the run is in f64: from the same weights
  model->to(dtype);
  AdamW optimizer(model->named_parameters(),
                  {.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1, .state_dtype = state},
                  no_decay_for_biases_and_norms());
  Losses losses;
  for (int step = 0; step < steps; ++step) {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < 8; ++i) {
      const std::int64_t sequence = (step * 8 + i) % 80;
      for (std::int64_t t = 0; t < 17; ++t)
        ids.push_back((sequence * sequence + 3 * t * (sequence % 7 + 1)) % 50);
    }
    const Tensor all = from_vector(ids, Shape{8, 17});
    const Tensor loss = model->loss(all.slice(1, 0, 16), all.slice(1, 1, 17));
    losses.values.push_back(loss.item());
    loss.backward();
    optimizer.step();
    model->zero_grad();
  }
  return losses;
}

// Mean distance of two curves over steps, of the way that the first went down.
double distance(const Losses& a, const Losses& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += std::abs(a.values[i] - b.values[i]);
  return sum / static_cast<double>(a.values.size()) / a.way();
}

// A step is m̂ / √v̂. A rounding moves m or v by at most 2⁻⁷, evenly to both sides, with a standard
// deviation of half of it at most; the state remembers those of 1/(1 − β²) steps, so m is off by 2⁻⁸/√(1 −
// 0.9²) = 0.9 % and v by 2⁻⁸/√(1 − 0.95²) = 1.25 %, √v by half of that: a step of an element is off by 1.1
// %. Elements are off each by itself, and a loss goes down by a sum over 28,000 of them. If no more than a
// hundred had all the say, it would be off by a tenth of that, 0.11 % of the way down: so far may the curve
// be from that with f32 state, and from f64 by so much more than that with f32 state is.
TEST(Bf16State, Gpt2LearnsAsWithF32State) {
  constexpr int kSteps = 200;
  constexpr double kBound = 0.0011;
  const Losses exact = train_gpt2(kF64, kF32, kSteps);
  const Losses full = train_gpt2(kBF16, kF32, kSteps), half = train_gpt2(kBF16, kBF16, kSteps);
  EXPECT_GT(exact.way(), 1.5) << "the task must teach something";
  EXPECT_EQ(full.values[1], half.values[1]) << "the first step is the same";
  EXPECT_NE(full.values, half.values);
  RecordProperty("f32_from_f64", std::to_string(distance(exact, full)));
  RecordProperty("bf16_from_f64", std::to_string(distance(exact, half)));
  RecordProperty("bf16_from_f32", std::to_string(distance(full, half)));
  EXPECT_LE(distance(full, half), kBound);
  EXPECT_LE(distance(exact, half), distance(exact, full) + kBound);
  EXPECT_NEAR(half.way(), full.way(), kBound * full.way());
}

}  // namespace
}  // namespace tessera::optim
