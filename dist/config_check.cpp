// Settings that contradict each other, whoever made them: a file, flags that win over it, or a program.

#include <fmt/format.h>

#include "dist/config.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

void check_shard_groups(const Config::Zero& zero) {
  const bool hpz = zero.hpz_partition_size > 1, mics = zero.mics_shard_size > 0;
  if (hpz && mics) {
    throw ConfigError(fmt::format(
        "config: zero_optimization.zero_hpz_partition_size is {}, but hpZ and MiCS both say over which ranks "
        "parameters are cut, and mics_shard_size is {}; leave one of them out",
        zero.hpz_partition_size, zero.mics_shard_size));
  }
  if (zero.stage == 3 || (!hpz && !mics)) return;
  throw ConfigError(
      fmt::format("config: zero_optimization.{} is {}, but {} cuts parameters, which stage {} does not; set "
                  "stage to 3, or leave it out",
                  hpz ? "zero_hpz_partition_size" : "mics_shard_size",
                  hpz ? zero.hpz_partition_size : zero.mics_shard_size, hpz ? "hpZ" : "MiCS", zero.stage));
}

void check_recompute(const Config::Recompute& recompute) {
  using Mode = Config::Recompute::Mode;
  if (recompute.mode == Mode::kFull) return;
  const char* asks = recompute.partition_activations    ? "partition_activations"
                     : recompute.cpu_checkpointing      ? "cpu_checkpointing"
                     : recompute.number_checkpoints > 0 ? "number_checkpoints"
                                                        : nullptr;
  if (asks == nullptr) return;
  throw ConfigError(
      fmt::format("config: activation_checkpointing.{} is about blocks that run again, but \"recompute\" is "
                  "\"{}\"; \"full\" works, or leave one of them out",
                  asks, recompute.mode == Mode::kNone ? "none" : "selective"));
}

void check_bf16_state(const Config& config) {
  if (config.optimizer.state_dtype != kBF16) return;
  const std::string& type = config.optimizer.type;
  if (type != "AdamW" && type != "Adam") {
    throw ConfigError(
        fmt::format("config: bf16.bf16_optimizer_states is true, but {} has no state in bf16; AdamW and Adam "
                    "have, or leave it out",
                    type));
  }
  if (config.dtype == kBF16) return;
  throw ConfigError(
      fmt::format("config: bf16.bf16_optimizer_states is true, but it is for bf16 parameters, and they are "
                  "{}; \"bf16\": {{\"enabled\": true}} works, or leave it out",
                  name(config.dtype)));
}

}  // namespace

void check(const Config& config) {
  check_shard_groups(config.zero);
  check_recompute(config.recompute);
  check_bf16_state(config);
}

}  // namespace tessera::dist
