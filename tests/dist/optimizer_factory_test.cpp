// Settings of a configuration reach the optimizer that it names. The parity table cannot see that: both of
// its sides are made by the factory.

#include "dist/optimizer_factory.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "kernels/error.h"
#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/lamb.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sgd.h"
#include "tensor/context.h"
#include "tests/optim/parameters.h"

namespace tessera::dist {
namespace {

using Doubles = std::vector<double>;
using Made = std::unique_ptr<optim::Optimizer>;
using Maker = std::function<Made(const NamedTensors&)>;

// A matrix far longer than LAMB's steps and a bias far shorter: both ends of its trust ratio are met.
NamedTensors parameters(DType dtype) {
  Doubles weight = optim::start_values(12), bias = optim::start_values(3);
  for (double& value : weight) value *= 64.0;
  for (double& value : bias) value /= 64.0;
  Tensor matrix = from_vector<double>(weight, Shape{4, 3}).to(dtype);
  matrix.set_requires_grad();
  return {{"h.weight", matrix}, {"h.bias", optim::parameter(bias, dtype)}};
}

void take_steps(optim::Optimizer& optimizer, NamedTensors tensors, int steps = 3) {
  for (int t = 0; t < steps; ++t) {
    for (auto& [name, p] : tensors)
      optim::give_grad(p, optim::grad_values(static_cast<int>(p.num_elements()), t));
    optimizer.step();
  }
}

Doubles trained_by(const Maker& make, int steps = 3) {
  const NamedTensors tensors = parameters(kF64);
  take_steps(*make(tensors), tensors, steps);
  Doubles values;
  for (const auto& [name, p] : tensors) {
    for (const double value : p.to_vector<double>()) values.push_back(value);
  }
  return values;
}

Maker factory(const Config::Optimizer& config) {
  return [config](const NamedTensors& p) { return make_optimizer(config, p, {}, nullptr); };
}

// No setting has its default, of the configuration or of the optimizer.
Config::Optimizer unusual(const std::string& type) {
  Config::Optimizer c;
  c.type = type;
  c.lr = 0.3;
  c.beta1 = 0.7;
  c.beta2 = 0.8;
  c.epsilon = 0.05;
  c.weight_decay = 0.03;
  c.momentum = 0.6;
  c.min_coeff = 0.5;
  c.max_coeff = 0.75;
  c.lr_decay = 0.2;
  c.initial_accumulator_value = 0.4;
  c.adam_lr = 0.1;
  c.ns_steps = 2;
  c.adjust_lr_fn = "match_rms_adamw";
  return c;
}

TEST(OptimizerFactory, AdamAndAdamWTrainWithTheirSettings) {
  const optim::AdamConfig expected{
      .lr = 0.3, .beta1 = 0.7, .beta2 = 0.8, .epsilon = 0.05, .weight_decay = 0.03};
  const Doubles decoupled =
      trained_by([&](const NamedTensors& p) { return std::make_unique<optim::AdamW>(p, expected); });
  Config::Optimizer config = unusual("Adam");
  EXPECT_EQ(trained_by(factory(unusual("AdamW"))), decoupled);
  EXPECT_EQ(trained_by(factory(config)), decoupled);
  config.decoupled_decay = false;
  EXPECT_EQ(trained_by(factory(config)),
            trained_by([&](const NamedTensors& p) { return std::make_unique<optim::Adam>(p, expected); }));
}

TEST(OptimizerFactory, AdamKeepsItsStateInWhatItIsTold) {
  for (const char* type : {"AdamW", "Adam"}) {
    for (const DType state : {kF32, kBF16}) {
      Config::Optimizer config = unusual(type);
      config.state_dtype = state;
      const NamedTensors tensors = parameters(kBF16);
      for (const auto& [name, tensor] : make_optimizer(config, tensors, {}, nullptr)->state()) {
        if (name.find("/moment") == std::string::npos) continue;
        EXPECT_EQ(tensor.dtype(), state) << name;
      }
    }
  }
}

TEST(OptimizerFactory, SgdTrainsWithItsSettings) {
  Config::Optimizer config = unusual("SGD");
  config.dampening = 0.25;
  EXPECT_EQ(trained_by(factory(config)), trained_by([](const NamedTensors& p) {
              return std::make_unique<optim::Sgd>(
                  p, optim::SgdConfig{.lr = 0.3, .momentum = 0.6, .dampening = 0.25, .weight_decay = 0.03});
            }));
  config.dampening = 0.0;
  config.nesterov = true;
  EXPECT_EQ(trained_by(factory(config)), trained_by([](const NamedTensors& p) {
              return std::make_unique<optim::Sgd>(
                  p, optim::SgdConfig{.lr = 0.3, .momentum = 0.6, .weight_decay = 0.03, .nesterov = true});
            }));
}

TEST(OptimizerFactory, AdagradTrainsWithItsSettings) {
  EXPECT_EQ(trained_by(factory(unusual("Adagrad"))), trained_by([](const NamedTensors& p) {
              return std::make_unique<optim::Adagrad>(p,
                                                      optim::AdagradConfig{.lr = 0.3,
                                                                           .lr_decay = 0.2,
                                                                           .weight_decay = 0.03,
                                                                           .initial_accumulator_value = 0.4,
                                                                           .epsilon = 0.05});
            }));
}

// A sign tells of β₁ now and then only: hence more steps.
TEST(OptimizerFactory, LionTrainsWithItsSettings) {
  const Maker expected = [](const NamedTensors& p) {
    return std::make_unique<optim::Lion>(
        p, optim::LionConfig{.lr = 0.3, .beta1 = 0.7, .beta2 = 0.8, .weight_decay = 0.03});
  };
  EXPECT_EQ(trained_by(factory(unusual("Lion")), 12), trained_by(expected, 12));
}

TEST(OptimizerFactory, LambsCoefficientsAreTheEndsOfItsTrust) {
  EXPECT_EQ(trained_by(factory(unusual("Lamb"))), trained_by([](const NamedTensors& p) {
              return std::make_unique<optim::Lamb>(p, optim::LambConfig{.lr = 0.3,
                                                                        .beta1 = 0.7,
                                                                        .beta2 = 0.8,
                                                                        .epsilon = 0.05,
                                                                        .weight_decay = 0.03,
                                                                        .min_trust = 0.5,
                                                                        .max_trust = 0.75});
            }));
}

optim::MuonConfig muon_settings(double adamw_lr_scale, bool nesterov) {
  optim::MuonConfig muon;
  muon.lr = 0.3;
  muon.momentum = 0.6;
  muon.nesterov = nesterov;
  muon.newton_schulz_steps = 2;
  muon.scale = optim::MuonScale::kAdamRms;
  muon.weight_decay = 0.03;
  muon.adamw_lr_scale = adamw_lr_scale;
  muon.beta1 = 0.7;
  muon.beta2 = 0.8;
  muon.epsilon = 0.05;
  return muon;
}

// adam_lr is a rate, adamw_lr_scale a ratio to lr; without the former, both parts run at lr.
TEST(OptimizerFactory, MuonTrainsWithItsSettingsAndAdamWsOwnRate) {
  const auto muon = [](double scale, bool nesterov) {
    return trained_by([=](const NamedTensors& p) {
      return std::make_unique<optim::Muon>(p, muon_settings(scale, nesterov));
    });
  };
  Config::Optimizer config = unusual("Muon");
  EXPECT_EQ(trained_by(factory(config)), muon(0.1 / 0.3, false));
  config.nesterov = true;
  EXPECT_EQ(trained_by(factory(config)), muon(0.1 / 0.3, true));
  config.adam_lr.reset();
  EXPECT_EQ(trained_by(factory(config)), muon(1.0, true));
}

// A wide matrix, for which all three differ.
TEST(OptimizerFactory, MuonsStepsAreScaledAsPyTorchNamesIt) {
  const auto stepped_by = [](const Maker& make) {
    Tensor wide = from_vector<double>(optim::start_values(12), Shape{3, 4});
    wide.set_requires_grad();
    take_steps(*make({{"h.weight", wide}}), {{"h.weight", wide}}, 1);
    return wide.to_vector<double>();
  };
  const std::pair<const char*, optim::MuonScale> scales[] = {
      {"original", optim::MuonScale::kSpectral},
      {"match_rms_adamw", optim::MuonScale::kAdamRms},
      {"spectral_unclamped", optim::MuonScale::kSpectralUnclamped},
  };
  Config::Optimizer config;
  config.type = "Muon";
  for (const auto& [name, scale] : scales) {
    config.adjust_lr_fn = name;
    const optim::MuonConfig muon{
        .lr = config.lr, .momentum = config.momentum, .nesterov = false, .scale = scale, .weight_decay = 0.1};
    EXPECT_EQ(stepped_by(factory(config)),
              stepped_by([&](const NamedTensors& p) { return std::make_unique<optim::Muon>(p, muon); }))
        << name;
  }
  config.adjust_lr_fn = "none of them";
  EXPECT_THROW((void)stepped_by(factory(config)), ConfigError);
}

std::int64_t bytes_of_state(optim::Optimizer& optimizer, const std::string& parameter) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : optimizer.state()) {
    if (name.starts_with(parameter + '/') && name != parameter + "/step") {
      bytes += tensor.size_bytes();
    }
  }
  return bytes;
}

