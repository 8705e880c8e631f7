// From logits to a token: penalty, temperature, top-k, top-p, draw.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"
#include "nn/generate.h"

namespace tessera::nn {
namespace {

void check(std::span<const double> logits, const Sampling& sampling) {
  if (logits.empty()) throw ConfigError("generate: there are no logits to draw from");
  if (!(sampling.temperature >= 0.0) || std::isinf(sampling.temperature) || sampling.top_k < 0) {
    throw ConfigError(
        fmt::format("generate: temperature and top_k must be finite and not negative, but are {} and {}",
                    sampling.temperature, sampling.top_k));
  }
  if (!(sampling.top_p > 0.0 && sampling.top_p <= 1.0)) {
    throw ConfigError(
        fmt::format("generate: top_p must be above 0 and at most 1, but is {}", sampling.top_p));
  }
  if (!(sampling.repetition_penalty > 0.0) || std::isinf(sampling.repetition_penalty)) {
    throw ConfigError(fmt::format("generate: repetition_penalty must be finite and above 0, but is {}",
                                  sampling.repetition_penalty));
  }
  if (const auto nan = std::ranges::find_if(logits, [](double x) { return std::isnan(x); });
      nan != logits.end()) {
    throw NonFiniteError(
        fmt::format("generate: the logit of token {} is NaN; the model's weights are damaged, or too large "
                    "for their dtype (find_first_non_finite names the layer)",
                    nan - logits.begin()));
  }
}

std::vector<double> penalized(std::span<const double> logits, double penalty,
                              std::span<const std::int64_t> seen) {
  std::vector<double> result(logits.begin(), logits.end());
  if (penalty == 1.0) return result;
  for (const std::int64_t token : seen) {  // from the logit as it was: once, however often it was there
    const auto i = static_cast<std::size_t>(token);
    if (i < result.size()) result[i] = logits[i] > 0.0 ? logits[i] / penalty : logits[i] * penalty;
  }
  return result;
}

/// The tokens that can come, and their probabilities, not yet divided by their sum.
struct Candidates {
  std::vector<std::int64_t> tokens;
  std::vector<double> weights;
  double total = 0.0;
};

Candidates candidates(std::span<const double> original, const Sampling& sampling,
                      std::span<const std::int64_t> seen) {
  check(original, sampling);
  const std::vector<double> logits = penalized(original, sampling.repetition_penalty, seen);
  const auto logit = [&logits](std::int64_t token) { return logits[static_cast<std::size_t>(token)]; };
  const auto likeliest = std::ranges::max_element(logits);
  // Of +inf, and where all are -inf, the differences below would be NaN, and any token be drawn.
  if (std::isinf(*likeliest)) {
    throw NonFiniteError(
        *likeliest > 0.0 ? fmt::format("generate: the logit of token {} is inf", likeliest - logits.begin())
                         : "generate: all logits are -inf, so no token can come");
  }
  if (sampling.temperature == 0.0) return {{likeliest - logits.begin()}, {1.0}, 1.0};

  Candidates result;
  result.tokens.resize(logits.size());
  std::iota(result.tokens.begin(), result.tokens.end(), std::int64_t{0});
  // The lower id first among equals, so that the choice does not depend on the library's sort.
  const auto comes_first = [&logit](std::int64_t a, std::int64_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  };
  // Sorts tokens[begin, end), which are the likeliest of those from `begin` on.
  const auto sort_likeliest = [&](std::size_t begin, std::size_t end) {
    const auto first = result.tokens.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto middle = result.tokens.begin() + static_cast<std::ptrdiff_t>(end);
    std::nth_element(first, middle, result.tokens.end(), comes_first);
    std::sort(first, middle, comes_first);
  };
  const auto weight = [&](std::int64_t token) {
    return std::exp((logit(token) - *likeliest) / sampling.temperature);
  };

  std::size_t num_sorted = 0;
  if (const auto top_k = static_cast<std::size_t>(sampling.top_k); top_k > 0 && top_k < logits.size()) {
    sort_likeliest(0, top_k);
    result.tokens.resize(top_k);
    num_sorted = top_k;
  }
  for (const std::int64_t token : result.tokens) {
    result.weights.push_back(weight(token));
    result.total += result.weights.back();
  }
  if (sampling.top_p < 1.0) {
    // Mostly some dozen tokens of a large vocabulary are enough: only as many are sorted as are looked at.
    constexpr std::size_t kFirst = 64;
    double sum = 0.0;
    std::size_t kept = 0;
    result.weights.clear();
    for (; kept < result.tokens.size() && sum < sampling.top_p * result.total; ++kept) {
      if (kept == num_sorted) {
        num_sorted = std::min(std::max(kFirst, 4 * num_sorted), result.tokens.size());
        sort_likeliest(kept, num_sorted);
      }
      result.weights.push_back(weight(result.tokens[kept]));
      sum += result.weights.back();
    }
    result.tokens.resize(kept);
    result.total = sum;
  }
  return result;
}

}  // namespace

std::vector<double> token_probabilities(std::span<const double> logits, const Sampling& sampling,
                                        std::span<const std::int64_t> seen) {
  const Candidates all = candidates(logits, sampling, seen);
  std::vector<double> probabilities(logits.size());
  for (std::size_t i = 0; i < all.tokens.size(); ++i)
    probabilities[static_cast<std::size_t>(all.tokens[i])] = all.weights[i] / all.total;
  return probabilities;
}

std::int64_t sample_token(std::span<const double> logits, const Sampling& sampling, double draw,
                          std::span<const std::int64_t> seen) {
  const Candidates all = candidates(logits, sampling, seen);
  std::vector<double> cumulative(all.weights.size());
  std::partial_sum(all.weights.begin(), all.weights.end(), cumulative.begin());
  const auto chosen = std::ranges::upper_bound(cumulative, draw * all.total) - cumulative.begin();
  const auto last = static_cast<std::ptrdiff_t>(all.tokens.size()) - 1;
  return all.tokens[static_cast<std::size_t>(std::min(chosen, last))];
}

}  // namespace tessera::nn
