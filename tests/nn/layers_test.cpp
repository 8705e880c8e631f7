// Layers against plain loops in f64, and their gradients against central differences.
//
// Sums have fewer than 100 terms of order 1, so both sides are within 100 · 2⁻⁵³ ≈ 1e-14 of the truth.

#include <gtest/gtest.h>

#include <numbers>

#include "kernels/error.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"

namespace tessera::nn {
namespace {

using Doubles = std::vector<double>;
constexpr double kTolerance = 1e-14;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// rows [N, I] · weightᵀ [O, I] + bias [O]
Doubles linear_by_loops(const Doubles& x, const Tensor& weight, const Tensor& bias = {}) {
  const std::int64_t outputs = weight.dim(0), inputs = weight.dim(1);
  const Doubles w = weight.to_vector<double>();
  const Doubles b = bias.defined() ? bias.to_vector<double>() : Doubles(at(outputs), 0.0);
  Doubles y;
  for (std::int64_t n = 0; n < static_cast<std::int64_t>(x.size()) / inputs; ++n) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      double total = b[at(o)];
      for (std::int64_t i = 0; i < inputs; ++i) total += x[at(n * inputs + i)] * w[at(o * inputs + i)];
      y.push_back(total);
    }
  }
  return y;
}

double sigmoid_by_hand(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double gelu_tanh_by_hand(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

// --- Linear

TEST(Linear, IsAProductPlusBias) {
  Linear layer(3, 2);
  set_pattern(layer);
  const Tensor x = pattern({2, 4, 3}, 7);
  const Tensor y = layer(x);
  EXPECT_EQ(y.shape(), (Shape{2, 4, 2}));
  EXPECT_EQ("",
            difference(y, linear_by_loops(x.to_vector<double>(), layer.weight(), layer.bias()), kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
}

TEST(Linear, WithoutBiasAndOnATiedWeight) {
  class Tied final : public UnaryModule {
   public:
    Tied()
        : a_(add_module<Linear>("a", 3, 3, LinearOptions{.bias = false})),
          b_(add_module<Linear>("b", a_.weight())) {}
    Tensor forward(const Tensor& x) override { return b_(a_(x)); }
    Linear &a_, &b_;
  };
  Tied model;
  set_pattern(model);
  EXPECT_EQ(model.named_parameters().size(), 1u);
  EXPECT_EQ(model.num_parameters(), 9);
  EXPECT_FALSE(model.a_.bias().defined());
  const Tensor x = pattern({2, 3}, 7);
  const Doubles once = linear_by_loops(x.to_vector<double>(), model.a_.weight());
  EXPECT_EQ("", difference(model(x), linear_by_loops(once, model.a_.weight()), kTolerance));
  EXPECT_EQ("", gradient_errors(
                    model, [&](const Tensor& in) { return model(in); }, x));
}

TEST(Linear, BeginsAsPyTorchs) {
  Linear layer(64, 1000);  // ±1/√64 for both
  for (const Tensor& p : layer.parameters()) {
    EXPECT_NEAR(max(p).item(), 0.125, 1e-3);
    EXPECT_NEAR(min(p).item(), -0.125, 1e-3);
    EXPECT_NEAR(variance(p).item(), 0.125 * 0.125 / 3, 5 * 0.0023 / std::sqrt(1000.0));
  }
}

TEST(Linear, NamesTheShapesThatDoNotFit) {
  Linear layer(3, 2);
  expect_error<ShapeError>([&] { static_cast<void>(layer(ones({4, 5}))); }, "[4, 5] and [2, 3]");
  expect_error<DTypeError>([&] { static_cast<void>(layer(ones({4, 3}, {.dtype = kF64}))); }, "f64");
}

// --- Norms

Doubles norm_by_loops(const Doubles& x, std::int64_t width, const Doubles& gain, const Doubles& bias,
                      bool center, double epsilon) {
  Doubles y;
  for (std::size_t row = 0; row < x.size(); row += at(width)) {
    double mean = 0.0, square = 0.0;
    for (std::size_t i = 0; i < at(width); ++i) mean += x[row + i] / static_cast<double>(width);
    if (!center) mean = 0.0;
    for (std::size_t i = 0; i < at(width); ++i) {
      square += (x[row + i] - mean) * (x[row + i] - mean) / static_cast<double>(width);
    }
    for (std::size_t i = 0; i < at(width); ++i) {
      y.push_back((x[row + i] - mean) / std::sqrt(square + epsilon) * gain[i] + bias[i]);
    }
  }
  return y;
}

TEST(LayerNorm, NormalisesRows) {
  for (const bool bias : {true, false}) {
    LayerNorm layer(5, {.bias = bias, .epsilon = 0.01});
    set_pattern(layer);
    const Tensor x = pattern({2, 3, 5}, 4);
    const NamedTensors p = layer.named_parameters();
    const Doubles b = bias ? p[1].second.to_vector<double>() : Doubles(5, 0.0);
    EXPECT_EQ("", difference(
                      layer(x),
                      norm_by_loops(x.to_vector<double>(), 5, p[0].second.to_vector<double>(), b, true, 0.01),
                      10 * kTolerance));
    EXPECT_EQ("", gradient_errors(
                      layer, [&](const Tensor& in) { return layer(in); }, x));
  }
}

TEST(LayerNorm, BeginsWithGainOneAndBiasZero) {
  LayerNorm layer(4);
  EXPECT_EQ(layer.find_parameter("weight").to_vector<float>(), std::vector<float>(4, 1.0f));
  EXPECT_EQ(layer.find_parameter("bias").to_vector<float>(), std::vector<float>(4, 0.0f));
}

TEST(LayerNorm, AddGivesTheSumAndItsNorm) {
  LayerNorm layer(5);
  set_pattern(layer);
  const Tensor x = pattern({3, 5}, 4), residual = pattern({3, 5}, 9);
  const auto [total, normalized] = layer.add(x, residual);
  EXPECT_EQ("", difference(total, x + residual, 0.0));
  EXPECT_EQ("", difference(normalized, layer(x + residual), kTolerance));
  const auto with = [&](double of_sum, double of_norm) {
    return gradient_errors(
        layer,
        [&, of_sum, of_norm](const Tensor& in) {
          const auto [s, n] = layer.add(in, in * residual);
          return s * of_sum + n * of_norm;
        },
        x);
  };
  EXPECT_EQ("", with(2.0, 3.0));
  EXPECT_EQ("", with(0.0, 1.0));
}

TEST(RmsNorm, NormalisesRowsWithoutCentring) {
  RmsNorm layer(5, 0.01);
  set_pattern(layer);
  const Tensor x = pattern({2, 3, 5}, 4);
  const Doubles gain = layer.find_parameter("weight").to_vector<double>();
  EXPECT_EQ("",
            difference(layer(x), norm_by_loops(x.to_vector<double>(), 5, gain, Doubles(5, 0.0), false, 0.01),
                       10 * kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
}

// --- Embedding

TEST(Embedding, GivesRowsAndSumsTheirGradients) {
  Embedding layer(4, 3);
  set_pattern(layer);
  const Tensor ids = from_vector<std::int64_t>({2, 0, 2, 3}, Shape{2, 2});
  const Tensor y = layer(ids);
  EXPECT_EQ(y.shape(), (Shape{2, 2, 3}));
  EXPECT_EQ("", difference(y.select(0, 0).select(0, 0), layer.weight().detach().select(0, 2), 0.0));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, ids));
}

TEST(Embedding, NamesAnIdOutsideOfTheTable) {
  Embedding layer(4, 3);
  expect_error<IndexError>([&] { static_cast<void>(layer(from_vector<std::int64_t>({1, 4}))); }, "4");
  expect_error<IndexError>([&] { static_cast<void>(layer(from_vector<std::int64_t>({-2}))); }, "-2");
}

// --- Activations

TEST(Activations, AreTheirFormulas) {
  const struct {
    const char* name;
    std::function<std::unique_ptr<UnaryModule>()> make;
    std::function<double(double)> formula;
  } cases[] = {
      {"relu", [] { return std::make_unique<Relu>(); }, [](double x) { return x > 0 ? x : 0.0; }},
      {"silu", [] { return std::make_unique<Silu>(); }, [](double x) { return x * sigmoid_by_hand(x); }},
      {"tanh", [] { return std::make_unique<Tanh>(); }, [](double x) { return std::tanh(x); }},
      {"sigmoid", [] { return std::make_unique<Sigmoid>(); }, sigmoid_by_hand},
      {"gelu", [] { return std::make_unique<Gelu>(); }, gelu_tanh_by_hand},
      {"gelu erf", [] { return std::make_unique<Gelu>(tessera::Gelu::kErf); },
       [](double x) { return 0.5 * x * std::erfc(-x / std::numbers::sqrt2); }},
  };
  const Tensor x = (pattern({4, 19}, 3) + 1e-3) * 40.0;  // −5.6 ... 5.7, nowhere 0
  for (const auto& c : cases) {
    const std::unique_ptr<UnaryModule> layer = c.make();
    Doubles expected;
    for (const double value : x.to_vector<double>()) expected.push_back(c.formula(value));
    EXPECT_EQ("", difference((*layer)(x), expected, kTolerance)) << c.name;
    EXPECT_EQ("", gradient_errors(
                      *layer, [&](const Tensor& in) { return (*layer)(in); }, x))
        << c.name;
  }
}

// --- Dropout

TEST(Dropout, ZeroesAShareAndScalesTheRest) {
  Dropout layer(0.25);
  Tensor x = ones({100, 1000});
  x.set_requires_grad();
  const Tensor y = layer(x);
  std::int64_t zeros = 0;
  for (const float value : y.to_vector<float>()) {
    if (value == 0.0f)
      ++zeros;
    else
      ASSERT_FLOAT_EQ(value, 1.0f / 0.75f);
  }
  EXPECT_NEAR(static_cast<double>(zeros), 25000.0,
              5 * std::sqrt(1e5 * 0.25 * 0.75));  // five standard deviations
  sum(y).backward();
  EXPECT_EQ("", difference(x.grad(), y.detach(), 0.0));  // x = 1, dy = 1: the gradient is the mask too
}

TEST(Dropout, OfZeroOneOrInEvaluationIsExact) {
  const Tensor x = pattern({3, 4});
  Dropout none(0.0), all(1.0), half(0.5);
  EXPECT_TRUE(none(x).is_same(x));
  EXPECT_EQ("", difference(all(x), zeros_like(x), 0.0));
  half.eval();
  EXPECT_TRUE(half(x).is_same(x));
  for (const double p : {-0.1, 1.1, std::nan("")})
    expect_error<ConfigError>([&] { Dropout layer(p); }, "must lie in [0, 1]");
}

TEST(Dropout, DependsOnSeedNameAndStepAlone) {
  RankContext& context = RankContext::current();
  Sequential model;
  Dropout& a = model.add<Dropout>(0.5);
  Dropout& b = model.add<Dropout>(0.5);
  const Tensor x = ones({8, 16});
  const std::vector<float> first = a(x).to_vector<float>();
  EXPECT_EQ(a(x).to_vector<float>(), first);
  EXPECT_NE(b(x).to_vector<float>(), first);
  ++context.step;
  EXPECT_NE(a(x).to_vector<float>(), first);
  --context.step;
  ++context.seed;
  EXPECT_NE(a(x).to_vector<float>(), first);
  --context.seed;
  EXPECT_EQ(a(x).to_vector<float>(), first);
}

// Samples 4 and 5 of a batch of 6, computed by themselves.
TEST(Dropout, ASampleKeepsItsMaskHoweverTheBatchIsCut) {
  RankContext& context = RankContext::current();
  Dropout layer(0.5);
  const Tensor x = ones({6, 5, 7});
  const Tensor whole = layer(x);
  context.sample_offset = 4;
  const Tensor part = layer(x.slice(0, 4, 6).clone());
  context.sample_offset = 0;
  EXPECT_EQ("", difference(part, whole.slice(0, 4, 6), 0.0));
}

// --- Rotary positions

TEST(RotaryEmbedding, TurnsPairsByTheirAngles) {
  RotaryEmbedding rotary(6, 100.0);
  const Tensor x = pattern({2, 4, 3, 6}, 2);
  const Tensor y = rotary(x, 5);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 4; ++t) {
      for (std::int64_t h = 0; h < 3; ++h) {
        for (std::int64_t k = 0; k < 3; ++k) {
          const double angle =
              static_cast<double>(5 + t) * std::pow(100.0, -2.0 * static_cast<double>(k) / 6.0);
          const double re = x.at({b, t, h, k}), im = x.at({b, t, h, k + 3});
          EXPECT_NEAR(y.at({b, t, h, k}), re * std::cos(angle) - im * std::sin(angle), kTolerance);
          EXPECT_NEAR(y.at({b, t, h, k + 3}), re * std::sin(angle) + im * std::cos(angle), kTolerance);
        }
      }
    }
  }
  EXPECT_EQ("", gradient_errors(
                    rotary, [&](const Tensor& in) { return rotary(in, 5); }, x));
}

TEST(RotaryEmbedding, ProductsDependOnDistanceAlone) {
  RotaryEmbedding rotary(8);
  const Tensor q = pattern({1, 1, 1, 8}, 1), k = pattern({1, 1, 1, 8}, 2);
  const auto product = [&](std::int64_t at_q, std::int64_t at_k) {
    return sum(rotary(q, at_q) * rotary(k, at_k)).item();
  };
  EXPECT_NEAR(product(3, 1), product(102, 100), 1e-13);
  EXPECT_NEAR(product(0, 0), sum(q * k).item(), 1e-13);
  EXPECT_GT(std::fabs(product(3, 1) - product(4, 1)), 1e-3);
}

TEST(RotaryEmbedding, RefusesOddWidths) {
  expect_error<ConfigError>([] { RotaryEmbedding rotary(5); }, "must be even, but it is 5");
  RotaryEmbedding rotary(4);
  expect_error<ShapeError>([&] { static_cast<void>(rotary(ones({1, 2, 1, 6}))); }, "[B, T, H, 4]");
}

// --- Attention

// q [B, T, H, K], k and v [B, T, G, K], causal or not, in plain loops.
Doubles attention_by_loops(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  const std::int64_t T = q.dim(1), H = q.dim(2), G = k.dim(2), K = q.dim(3);
  Doubles o;
  for (std::int64_t b = 0; b < q.dim(0); ++b) {
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t g = h / (H / G);
        const std::int64_t end = causal ? t + 1 : T;
        Doubles weights;
        double total = 0.0;
        for (std::int64_t s = 0; s < end; ++s) {
          double score = 0.0;
          for (std::int64_t c = 0; c < K; ++c) score += q.at({b, t, h, c}) * k.at({b, s, g, c});
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(K))));
          total += weights.back();
        }
        for (std::int64_t c = 0; c < K; ++c) {
          double value = 0.0;
          for (std::int64_t s = 0; s < end; ++s) value += weights[at(s)] / total * v.at({b, s, g, c});
          o.push_back(value);
        }
      }
    }
  }
  return o;
}

