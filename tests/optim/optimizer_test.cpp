#include <gtest/gtest.h>

#include <cmath>

#include "kernels/error.h"
#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/lamb.h"
#include "optim/lion.h"
#include "optim/sgd.h"
#include "tensor/context.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

using Doubles = std::vector<double>;

void expect_near(const Tensor& x, const Doubles& expected, double tolerance, const char* what) {
  const Doubles got = x.to_vector<double>();
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    EXPECT_NEAR(got[i], expected[i], tolerance) << what << " element " << i;
}

// --- Numbers by hand

// lr 0.1, g = 1, 2, 3: 1 − 0.1 = 0.9, − 0.2 = 0.7, − 0.3 = 0.4.
TEST(Sgd, ThreeStepsByHand) {
  Tensor p = parameter({1.0});
  Sgd optimizer({p}, {.lr = 0.1});
  for (const double g : {1.0, 2.0, 3.0}) {
    give_grad(p, {g});
    optimizer.step();
  }
  EXPECT_NEAR(p.item(), 0.4, 1e-15);
}

// momentum 0.5: u = 1; 0.5 + 2 = 2.5; 1.25 + 3 = 4.25.  p = 1 − 0.1 = 0.9, 0.65, 0.225.
TEST(Sgd, ThreeStepsWithMomentumByHand) {
  Tensor p = parameter({1.0});
  Sgd optimizer({p}, {.lr = 0.1, .momentum = 0.5});
  for (const double g : {1.0, 2.0, 3.0}) {
    give_grad(p, {g});
    optimizer.step();
  }
  EXPECT_NEAR(p.item(), 0.225, 1e-15);
}

// Nesterov adds g + 0.5 u: 1.5; 2 + 1.25 = 3.25; 3 + 2.125 = 5.125.  p = 0.85, 0.525, 0.0125.
TEST(Sgd, ThreeNesterovStepsByHand) {
  Tensor p = parameter({1.0});
  Sgd optimizer({p}, {.lr = 0.1, .momentum = 0.5, .nesterov = true});
  for (const double g : {1.0, 2.0, 3.0}) {
    give_grad(p, {g});
    optimizer.step();
  }
  EXPECT_NEAR(p.item(), 0.0125, 1e-15);
}

// β₁ = β₂ = 0.5, ε = 0, lr 0.1, g = 1, 2, 2:
//   m 0.5, 1.25, 1.625   m̂ = m / (0.5, 0.75, 0.875) = 1, 5/3, 13/7
//   v 0.5, 2.25, 3.125   v̂ = v / (0.5, 0.75, 0.875) = 1, 3, 25/7
//   p = 1 − 0.1 (1 + (5/3)/√3 + (13/7)/√(25/7))
TEST(Adam, ThreeStepsByHand) {
  Tensor p = parameter({1.0});
  Adam optimizer({p}, {.lr = 0.1, .beta1 = 0.5, .beta2 = 0.5, .epsilon = 0.0});
  for (const double g : {1.0, 2.0, 2.0}) {
    give_grad(p, {g});
    optimizer.step();
  }
  const double sum = 1.0 + 5.0 / 3.0 / std::sqrt(3.0) + 13.0 / 7.0 / std::sqrt(25.0 / 7.0);
  EXPECT_NEAR(p.item(), 1.0 - 0.1 * sum, 1e-15);
}

// A constant gradient moves by lr · sign in each step, and decay shrinks by (1 − lr · 0.5) = 0.95 before it:
//   2 · 0.95 − 0.1 = 1.8;  1.8 · 0.95 − 0.1 = 1.61;  1.61 · 0.95 − 0.1 = 1.4295
TEST(AdamW, DecaysTheParameterAndNotTheGradient) {
  Tensor p = parameter({2.0});
  AdamW optimizer({p}, {.lr = 0.1, .epsilon = 0.0, .weight_decay = 0.5});
  for (int t = 0; t < 3; ++t) {
    give_grad(p, {3.0});
    optimizer.step();
  }
  EXPECT_NEAR(p.item(), 1.4295, 1e-14);
}

// --- Closed forms

