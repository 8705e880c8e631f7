#include "optim/sgd.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::optim {
namespace {

void check_settings(const kernels::SgdOptions& options) {
  if (!(options.momentum >= 0.0) || !(options.weight_decay >= 0.0)) {
    throw ConfigError(fmt::format("SGD: momentum and weight_decay must not be negative, got {} and {}",
                                  options.momentum, options.weight_decay));
  }
  if (options.nesterov && (options.momentum == 0.0 || options.dampening != 0.0)) {
    throw ConfigError(fmt::format("SGD: Nesterov needs a momentum above 0 and no dampening, got {} and {}",
                                  options.momentum, options.dampening));
  }
}

}  // namespace

Sgd::Sgd(const NamedTensors& parameters, const SgdConfig& config, std::vector<ParameterGroup> groups)
    : Optimizer("SGD", config.lr, parameters, std::move(groups)) {
  for (const ParameterGroup& group : this->groups()) {
    if (group.beta1 || group.beta2 || group.epsilon) {
      throw ConfigError("SGD: a group sets beta1, beta2 or epsilon; SGD has momentum");
    }
    options_.push_back({.momentum = group.momentum.value_or(config.momentum),
                        .dampening = config.dampening,
                        .weight_decay = group.weight_decay.value_or(config.weight_decay),
                        .nesterov = config.nesterov});
    check_settings(options_.back());
    has_velocity_.push_back(options_.back().momentum != 0.0);
  }
  allocate_state([this](std::size_t parameter) {
    return has_velocity_[group_at(parameter)] ? MomentNames{"velocity"} : MomentNames{};
  });
}

void Sgd::set_momentum(double momentum) {
  std::vector<kernels::SgdOptions> changed = options_;
  for (std::size_t g = 0; g < changed.size(); ++g) {
    // A velocity that is never decayed or added to, for a while, would come back out of date.
    if (has_velocity_[g] != (momentum != 0.0)) {
      throw ConfigError(
          fmt::format("set_momentum: a group was made {} momentum and cannot change to {}; start it with "
                      "the smallest momentum of the schedule, above 0",
                      has_velocity_[g] ? "with" : "without", momentum));
    }
    changed[g].momentum = momentum;
    check_settings(changed[g]);
  }
  options_ = std::move(changed);
}

void Sgd::update_all(std::span<const Update> updates, double grad_scale) {
  for (const Batch& batch : batches_of(updates)) {
    kernels::SgdOptions options = options_[batch.group];
    options.lr = batch.lr;
    options.first_step = batch.step == 1;
    options.grad_scale = grad_scale;
    batch.kernels->sgd(batch.items, options);
  }
}

std::string Sgd::describe_settings(std::size_t group) const {
  const kernels::SgdOptions& options = options_[group];
  return fmt::format("weight_decay {}, momentum {}{}", options.weight_decay, options.momentum,
                     options.nesterov ? " (Nesterov)" : "");
}

}  // namespace tessera::optim
