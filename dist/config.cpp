#include "dist/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "dist/config_sections.h"
#include "kernels/error.h"
#include "kernels/suggest.h"

namespace tessera::dist {
namespace detail {

void check_name(const char* what, const std::string& name, std::span<const std::string> known) {
  if (std::ranges::find(known, name) != known.end()) return;
  const std::string near = near_name(name, known);
  throw ConfigError(fmt::format("config: {} '{}' is unknown; {}", what, name,
                                near.empty() ? fmt::format("there are {}", fmt::join(known, ", "))
                                             : fmt::format("did you mean '{}'?", near)));
}

void read_precision(ConfigFile& file, Config& config) {
  ConfigFile bf16 = file.section("bf16");
  ConfigFile fp16 = file.section("fp16");
  const bool use_bf16 = bf16.boolean("enabled").value_or(false);
  const bool use_fp16 = fp16.boolean("enabled").value_or(false);
  if (use_bf16 && use_fp16) throw ConfigError("config: bf16.enabled and fp16.enabled exclude each other");
  if (use_bf16) config.dtype = kBF16;
  if (use_fp16) config.dtype = kF16;
  if (bf16.boolean("bf16_optimizer_states").value_or(false)) config.optimizer.state_dtype = kBF16;
  Config::Fp16& scaling = config.fp16;
  scaling.loss_scale = fp16.number("loss_scale").value_or(scaling.loss_scale);
  scaling.initial_scale_power = fp16.integer("initial_scale_power").value_or(scaling.initial_scale_power);
  scaling.loss_scale_window = fp16.integer("loss_scale_window").value_or(scaling.loss_scale_window);
  scaling.hysteresis = fp16.integer("hysteresis").value_or(scaling.hysteresis);
  scaling.min_loss_scale = fp16.number("min_loss_scale").value_or(scaling.min_loss_scale);

  static const std::array<std::string, 3> kDTypes{"fp32", "bf16", "fp16"};
  ConfigFile types = file.section("data_types");
  const std::string grad_accum = types.text("grad_accum_dtype").value_or("fp32");
  check_name("data_types.grad_accum_dtype", grad_accum, kDTypes);
  if (grad_accum != "fp32") {
    types.refuse("grad_accum_dtype",
                 "gradients are summed in fp32, as 16 bits lose the small ones against a large sum; \"fp32\" "
                 "works, or leave it out");
  }
}

}  // namespace detail

namespace {

// A size that is given must be positive; 0 stands for one that is not.
std::int64_t read_size(ConfigFile& file, const char* key) {
  const auto value = file.integer(key);
  if (value && *value < 1)
    throw ConfigError(fmt::format("config: {} must be at least 1, but it is {}", key, *value));
  return value.value_or(0);
}

}  // namespace

Config Config::read(ConfigFile& file) {
  Config config;
  config.batch.global = read_size(file, "train_batch_size");
  config.batch.micro_batch = read_size(file, "train_micro_batch_size_per_gpu");
  config.batch.accumulation = read_size(file, "gradient_accumulation_steps");
  config.gradient_clipping = file.number("gradient_clipping").value_or(config.gradient_clipping);
  config.steps_per_print = file.integer("steps_per_print").value_or(config.steps_per_print);
  if (config.gradient_clipping < 0) throw ConfigError("config: gradient_clipping must not be negative");
  if (config.steps_per_print < 1) throw ConfigError("config: steps_per_print must be at least 1");

  config.optimizer = detail::read_optimizer(file.section("optimizer"));
  config.scheduler = detail::read_scheduler(file.section("scheduler"));
  detail::read_precision(file, config);
  static const std::array<std::string, 2> kNumerics{"fast", "invariant"};
  const std::string numerics = file.text("numerics").value_or(kNumerics[0]);
  detail::check_name("numerics", numerics, kNumerics);
  if (numerics == kNumerics[1]) config.numerics = Numerics::kInvariant;
  detail::read_mesh(file, config);
  detail::read_zero(file.section("zero_optimization"), config.zero);
  detail::read_recompute(file, config.recompute);
  config.memory_check = file.boolean("memory_check").value_or(config.memory_check);
  detail::read_accepted_keys(file);
  return config;
}

}  // namespace tessera::dist