// f(p) = a p² / 2 with gradient a p: p_t = (1 − lr a)^t p_0.
TEST(Sgd, FollowsTheClosedFormOnAQuadratic) {
  const Doubles curvature{0.5, 1.0, 3.0}, start{1.0, -2.0, 4.0};
  Tensor p = parameter(start);
  Sgd optimizer({p}, {.lr = 0.25});
  for (int t = 0; t < 30; ++t) {
    Doubles g = p.to_vector<double>();
    for (std::size_t i = 0; i < g.size(); ++i) g[i] *= curvature[i];
    give_grad(p, g);
    optimizer.step();
  }
  Doubles expected;
  for (std::size_t i = 0; i < start.size(); ++i)
    expected.push_back(std::pow(1.0 - 0.25 * curvature[i], 30) * start[i]);
  expect_near(p, expected, 1e-14, "quadratic");
}

// On the same quadratic, momentum μ gives p_{t+1} = (1 + μ − lr a) p_t − μ p_{t−1}; for lr a = (1 − √μ)² both
// roots are √μ, and from p_0 = 1 without velocity: p_t = (1 + t (1 − √μ)) √μ^t.
TEST(Sgd, MomentumFollowsTheCriticallyDampedClosedForm) {
  const double root = 0.8;
  Tensor p = parameter({1.0});
  Sgd optimizer({p}, {.lr = (1.0 - root) * (1.0 - root), .momentum = root * root});
  for (int t = 1; t <= 25; ++t) {
    give_grad(p, {p.item()});
    optimizer.step();
    EXPECT_NEAR(p.item(), (1.0 + t * (1.0 - root)) * std::pow(root, t), 1e-14) << "step " << t;
  }
}

// --- Gradients

TEST(Optimizer, AParameterWithoutGradientIsSkippedAndItsStepCountWaits) {
  Tensor a = parameter({1.0}), b = parameter({1.0});
  Adam optimizer({{"a", a}, {"b", b}}, {.lr = 0.1, .epsilon = 0.0});
  for (int t = 0; t < 3; ++t) {
    give_grad(a, {1.0});
    optimizer.step();
  }
  EXPECT_EQ(b.item(), 1.0);
  // Were b at step 4, the bias correction would be too small for its first moment, and the step shorter than
  // lr.
  give_grad(a, {1.0});
  give_grad(b, {5.0});
  optimizer.step();
  EXPECT_NEAR(b.item(), 0.9, 1e-15);
  EXPECT_NEAR(a.item(), 0.6, 1e-14);
}

TEST(Optimizer, GradScaleIsTheSameAsScaledGradients) {
  for (const DType dtype : {kF64, kF32}) {
    Tensor a = parameter(start_values(33), dtype), b = parameter(start_values(33), dtype);
    AdamW optimizer_a({a}, {.lr = 0.1}), optimizer_b({b}, {.lr = 0.1});
    for (int t = 0; t < 5; ++t) {
      Doubles halved = grad_values(33, t);
      give_grad(a, halved);
      for (double& g : halved) g *= 0.25;
      give_grad(b, halved);
      optimizer_a.step({.grad_scale = 0.25});  // a power of two: bitwise
      optimizer_b.step();
    }
    EXPECT_EQ(a.to_vector<double>(), b.to_vector<double>());
  }
}

TEST(Optimizer, AcceptsStridedGradients) {
  Tensor p = parameter({1, 2, 3, 4, 5, 6}).reshape({2, 3}).detach().clone();
  p.set_requires_grad();
  p.set_grad(from_vector<double>({1, 4, 2, 5, 3, 6}, Shape{3, 2}).transpose(0, 1));
  Sgd optimizer({p}, {.lr = 1.0});
  optimizer.step();
  EXPECT_EQ(p.to_vector<double>(), Doubles(6, 0.0));
}

TEST(Optimizer, ZeroGradDropsOrKeepsBuffers) {
  Tensor p = parameter({1.0, 2.0});
  Sgd optimizer({p}, {});
  give_grad(p, {3.0, 4.0});
  const Tensor buffer = p.grad();
  optimizer.zero_grad(ZeroGrad::kKeep);
  EXPECT_TRUE(p.grad().is_same(buffer));
  EXPECT_EQ(buffer.to_vector<double>(), (Doubles{0.0, 0.0}));
  optimizer.zero_grad();
  EXPECT_FALSE(p.grad().defined());
}

