#include "optim/lion.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::optim {

Lion::Lion(const NamedTensors& parameters, const LionConfig& config, std::vector<ParameterGroup> groups)
    : Optimizer("Lion", config.lr, parameters, std::move(groups)) {
  for (const ParameterGroup& group : this->groups()) {
    if (group.epsilon || group.momentum) {
      throw ConfigError("Lion: a group sets epsilon or momentum; Lion has beta1, beta2 and weight_decay");
    }
    options_.push_back({.beta1 = group.beta1.value_or(config.beta1),
                        .beta2 = group.beta2.value_or(config.beta2),
                        .weight_decay = group.weight_decay.value_or(config.weight_decay)});
    const kernels::LionOptions& options = options_.back();
    if (!is_decay_rate(options.beta1) || !is_decay_rate(options.beta2)) {
      throw ConfigError(fmt::format("Lion: betas must lie in [0, 1), got beta1 = {}, beta2 = {}",
                                    options.beta1, options.beta2));
    }
    if (!(options.weight_decay >= 0.0)) {
      throw ConfigError(fmt::format("Lion: weight_decay must not be negative, got {}", options.weight_decay));
    }
  }
  allocate_state([](std::size_t) { return MomentNames{"momentum"}; });
}

void Lion::set_momentum(double momentum) {
  if (!is_decay_rate(momentum)) {
    throw ConfigError(fmt::format("set_momentum: beta1 must lie in [0, 1), got {}", momentum));
  }
  for (kernels::LionOptions& options : options_) options.beta1 = momentum;
}

void Lion::update_all(std::span<const Update> updates, double grad_scale) {
  for (const Batch& batch : batches_of(updates)) {
    kernels::LionOptions options = options_[batch.group];
    options.lr = batch.lr;
    options.grad_scale = grad_scale;
    batch.kernels->lion(batch.items, options);
  }
}

std::string Lion::describe_settings(std::size_t group) const {
  const kernels::LionOptions& options = options_[group];
  return fmt::format("weight_decay {}, betas {} {}", options.weight_decay, options.beta1, options.beta2);
}

}  // namespace tessera::optim
