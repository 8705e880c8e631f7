#include "nn/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "kernels/random_key.h"
#include "nn/evaluation_scope.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

double draw(std::uint64_t seed, std::int64_t index) {
  const kernels::RandomKey key{seed, kernels::stream_id("generate"), 0};
  return kernels::random_word(key, static_cast<std::uint64_t>(index)) / 4294967296.0;
}

Tensor as_batch(std::span<const std::int64_t> ids) {
  return from_span(ids, Shape{1, static_cast<std::int64_t>(ids.size())});
}

}  // namespace

std::int64_t sample_token(std::span<const double> logits, double temperature, std::int64_t top_k,
                          double draw) {
  if (logits.empty() || temperature < 0.0 || top_k < 0) {
    throw ConfigError(fmt::format("generate: temperature and top_k must not be negative, but are {} and {}",
                                  temperature, top_k));
  }
  if (const auto nan = std::ranges::find_if(logits, [](double x) { return std::isnan(x); });
      nan != logits.end()) {
    throw NonFiniteError(fmt::format("generate: the logit of token {} is NaN", nan - logits.begin()));
  }
  if (temperature == 0.0) return std::ranges::max_element(logits) - logits.begin();

  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::size_t count = logits.size();
  if (top_k > 0 && static_cast<std::size_t>(top_k) < count) {
    count = static_cast<std::size_t>(top_k);
    // The lower id first among equals, so that the choice does not depend on the library's sort.
    std::ranges::partial_sort(order, order.begin() + static_cast<std::ptrdiff_t>(count),
                              [&logits](std::int64_t a, std::int64_t b) {
                                const double x = logits[static_cast<std::size_t>(a)];
                                const double y = logits[static_cast<std::size_t>(b)];
                                return x > y || (x == y && a < b);
                              });
  }
  const double largest = *std::ranges::max_element(logits);
  std::vector<double> cumulative;
  double total = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    total += std::exp((logits[static_cast<std::size_t>(order[i])] - largest) / temperature);
    cumulative.push_back(total);
  }
  const auto chosen = std::ranges::upper_bound(cumulative, draw * total);
  return order[static_cast<std::size_t>(
      std::min<std::ptrdiff_t>(chosen - cumulative.begin(), static_cast<std::ptrdiff_t>(count) - 1))];
}

std::vector<std::int64_t> generate(LanguageModel& model, std::span<const std::int64_t> prompt,
                                   const GenerateOptions& options) {
  if (prompt.empty()) throw ConfigError("generate: the prompt is empty; give at least one token");
  const NoGrad no_grad;
  const EvaluationScope evaluation(model);
  const auto context = static_cast<std::size_t>(model.context());

  std::vector<std::int64_t> window(prompt.begin(), prompt.end());  // what the model sees
  const auto slide = [&window, context] {
    window.erase(window.begin(),
                 window.end() - static_cast<std::ptrdiff_t>(std::max<std::size_t>(context / 2, 1)));
  };
  if (window.size() > context) slide();
  KvCache cache = model.make_cache(options.use_cache ? 0 : 1);
  const auto next_logits = [&](const Tensor& ids, KvCache* past) {
    return options.next_logits ? options.next_logits(ids, past) : model.next_logits(ids, past);
  };
  std::vector<std::int64_t> result;
  while (static_cast<std::int64_t>(result.size()) < options.tokens) {
    Tensor logits;
    if (options.use_cache) {
      const std::span<const std::int64_t> unread =
          std::span(window).subspan(static_cast<std::size_t>(cache.length()));
      logits = next_logits(as_batch(unread), &cache);
    } else {
      logits = next_logits(as_batch(window), nullptr);
    }
    const std::int64_t token = sample_token(logits.to_vector<double>(), options.temperature, options.top_k,
                                            draw(options.seed, static_cast<std::int64_t>(result.size())));
    if (token == options.stop_token) break;
    result.push_back(token);
    if (options.on_token && !options.on_token(token)) break;
    window.push_back(token);
    if (window.size() > context) {
      slide();
      cache.clear();
    }
  }
  return result;
}

}  // namespace tessera::nn