TEST(Optimizer, ZeroGradKeepsGradientsThatShareABucket) {
  Tensor a = parameter({1.0, 2.0}), b = parameter({3.0});
  const Tensor bucket = from_vector<double>({1.0, 2.0, 3.0});
  a.set_grad(bucket.slice(0, 0, 2));
  b.set_grad(bucket.slice(0, 2, 3));
  Sgd optimizer({a, b}, {});
  optimizer.zero_grad(ZeroGrad::kDrop);
  ASSERT_TRUE(a.grad().defined() && b.grad().defined());
  EXPECT_EQ(a.grad().storage(), bucket.storage());
  EXPECT_EQ(bucket.to_vector<double>(), (Doubles{0.0, 0.0, 0.0}));
}

TEST(Optimizer, StepCountsAsAChangeInPlace) {
  Tensor p = parameter({1.0});
  Sgd optimizer({p}, {});
  give_grad(p, {1.0});
  const std::uint64_t before = p.storage().version();
  optimizer.step();
  EXPECT_GT(p.storage().version(), before);
  EXPECT_TRUE(RankContext::current().grad_enabled);
}

TEST(Optimizer, ATensorUnderTwoNamesIsUpdatedOnce) {
  Tensor tied = parameter({1.0});
  Sgd optimizer({{"wte.weight", tied}, {"lm_head.weight", tied}}, {.lr = 0.5});
  give_grad(tied, {1.0});
  optimizer.step();
  EXPECT_EQ(tied.item(), 0.5);
  EXPECT_EQ(optimizer.parameters().size(), 1u);
}

TEST(Optimizer, EmptyParametersAreAllowed) {
  Tensor p = parameter({});
  AdamW optimizer({p}, {});
  give_grad(p, {});
  optimizer.step();
  EXPECT_EQ(p.num_elements(), 0);
}

// --- 16-bit parameters

// The master follows the f32 run bit by bit (the same gradients), and the parameter is its rounding: nothing
// is lost to steps smaller than bf16's spacing of 2⁻⁸ around 1, which steps of 2⁻¹² all are.
TEST(Optimizer, SixteenBitParametersFollowTheF32RunThroughTheirMasters) {
  for (const DType dtype : {kBF16, kF16}) {
    Tensor exact = parameter(start_values(37), kF32), low = parameter(start_values(37), dtype);
    const AdamConfig config{.lr = 1.0 / 4096, .weight_decay = 0.1};
    AdamW exact_optimizer({{"p", exact}}, config), low_optimizer({{"p", low}}, config);
    for (int t = 0; t < 40; ++t) {
      give_grad(exact, grad_values(37, t));
      give_grad(low, grad_values(37, t));
      exact_optimizer.step();
      low_optimizer.step();
      EXPECT_EQ(low.to_vector<float>(), exact.to(dtype).to_vector<float>()) << name(dtype) << " step " << t;
    }
    for (const auto& [key, value] : low_optimizer.state()) {
      if (key == "p/master") {
        EXPECT_EQ(value.to_vector<float>(), exact.to_vector<float>()) << name(dtype);
      }
    }
    EXPECT_NE(low.to_vector<double>(), start_values(37));
  }
}

TEST(Optimizer, TakesGradientsOfAnyFloatingType) {
  Tensor p = parameter({1.0, -2.0}, kF32);
  Sgd optimizer({p}, {.lr = 0.5});
  for (const DType dtype : {kBF16, kF16, kF32, kF64}) {
    p.set_grad(from_vector<double>({0.5, 1.0}).to(dtype));
    optimizer.step();
  }
  EXPECT_EQ(p.to_vector<double>(), (Doubles{0.0, -4.0}));
}

TEST(Optimizer, MastersTakeWeightsThatWereLoadedBeforeTheFirstStepOrAfterAReset) {
  Tensor p = parameter({1.0}, kBF16);
  Sgd optimizer({p}, {.lr = 1.0});
  const auto load_then_step = [&](double value) {
    {
      const NoGrad no_grad;
      p.fill(value);
    }
    give_grad(p, {1.0});
    optimizer.step();
  };
  load_then_step(5.0);
  EXPECT_EQ(p.item(), 4.0);
  optimizer.reset_masters();
  load_then_step(9.0);
  EXPECT_EQ(p.item(), 8.0);
}

