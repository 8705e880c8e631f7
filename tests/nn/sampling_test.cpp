// Penalty, temperature, top-k and top-p against the logits processors of transformers; many prompts at once.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "nn/generate.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"
#include "tests/nn/sampling_values.h"
#include "tests/nn/text_models.h"

namespace tessera::nn {
namespace {

using Ids = std::vector<std::int64_t>;

TEST(Sampling, ProbabilitiesAreThoseOfTransformers) {
  EXPECT_GT(kSamplingCases.size(), 200U);
  for (const SamplingCase& c : kSamplingCases) {
    const Sampling sampling{c.temperature, c.top_k, c.top_p, c.repetition_penalty};
    const std::vector<double> got = token_probabilities(c.logits, sampling, kSamplingSeen);
    ASSERT_EQ(got.size(), c.probabilities.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], c.probabilities[i], 1e-14)
          << c.name << ", token " << i << " at " << c.temperature << ", " << c.top_k << ", " << c.top_p
          << ", " << c.repetition_penalty;
    }
  }
}

TEST(Sampling, DrawsComeAsOftenAsTheProbabilitiesSay) {
  const std::vector<double> logits = {2.5, -1.0, 0.25, 3.0, -0.5, 1.75};
  const Sampling sampling{.temperature = 1.5, .top_k = 5, .top_p = 0.9, .repetition_penalty = 1.3};
  const Ids seen = {3, 1};
  const std::vector<double> probabilities = token_probabilities(logits, sampling, seen);
  std::vector<double> counts(logits.size());
  constexpr int kDraws = 10000;
  for (int i = 0; i < kDraws; ++i)
    ++counts[static_cast<std::size_t>(sample_token(logits, sampling, static_cast<double>(i) / kDraws, seen))];
  for (std::size_t t = 0; t < counts.size(); ++t) EXPECT_NEAR(counts[t], kDraws * probabilities[t], 2.0) << t;
  EXPECT_EQ(std::ranges::count(probabilities, 0.0), 2) << "one by top_k, one by top_p";
}

TEST(Sampling, TopPKeepsTheFewestThatReachItAndAlwaysOne) {
  const std::vector<double> logits = {std::log(0.5), std::log(0.25), std::log(0.125), std::log(0.125)};
  const auto kept = [&](double top_p) {
    const auto p = token_probabilities(logits, {.top_p = top_p});
    return p.size() - static_cast<std::size_t>(std::ranges::count(p, 0.0));
  };
  EXPECT_EQ(kept(1e-300), 1U);
  EXPECT_EQ(kept(0.49), 1U);
  EXPECT_EQ(kept(0.51), 2U);
  EXPECT_EQ(kept(0.76), 3U);
  EXPECT_EQ(kept(0.88), 4U);
  EXPECT_NEAR(token_probabilities(logits, {.top_p = 0.8})[2], 0.125 / 0.875, 1e-15)
      << "the lower id of equals";
  EXPECT_EQ(token_probabilities(logits, {.top_p = 0.8})[3], 0.0);
}

// Of a large vocabulary only a part is sorted, in steps: the same tokens as by sorting all of it.
TEST(Sampling, TopPOfALargeVocabularyIsThatOfAFullSort) {
  constexpr std::size_t kVocabulary = 3001;
  for (const double temperature : {0.3, 1.0, 20.0}) {
    std::vector<double> logits;  // many are equal
    for (std::size_t i = 0; i < kVocabulary; ++i)
      logits.push_back(static_cast<double>((i * 7919) % 1009) / 1009 * 8);
    std::vector<std::size_t> order(kVocabulary);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    double total = 0.0;
    for (const double logit : logits) total += std::exp(logit / temperature);
    for (const double top_p : {0.001, 0.02, 0.1, 0.25, 0.5, 0.9, 0.999}) {
      SCOPED_TRACE(testing::Message() << "temperature " << temperature << ", top_p " << top_p);
      const auto got = token_probabilities(logits, {.temperature = temperature, .top_p = top_p});
      double sum = 0.0;
      std::size_t num_kept = 0;
      for (; sum < top_p * total; ++num_kept) sum += std::exp(logits[order[num_kept]] / temperature);
      for (std::size_t i = 0; i < kVocabulary; ++i) {
        const double expected = i < num_kept ? std::exp(logits[order[i]] / temperature) / sum : 0.0;
        ASSERT_NEAR(got[order[i]], expected, 1e-14) << "place " << i << " of " << num_kept;
      }
    }
  }
}

TEST(Sampling, APenaltyWorksWithoutTemperatureToo) {
  const std::vector<double> logits = {1.0, 1.5, -1.0};
  EXPECT_EQ(sample_token(logits, {.temperature = 0.0}, 0.5), 1);
  EXPECT_EQ(sample_token(logits, {.temperature = 0.0, .repetition_penalty = 2.0}, 0.5, Ids{1}), 0);
  EXPECT_EQ(sample_token(logits, {.temperature = 0.0, .repetition_penalty = 2.0}, 0.5, Ids{1, 1, 0}), 1);
}