TEST(CausalSelfAttention, IsSoftmaxOfScaledProducts) {
  CausalSelfAttention layer({.width = 6, .heads = 2});
  set_pattern(layer);
  const Tensor x = pattern({2, 5, 6}, 3) * 8.0;
  const auto parameter = [&](const char* name) { return layer.find_parameter(name).detach(); };
  const Doubles qkv =
      linear_by_loops(x.to_vector<double>(), parameter("c_attn.weight"), parameter("c_attn.bias"));
  const Tensor heads = from_vector(qkv, Shape{2, 5, 6, 3});
  const Doubles o =
      attention_by_loops(heads.slice(2, 0, 2), heads.slice(2, 2, 4), heads.slice(2, 4, 6), true);
  EXPECT_EQ("", difference(layer(x), linear_by_loops(o, parameter("c_proj.weight"), parameter("c_proj.bias")),
                           10 * kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, pattern({1, 4, 6}, 3) * 8.0));
}

TEST(CausalSelfAttention, SaysWhichHeadsDoNotDivideTheWidth) {
  expect_error<ConfigError>([] { CausalSelfAttention layer({.width = 128, .heads = 3}); },
                            "heads must divide width; but width = 128 and heads = 3");
  expect_error<ConfigError>([] { CausalSelfAttention layer({.width = 8, .heads = 2, .dropout = 2.0}); },
                            "must lie in [0, 1]");
}

