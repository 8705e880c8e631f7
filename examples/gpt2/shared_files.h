#pragma once

// Files that all ranks read must be the same ones. On one host they are; hosts without a shared file system
// may have others under one path, or none, and a run on them would train each host's ranks on something else
// without a word.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dist/checkpoint.h"
#include "dist/job.h"

namespace gpt2 {

/// Throws DataError unless every rank has the same hashes: on the ranks whose hashes are not rank 0's. The
/// message is about `what`, "--data run", and names the host. A collective.
void require_same_everywhere(tessera::dist::Job& job, const std::string& what,
                             const std::vector<std::uint64_t>& hashes);

/// The checkpoint of `folder`, the same on all ranks; none if rank 0 sees none. A collective.
///
/// Errors   DataError where rank 0's is missing or is another one.
[[nodiscard]] std::optional<tessera::dist::CheckpointReader> open_shared_checkpoint(
    tessera::dist::Job& job, const std::filesystem::path& folder);

}  // namespace gpt2
