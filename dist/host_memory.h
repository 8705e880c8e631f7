#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "dist/communicator.h"

namespace tessera::dist {

/// What the system calls this host.
[[nodiscard]] std::string host_name();

/// What a process may still take of its host's memory, as Linux says.
struct HostMemory {
  static constexpr std::int64_t kUnknown = -1;

  std::string host{};                       ///< ranks with equal names share `available_bytes`
  std::int64_t available_bytes = kUnknown;  ///< MemAvailable: without swapping
  std::string cgroup{};                     ///< ranks of one host with equal names share `limit_bytes`
  /// Under memory.max (cgroup v2) of this process's group and of those around it: the limit less what is in
  /// use and can't be taken back. Unknown where there is no limit.
  std::int64_t limit_bytes = kUnknown;

  /// Reads /proc/meminfo, /proc/self/cgroup and /sys/fs/cgroup below `root`. What is not there is unknown.
  [[nodiscard]] static HostMemory read(const std::filesystem::path& root = "/");
};

/// What the ranks of each host are about to hold fits into its memory: a run that does not would be killed by
/// the system, on one host, without a word, after minutes of reading and laying out.
///
/// Calling   A collective: every rank calls it with its own numbers, before it allocates.
/// Errors    ConfigError on every rank, that names the first host where they do not fit, with the bytes.
void require_memory(std::int64_t needed_bytes, const HostMemory& memory, Communicator& world);

}  // namespace tessera::dist
