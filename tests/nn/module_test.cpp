// Structure of modules: names, parameters, modes, and building without memory.

#include "nn/module.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"

namespace tessera::nn {
namespace {

class Classifier final : public UnaryModule {
 public:
  Classifier(std::int64_t inputs, std::int64_t width, std::int64_t classes)
      : hidden_(add_module<Linear>("hidden", inputs, width)),
        output_(add_module<Linear>("output", width, classes)),
        scale_(add_buffer("scale", {1}, Init::ones())),
        cache_(add_buffer("cache", {2}, Init::zeros(), /*saved=*/false)) {}
  Tensor forward(const Tensor& x) override { return output_(relu(hidden_(x))) * scale_; }

 private:
  Linear& hidden_;
  Linear& output_;
  Tensor scale_, cache_;
};

std::vector<std::string> names(const NamedTensors& tensors) {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : tensors) result.push_back(name);
  return result;
}

using Names = std::vector<std::string>;

TEST(Module, ParametersHaveTheirPathsInOrderOfRegistration) {
  Classifier model(2, 4, 3);
  EXPECT_EQ(names(model.named_parameters()),
            (Names{"hidden.weight", "hidden.bias", "output.weight", "output.bias"}));
  EXPECT_EQ(model.num_parameters(), 2 * 4 + 4 + 4 * 3 + 3);
  EXPECT_EQ(names(model.find_module("hidden").named_parameters()), (Names{"weight", "bias"}));
  EXPECT_EQ(names(model.own_parameters()), Names());
  EXPECT_EQ(names(model.find_module("output").own_parameters()), (Names{"weight", "bias"}));
  EXPECT_TRUE(model.find_parameter("output.bias").is_same(model.parameters()[3]));
  for (const Tensor& parameter : model.parameters()) EXPECT_TRUE(parameter.requires_grad());
}

/// Uses the weight of its child as well; its own entries come before the child's.
struct UsesItsChildsWeight : Module {
  UsesItsChildsWeight() : hidden(add_module<Linear>("hidden", 3, 3)) {
    tie_parameter("again", hidden.weight());
  }
  Linear& hidden;
};

TEST(Module, ATiedParameterIsListedOnceThoughItComesBeforeItsOwner) {
  const DeviceScope on_meta(meta);
  UsesItsChildsWeight model;
  EXPECT_EQ(names(model.named_parameters()), (Names{"hidden.weight", "hidden.bias"}));
  EXPECT_EQ(model.num_parameters(), 3 * 3 + 3);
  EXPECT_EQ(names(model.own_parameters()), Names{"again"});
  model.materialize(cpu);
  EXPECT_TRUE(model.find_parameter("again").is_same(model.hidden.weight()));
}

TEST(Module, KnowsItsPlaceAndItsChildren) {
  Gpt2 model({.vocab = 5, .context = 4, .layers = 2, .heads = 2, .width = 4});
  EXPECT_EQ(model.name(), "");
  EXPECT_EQ(model.type_name(), "Gpt2");
  Module& attention = model.find_module("h.1.attn");
  EXPECT_EQ(attention.name(), "h.1.attn");
  EXPECT_EQ(attention.type_name(), "CausalSelfAttention");
  Names children;
  for (const auto& [name, child] : model.children()) children.push_back(name);
  EXPECT_EQ(children, (Names{"wte", "wpe", "drop", "h.0", "h.1", "ln_f", "lm_head"}));
  EXPECT_EQ(model.modules().front(), &model);
  EXPECT_EQ(model.modules().size(), 1 + 3 + 2 * (1 + 1 + 1 + 3 + 1 + 1 + 3) + 2u);
  EXPECT_EQ(&model.find_module("h.1").find_module("attn"), &attention);
  EXPECT_EQ(&model.find_module(""), &model);
}

TEST(Module, AnUnknownPathNamesTheNearest) {
  Gpt2 model({.vocab = 5, .context = 4, .layers = 1, .heads = 2, .width = 4});
  expect_error<IndexError>([&] { static_cast<void>(model.find_module("h.0.attn.c_atn")); },
                           "the nearest is 'h.0.attn.c_attn'");
  expect_error<IndexError>([&] { static_cast<void>(model.find_parameter("h.0.ln1.bias")); },
                           "the nearest is 'h.0.ln_1.bias'");
}

class BadName final : public Module {
 public:
  explicit BadName(const char* name, bool child) {
    add_parameter("taken", {1}, Init::zeros());
    if (child) {
      add_module<Relu>(name);
    } else {
      add_parameter(name, {1}, Init::zeros());
    }
  }
};

TEST(Module, RefusesNamesThatAreTakenOrMalformed) {
  for (const bool child : {false, true}) {
    expect_error<ConfigError>([&] { BadName("taken", child); }, "'taken' is taken");
    for (const char* name : {"", ".a", "a.", "a:b"}) {
      expect_error<ConfigError>([&] { BadName(name, child); }, "must not be empty, begin or end with a dot");
    }
    BadName("h.0", child);
  }
  // A failed construction leaves no trace in the names of what is built afterwards.
  EXPECT_EQ(RankContext::current().module_path, "");
}

TEST(Module, TrainAndEvalReachEveryModule) {
  Gpt2 model({.vocab = 5, .context = 4, .layers = 1, .heads = 2, .width = 4});
  for (Module* module : model.modules()) EXPECT_TRUE(module->training());
  model.eval();
  for (Module* module : model.modules()) EXPECT_FALSE(module->training()) << module->name();
  model.find_module("h.0").train();
  EXPECT_TRUE(model.find_module("h.0.attn.resid_dropout").training());
  EXPECT_FALSE(model.find_module("drop").training());
}

TEST(Module, ZeroGradGivesTheMemoryBack) {
  Linear layer(3, 2);
  const std::int64_t before =
      RankContext::current().pool(cpu)->report().of(MemoryCategory::kGradient).current;
  sum(layer(ones({1, 3}))).backward();
  EXPECT_EQ(RankContext::current().pool(cpu)->report().of(MemoryCategory::kGradient).current,
            before + 4 * (6 + 2));
  layer.zero_grad();
  EXPECT_EQ(RankContext::current().pool(cpu)->report().of(MemoryCategory::kGradient).current, before);
  EXPECT_FALSE(layer.weight().grad().defined());
}

// --- Initial values

// The values of a small model, by name.
std::vector<std::pair<std::string, std::vector<float>>> values(Module& module) {
  std::vector<std::pair<std::string, std::vector<float>>> result;
  for (const auto& [name, tensor] : module.state())
    result.emplace_back(name, tensor.to(kF32).to_vector<float>());
  return result;
}

const Gpt2Config kSmall{.vocab = 31, .context = 8, .layers = 2, .heads = 2, .width = 16};

template <class F>
auto in_context(const RankContext::Options& options, F&& f) {
  RankContext context(options);
  const RankContext::Scope scope(context);
  return f();
}

TEST(Initialisation, IsTheSameForAnyNumberOfThreadsAndAnyRankAndStep) {
  const auto build = [] {
    Gpt2 model({.vocab = 3000, .context = 64, .layers = 1, .heads = 2, .width = 32});  // wte: 96,000 elements
    return values(model);
  };
  const auto expected = in_context({.num_threads = 1, .seed = 5}, build);
  EXPECT_EQ(in_context({.num_threads = 2, .seed = 5}, build), expected);
  EXPECT_EQ(in_context({.num_threads = 7, .seed = 5}, build), expected);
  EXPECT_EQ(in_context({.rank = 3, .world_size = 4, .seed = 5}, build), expected);
  EXPECT_EQ(in_context({.seed = 5},
                       [&] {
                         RankContext::current().step = 1000;
                         return build();
                       }),
            expected);
  EXPECT_NE(in_context({.seed = 6}, build), expected);
}

TEST(Initialisation, EveryParameterHasAStreamOfItsOwn) {
  in_context({}, [] {
    Gpt2 model(kSmall);
    EXPECT_NE(model.find_parameter("h.0.attn.c_attn.weight").to_vector<float>(),
              model.find_parameter("h.1.attn.c_attn.weight").to_vector<float>());
    // Two models of one rank do not begin equal; "model2:" is not part of any name.
    Gpt2 second(kSmall);
    EXPECT_NE(values(model), values(second));
    EXPECT_EQ(names(model.named_parameters()), names(second.named_parameters()));
    EXPECT_EQ(second.find_module("h.0.mlp").name(), "h.0.mlp");
    EXPECT_EQ(second.parameter_records()[0].stream, "model2:wte.weight");
  });
}

TEST(Initialisation, HasTheMomentsAndBoundsItPromises) {
  Tensor x = empty({100000}, {.dtype = kF64});
  Init::normal(0.5, 2.0).fill(x, "a");
  // Standard errors: σ/√n = 0.0016 of the mean, σ/√(2n) = 0.0011 of the deviation; five of each.
  EXPECT_NEAR(mean(x).item(), 2.0, 0.008);
  EXPECT_NEAR(std::sqrt(variance(x).item()), 0.5, 0.006);
  Init::uniform(-1.0, 3.0).fill(x, "b");
  EXPECT_GE(min(x).item(), -1.0);
  EXPECT_LT(max(x).item(), 3.0);
  EXPECT_NEAR(mean(x).item(), 1.0, 5 * 4 / std::sqrt(12.0 * 100000));
  Init::kaiming_uniform(16).fill(x, "c");
  EXPECT_NEAR(max(x).item(), 0.25, 1e-4);
  EXPECT_NEAR(min(x).item(), -0.25, 1e-4);
  EXPECT_THROW(static_cast<void>(Init::kaiming_uniform(0)), ConfigError);
  Init::constant(-7).fill(x, "d");
  EXPECT_EQ(min(x).item(), -7);
  EXPECT_EQ(max(x).item(), -7);
}

// A rank that holds rows 2 and 3 of [4, 6] asks for elements 12 ... 23.
TEST(Initialisation, APartOfAParameterGetsItsPartOfTheValues) {
  Tensor whole = empty({4, 6});
  Tensor part = empty({2, 6});
  Init::normal(1.0).fill(whole, "w");
  Init::normal(1.0).fill(part, "w", kernels::GlobalIndex::row_major(part.view(), 12));
  EXPECT_EQ("", difference(part, whole.slice(0, 2, 4), 0.0));
}

// --- meta, materialize, to

TEST(Materialize, GivesTheValuesThatAModelBuiltInMemoryHas) {
  const auto expected = in_context({.seed = 3}, [] {
    Gpt2 model(kSmall);
    return values(model);
  });
  in_context({.seed = 3}, [&] {
    const std::int64_t before = RankContext::current().pool(cpu)->report().total.current;
    DeviceScope scope(meta);
    Gpt2 model(kSmall);
    EXPECT_EQ(RankContext::current().pool(cpu)->report().total.current, before);
    EXPECT_EQ(model.find_parameter("wte.weight").device(), meta);
    const Tensor handle = model.find_parameter("wte.weight");
    RankContext::current().step = 17;  // whenever it is done
    model.materialize(cpu);
    EXPECT_EQ(values(model), expected);
    EXPECT_TRUE(handle.is_same(model.find_parameter("lm_head.weight")));
    EXPECT_EQ(handle.device(), cpu);
    EXPECT_TRUE(handle.requires_grad());
    EXPECT_EQ(RankContext::current().pool(cpu)->report().of(MemoryCategory::kParameter).current,
              4 * model.num_parameters());
  });
}

TEST(Materialize, CanBeDoneForSomeParametersOnly) {
  DeviceScope scope(meta);
  Gpt2 model(kSmall);
  model.materialize(cpu, [](std::string_view path) { return path.starts_with("h.1."); });
  for (const auto& [name, parameter] : model.named_parameters()) {
    EXPECT_EQ(parameter.device(), name.starts_with("h.1.") ? cpu : meta) << name;
  }
  model.materialize(cpu);
  for (const Tensor& parameter : model.parameters()) EXPECT_EQ(parameter.device(), cpu);
}

TEST(Materialize, OfATiedLayerAloneSaysWhoOwnsTheWeight) {
  DeviceScope scope(meta);
  Gpt2 model(kSmall);
  expect_error<DeviceError>([&] { model.find_module("lm_head").materialize(cpu); },
                            "tied to a parameter outside");
}

// On meta a model runs too: shapes come out, and what it would need is counted.
TEST(Materialize, IsNotNeededForADryRun) {
  DeviceScope scope(meta);
  Gpt2 model(kSmall);
  const Tensor ids = empty({2, 8}, {.dtype = kI64});
  const Tensor loss = model.loss(ids, ids);
  EXPECT_EQ(loss.shape(), Shape());
  loss.backward();
  EXPECT_EQ(model.find_parameter("wte.weight").grad().shape(), (Shape{31, 16}));
}

TEST(ModuleTo, ConvertsInPlaceAndKeepsHandlesTies) {
  in_context({}, [] {
    Gpt2 model(kSmall);
    const Tensor handle = model.find_parameter("wte.weight");
    const std::vector<float> before = handle.to_vector<float>();
    model.loss(zeros({1, 4}, {.dtype = kI64}), zeros({1, 4}, {.dtype = kI64})).backward();
    model.to(kBF16);
    EXPECT_EQ(handle.dtype(), kBF16);
    EXPECT_FALSE(handle.grad().defined());
    EXPECT_TRUE(handle.is_same(model.find_parameter("lm_head.weight")));
    EXPECT_EQ("", difference(handle, std::vector<double>(before.begin(), before.end()), 0.1 * 0.004));  // 2⁻⁸
    model.loss(zeros({1, 4}, {.dtype = kI64}), zeros({1, 4}, {.dtype = kI64})).backward();
    for (const auto& [name, parameter] : model.named_parameters()) {
      EXPECT_EQ(parameter.grad().dtype(), kF32) << name;
    }
    EXPECT_EQ(RankContext::current().pool(cpu)->report().of(MemoryCategory::kParameter).current,
              2 * model.num_parameters());
    expect_error<DTypeError>([&] { model.to(kI64); }, "can't become i64");
  });
}

TEST(ModuleTo, OnMetaThenMaterializedEqualsConverted) {
  const auto converted = in_context({}, [] {
    Gpt2 model(kSmall);
    model.to(kBF16);
    return values(model);
  });
  in_context({}, [&] {
    DeviceScope scope(meta);
    Gpt2 model(kSmall);
    model.to(kBF16);
    model.materialize(cpu);
    EXPECT_EQ(model.find_parameter("wpe.weight").dtype(), kBF16);
    EXPECT_EQ(values(model), converted);
  });
}

// --- State

TEST(State, HoldsParametersAndSavedBuffersOnce) {
  Classifier model(2, 4, 3);
  EXPECT_EQ(names(model.state()),
            (Names{"scale", "hidden.weight", "hidden.bias", "output.weight", "output.bias"}));
  Gpt2 gpt(kSmall);
  for (const std::string& name : names(gpt.state())) EXPECT_NE(name, "lm_head.weight");
}

TEST(State, LoadsWhatItGave) {
  Classifier a(2, 4, 3), b(2, 4, 3);
  NamedTensors state;
  for (const auto& [name, tensor] : a.state()) state.emplace_back(name, tensor.to(kF64));  // converts back
  b.load_state(state);
  EXPECT_EQ(values(a), values(b));
  EXPECT_TRUE(b.find_parameter("hidden.weight").requires_grad());
}

TEST(State, ATiedParameterMayComeUnderEitherOrBothOfItsNames) {
  Gpt2 a(kSmall), b(kSmall);
  NamedTensors state = a.state();
  state.front().first = "lm_head.weight";
  b.load_state(state);
  EXPECT_EQ(values(a), values(b));
  state.emplace_back("wte.weight", a.find_parameter("wte.weight"));
  b.load_state(state);
}

TEST(State, NamesAllThatDoesNotFitAndChangesNothing) {
  Classifier model(2, 4, 3);
  const auto before = values(model);
  NamedTensors state = model.state();
  state[1].second = ones({5, 2});
  state[2].first = "hidden.bais";
  state.emplace_back("output.weight.extra", ones({1}));
  expect_error<DataError>([&] { model.load_state(state); }, "Missing: hidden.bias.");
  expect_error<DataError>([&] { model.load_state(state); },
                          "Unexpected: hidden.bais (did you mean hidden.bias?), output.weight.extra.");
  expect_error<DataError>([&] { model.load_state(state); },
                          "Of another shape: hidden.weight (here [4, 2], there [5, 2])");
  EXPECT_EQ(values(model), before);
}

TEST(State, RefusesANameGivenTwice) {
  Classifier model(2, 4, 3);
  NamedTensors state = model.state();
  state.push_back(state[1]);
  expect_error<DataError>([&] { model.load_state(state); }, "Given twice: hidden.weight.");
}

TEST(State, AModelOnMetaMustBeMaterialisedFirst) {
  DeviceScope scope(meta);
  Linear layer(2, 2);
  expect_error<DeviceError>(
      [&] {
        layer.load_state({{"weight", ones({2, 2}, {.device = cpu})}, {"bias", ones({2}, {.device = cpu})}});
      },
      "materialize the module first");
}

// --- Summary

// 3 × 244 + 200 + 32 + 8 = 972; the tied weight counts once.
TEST(Summary, IsATableThatFoldsEqualNeighbours) {
  in_context({}, [] {
    Linear first(1, 1);  // so that streams have the prefix of a second model, which is nobody's business
    Gpt2 model({.vocab = 50, .context = 8, .layers = 3, .heads = 2, .width = 4});
    EXPECT_EQ(model.summary(),
              R"(name                 type                 shape        parameters
─────────────────────────────────────────────────────────────────
Gpt2                                                          972
  wte                Embedding                                200
    weight                                f32 [50, 4]         200
  wpe                Embedding                                 32
    weight                                f32 [8, 4]           32
  drop               Dropout
  h.0 … h.2          3 × Gpt2Block                        3 × 244
    ln_1             LayerNorm                                  8
      weight                              f32 [4]               4
      bias                                f32 [4]               4
    attn             CausalSelfAttention                       80
      c_attn         Linear                                    60
        weight                            f32 [12, 4]          48
        bias                              f32 [12]             12
      c_proj         Linear                                    20
        weight                            f32 [4, 4]           16
        bias                              f32 [4]               4
      resid_dropout  Dropout
    ln_2             LayerNorm                                  8
      weight                              f32 [4]               4
      bias                                f32 [4]               4
    mlp              Mlp                                      148
      c_fc           Linear                                    80
        weight                            f32 [16, 4]          64
        bias                              f32 [16]             16
      c_proj         Linear                                    68
        weight                            f32 [4, 16]          64
        bias                              f32 [4]               4
      dropout        Dropout
  ln_f               LayerNorm                                  8
    weight                                f32 [4]               4
    bias                                  f32 [4]               4
  lm_head            Linear                                   200
    weight           = wte.weight         f32 [50, 4]       (200)
─────────────────────────────────────────────────────────────────
972 parameters, 3.9 kB
)");
  });
}

TEST(Summary, SaysWhatAModelOnMetaWouldTake) {
  DeviceScope scope(meta);
  Gpt2 model(Gpt2Config::gpt2());
  EXPECT_TRUE(model.summary().ends_with("\n124,439,808 parameters, 497.8 MB once materialised\n"))
      << model.summary();
}

}  // namespace
}  // namespace tessera::nn
