#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/safetensors.h"

namespace tessera::dist {

/// Everything that a training run needs to go on: logical tensors, whatever layout they had in memory. Random
/// state is not in it: random numbers are functions of the seed and the step.
struct Checkpoint {
  std::int64_t step = 0;    ///< steps done
  NamedTensors model;       ///< by dotted name
  NamedTensors optimizer;   ///< by the optimizer's own names
  data::Metadata metadata;  ///< the model's description and whatever else the program needs
};

/// Writes `checkpoint` to RUN/step-NNNNNNNN/: model.safetensors and optimizer.safetensors, readable by other
/// tools, and checkpoint.json with the step, the metadata and a hash of every tensor.
///
/// The folder is written under a temporary name, brought to the disk, renamed, and only then named by
/// RUN/latest: a process killed at any moment leaves the last good checkpoint usable. Older checkpoints
/// beyond `keep` are removed afterwards.
///
/// Calling   One rank writes; the others must not use the run folder meanwhile.
/// Errors    DataError if the folder cannot be written to; FileError if the disk is full: what was there
///           before stays.
void save_checkpoint(const std::filesystem::path& run_folder, const Checkpoint& checkpoint, int keep = 2);

/// True if `folder` holds a checkpoint that load_checkpoint would try to read.
[[nodiscard]] bool has_checkpoint(const std::filesystem::path& folder);

/// Reads the latest checkpoint of a run folder, or the checkpoint folder itself. `with_optimizer` false skips
/// the optimizer's part: for generation and evaluation.
///
/// Errors    DataError: nothing there, a file missing, cut short or damaged (a hash does not match), a newer
///           format.
[[nodiscard]] Checkpoint load_checkpoint(const std::filesystem::path& folder, bool with_optimizer = true);

}  // namespace tessera::dist