TEST(MultiHeadAttention, SharesKeysAndValuesBetweenHeads) {
  for (const bool causal : {true, false}) {
    for (const std::int64_t kv_heads : {1, 2, 4}) {
      MultiHeadAttention layer({.width = 8, .heads = 4, .kv_heads = kv_heads, .causal = causal});
      set_pattern(layer);
      const Tensor x = pattern({2, 3, 8}, 3) * 8.0;
      const auto projected = [&](const std::string& name, std::int64_t heads) {
        return from_vector(
            linear_by_loops(x.to_vector<double>(), layer.find_parameter(name + "_proj.weight")),
            Shape{2, 3, heads, 2});
      };
      const Doubles o =
          attention_by_loops(projected("q", 4), projected("k", kv_heads), projected("v", kv_heads), causal);
      EXPECT_EQ("", difference(layer(x), linear_by_loops(o, layer.find_parameter("o_proj.weight")),
                               10 * kTolerance));
      EXPECT_EQ("", gradient_errors(
                        layer, [&](const Tensor& in) { return layer(in); }, x));
    }
  }
}

TEST(MultiHeadAttention, TurnsQueriesAndKeysButNotValues) {
  RotaryEmbedding rotary(4, 10.0);
  MultiHeadAttention layer({.width = 8, .heads = 2, .bias = true}, &rotary);
  set_pattern(layer);
  const Tensor x = pattern({1, 4, 8}, 3) * 8.0;
  const auto projected = [&](const std::string& name) {
    return from_vector(linear_by_loops(x.to_vector<double>(), layer.find_parameter(name + "_proj.weight"),
                                       layer.find_parameter(name + "_proj.bias")),
                       Shape{1, 4, 2, 4});
  };
  const Doubles o = attention_by_loops(rotary(projected("q")), rotary(projected("k")), projected("v"), true);
  EXPECT_EQ("", difference(layer(x),
                           linear_by_loops(o, layer.find_parameter("o_proj.weight"),
                                           layer.find_parameter("o_proj.bias")),
                           10 * kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
}

TEST(MultiHeadAttention, SaysWhichHeadsDoNotDivide) {
  expect_error<ConfigError>([] { MultiHeadAttention layer({.width = 12, .heads = 4, .kv_heads = 3}); },
                            "kv_heads must divide heads; but heads = 4 and kv_heads = 3");
}

// The mask of probabilities belongs to the sample, as that of Dropout.
TEST(Attention, DropoutOfASampleDoesNotDependOnTheCutOfTheBatch) {
  RankContext& context = RankContext::current();
  CausalSelfAttention gpt({.width = 8, .heads = 2, .dropout = 0.5});
  MultiHeadAttention llama({.width = 8, .heads = 2, .dropout = 0.5});
  const Tensor x = pattern({6, 5, 8}).to(kF32);
  const auto check = [&](const std::function<Tensor(const Tensor&)>& layer) {
    const Tensor whole = layer(x);
    context.sample_offset = 4;
    const Tensor part = layer(x.slice(0, 4, 6).clone());
    context.sample_offset = 0;
    EXPECT_EQ("", difference(part, whole.slice(0, 4, 6), 1e-6));  // matrix products of other heights
    EXPECT_NE("", difference(layer(x.slice(0, 4, 6).clone()), part, 1e-3));
  };
  check([&](const Tensor& in) { return gpt(in); });
  check([&](const Tensor& in) { return llama(in); });
}

TEST(Attention, DropoutHasTheRightGradient) {
  CausalSelfAttention layer({.width = 6, .heads = 2, .dropout = 0.4});
  set_pattern(layer);
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, pattern({2, 4, 6}, 3) * 8.0));
}

