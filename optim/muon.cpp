#include "optim/muon.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/linear_algebra.h"
#include "kernels/error.h"

namespace tessera::optim {
namespace {

// On meta there is no norm: any other number will do.
double norm_of(const Tensor& x) {
  const kernels::ConstView view = x.view();
  const double squares = kernels::of(x.device().type).reductions.sum_of_squares({&view, 1});
  return std::sqrt(squares);
}

double step_scale(MuonScale scale, const Shape& whole) {
  const auto rows = static_cast<double>(whole[0]), columns = static_cast<double>(whole[1]);
  switch (scale) {
    case MuonScale::kSpectral:
      return std::sqrt(std::max(1.0, rows / columns));
    case MuonScale::kAdamRms:
      return 0.2 * std::sqrt(std::max(rows, columns));
    case MuonScale::kSpectralUnclamped:
      return std::sqrt(rows / columns);
  }
  throw ConfigError("Muon: MuonConfig::scale is none of the enum's values");
}

}  // namespace

Tensor newton_schulz(const Tensor& x, int steps) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kEpsilon = 1e-7;
  if (x.dims() != 2) {
    throw ShapeError(fmt::format("newton_schulz: a matrix is needed, got {}", tessera::describe(x)));
  }
  const NoGrad no_grad;
  // X Xᵀ of the lying matrix is the small one of the two: (b A + c A²) X = X (b Xᵀ X + c (Xᵀ X)²).
  const bool stands = x.dim(0) > x.dim(1);
  Tensor X = multiply(stands ? x.transpose(0, 1).contiguous() : x, 1.0 / std::max(norm_of(x), kEpsilon));
  for (int i = 0; i < steps; ++i) {
    const Tensor A = matmul(X, X.transpose(0, 1));
    Tensor B = multiply(matmul(A, A), kC);
    B.add_scaled(A, kB);
    Tensor next = matmul(B, X);
    next.add_scaled(X, kA);
    X = next;
  }
  return stands ? X.transpose(0, 1).contiguous() : X;
}

std::vector<std::string> all_but_hidden_matrices() {
  std::vector<std::string> names = no_decay_for_biases_and_norms().front().patterns;
  for (const char* start : {"wte.", "wpe.", "embed", "lm_head."}) {
    names.push_back(fmt::format("{}*", start));
    names.push_back(fmt::format("*.{}*", start));
  }
  return names;
}

Muon::Muon(const NamedTensors& parameters, const MuonConfig& config, std::vector<ParameterGroup> groups,
           std::shared_ptr<PieceExchange> exchange)
    : Optimizer("Muon", config.lr, parameters, std::move(groups), std::move(exchange)), config_(config) {
  if (config.newton_schulz_steps < 1 || !(config.adamw_lr_scale >= 0.0)) {
    throw ConfigError(
        fmt::format("Muon: newton_schulz_steps must be at least 1 and adamw_lr_scale not negative, got {} "
                    "and {}",
                    config.newton_schulz_steps, config.adamw_lr_scale));
  }
  for (const ParameterGroup& group : this->groups()) {
    matrices_.push_back({.momentum = group.momentum.value_or(config.momentum),
                         .weight_decay = group.weight_decay.value_or(config.weight_decay)});
    adamw_.push_back({.beta1 = group.beta1.value_or(config.beta1),
                      .beta2 = group.beta2.value_or(config.beta2),
                      .epsilon = group.epsilon.value_or(config.epsilon),
                      .weight_decay = matrices_.back().weight_decay});
    if (!is_decay_rate(matrices_.back().momentum) || !is_decay_rate(adamw_.back().beta1) ||
        !is_decay_rate(adamw_.back().beta2)) {
      throw ConfigError(fmt::format(
          "Muon: momentum and betas must lie in [0, 1), got momentum = {}, beta1 = {}, beta2 = {}",
          matrices_.back().momentum, adamw_.back().beta1, adamw_.back().beta2));
    }
    if (!(adamw_.back().epsilon >= 0.0) || !(matrices_.back().weight_decay >= 0.0)) {
      throw ConfigError(fmt::format("Muon: epsilon and weight_decay must not be negative, got {} and {}",
                                    adamw_.back().epsilon, matrices_.back().weight_decay));
    }
  }
  const ParameterGroup left_to_adamw{.patterns = config.adamw};
  for (const auto& [name, parameter] : this->parameters()) {
    is_matrix_.push_back(group_index({&left_to_adamw, 1}, name) == kNoGroup);
    if (is_matrix_.back() && this->exchange() == nullptr) check_matrix(name, parameter.shape());
  }
  allocate_state([this](std::size_t parameter) {
    return is_matrix_[parameter] ? MomentNames{"momentum"} : MomentNames{"moment1", "moment2"};
  });
}

