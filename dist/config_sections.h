#pragma once

// The parts of Config::read, each in a source file of its own. Private to dist/.

#include <span>
#include <string>

#include "dist/config.h"

namespace tessera::dist::detail {

/// ConfigError with the nearest name unless `name` is known.
void check_name(const char* what, const std::string& name, std::span<const std::string> known);

[[nodiscard]] Config::Optimizer read_optimizer(ConfigFile section);
[[nodiscard]] Config::Scheduler read_scheduler(ConfigFile section);
/// bf16, fp16, data_types
void read_precision(ConfigFile& file, Config& config);
/// mesh, tensor_parallel, sequence_parallel_size, context_parallel, pipeline.stages
void read_mesh(ConfigFile& file, Config& config);
void read_zero(ConfigFile section, Config::Zero& zero);
/// recompute, activation_checkpointing
void read_recompute(ConfigFile& file, Config::Recompute& recompute);

/// A key of DeepSpeed's that is no setting here: its value must ask for nothing.
struct AcceptedKey {
  const char* section;  ///< "zero_optimization.offload_param"; empty: the top level
  const char* key;
  /// A type (boolean, integer, number, numbers, text), of which any value will do; or one JSON value; empty:
  /// none will do.
  const char* accepted;
  const char* reason;  ///< why another value is refused, and what works instead
};

[[nodiscard]] std::span<const AcceptedKey> accepted_keys();
/// Sections of features that are not there: accepted, whatever else they say, if they are not enabled.
struct AcceptedSection {
  const char* section;
  const char* reason;
};
[[nodiscard]] std::span<const AcceptedSection> accepted_sections();

/// ConfigError if the value of `key` in `section` is not accepted.
void check_accepted(ConfigFile& section, const AcceptedKey& key);
/// All of the above.
void read_accepted_keys(ConfigFile& file);

}  // namespace tessera::dist::detail