// --- Feed-forward

TEST(Mlp, IsTwoLayersWithGelu) {
  Mlp layer({.width = 3});
  set_pattern(layer);
  const Tensor x = pattern({2, 2, 3}, 5) * 8.0;
  Doubles hidden = linear_by_loops(x.to_vector<double>(), layer.find_parameter("c_fc.weight"),
                                   layer.find_parameter("c_fc.bias"));
  EXPECT_EQ(hidden.size(), 4u * 12u);
  for (double& value : hidden) value = gelu_tanh_by_hand(value);
  EXPECT_EQ("", difference(layer(x),
                           linear_by_loops(hidden, layer.find_parameter("c_proj.weight"),
                                           layer.find_parameter("c_proj.bias")),
                           kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
}

TEST(SwiGlu, IsAGatedLayer) {
  SwiGlu layer({.width = 3, .hidden = 5});
  set_pattern(layer);
  const Tensor x = pattern({2, 2, 3}, 5) * 8.0;
  Doubles hidden = linear_by_loops(x.to_vector<double>(), layer.find_parameter("gate_proj.weight"));
  const Doubles up = linear_by_loops(x.to_vector<double>(), layer.find_parameter("up_proj.weight"));
  for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] *= sigmoid_by_hand(hidden[i]) * up[i];
  EXPECT_EQ("", difference(layer(x), linear_by_loops(hidden, layer.find_parameter("down_proj.weight")),
                           kTolerance));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
}

TEST(Sequential, RunsItsModulesInOrder) {
  Sequential model;
  Linear& first = model.add<Linear>(2, 3);
  model.add<Tanh>();
  Linear& second = model.add<Linear>(3, 1);
  set_pattern(model);
  EXPECT_EQ(model.size(), 3u);
  const Tensor x = pattern({4, 2}, 6);
  EXPECT_EQ("", difference(model(x), second(tanh(first(x))), 0.0));
  EXPECT_EQ(model.named_parameters()[2].first, "2.weight");
  EXPECT_EQ("", gradient_errors(
                    model, [&](const Tensor& in) { return model(in); }, x));
}

}  // namespace
}  // namespace tessera::nn
