#include "tests/parity/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace tessera::dist::parity {
namespace {

double relative(double a, double b) {
  const double d = std::abs(a - b) / std::max(1e-3, std::abs(b));
  return std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
}

// Of gradients that overflowed there is no norm.
bool has_norm(const Result& run, std::size_t step) { return !run.skipped[step]; }

}  // namespace

OneRank one_rank(const TrainingRun& run) {
  OneRank result{.run = run_alone(run), .exact = {}};
  if (run.config.dtype == kBF16 || run.config.dtype == kF16)
    result.exact = run_exactly(run, result.run.skipped);
  return result;
}

Difference compare(const Result& a, const Result& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.losses.size() != b.losses.size() || a.weights.size() != b.weights.size() || a.losses.empty() ||
      a.skipped != b.skipped)
    return {kInfinity, kInfinity, kInfinity};
  Difference difference;
  for (std::size_t i = 0; i < a.losses.size(); ++i) {
    difference.losses = std::max(difference.losses, relative(a.losses[i], b.losses[i]));
    if (has_norm(b, i))
      difference.norms = std::max(difference.norms, relative(a.grad_norms[i], b.grad_norms[i]));
  }
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    const auto& [name_a, values_a] = a.weights[i];
    const auto& [name_b, values_b] = b.weights[i];
    if (name_a != name_b || values_a.size() != values_b.size()) return {kInfinity, kInfinity, kInfinity};
    for (std::size_t j = 0; j < values_a.size(); ++j) {
      const double d = std::abs(values_a[j] - values_b[j]);
      difference.weights = std::max(difference.weights, std::isnan(d) ? kInfinity : d);
    }
  }
  return difference;
}

RelativeError error_of(const Result& run, const Result& exact) {
  RelativeError error;
  double losses = 0.0, norms = 0.0, num_norms = 0.0;
  for (std::size_t i = 0; i < exact.losses.size(); ++i) {
    losses += std::pow(relative(run.losses[i], exact.losses[i]), 2);
    if (!has_norm(exact, i)) continue;
    norms += std::pow(relative(run.grad_norms[i], exact.grad_norms[i]), 2);
    ++num_norms;
  }
  error.losses = std::sqrt(losses / static_cast<double>(exact.losses.size()));
  error.norms = std::sqrt(norms / num_norms);
  double all_wrong = 0.0, all_learned = 0.0;
  for (std::size_t i = 0; i < exact.weights.size(); ++i) {
    double wrong = 0.0, worst = 0.0, learned = 0.0;
    for (std::size_t j = 0; j < exact.weights[i].second.size(); ++j) {
      const double square = std::pow(run.weights[i].second[j] - exact.weights[i].second[j], 2);
      wrong += square;
      worst = std::max(worst, square);
      learned += std::pow(exact.weights[i].second[j] - exact.initial[i].second[j], 2);
    }
    error.parameters.emplace_back(exact.weights[i].first, std::sqrt((wrong - worst) / learned));
    all_wrong += wrong;
    all_learned += learned;
  }
  error.weights = std::sqrt(all_wrong / all_learned);
  return error;
}

namespace {

double mean_of(const std::vector<std::pair<std::string, double>>& errors) {
  double sum = 0.0;
  for (const auto& [parameter, error] : errors) sum += error;
  return sum / static_cast<double>(errors.size());
}

Distance distance16(const Result& result, const OneRank& one_rank) {
  constexpr double kLosses = 4.0, kNorms = 3.0, kWeights = 3.0, kParameter = 8.0;
  const RelativeError own = error_of(result, one_rank.exact);
  const RelativeError alone = error_of(one_rank.run, one_rank.exact);
  Distance d;
  d.shown = fmt::format(
      "losses {:.1e} off (one rank {:.1e}), norms {:.1e} ({:.1e}), of what was learned {:.1e} wrong ({:.1e})",
      own.losses, alone.losses, own.norms, alone.norms, own.weights, alone.weights);
  d.value = std::max({own.losses / alone.losses / kLosses, own.norms / alone.norms / kNorms,
                      own.weights / alone.weights / kWeights});
  const double mean = mean_of(alone.parameters);
  for (std::size_t i = 0; i < own.parameters.size(); ++i) {
    const auto& [parameter, error] = own.parameters[i];
    const double excess = error / std::max(mean, alone.parameters[i].second) / kParameter;
    if (excess <= d.value) continue;
    d.value = excess;
    d.shown += fmt::format("; {} {:.1e} ({:.1e})", parameter, error, alone.parameters[i].second);
  }
  return d;
}

}  // namespace

Distance distance(const TrainingRun& run, const Result& result, const OneRank& one_rank) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const DType dtype = run.config.dtype;
  const Difference d = compare(result, one_rank.run);
  if (d.losses == kInfinity || d.weights == kInfinity)
    return {kInfinity, "not the same steps and weights, or a NaN"};
  if (dtype == kBF16 || dtype == kF16) return distance16(result, one_rank);
  const Difference allowed = dtype == kF64 ? Difference{1e-10, 1e-10, 1e-10} : Difference{1e-6, 2e-6, 3e-6};
  return {std::max({d.losses / allowed.losses, d.norms / allowed.norms, d.weights / allowed.weights}),
          fmt::format("losses {:.1e}, norms {:.1e}, weights {:.1e}", d.losses, d.norms, d.weights)};
}

}  // namespace tessera::dist::parity
