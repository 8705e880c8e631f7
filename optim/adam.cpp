#include "optim/adam.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::optim {
namespace {

// Betas of 1 would never learn, and divide by zero in the bias correction.
void check_settings(const char* type, const kernels::AdamOptions& options) {
  if (!is_decay_rate(options.beta1) || !is_decay_rate(options.beta2)) {
    throw ConfigError(fmt::format("{}: betas must lie in [0, 1), got beta1 = {}, beta2 = {}", type,
                                  options.beta1, options.beta2));
  }
  if (!(options.epsilon >= 0.0) || !(options.weight_decay >= 0.0)) {
    throw ConfigError(fmt::format("{}: epsilon and weight_decay must not be negative, got {} and {}", type,
                                  options.epsilon, options.weight_decay));
  }
}

}  // namespace

Adam::Adam(const char* type, bool decoupled, const NamedTensors& parameters, const AdamConfig& config,
           std::vector<ParameterGroup> groups)
    : Optimizer(type, config.lr, parameters, std::move(groups)), state_dtype_(config.state_dtype) {
  if (state_dtype_ != kF32 && state_dtype_ != kBF16) {
    throw ConfigError(fmt::format("{}: state_dtype must be f32 (f64 of f64 parameters) or bf16, got {}", type,
                                  name(state_dtype_)));
  }
  const double default_decay = config.weight_decay.value_or(decoupled ? 0.01 : 0.0);
  for (const ParameterGroup& group : this->groups()) {
    if (group.momentum) {
      throw ConfigError(fmt::format("{}: a group sets momentum; {} has beta1 and beta2", type, type));
    }
    options_.push_back({.beta1 = group.beta1.value_or(config.beta1),
                        .beta2 = group.beta2.value_or(config.beta2),
                        .epsilon = group.epsilon.value_or(config.epsilon),
                        .weight_decay = group.weight_decay.value_or(default_decay),
                        .decoupled = decoupled});
    check_settings(type, options_.back());
  }
  const MomentNames moments{"moment1", "moment2"};
  if (state_dtype_ == kBF16) {
    allocate_bf16_state(moments);
  } else {
    allocate_state([&moments](std::size_t) { return moments; });
  }
}

void Adam::set_momentum(double momentum) {
  if (!is_decay_rate(momentum)) {
    throw ConfigError(fmt::format("set_momentum: beta1 must lie in [0, 1), got {}", momentum));
  }
  for (kernels::AdamOptions& options : options_) options.beta1 = momentum;
}

void Adam::update_all(std::span<const Update> updates, double grad_scale) {
  for (const Batch& batch : batches_of(updates)) {
    kernels::AdamOptions options = options_[batch.group];
    options.lr = batch.lr;
    options.step = batch.step;
    options.grad_scale = grad_scale;
    batch.kernels->adam(batch.items, options);
  }
}

std::string Adam::describe_settings(std::size_t group) const {
  const kernels::AdamOptions& options = options_[group];
  return fmt::format("weight_decay {}, betas {} {}, epsilon {}{}", options.weight_decay, options.beta1,
                     options.beta2, options.epsilon, state_dtype_ == kBF16 ? ", bf16 state" : "");
}

}  // namespace tessera::optim