// Masters of bf16 state are copies in state(): here bytes are those that the pool has given.
TEST(OptimizerFactory, BytesForEachElementOfBf16StateAreThoseOfItsMemory) {
  RankContext context;
  const RankContext::Scope scope(context);
  Config::Optimizer config = unusual("AdamW");
  config.state_dtype = kBF16;
  const NamedTensors tensors = parameters(kBF16);
  const Made optimizer = make_optimizer(config, tensors, {}, nullptr);
  EXPECT_EQ(optimizer_bytes_per_element(config, kBF16), 6);
  EXPECT_EQ(context.pool(cpu)->report().of(MemoryCategory::kOptimizerState).current, 15 * 6);
}

TEST(OptimizerFactory, BytesForEachElementAreThoseOfTheState) {
  for (const std::string type :
       {"AdamW", "Adam", "SGD", "SGD without momentum", "Adagrad", "Lion", "Lamb", "Muon"}) {
    for (const DType dtype : {kF32, kF64, kBF16, kF16}) {
      SCOPED_TRACE(type);
      Config::Optimizer config = unusual(type.substr(0, type.find(' ')));
      if (type != config.type) config.momentum = 0.0;
      const NamedTensors tensors = parameters(dtype);
      const Made optimizer = make_optimizer(config, tensors, {}, nullptr);
      take_steps(*optimizer, tensors);
      const std::int64_t bytes = optimizer_bytes_per_element(config, dtype);
      EXPECT_EQ(bytes_of_state(*optimizer, "h.bias"), 3 * bytes);
      // Of a matrix Muon keeps one moment only; the count is of the most.
      const auto moment = static_cast<std::int64_t>(size_bytes(accumulation_dtype(dtype)));
      EXPECT_EQ(bytes_of_state(*optimizer, "h.weight"), 12 * (bytes - (type == "Muon" ? moment : 0)));
    }
  }
}

}  // namespace
}  // namespace tessera::dist
