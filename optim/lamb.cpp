#include "optim/lamb.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/math.h"
#include "kernels/error.h"

namespace tessera::optim {

Lamb::Lamb(const NamedTensors& parameters, const LambConfig& config, std::vector<ParameterGroup> groups,
           std::shared_ptr<PieceExchange> exchange)
    : Optimizer("LAMB", config.lr, parameters, std::move(groups), std::move(exchange)),
      min_trust_(config.min_trust),
      max_trust_(config.max_trust) {
  if (!(min_trust_ >= 0.0) || !(max_trust_ >= min_trust_)) {
    throw ConfigError(
        fmt::format("LAMB: 0 <= min_trust <= max_trust is needed, got {} and {}", min_trust_, max_trust_));
  }
  for (const ParameterGroup& group : this->groups()) {
    if (group.momentum) throw ConfigError("LAMB: a group sets momentum; LAMB has beta1 and beta2");
    options_.push_back({.beta1 = group.beta1.value_or(config.beta1),
                        .beta2 = group.beta2.value_or(config.beta2),
                        .epsilon = group.epsilon.value_or(config.epsilon),
                        .weight_decay = group.weight_decay.value_or(config.weight_decay)});
    const kernels::AdamOptions& options = options_.back();
    if (!is_decay_rate(options.beta1) || !is_decay_rate(options.beta2)) {
      throw ConfigError(fmt::format("LAMB: betas must lie in [0, 1), got beta1 = {}, beta2 = {}",
                                    options.beta1, options.beta2));
    }
    if (!(options.epsilon >= 0.0) || !(options.weight_decay >= 0.0)) {
      throw ConfigError(fmt::format("LAMB: epsilon and weight_decay must not be negative, got {} and {}",
                                    options.epsilon, options.weight_decay));
    }
  }
  allocate_state([](std::size_t) { return MomentNames{"moment1", "moment2"}; });
}

void Lamb::set_momentum(double momentum) {
  if (!is_decay_rate(momentum)) {
    throw ConfigError(fmt::format("set_momentum: beta1 must lie in [0, 1), got {}", momentum));
  }
  for (kernels::AdamOptions& options : options_) options.beta1 = momentum;
}

kernels::AdamOptions Lamb::options_of(const Batch& batch, double grad_scale) const {
  kernels::AdamOptions options = options_[batch.group];
  options.lr = batch.lr;
  options.step = batch.step;
  options.grad_scale = grad_scale;
  return options;
}

// NaN of NaN: std::clamp leaves it, and the parameter shows that something went wrong.
double Lamb::trust(const kernels::LambSquares& squares) const noexcept {
  if (squares.parameter == 0.0 || squares.direction == 0.0) return 1.0;
  return std::clamp(std::sqrt(squares.parameter / squares.direction), min_trust_, max_trust_);
}

std::vector<std::string> Lamb::twice_named(std::span<const Update> updates) const {
  std::vector<std::string> names;
  for (const Update& update : updates) names.insert(names.end(), 2, name_at(update.parameter));
  return names;
}

// u = m̂ / (√v̂ + ε) + weight_decay · p, of moments that have had this step's gradient.
Tensor Lamb::direction_of(const Update& update) {
  const NoGrad no_grad;
  const kernels::AdamOptions& options = options_[update.group];
  const auto steps = static_cast<double>(update.step);
  const double inv_correction1 = 1.0 / (1.0 - std::pow(options.beta1, steps));
  const double inv_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(options.beta2, steps));
  const Tensor mean = moment_at(update.parameter, 0), square = moment_at(update.parameter, 1);
  Tensor direction = mean * inv_correction1 / (sqrt(square) * inv_sqrt_correction2 + options.epsilon);
  if (options.weight_decay != 0.0) direction.add_scaled(values_at(update.parameter), options.weight_decay);
  return direction;
}

bool Lamb::sum_exactly(std::span<const Update> updates, std::span<kernels::LambSquares> squares) {
  std::vector<double> sums(2 * updates.size());
  const auto piece = [&](std::size_t i) {
    const Update& update = updates[i / 2];
    return i % 2 == 0 ? values_at(update.parameter) : direction_of(update);
  };
  if (!exchange()->sum_squares_exactly(twice_named(updates), piece, sums)) return false;
  for (std::size_t u = 0; u < updates.size(); ++u) squares[u] = {sums[2 * u], sums[2 * u + 1]};
  return true;
}

// One collective for all parameters, in their own order: batches depend on histories, which a rank that joins
// later does not share.
void Lamb::sum_over_pieces(std::span<const Update> updates, std::span<kernels::LambSquares> squares) const {
  std::vector<double> sums;
  for (std::size_t u = 0; u < updates.size(); ++u) {
    sums.push_back(squares[u].parameter);
    sums.push_back(squares[u].direction);
  }
  exchange()->sum_over_pieces(twice_named(updates), sums);
  for (std::size_t u = 0; u < updates.size(); ++u) squares[u] = {sums[2 * u], sums[2 * u + 1]};
}

void Lamb::update_all(std::span<const Update> updates, double grad_scale) {
  const std::vector<Batch> batches = batches_of(updates);
  std::vector<kernels::LambSquares> squares(updates.size());  // by update
  for (const Batch& batch : batches) {
    std::vector<kernels::LambSquares> of_batch(batch.items.size());
    batch.kernels->lamb_moments(batch.items, options_of(batch, grad_scale), of_batch);
    for (std::size_t i = 0; i < of_batch.size(); ++i) squares[batch.updates[i]] = of_batch[i];
  }
  if (exchange() != nullptr && !sum_exactly(updates, squares)) sum_over_pieces(updates, squares);
  for (const Batch& batch : batches) {
    std::vector<double> ratios;
    for (const std::size_t u : batch.updates) ratios.push_back(trust(squares[u]));
    batch.kernels->lamb(batch.items, options_of(batch, grad_scale), ratios);
  }
}

std::string Lamb::describe_settings(std::size_t group) const {
  const kernels::AdamOptions& options = options_[group];
  return fmt::format("weight_decay {}, betas {} {}, epsilon {}, trust {} to {}", options.weight_decay,
                     options.beta1, options.beta2, options.epsilon, min_trust_, max_trust_);
}

}  // namespace tessera::optim
