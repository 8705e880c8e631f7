// Generation: what is drawn, from what, and when it ends.

#include "nn/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"
#include "tests/nn/text_models.h"

namespace tessera::nn {
namespace {

using Ids = std::vector<std::int64_t>;

Tensor as_batch(const Ids& ids) { return from_vector(ids, Shape{1, static_cast<std::int64_t>(ids.size())}); }

// The last row of the logits of a whole pass, in evaluation mode.
std::vector<double> logits_after(LanguageModel& model, const Ids& ids) {
  const NoGrad no_grad;
  const Tensor logits = model.logits(as_batch(ids));
  return logits.slice(1, logits.dim(1) - 1, logits.dim(1)).to_vector<double>();
}

TEST(Generate, WithoutTemperatureTakesTheLikeliestTokenOfAWholePass) {
  for (const char* sizes : {kGpt2, kLlama}) {
    const auto model = make_model(sizes);
    Ids text = {3, 1, 4};
    const Ids got = generate(*model, text, {.tokens = 8, .temperature = 0.0});
    ASSERT_EQ(got.size(), 8u);
    for (const std::int64_t token : got) {
      const std::vector<double> logits = logits_after(*model, text);
      EXPECT_EQ(token, std::ranges::max_element(logits) - logits.begin()) << sizes;
      text.push_back(token);
    }
  }
}

// 40 tokens behind 3 slide a window of 12 several times, so the cache is emptied and filled again.
TEST(Generate, WithACacheGivesWhatFullPassesGive) {
  for (const char* sizes : {kGpt2, kLlama}) {
    const auto model = make_model(sizes);
    for (const double temperature : {0.0, 0.7, 1.5}) {
      const GenerateOptions options{.tokens = 40, .temperature = temperature, .top_k = 10, .seed = 5};
      GenerateOptions without_cache = options;
      without_cache.use_cache = false;
      EXPECT_EQ(generate(*model, Ids{3, 1, 4}, options), generate(*model, Ids{3, 1, 4}, without_cache))
          << sizes << " at " << temperature;
    }
  }
}

TEST(Generate, CachedLogitsEqualThoseOfAWholePassHoweverTheTokensCome) {
  for (const char* sizes : {kGpt2, kLlama}) {
    const auto model = make_model(sizes);
    model->eval();
    const NoGrad no_grad;
    const Ids ids = {7, 0, 22, 5, 5, 9, 13, 2};
    const Tensor whole = model->logits(as_batch(ids));
    for (const std::vector<std::size_t>& parts :
         {std::vector<std::size_t>{8}, {1, 1, 1, 1, 1, 1, 1, 1}, {3, 4, 1}}) {
      KvCache cache = model->make_cache();
      std::int64_t begin = 0;
      for (const std::size_t part : parts) {
        const auto size = static_cast<std::int64_t>(part);
        const Ids piece(ids.begin() + begin, ids.begin() + begin + size);
        // Logits of order 100 out of sums of some 100 terms: 100 · 100 · 2⁻⁵³ ≈ 1e-12.
        EXPECT_EQ("", difference(model->logits(as_batch(piece), &cache), whole.slice(1, begin, begin + size),
                                 1e-12))
            << sizes << " from " << begin;
        begin += size;
      }
      EXPECT_EQ(cache.length(), 8);
    }
  }
}

// In f32 and bf16 the few rows of new tokens go through other loops than the prompt's many. Weights are as
// they are first drawn: with larger ones the softmax would make more of a rounding than products do.
TEST(Generate, CachedLogitsOfShortFloatsAreAsNearToF64AsThoseOfAWholePass) {
  for (const char* sizes : {"layers=2,heads=2,width=64,context=32",
                            "family=llama,layers=2,heads=4,kv_heads=2,width=64,context=32"}) {
    const auto exact = make_language_model(sizes, 23);
    for (const DType dtype : {kF32, kBF16}) {
      const auto model = make_language_model(sizes, 23);
      model->to(dtype);
      const NoGrad no_grad;
      exact->to(kF64);
      const NamedTensors parameters = model->named_parameters(), exact_ones = exact->named_parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {  // the same rounded weights
        Tensor weights = exact_ones[i].second;
        weights.copy_from(parameters[i].second);
      }
      for (LanguageModel* each : {model.get(), exact.get()}) each->eval();
      std::vector<std::int64_t> ids;
      for (std::int64_t i = 0; i < 3 * 24; ++i) ids.push_back(i * i % 23);
      const Tensor texts = from_vector(ids, Shape{3, 24});
      const Tensor expected = exact->logits(texts);
      const double largest = max(abs(expected)).item();
      ASSERT_GT(largest, 0.1);
      // Between an id and its logits stand some ten products of at most 256 terms. Each rounds its result
      // once and, in f32, each of its sums; of 256 roundings, whose signs differ, √256 are left.
      const double tolerance = 10 * (dtype == kF32 ? 16 * 0x1p-24 : 0x1p-8) * largest;
      const auto far = [&](const Tensor& got, const Tensor& wanted) {
        return difference(got, wanted, tolerance);
      };
      EXPECT_EQ("", far(model->logits(texts).to(kF64), expected)) << sizes << ", whole";
      KvCache cache = model->make_cache();
      std::int64_t begin = 0;
      for (const std::int64_t size : {17, 1, 1, 2, 1, 1, 1}) {  // of three texts: 51, 3 and 6 rows
        const std::int64_t end = begin + size;
        EXPECT_EQ("", far(model->logits(texts.slice(1, begin, end), &cache).to(kF64),
                          expected.slice(1, begin, end)))
            << sizes << ", " << name(dtype) << " from " << begin;
        begin = end;
      }
    }
  }
}

// Once 12 positions are full, the later half of them, the new token last, is read as a new beginning.
TEST(Generate, BeyondTheContextReadsTheLaterHalfAgain) {
  const auto model = make_model(kGpt2);
  const Ids prompt = {1, 2, 3};
  const Ids got = generate(*model, prompt, {.tokens = 30, .temperature = 0.0});
  Ids window = prompt;
  for (const std::int64_t token : got) {
    const std::vector<double> logits = logits_after(*model, window);
    EXPECT_EQ(token, std::ranges::max_element(logits) - logits.begin());
    window.push_back(token);
    if (window.size() == 13) window.erase(window.begin(), window.end() - 6);
  }
}

TEST(Generate, OfAPromptLongerThanTheContextReadsItsLastPart) {
  const auto model = make_model(kGpt2);
  Ids prompt;
  for (std::int64_t i = 0; i < 40; ++i) prompt.push_back((i * i) % 23);
  const Ids tail(prompt.end() - 6, prompt.end());
  const GenerateOptions options{.tokens = 10, .temperature = 0.0};
  EXPECT_EQ(generate(*model, prompt, options), generate(*model, tail, options));
  const Ids full(prompt.end() - 12, prompt.end());  // fits as it is
  const std::vector<double> logits = logits_after(*model, full);
  EXPECT_EQ(generate(*model, full, {.tokens = 1, .temperature = 0.0}).front(),
            std::ranges::max_element(logits) - logits.begin());
}

TEST(Generate, IsAFunctionOfSeedAndPrompt) {
  const auto model = make_model(kLlama);
  const auto text = [&](std::uint64_t seed, std::int64_t tokens) {
    return generate(*model, Ids{3, 1, 4}, {.tokens = tokens, .temperature = 3.0, .seed = seed});
  };
  EXPECT_EQ(text(1, 30), text(1, 30));
  EXPECT_NE(text(1, 30), text(2, 30));
  const Ids longer = text(1, 30);
  EXPECT_EQ(text(1, 10), Ids(longer.begin(), longer.begin() + 10));
  // The rank's step and seed, which training moves, have no say.
  RankContext::current().step = 17;
  RankContext::current().seed = 99;
  EXPECT_EQ(text(1, 30), longer);
  RankContext::current().step = 0;
  RankContext::current().seed = 0;
}

// All tokens are equally likely to a model whose weights are 0. Of 200 tokens drawn anew each, one of 23 is
// missing with probability 23 · (22/23)²⁰⁰ = 0.3 %.
TEST(Generate, EachTokenHasADrawOfItsOwn) {
  const auto model = make_model(kGpt2);
  {
    const NoGrad no_grad;
    for (Tensor parameter : model->parameters()) parameter.zero();
  }
  const Ids text = generate(*model, Ids{1}, {.tokens = 200, .seed = 8});
  EXPECT_EQ(std::set<std::int64_t>(text.begin(), text.end()).size(), 23U);
}

TEST(Generate, StopsBeforeTheStopTokenAndWhenTheCallerHasEnough) {
  const auto model = make_model(kGpt2);
  const GenerateOptions options{.tokens = 30, .temperature = 2.0, .seed = 3};
  const Ids whole = generate(*model, Ids{1}, options);
  const std::int64_t stop = whole[10];
  const auto first = std::ranges::find(whole, stop);  // it may have come before
  GenerateOptions stopping = options;
  stopping.stop_tokens = {stop};
  EXPECT_EQ(generate(*model, Ids{1}, stopping), Ids(whole.begin(), first));

  Ids seen;
  GenerateOptions watching = options;
  watching.on_token = [&seen](std::int64_t token) {
    seen.push_back(token);
    return seen.size() < 5;
  };
  EXPECT_EQ(generate(*model, Ids{1}, watching), Ids(whole.begin(), whole.begin() + 5));
  EXPECT_EQ(seen, Ids(whole.begin(), whole.begin() + 5));
  EXPECT_TRUE(generate(*model, Ids{1}, {.tokens = 0}).empty());
}

TEST(Generate, NeverGivesIdsThatTheTokenizerHasNot) {
  const auto model = make_model(kGpt2);
  for (const double temperature : {0.0, 50.0}) {
    const Ids free = generate(*model, Ids{1}, {.tokens = 60, .temperature = temperature});
    const Ids bound = generate(*model, Ids{1}, {.tokens = 60, .temperature = temperature, .vocab = 5});
    EXPECT_GE(std::ranges::max(free), 5);
    EXPECT_EQ(bound.size(), 60U);
    EXPECT_LT(std::ranges::max(bound), 5);
  }
}

TEST(Generate, RunsInEvaluationModeAndPutsTheModeBack) {
  const auto model = make_model("layers=2,heads=2,width=16,context=12,dropout=0.5");
  const GenerateOptions options{.tokens = 12, .temperature = 0.0};
  model->eval();
  const Ids expected = generate(*model, Ids{3, 1}, options);
  EXPECT_FALSE(model->training());
  model->train();
  EXPECT_EQ(generate(*model, Ids{3, 1}, options), expected);
  EXPECT_TRUE(model->training());
  EXPECT_THROW(generate(*model, Ids{23}, options), IndexError);
  EXPECT_TRUE(model->training()) << "after an error";
}

TEST(Generate, RecordsNoGraph) {
  const auto model = make_model(kGpt2);
  bool required = false;
  model->add_forward_hook(
      [&required](Module&, std::span<Tensor> outputs) { required = outputs[0].requires_grad(); });
  (void)generate(*model, Ids{3, 1}, {.tokens = 2});
  EXPECT_FALSE(required);
}

TEST(Generate, NamesWhatIsWrong) {
  const auto model = make_model(kGpt2);
  expect_error<ConfigError>([&] { generate(*model, Ids{}); }, "the prompt is empty");
  expect_error<ConfigError>([&] { generate(*model, Ids{1}, {.temperature = -1.0}); }, "temperature");
  expect_error<ConfigError>([&] { generate(*model, Ids{1}, {.top_k = -1}); }, "top_k");
  for (const double top_p : {0.0, -0.5, 1.5, std::numeric_limits<double>::quiet_NaN()})
    expect_error<ConfigError>([&] { generate(*model, Ids{1}, {.top_p = top_p}); }, "top_p");
  expect_error<ConfigError>([&] { generate(*model, Ids{1}, {.repetition_penalty = 0.0}); }, "penalty");
  expect_error<IndexError>([&] { generate(*model, Ids{1, 23}); }, "23");
  Tensor weight = model->find_parameter("ln_f.bias");
  {
    const NoGrad no_grad;
    weight.set({0}, std::numeric_limits<double>::quiet_NaN());
  }
  expect_error<NonFiniteError>([&] { generate(*model, Ids{1}); }, "the logit of token 0 is NaN");
}

// The draw runs through [0, 1) in N equal steps, so token i must come in N·p_i of them, give or take one at
// each end of its interval.
TEST(SampleToken, ComesAsOftenAsTheSoftmaxOfItsLogitSays) {
  struct Case {
    const char* name;
    std::vector<double> logits;
    double temperature;
    std::int64_t top_k;
    std::vector<double> weights;  // unnormalised probabilities
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::vector<Case> cases = {
      {"as it is", {0.0, std::log(2.0), std::log(5.0)}, 1.0, 0, {1, 2, 5}},
      {"cold", {0.0, std::log(2.0), std::log(5.0)}, 0.5, 0, {1, 4, 25}},
      {"hot", {0.0, std::log(4.0), std::log(9.0)}, 2.0, 0, {1, 2, 3}},
      {"the two likeliest", {0.0, std::log(2.0), std::log(5.0)}, 1.0, 2, {0, 2, 5}},
      {"one", {0.0, std::log(2.0), std::log(5.0)}, 1.0, 1, {0, 0, 1}},
      {"more than there are", {0.0, std::log(2.0)}, 1.0, 9, {1, 2}},
      {"the first of equals", {1.0, 2.0, 2.0, 2.0}, 1.0, 2, {0, 1, 1, 0}},
      {"large", {1e4, 1e4 + std::log(3.0), -1e4}, 1.0, 0, {1, 3, 0}},
      {"masked", {-kInfinity, 0.0, 0.0}, 1.0, 0, {0, 1, 1}},
      {"masked within the likeliest", {-kInfinity, 0.0}, 1.0, 2, {0, 1}},
      {"cold as can be", {3.0, 7.0, 7.0}, 0.0, 0, {0, 1, 0}},
  };
  constexpr int kDraws = 10000;
  for (const Case& c : cases) {
    std::vector<int> counts(c.logits.size());
    for (int i = 0; i < kDraws; ++i) {
      const double draw = static_cast<double>(i) / kDraws;
      ++counts[static_cast<std::size_t>(
          sample_token(c.logits, {.temperature = c.temperature, .top_k = c.top_k}, draw))];
    }
    double total = 0.0;
    for (const double weight : c.weights) total += weight;
    for (std::size_t t = 0; t < counts.size(); ++t) {
      const double expected = kDraws * c.weights[t] / total;
      if (c.weights[t] == 0.0) {
        EXPECT_EQ(counts[t], 0) << c.name << ", token " << t;
      } else {
        EXPECT_NEAR(counts[t], expected, 2.0) << c.name << ", token " << t;
      }
    }
  }
}

TEST(SampleToken, NeverLeavesTheVocabulary) {
  const double below_one = std::nextafter(1.0, 0.0);
  const std::vector<double> logits = {0.1, 0.2, 0.3};
  EXPECT_EQ(sample_token(logits, {}, below_one), 2);
  EXPECT_EQ(sample_token(logits, {}, 0.0), 0);
  EXPECT_THROW((void)sample_token({}, {}, 0.5), ConfigError);
}

}  // namespace
}  // namespace tessera::nn