TEST(Optimizer, StateIsCountedAsOptimizerStateFromTheStart) {
  RankContext context;
  const RankContext::Scope scope(context);
  Tensor a = parameter(Doubles(100, 1.0), kF32), b = parameter(Doubles(10, 1.0), kBF16),
         c = parameter({1.0}, kF64);
  const auto state_bytes = [&] {
    return context.pool(cpu)->report().of(MemoryCategory::kOptimizerState).current;
  };
  const AdamW optimizer({a, b, c}, {});
  EXPECT_EQ(state_bytes(), 100 * 8 + 10 * 12 + 16);
  {
    const Sgd plain({a}, {});
    EXPECT_EQ(state_bytes(), 100 * 8 + 10 * 12 + 16);
    const Sgd with_momentum({a}, {.momentum = 0.9});
    EXPECT_EQ(state_bytes(), 100 * 8 + 10 * 12 + 16 + 100 * 4);
  }
}

// --- Groups

TEST(ParameterGroups, PatternsMatchWholeNames) {
  const struct {
    const char *pattern, *name;
    bool expected;
  } cases[] = {
      {"*.bias", "h.0.attn.bias", true},
      {"*.bias", "bias", false},
      {"*.bias", "h.0.bias.weight", false},
      {"bias", "bias", true},
      {"*", "", true},
      {"", "", true},
      {"", "a", false},
      {"?", "a", true},
      {"?", "", false},
      {"h.?.ln*", "h.3.ln_1.weight", true},
      {"h.?.ln*", "h.13.ln_1.weight", false},
      {"*a*b*c", "xxaxbxbxc", true},
      {"*a*b*c", "xxaxcxb", false},
      {"*aab", "aaaab", true},
      {"a**b", "ab", true},
  };
  for (const auto& c : cases)
    EXPECT_EQ(matches(c.pattern, c.name), c.expected) << c.pattern << " on " << c.name;
}

TEST(ParameterGroups, TheFirstOfOverlappingGroupsWins) {
  const std::vector<ParameterGroup> groups{
      {.patterns = {"h.0.*"}}, {.patterns = {"*.bias", "*ln*"}}, {.patterns = {"*"}}};
  EXPECT_EQ(group_index(groups, "h.0.attn.bias"), 0u);
  EXPECT_EQ(group_index(groups, "h.1.attn.bias"), 1u);
  EXPECT_EQ(group_index(groups, "h.1.ln_1.weight"), 1u);
  EXPECT_EQ(group_index(groups, "h.1.attn.weight"), 2u);
  EXPECT_EQ(group_index(std::span(groups).first(2), "h.1.attn.weight"), kNoGroup);
}

TEST(ParameterGroups, BiasesAndNormsAreNotDecayedAndMatricesAre) {
  const std::vector<ParameterGroup> groups = no_decay_for_biases_and_norms();
  for (const char* name :
       {"h.0.ln_1.weight", "ln_f.bias", "h.11.attn.c_attn.bias", "layers.0.input_layernorm.weight",
        "layers.3.post_attention_layernorm.weight", "norm.weight", "h.0.norm_1.gain", "bias"}) {
    EXPECT_EQ(group_index(groups, name), 0u) << name;
  }
  for (const char* name :
       {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "lm_head.weight",
        "layers.0.self_attn.q_proj.weight", "kiln_feed.weight", "unbiased.weight"}) {
    EXPECT_EQ(group_index(groups, name), kNoGroup) << name;
  }
}

// Two groups and the rest: lr 1 · 0.5, own decay, own momentum.
TEST(ParameterGroups, EachHasItsOwnSettings) {
  Tensor a = parameter({1.0}), b = parameter({1.0}), c = parameter({1.0});
  Sgd optimizer({{"a.weight", a}, {"a.bias", b}, {"c.weight", c}}, {.lr = 0.1, .weight_decay = 0.5},
                {{.patterns = {"*.bias"}, .weight_decay = 0.0}, {.patterns = {"a.*"}, .lr_scale = 0.5}});
  for (Tensor* p : {&a, &b, &c}) give_grad(*p, {1.0});
  optimizer.step();
  EXPECT_NEAR(a.item(), 1.0 - 0.05 * 1.5, 1e-15);
  EXPECT_NEAR(b.item(), 1.0 - 0.1, 1e-15);
  EXPECT_NEAR(c.item(), 1.0 - 0.1 * 1.5, 1e-15);
  EXPECT_EQ(optimizer.group_of("a.bias"), 0u);
  EXPECT_EQ(optimizer.group_of("a.weight"), 1u);
  EXPECT_EQ(optimizer.group_of("c.weight"), kNoGroup);
  EXPECT_NE(optimizer.describe().find("*.bias: 1 parameters, 1 elements"), std::string::npos)
      << optimizer.describe();
}