// Prompts of 1 to 30 tokens, beyond the context of 12; texts that slide several times.
// A token whose logit is -inf cannot come. Differences of infinities are NaN: with them any token might.
TEST(Sampling, InfiniteLogitsAreTakenOrRefused) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(
      token_probabilities(std::vector<double>{-kInf, 1.0, -kInf, 1.0}, {.repetition_penalty = 1.5}, Ids{0}),
      (std::vector<double>{0.0, 0.5, 0.0, 0.5}));
  EXPECT_EQ(sample_token(std::vector<double>{-kInf, 1.0, -kInf}, {}, 0.0), 1);
  for (const double temperature : {0.0, 1.0}) {
    const Sampling sampling{.temperature = temperature};
    expect_error<NonFiniteError>(
        [&] {
          (void)sample_token(std::vector<double>{0.0, kInf, 1.0}, sampling, 0.5);
        },
        "the logit of token 1 is inf");
    expect_error<NonFiniteError>(
        [&] {
          (void)sample_token(std::vector<double>{-kInf, -kInf}, sampling, 0.5);
        },
        "all logits are -inf");
  }
  const std::vector<double> logits = {1.0, 2.0};
  expect_error<ConfigError>([&] { (void)sample_token(logits, {.temperature = kInf}, 0.5); }, "finite");
  expect_error<ConfigError>([&] { (void)sample_token(logits, {.repetition_penalty = kInf}, 0.5); }, "finite");
}

TEST(GenerateBatch, GivesForEachPromptWhatItGivesAlone) {
  std::vector<Ids> prompts;
  for (const std::size_t length : {3, 1, 12, 7, 30, 3}) {
    Ids prompt;
    for (std::size_t i = 0; i < length; ++i)
      prompt.push_back(static_cast<std::int64_t>((i * i + length + prompts.size()) % 23));
    prompts.push_back(prompt);
  }
  for (const char* sizes : {kGpt2, kLlama}) {
    const auto model = make_model(sizes);
    for (const bool use_cache : {true, false}) {
      for (const double temperature : {0.0, 1.0}) {
        const GenerateOptions options{.tokens = 25,
                                      .temperature = temperature,
                                      .top_k = 12,
                                      .top_p = 0.95,
                                      .repetition_penalty = 1.2,
                                      .seed = 7,
                                      .stop_tokens = {4},
                                      .use_cache = use_cache};
        const std::vector<Ids> together = generate_batch(*model, prompts, options);
        ASSERT_EQ(together.size(), prompts.size());
        for (std::size_t r = 0; r < prompts.size(); ++r) {
          GenerateOptions alone = options;
          alone.seed = options.seed + r;
          EXPECT_EQ(together[r], generate(*model, prompts[r], alone)) << sizes << ", row " << r;
        }
      }
    }
  }
}

TEST(GenerateBatch, EndsRowsByThemselves) {
  const auto model = make_model(kGpt2);
  const std::vector<Ids> prompts = {{1, 2}, {5}, {9, 9, 9}};
  const GenerateOptions options{.tokens = 20, .temperature = 2.0, .seed = 3};
  const std::vector<Ids> whole = generate_batch(*model, prompts, options);
  GenerateOptions stopping = options;
  stopping.stop_tokens = {whole[1][4], whole[2][9]};
  const std::vector<Ids> stopped = generate_batch(*model, prompts, stopping);
  for (std::size_t r = 0; r < prompts.size(); ++r) {
    const auto end = std::ranges::find_first_of(whole[r], stopping.stop_tokens);
    EXPECT_EQ(stopped[r], Ids(whole[r].begin(), end)) << r;
  }
  EXPECT_LE(stopped[1].size(), 4U);
}

TEST(GenerateBatch, ReadsAllPromptsInOnePass) {
  const auto model = make_model(kGpt2);
  std::vector<Shape> passes;
  model->add_forward_pre_hook(
      [&passes](Module&, std::span<Tensor> inputs) { passes.push_back(inputs[0].shape()); });
  (void)generate_batch(*model, std::vector<Ids>{{1, 2, 3}, {4, 5, 6, 7, 8}}, {.tokens = 2});
  // The second text ends 2 passes after the first: 5 + 2 tokens in all, of which the last is never read.
  EXPECT_EQ(passes, (std::vector<Shape>{{2, 3}, {2, 1}, {2, 1}, {2, 1}}));
}

TEST(GenerateBatch, NamesWhatIsWrong) {
  const auto model = make_model(kGpt2);
  const std::vector<Ids> prompts = {{1}, {}};
  expect_error<ConfigError>([&] { (void)generate_batch(*model, prompts); }, "the prompt is empty");
  const std::vector<Ids> one = {{1}};
  expect_error<ConfigError>(
      [&] { (void)generate_batch(*model, one, {.on_token = [](std::int64_t) { return true; }}); },
      "on_token is for one text");
  EXPECT_TRUE(generate_batch(*model, std::vector<Ids>{}).empty());
  EXPECT_EQ(generate_batch(*model, one, {.tokens = 0}), std::vector<Ids>{Ids{}});
}

}  // namespace
}  // namespace tessera::nn
