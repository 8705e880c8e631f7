#include "dist/optimizer_factory.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/lamb.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sgd.h"

namespace tessera::dist {
namespace {

optim::MuonScale muon_scale(const std::string& adjust_lr_fn) {
  if (adjust_lr_fn == "original") return optim::MuonScale::kSpectral;
  if (adjust_lr_fn == "match_rms_adamw") return optim::MuonScale::kAdamRms;
  if (adjust_lr_fn == "spectral_unclamped") return optim::MuonScale::kSpectralUnclamped;
  throw ConfigError(fmt::format(
      "Muon: adjust_lr_fn must be original, match_rms_adamw or spectral_unclamped, got {}", adjust_lr_fn));
}

}  // namespace

std::unique_ptr<optim::Optimizer> make_optimizer(const Config::Optimizer& c, const NamedTensors& pieces,
                                                 const std::vector<optim::ParameterGroup>& groups,
                                                 optim::PieceExchange* exchange) {
  // Borrowed: whoever cut the pieces owns it.
  const std::shared_ptr<optim::PieceExchange> asked(std::shared_ptr<void>(), exchange);
  if (c.type == "SGD") {
    const optim::SgdConfig sgd{.lr = c.lr,
                               .momentum = c.momentum,
                               .dampening = c.dampening,
                               .weight_decay = c.weight_decay,
                               .nesterov = c.nesterov};
    return std::make_unique<optim::Sgd>(pieces, sgd, groups);
  }
  if (c.type == "Adagrad") {
    const optim::AdagradConfig adagrad{.lr = c.lr,
                                       .lr_decay = c.lr_decay,
                                       .weight_decay = c.weight_decay,
                                       .initial_accumulator_value = c.initial_accumulator_value,
                                       .epsilon = c.epsilon};
    return std::make_unique<optim::Adagrad>(pieces, adagrad, groups);
  }
  if (c.type == "Lion") {
    const optim::LionConfig lion{
        .lr = c.lr, .beta1 = c.beta1, .beta2 = c.beta2, .weight_decay = c.weight_decay};
    return std::make_unique<optim::Lion>(pieces, lion, groups);
  }
  if (c.type == "Lamb") {
    const optim::LambConfig lamb{.lr = c.lr,
                                 .beta1 = c.beta1,
                                 .beta2 = c.beta2,
                                 .epsilon = c.epsilon,
                                 .weight_decay = c.weight_decay,
                                 .min_trust = c.min_coeff,
                                 .max_trust = c.max_coeff};
    return std::make_unique<optim::Lamb>(pieces, lamb, groups, exchange == nullptr ? nullptr : asked);
  }
  if (c.type == "Muon") {
    optim::MuonConfig muon;
    muon.lr = c.lr;
    muon.momentum = c.momentum;
    muon.nesterov = c.nesterov;
    muon.newton_schulz_steps = static_cast<int>(c.ns_steps);
    muon.scale = muon_scale(c.adjust_lr_fn);
    muon.weight_decay = c.weight_decay;
    muon.adamw_lr_scale = c.adam_lr && c.lr > 0.0 ? *c.adam_lr / c.lr : 1.0;
    muon.beta1 = c.beta1;
    muon.beta2 = c.beta2;
    muon.epsilon = c.epsilon;
    return std::make_unique<optim::Muon>(pieces, muon, groups, exchange == nullptr ? nullptr : asked);
  }
  const optim::AdamConfig adam{.lr = c.lr,
                               .beta1 = c.beta1,
                               .beta2 = c.beta2,
                               .epsilon = c.epsilon,
                               .weight_decay = c.weight_decay,
                               .state_dtype = c.state_dtype};
  if (c.decoupled_decay) return std::make_unique<optim::AdamW>(pieces, adam, groups);
  return std::make_unique<optim::Adam>(pieces, adam, groups);
}

std::int64_t optimizer_bytes_per_element(const Config::Optimizer& config, DType dtype) {
  const bool is_bf16 = config.state_dtype == kBF16;  // the low half of the master, too
  const auto state = static_cast<std::int64_t>(size_bytes(is_bf16 ? kBF16 : accumulation_dtype(dtype)));
  const bool one = config.type == "Adagrad" || config.type == "Lion";
  const std::int64_t moments = config.type == "SGD" ? (config.momentum != 0.0 ? 1 : 0) : one ? 1 : 2;
  const std::int64_t masters = size_bytes(dtype) == 2 ? 1 : 0;
  return (moments + masters) * state;
}

}  // namespace tessera::dist