TEST(ParameterGroups, BetasBelongToTheGroup) {
  Tensor a = parameter({1.0}), b = parameter({1.0});
  Adam optimizer({{"a", a}, {"b", b}}, {.lr = 0.1},
                 {{.patterns = {"b"}, .beta1 = 0.5, .beta2 = 0.5, .epsilon = 0.0}});
  for (const double g : {1.0, 2.0, 2.0}) {  // Adam.ThreeStepsByHand
    give_grad(a, {g});
    give_grad(b, {g});
    optimizer.step();
  }
  const double sum = 1.0 + 5.0 / 3.0 / std::sqrt(3.0) + 13.0 / 7.0 / std::sqrt(25.0 / 7.0);
  EXPECT_NEAR(b.item(), 1.0 - 0.1 * sum, 1e-15);
  EXPECT_GT(std::abs(a.item() - b.item()), 1e-4);
}

TEST(Sgd, SetMomentumReachesTheNextStep) {
  Tensor p = parameter({0.0});
  Sgd optimizer({p}, {.lr = 1.0, .momentum = 0.5});
  give_grad(p, {1.0});
  optimizer.step();  // u = 1, p = −1
  optimizer.set_momentum(0.25);
  optimizer.step();  // u = 0.25 + 1, p = −2.25
  EXPECT_EQ(p.item(), -2.25);
}

// --- Mistakes

TEST(Optimizer, MistakesAreRefused) {
  Tensor p = parameter({1.0});
  EXPECT_THROW(AdamW({p}, {.lr = -1.0}), ConfigError);
  EXPECT_THROW(AdamW({p}, {.beta1 = 1.0}), ConfigError);
  EXPECT_THROW(AdamW({p}, {.weight_decay = -0.1}), ConfigError);
  EXPECT_THROW(AdamW({{"p", p}}, {}, {{.patterns = {"*"}, .momentum = 0.9}}), ConfigError);
  EXPECT_THROW(Sgd({{"p", p}}, {}, {{.patterns = {"*"}, .beta1 = 0.9}}), ConfigError);
  EXPECT_THROW(Sgd({p}, {.nesterov = true}), ConfigError);
  EXPECT_THROW(Sgd({p}, {.momentum = 0.9, .dampening = 0.1, .nesterov = true}), ConfigError);
  EXPECT_THROW(Sgd({p}, {}).set_momentum(0.9), ConfigError);
  EXPECT_THROW(Sgd({{"p", p}, {"p", parameter({2.0})}}, {}), ConfigError);
  EXPECT_THROW(Sgd({arange(0, 3)}, {}), DTypeError);
  EXPECT_THROW(Sgd({zeros({2, 3}).transpose(0, 1)}, {}), ShapeError);
  EXPECT_THROW((void)Sgd({p}, {}).group_of("q"), IndexError);
}

TEST(Optimizer, AScaleThatIsNotFiniteChangesNothing) {
  Tensor p = parameter({1.0});
  AdamW optimizer({p}, {});
  give_grad(p, {1.0});
  EXPECT_THROW(optimizer.step({.grad_scale = std::nan("")}), NonFiniteError);
  EXPECT_EQ(p.item(), 1.0);
}

// --- State

