// The sections optimizer and scheduler.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "dist/config_sections.h"
#include "kernels/error.h"

namespace tessera::dist::detail {
namespace {

using Optimizer = Config::Optimizer;

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

// As in DeepSpeed, "adamw" means "AdamW".
std::string read_type(ConfigFile& section) {
  static const std::array<std::string, 7> kTypes{"AdamW", "Adam", "SGD", "Adagrad", "Lion", "Lamb", "Muon"};
  static const std::array<std::string, 6> kLater{"onebitadam", "zerooneadam", "onebitlamb",
                                                 "muadam",     "muadamw",     "musgd"};
  const std::string given = section.text("type").value_or("AdamW");
  const auto same = [name = lower(given)](const std::string& type) { return lower(type) == name; };
  if (const auto found = std::ranges::find_if(kTypes, same); found != kTypes.end()) return *found;
  if (std::ranges::any_of(kLater, same)) {
    section.refuse("type", fmt::format("not supported yet; there are {}", fmt::join(kTypes, ", ")));
  }
  check_name("optimizer", given, kTypes);
  return given;
}

// The defaults are DeepSpeed's, but for AdamW, whose betas and weight decay are those of GPT-3 (Brown et al.,
// "Language models are few-shot learners", 2020, appendix B).
Optimizer defaults_of(const std::string& type) {
  Optimizer optimizer;
  optimizer.type = type;
  if (type == "Adagrad") {
    optimizer.lr = 1e-2;
    optimizer.epsilon = 1e-10;
    optimizer.weight_decay = 0.0;
  } else if (type == "Lion") {
    optimizer.beta2 = 0.99;
    optimizer.weight_decay = 0.0;
  } else if (type == "Lamb") {
    optimizer.beta2 = 0.999;
    optimizer.weight_decay = 0.0;
  } else if (type == "Muon") {
    optimizer.lr = 0.02;
    optimizer.momentum = 0.95;
    optimizer.nesterov = true;
    optimizer.epsilon = 1e-10;
    optimizer.weight_decay = 0.0;
    optimizer.adam_lr = 3e-4;
  }
  return optimizer;
}

void set_number(ConfigFile& params, const char* key, double& target) {
  target = params.number(key).value_or(target);
}

void read_betas(ConfigFile& params, Optimizer& optimizer) {
  const auto betas = params.numbers("betas");
  if (!betas) return;
  if (betas->size() != 2) throw ConfigError("config: optimizer.params.betas must be two numbers");
  optimizer.beta1 = (*betas)[0];
  optimizer.beta2 = (*betas)[1];
}

// `lr` holds for both parts of Muon, unless muon_lr or adam_lr says otherwise.
void read_muon(ConfigFile& params, Optimizer& optimizer) {
  set_number(params, "momentum", optimizer.momentum);
  optimizer.nesterov = params.boolean("nesterov").value_or(optimizer.nesterov);
  optimizer.ns_steps = params.integer("ns_steps").value_or(optimizer.ns_steps);
  if (optimizer.ns_steps < 1) params.refuse("ns_steps", "must be at least 1");
  static const std::array<std::string, 3> kScales{"original", "match_rms_adamw", "spectral_unclamped"};
  optimizer.adjust_lr_fn = params.text("adjust_lr_fn").value_or(optimizer.adjust_lr_fn);
  check_name("optimizer.params.adjust_lr_fn", optimizer.adjust_lr_fn, kScales);
  if (params.number("lr")) optimizer.adam_lr = optimizer.lr;
  if (const auto lr = params.number("adam_lr")) optimizer.adam_lr = *lr;
  set_number(params, "muon_lr", optimizer.lr);
  for (const char* key : {"muon_lr", "adam_lr"}) {
    if (params.number(key).value_or(0.0) < 0.0) params.refuse(key, "a learning rate must not be negative");
  }
  check_accepted(params, {"", "ns_method", "\"standard\"", "the steps are Newton-Schulz's; leave it out"});
}

// Variants of DeepSpeed's optimizers.
void check_variants(ConfigFile& params, const std::string& type) {
  const bool is_adam = type == "AdamW" || type == "Adam";
  if (is_adam) {
    check_accepted(params, {"", "torch_adam", "boolean", ""});  // who computes it, not what
  }
  if (is_adam || type == "Lamb") {
    check_accepted(params, {"", "bias_correction", "true",
                            "not supported: moments start at zero, and are corrected for it; leave it out"});
  }
  if (is_adam || type == "Lamb" || type == "Adagrad") {
    check_accepted(params, {"", "amsgrad", "false", "AMSGrad is not supported; leave it out"});
  }
  if (type == "Lamb") {
    check_accepted(params,
                   {"", "eps_inside_sqrt", "false", "not supported: eps is added to the root; leave it out"});
  }
  check_accepted(params, {"", "max_grad_norm", "0", "write gradient_clipping, at the top level, instead"});
}

}  // namespace

Config::Optimizer read_optimizer(ConfigFile section) {
  const std::string type = read_type(section);
  check_accepted(section, {"", "legacy_fusion", "false", "there is one implementation; leave it out"});
  Optimizer optimizer = defaults_of(type);
  ConfigFile params = section.section("params");
  set_number(params, "lr", optimizer.lr);
  set_number(params, "weight_decay", optimizer.weight_decay);
  if (!(optimizer.lr >= 0)) throw ConfigError("config: optimizer.params.lr must not be negative");
  check_variants(params, type);
  if (type == "SGD") {
    set_number(params, "momentum", optimizer.momentum);
    set_number(params, "dampening", optimizer.dampening);
    optimizer.nesterov = params.boolean("nesterov").value_or(false);
    return optimizer;
  }
  if (type != "Lion") set_number(params, "eps", optimizer.epsilon);
  if (type == "Adagrad") {
    set_number(params, "lr_decay", optimizer.lr_decay);
    set_number(params, "initial_accumulator_value", optimizer.initial_accumulator_value);
    return optimizer;
  }
  read_betas(params, optimizer);
  if (type == "AdamW" || type == "Adam") {
    optimizer.decoupled_decay = params.boolean("adam_w_mode").value_or(true);
  } else if (type == "Lamb") {
    set_number(params, "max_coeff", optimizer.max_coeff);
    set_number(params, "min_coeff", optimizer.min_coeff);
    if (!(optimizer.min_coeff >= 0 && optimizer.min_coeff <= optimizer.max_coeff)) {
      throw ConfigError(
          fmt::format("config: optimizer.params: 0 <= min_coeff <= max_coeff must hold, but they "
                      "are {} and {}",
                      optimizer.min_coeff, optimizer.max_coeff));
    }
  } else if (type == "Muon") {
    read_muon(params, optimizer);
  }
  return optimizer;
}

Config::Scheduler read_scheduler(ConfigFile section) {
  // Each schedule's parameters; the names are DeepSpeed's.
  static const std::map<std::string, std::vector<const char*>> kParams{
      {"LRRangeTest",
       {"lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate",
        "lr_range_test_staircase"}},
      {"OneCycle",
       {"cycle_momentum", "cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size",
        "cycle_second_step_size", "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size",
        "cycle_min_mom", "cycle_max_mom", "decay_mom_rate"}},
      {"WarmupLR", {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}},
      {"WarmupDecayLR", {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}},
      {"WarmupCosineLR", {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio"}}};
  Config::Scheduler scheduler;
  const auto type = section.text("type");
  ConfigFile params = section.section("params");
  if (!type) {
    params.refuse_unknown("scheduler.type says whose parameters these are, and it is missing");
    return scheduler;
  }
  std::vector<std::string> types;
  for (const auto& [name, keys] : kParams) types.push_back(name);
  check_name("scheduler", *type, types);
  scheduler.type = *type;
  static const std::array<std::string, 2> kFlags{"lr_range_test_staircase", "cycle_momentum"};
  for (const char* key : kParams.at(*type)) {
    if (std::ranges::find(kFlags, key) != kFlags.end()) {
      if (const auto value = params.boolean(key)) scheduler.params[key] = *value ? 1.0 : 0.0;
    } else if (const auto value = params.number(key)) {
      scheduler.params[key] = *value;
    }
  }
  if (*type == "WarmupLR" || *type == "WarmupDecayLR" || *type == "WarmupCosineLR") {
    static const std::array<std::string, 2> kWarmups{"log", "linear"};
    scheduler.warmup_type = params.text("warmup_type").value_or("log");
    check_name("warmup_type", scheduler.warmup_type, kWarmups);
  }
  return scheduler;
}

}  // namespace tessera::dist::detail
