#include "optim/adagrad.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::optim {

Adagrad::Adagrad(const NamedTensors& parameters, const AdagradConfig& config,
                 std::vector<ParameterGroup> groups)
    : Optimizer("Adagrad", config.lr, parameters, std::move(groups)), lr_decay_(config.lr_decay) {
  if (!(lr_decay_ >= 0.0) || !(config.initial_accumulator_value >= 0.0)) {
    throw ConfigError(
        fmt::format("Adagrad: lr_decay and initial_accumulator_value must not be negative, got {} and {}",
                    lr_decay_, config.initial_accumulator_value));
  }
  for (const ParameterGroup& group : this->groups()) {
    if (group.beta1 || group.beta2 || group.momentum) {
      throw ConfigError("Adagrad: a group sets beta1, beta2 or momentum; Adagrad has none of them");
    }
    options_.push_back({.epsilon = group.epsilon.value_or(config.epsilon),
                        .weight_decay = group.weight_decay.value_or(config.weight_decay)});
    if (!(options_.back().epsilon >= 0.0) || !(options_.back().weight_decay >= 0.0)) {
      throw ConfigError(fmt::format("Adagrad: epsilon and weight_decay must not be negative, got {} and {}",
                                    options_.back().epsilon, options_.back().weight_decay));
    }
  }
  allocate_state([](std::size_t) { return MomentNames{"sum_of_squares"}; }, config.initial_accumulator_value);
}

void Adagrad::set_momentum(double momentum) {
  throw ConfigError(fmt::format(
      "set_momentum: Adagrad has no momentum to set to {}; take a schedule without, or Adam", momentum));
}

void Adagrad::update_all(std::span<const Update> updates, double grad_scale) {
  for (const Batch& batch : batches_of(updates)) {
    kernels::AdagradOptions options = options_[batch.group];
    options.lr = batch.lr / (1.0 + static_cast<double>(batch.step - 1) * lr_decay_);
    options.grad_scale = grad_scale;
    batch.kernels->adagrad(batch.items, options);
  }
}

std::string Adagrad::describe_settings(std::size_t group) const {
  const kernels::AdagradOptions& options = options_[group];
  return fmt::format("weight_decay {}, lr_decay {}, epsilon {}", options.weight_decay, lr_decay_,
                     options.epsilon);
}

}  // namespace tessera::optim