template <class T, class Config>
void expect_that_a_saved_run_continues_bitwise(const Config& config, DType dtype) {
  const auto run = [](Optimizer& optimizer, std::vector<Tensor>& parameters, int begin, int end) {
    for (int t = begin; t < end; ++t) {
      for (Tensor& p : parameters) give_grad(p, grad_values(static_cast<int>(p.num_elements()), t));
      optimizer.step();
    }
  };
  std::vector<Tensor> parameters{parameter(start_values(33), dtype), parameter(start_values(4), dtype)};
  T uninterrupted(parameters, config);
  run(uninterrupted, parameters, 0, 7);
  NamedTensors saved;
  for (const auto& [name, value] : uninterrupted.state()) saved.emplace_back(name, value.clone());
  std::vector<Tensor> copies;
  for (const Tensor& p : parameters) {
    copies.push_back(p.detach().clone());
    copies.back().set_requires_grad();
  }
  run(uninterrupted, parameters, 7, 15);

  T resumed(copies, config);
  resumed.load_state(saved);
  run(resumed, copies, 7, 15);
  for (std::size_t i = 0; i < copies.size(); ++i) {
    EXPECT_EQ(copies[i].to_vector<double>(), parameters[i].to_vector<double>()) << name(dtype);
  }
  const NamedTensors a = uninterrupted.state(), b = resumed.state();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_EQ(a[i].second.template to_vector<double>(), b[i].second.template to_vector<double>())
        << a[i].first;
  }
}

TEST(OptimizerState, ASavedRunContinuesBitwise) {
  for (const DType dtype : {kF64, kF32, kBF16, kF16}) {
    expect_that_a_saved_run_continues_bitwise<AdamW>(AdamConfig{.lr = 0.01, .weight_decay = 0.1}, dtype);
    expect_that_a_saved_run_continues_bitwise<Adam>(AdamConfig{.lr = 0.01}, dtype);
    expect_that_a_saved_run_continues_bitwise<Sgd>(SgdConfig{.lr = 0.01, .momentum = 0.9}, dtype);
    expect_that_a_saved_run_continues_bitwise<Sgd>(SgdConfig{.lr = 0.01}, dtype);
    expect_that_a_saved_run_continues_bitwise<Adagrad>(AdagradConfig{.lr = 0.01, .lr_decay = 0.1}, dtype);
    expect_that_a_saved_run_continues_bitwise<Lion>(LionConfig{.lr = 0.01}, dtype);
    expect_that_a_saved_run_continues_bitwise<Lamb>(LambConfig{.lr = 0.01}, dtype);
  }
}

TEST(OptimizerState, NamesAreThereBeforeTheFirstStep) {
  Tensor w = parameter({1.0}, kBF16), b = parameter({1.0}, kF32);
  AdamW optimizer({{"w", w}, {"b", b}}, {});
  std::vector<std::string> names;
  for (const auto& [name, value] : optimizer.state()) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"w/step", "w/master", "w/moment1", "w/moment2", "b/step",
                                             "b/moment1", "b/moment2"}));
}

TEST(OptimizerState, MissingUnknownAndMisshapenEntriesAreNamedAndChangeNothing) {
  Tensor p = parameter({1.0, 2.0});
  AdamW optimizer({{"p", p}}, {});
  const NamedTensors good = optimizer.state();
  const auto message_of = [&optimizer](const NamedTensors& state) -> std::string {
    try {
      optimizer.load_state(state);
    } catch (const DataError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  NamedTensors missing(good.begin(), good.end() - 1), extra = good, misshapen = good;
  extra.emplace_back("q/step", scalar(1.0));
  misshapen.back().second = zeros({3});
  EXPECT_NE(message_of(missing).find("lacks p/moment2"), std::string::npos) << message_of(missing);
  EXPECT_NE(message_of(extra).find("q/step"), std::string::npos) << message_of(extra);
  EXPECT_NE(message_of(misshapen).find("[3]"), std::string::npos) << message_of(misshapen);
  optimizer.load_state(good);
}

TEST(OptimizerState, OnMetaOnlyBytesExist) {
  RankContext context;
  const RankContext::Scope scope(context);
  Tensor p = zeros({1000, 1000}, {.dtype = kBF16, .device = meta});
  p.set_requires_grad();
  AdamW optimizer({{"p", p}}, {});
  p.set_grad(zeros({1000, 1000}, {.dtype = kF32, .device = meta}));
  optimizer.step();
  EXPECT_EQ(context.pool(meta)->report().of(MemoryCategory::kOptimizerState).current, 12'000'000);
  EXPECT_EQ(context.pool(cpu)->report().of(MemoryCategory::kOptimizerState).current, 0);
}

}  // namespace
}  // namespace tessera::optim
