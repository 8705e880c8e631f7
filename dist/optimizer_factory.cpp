#include "dist/optimizer_factory.h"

#include "kernels/error.h"
#include "optim/adam.h"
#include "optim/sgd.h"

namespace tessera::dist {

std::unique_ptr<optim::Optimizer> make_optimizer(const Config::Optimizer& config, const NamedTensors& pieces,
                                                 const std::vector<optim::ParameterGroup>& groups,
                                                 optim::PieceExchange& exchange) {
  static_cast<void>(exchange);
  if (config.type == "SGD") {
    return std::make_unique<optim::Sgd>(pieces,
                                        optim::SgdConfig{.lr = config.lr,
                                                         .momentum = config.momentum,
                                                         .dampening = config.dampening,
                                                         .weight_decay = config.weight_decay,
                                                         .nesterov = config.nesterov},
                                        groups);
  }
  const optim::AdamConfig adam{.lr = config.lr,
                               .beta1 = config.beta1,
                               .beta2 = config.beta2,
                               .epsilon = config.epsilon,
                               .weight_decay = config.weight_decay};
  if (config.decoupled_decay) return std::make_unique<optim::AdamW>(pieces, adam, groups);
  return std::make_unique<optim::Adam>(pieces, adam, groups);
}

std::int64_t optimizer_bytes_per_element(const Config::Optimizer& config, DType dtype) {
  const auto state = static_cast<std::int64_t>(size_bytes(accumulation_dtype(dtype)));
  const std::int64_t moments = config.type == "SGD" ? (config.momentum != 0.0 ? 1 : 0) : 2;
  const std::int64_t masters = size_bytes(dtype) == 2 ? 1 : 0;
  return (moments + masters) * state;
}

}  // namespace tessera::dist
