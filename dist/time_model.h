#pragma once

// How long a step takes, from what a dry run counted and from rates that were measured or are hoped for:
//
//   dist::DryRun planned = dist::dry_run(options);
//   const auto rates = dist::Rates::load("rates.json");
//   fmt::print("{} s\n{}", dist::predict(planned, rates).seconds(), dist::describe(planned, rates));
//
// bench/step_time_bench.cpp measures rates and compares. docs/dry_run.md says what is left out.

#include <array>
#include <filesystem>
#include <limits>
#include <map>
#include <string>

#include "dist/dry_run.h"
#include "kernels/context.h"

namespace tessera::dist {

/// Seconds = operations / flops + bytes / bytes: what is not slowed down by the one stays at infinity.
struct KernelRate {
  double flops = std::numeric_limits<double>::infinity();  ///< a second
  double bytes = std::numeric_limits<double>::infinity();  ///< read and written, a second
};

/// Seconds of a call = latency + sent bytes / bytes.
struct LinkRate {
  double latency = 0.0;                                    ///< seconds
  double bytes = std::numeric_limits<double>::infinity();  ///< sent by one rank, as the tape has it, a second
};

/// Of one rank that has a core, or a device, for itself while all other ranks do the same.
///
/// File   JSON. What is left out costs nothing, and every rank has a core.
///          { "cores": 2, "kernel_us": 1.5,
///            "kernels": { "product": {"gflops": 95, "gb_per_s": 40}, "attention": {"gflops": 30},
///                         "update": {"gb_per_s": 12}, "other": {"gb_per_s": 11} },
///            "links": { "any": {"us": 10, "gb_per_s": 2}, "tp": {"us": 5, "gb_per_s": 8},
///                       "all_reduce/8": {"us": 40, "gb_per_s": 1.5} } }
struct Rates {
  /// Ranks that compute at the same time, of all: ranks beyond them share the cores. 0: every rank has its
  /// own.
  int cores = 0;
  double kernel_seconds = 0.0;  ///< of each call of a kernel: the graph's part and the allocator's with it
  std::array<KernelRate, kernels::kNumKernelKinds> kernels;
  /// By what is sent: the first that there is of group ("tp", "dp+cp"), operation and size of the group
  /// ("all_reduce/8"), operation, "any".
  std::map<std::string, LinkRate> links;

  /// Errors  ConfigError for a key that is none, and for a rate that is not above 0.
  [[nodiscard]] static Rates load(const std::filesystem::path& path);
  [[nodiscard]] std::string json() const;
  [[nodiscard]] const LinkRate& link(const TapeTotal& row) const;
  [[nodiscard]] const KernelRate& kernel(kernels::KernelKind kind) const {
    return kernels[static_cast<std::size_t>(kind)];
  }
};

/// Seconds of a step by what they go to.
struct StepTime {
  double compute = 0.0;        ///< matrix products and attention
  double memory = 0.0;         ///< all other kernels, the update among them
  double overhead = 0.0;       ///< calls of kernels
  double communication = 0.0;  ///< nothing of it hidden behind the others
  double idle = 0.0;           ///< ranks wait for each other and leave cores empty
  [[nodiscard]] double busy() const noexcept { return compute + memory + overhead + communication; }
  [[nodiscard]] double seconds() const noexcept { return busy() + idle; }
};

/// Of one rank, if it never waits.
[[nodiscard]] StepTime time_of(const RankStep& step, const Rates& rates);

/// Of the whole mesh.
///
/// Formula   max(Σ busy / cores, path): all work over the cores that share it, or the longest chain of work
///           in which each part waits for the one before, if that is longer. The chain is that of the
///           slowest rank; of a pipeline its schedule with each stage's passes and their messages (a third
///           each for forward, backward to the input and to the weights), then the longest of what ends a
///           step; of each place on pp the first rank counts. The parts are
///           Σ / cores each, and idle is what is missing.
[[nodiscard]] StepTime predict(const DryRun& run, const Rates& rates);

/// For a person: the sum, its parts, and what would be left if no communication were exposed.
[[nodiscard]] std::string describe(const DryRun& run, const Rates& rates);

}  // namespace tessera::dist