void Muon::check_matrix(const std::string& name, const Shape& whole) const {
  if (whole.dims() == 2) return;
  throw ConfigError(
      fmt::format("Muon: {} has the shape {} and is no matrix; add its name to MuonConfig::adamw", name,
                  to_string(whole)));
}

void Muon::set_momentum(double momentum) {
  if (!is_decay_rate(momentum)) {
    throw ConfigError(fmt::format("set_momentum: momentum must lie in [0, 1), got {}", momentum));
  }
  for (MatrixSettings& settings : matrices_) settings.momentum = momentum;
}

bool Muon::is_matrix(const std::string& name) const {
  for (std::size_t i = 0; i < is_matrix_.size(); ++i) {
    if (name_at(i) == name) return is_matrix_[i];
  }
  throw IndexError(fmt::format("is_matrix: Muon has no parameter {}", name));
}

void Muon::update_all(std::span<const Update> updates, double grad_scale) {
  // One matrix after the other, in the order that all ranks share: the exchange's calls are collectives.
  std::vector<Update> others;
  for (const Update& update : updates) {
    if (is_matrix_[update.parameter]) {
      update_matrix(update, grad_scale);
    } else {
      others.push_back(update);
    }
  }
  for (const Batch& batch : batches_of(others)) {
    kernels::AdamOptions options = adamw_[batch.group];
    options.lr = batch.lr * config_.adamw_lr_scale;
    options.step = batch.step;
    options.grad_scale = grad_scale;
    batch.kernels->adam(batch.items, options);
  }
}

void Muon::update_matrix(const Update& update, double grad_scale) {
  const MatrixSettings& settings = matrices_[update.group];
  const std::string& name = name_at(update.parameter);
  const double mu = settings.momentum;
  Tensor& momentum = moment_at(update.parameter, 0);
  momentum.copy_from(multiply(momentum, mu));
  momentum.add_scaled(update.grad, (1.0 - mu) * grad_scale);
  Tensor direction = momentum;
  if (config_.nesterov) {
    direction = multiply(momentum, mu);
    direction.add_scaled(update.grad, (1.0 - mu) * grad_scale);
  }

  const Tensor whole = exchange() == nullptr ? direction : exchange()->whole(name, direction);
  check_matrix(name, whole.shape());
  const Tensor orthogonal = newton_schulz(whole, config_.newton_schulz_steps);
  const Tensor piece = exchange() == nullptr ? orthogonal : exchange()->piece(name, orthogonal);

  // p ← p − lr (scale · O + weight_decay · p): plain SGD along scale · O.
  kernels::UpdateItem item = update.item;
  item.grad = piece.reshape(update.grad.shape()).view();
  item.moment1 = {};
  const double lr = this->lr() * groups()[update.group].lr_scale;
  kernels::of(update.grad.device().type)
      .updates.sgd({&item, 1}, {.lr = lr,
                                .weight_decay = settings.weight_decay,
                                .grad_scale = step_scale(config_.scale, whole.shape())});
}

std::string Muon::describe_settings(std::size_t group) const {
  std::size_t matrices = 0, others = 0;
  for (std::size_t i = 0; i < is_matrix_.size(); ++i) {
    if (group_at(i) == group) ++(is_matrix_[i] ? matrices : others);
  }
  return fmt::format(
      "weight_decay {}; {} matrices: momentum {}{}; {} others by AdamW: lr x {}, betas {} {}, epsilon {}",
      matrices_[group].weight_decay, matrices, matrices_[group].momentum,
      config_.nesterov ? " (Nesterov)" : "", others, config_.adamw_lr_scale, adamw_[group].beta1,
      adamw_[group].beta2, adamw_[group].epsilon);
}

}  // namespace tessera::optim
