#include "examples/gpt2/shared_files.h"

#include <fmt/format.h>

#include "dist/host_memory.h"
#include "kernels/error.h"

namespace gpt2 {

using namespace tessera;

void require_same_everywhere(dist::Job& job, const std::string& what,
                             const std::vector<std::uint64_t>& hashes) {
  std::vector<std::int64_t> of_root;  // bits, in a type that can be sent
  for (const std::uint64_t hash : hashes) of_root.push_back(static_cast<std::int64_t>(hash));
  const std::vector<std::int64_t> ours = of_root;
  job.world().broadcast(dist::buffer_of(of_root), 0);
  if (ours == of_root) return;
  throw DataError(
      fmt::format("{}: what rank {} finds there, on host {}, is not what rank 0 finds; give all hosts one "
                  "shared folder, or copies of the same files",
                  what, job.rank(), dist::host_name()));
}

std::optional<dist::CheckpointReader> open_shared_checkpoint(dist::Job& job,
                                                             const std::filesystem::path& folder) {
  std::int32_t exists[1] = {dist::has_checkpoint(folder) ? 1 : 0};
  const bool here = exists[0] != 0;
  job.world().broadcast(dist::buffer_of(exists), 0);
  if (exists[0] == 0) return std::nullopt;
  if (!here) {
    throw DataError(
        fmt::format("--out {}: rank 0 finds a checkpoint there, and rank {} on host {} does not; ranks read "
                    "it themselves, so the folder must be on a file system that all hosts share",
                    folder.string(), job.rank(), dist::host_name()));
  }
  dist::CheckpointReader checkpoint(folder);
  require_same_everywhere(job, fmt::format("--out {}", folder.string()), {checkpoint.index_hash()});
  return checkpoint;
}

}  // namespace gpt2
