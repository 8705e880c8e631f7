#include "dist/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "kernels/error.h"
#include "kernels/suggest.h"

namespace tessera::dist {
namespace {

void check_name(const char* what, const std::string& name, std::span<const std::string> known) {
  if (std::ranges::find(known, name) != known.end()) return;
  throw ConfigError(
      fmt::format("config: {} '{}' is unknown; did you mean '{}'?", what, name, nearest_name(name, known)));
}

// Sequences: no run has more, and products of two such numbers and any number of ranks do not overflow.
constexpr std::int64_t kLargestSize = std::int64_t{1} << 25;

void check_positive_or_unset(const char* key, std::int64_t value) {
  if (value < 0 || value > kLargestSize) {
    throw ConfigError(fmt::format("config: {} must be from 1 to 2^25, but it is {}", key, value));
  }
}

// A size that is given must be positive; 0 stands for one that is not.
std::int64_t read_size(ConfigFile& file, const char* key) {
  const auto value = file.integer(key);
  if (value && *value < 1)
    throw ConfigError(fmt::format("config: {} must be at least 1, but it is {}", key, *value));
  return value.value_or(0);
}

Config::Optimizer read_optimizer(ConfigFile section) {
  static const std::array<std::string, 3> kTypes{"AdamW", "Adam", "SGD"};
  Config::Optimizer optimizer;
  optimizer.type = section.text("type").value_or(optimizer.type);
  check_name("optimizer", optimizer.type, kTypes);
  ConfigFile params = section.section("params");
  optimizer.lr = params.number("lr").value_or(optimizer.lr);
  optimizer.weight_decay = params.number("weight_decay").value_or(optimizer.weight_decay);
  if (optimizer.type == "SGD") {
    optimizer.momentum = params.number("momentum").value_or(0.0);
    optimizer.nesterov = params.boolean("nesterov").value_or(false);
    return optimizer;
  }
  if (const auto betas = params.numbers("betas")) {
    if (betas->size() != 2) throw ConfigError("config: optimizer.params.betas must be two numbers");
    optimizer.beta1 = (*betas)[0];
    optimizer.beta2 = (*betas)[1];
  }
  optimizer.epsilon = params.number("eps").value_or(optimizer.epsilon);
  optimizer.decoupled_decay = params.boolean("adam_w_mode").value_or(true);
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

}  // namespace

BatchSizes resolve_batch_sizes(const BatchSizes& given, std::int64_t ranks,
                               std::int64_t largest_micro_batch) {
  check_positive_or_unset("train_batch_size", given.global);
  check_positive_or_unset("train_micro_batch_size_per_gpu", given.micro_batch);
  check_positive_or_unset("gradient_accumulation_steps", given.accumulation);
  BatchSizes sizes = given;
  if (sizes.global == 0) {
    sizes.micro_batch = std::max<std::int64_t>(sizes.micro_batch, 1);
    sizes.accumulation = std::max<std::int64_t>(sizes.accumulation, 1);
    sizes.global = sizes.micro_batch * sizes.accumulation * ranks;
    return sizes;
  }
  if (sizes.global < ranks) {
    throw ConfigError(
        fmt::format("config: {} ranks need at least {} sequences in a batch, but train_batch_size is {}; "
                    "use fewer ranks or a larger batch",
                    ranks, ranks, sizes.global));
  }
  const std::int64_t per_rank = sizes.global / ranks;
  if (sizes.micro_batch == 0 && sizes.accumulation == 0) {
    sizes.micro_batch = std::min(per_rank, largest_micro_batch);
    while (per_rank % sizes.micro_batch != 0) --sizes.micro_batch;
  }
  if (sizes.micro_batch == 0) sizes.micro_batch = per_rank / sizes.accumulation;
  if (sizes.accumulation == 0) sizes.accumulation = per_rank / sizes.micro_batch;
  const std::int64_t product = sizes.micro_batch * sizes.accumulation * ranks;
  if (product != sizes.global || product == 0) {
    // A batch must be a multiple of what is fixed.
    const std::int64_t unit =
        std::max<std::int64_t>(given.micro_batch, 1) * std::max<std::int64_t>(given.accumulation, 1) * ranks;
    const std::int64_t below = sizes.global / unit * unit;
    std::string works = std::to_string(unit);  // all is given: there is one answer
    if (given.micro_batch == 0 || given.accumulation == 0) {
      works = below > 0 ? fmt::format("{} or {}", below, below + unit) : std::to_string(unit);
    }
    throw ConfigError(
        fmt::format("config: train_batch_size = micro_batch x accumulation x ranks does not hold: {} != {} x "
                    "{} x {} = {}; a batch "
                    "of {} works",
                    sizes.global, sizes.micro_batch, sizes.accumulation, ranks, product, works));
  }
  return sizes;
}

Config Config::read(ConfigFile& file) {
  Config config;
  config.batch.global = read_size(file, "train_batch_size");
  config.batch.micro_batch = read_size(file, "train_micro_batch_size_per_gpu");
  config.batch.accumulation = read_size(file, "gradient_accumulation_steps");
  config.gradient_clipping = file.number("gradient_clipping").value_or(config.gradient_clipping);
  config.steps_per_print = file.integer("steps_per_print").value_or(config.steps_per_print);
  config.optimizer = read_optimizer(file.section("optimizer"));
  config.scheduler = read_scheduler(file.section("scheduler"));

  ConfigFile bf16 = file.section("bf16");
  ConfigFile fp16 = file.section("fp16");
  const bool use_bf16 = bf16.boolean("enabled").value_or(false);
  const bool use_fp16 = fp16.boolean("enabled").value_or(false);
  if (use_bf16 && use_fp16) throw ConfigError("config: bf16.enabled and fp16.enabled exclude each other");
  if (use_bf16) config.dtype = kBF16;
  if (use_fp16) config.dtype = kF16;
  config.fp16.loss_scale = fp16.number("loss_scale").value_or(config.fp16.loss_scale);
  config.fp16.initial_scale_power =
      fp16.integer("initial_scale_power").value_or(config.fp16.initial_scale_power);
  config.fp16.loss_scale_window = fp16.integer("loss_scale_window").value_or(config.fp16.loss_scale_window);
  config.fp16.hysteresis = fp16.integer("hysteresis").value_or(config.fp16.hysteresis);
  config.fp16.min_loss_scale = fp16.number("min_loss_scale").value_or(config.fp16.min_loss_scale);

  if (config.gradient_clipping < 0) throw ConfigError("config: gradient_clipping must not be negative");
  if (config.steps_per_print < 1) throw ConfigError("config: steps_per_print must be at least 1");
  if (!(config.optimizer.lr >= 0)) throw ConfigError("config: optimizer.params.lr must not be negative");
  return config;
}

}  // namespace tessera::dist
