#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/safetensors.h"
#include "dist/communicator.h"

namespace tessera::dist {

// A training run in files: logical tensors, whatever layout they had in memory. Random state is not among
// them: random numbers are functions of the seed and the step.
//
//   RUN/latest                      "step-00000200"
//   RUN/step-00000200/              model.safetensors and optimizer.safetensors, readable by other tools;
//                                   checkpoint.json: step, metadata, a hash of every tensor
//
// The folder is written under a temporary name, brought to the disk, renamed, and only then named by
// RUN/latest: a process killed at any moment leaves the last good checkpoint usable.

/// Everything that a training run needs to go on, in memory at once.
struct Checkpoint {
  std::int64_t step = 0;    ///< steps done
  NamedTensors model;       ///< by dotted name
  NamedTensors optimizer;   ///< by the optimizer's own names
  data::Metadata metadata;  ///< the model's description and whatever else the program needs
};

/// Writes a checkpoint.
///
/// Keeps     Older checkpoints beyond `keep` are removed afterwards.
/// Calling   One rank writes; the others must not use the run folder meanwhile.
/// Errors    DataError if the folder cannot be written to; FileError if the disk is full: what was there
///           before stays.
void save_checkpoint(const std::filesystem::path& run_folder, const Checkpoint& checkpoint, int keep = 2);

/// Tensors that are made whole one at a time.
struct TensorSource {
  std::vector<data::TensorInfo> tensors;  ///< whole, the same on every rank
  /// The tensor of that name: whole on rank 0, anything on the others. Called on every rank, in the order of
  /// `tensors`, so it may be a collective: Zero::whole, a gather over tp.
  std::function<Tensor(const std::string& name)> get = nullptr;
};

/// A Checkpoint whose tensors lie in parts on the ranks.
struct CheckpointSources {
  std::int64_t step = 0;
  TensorSource model;
  TensorSource optimizer;
  data::Metadata metadata;
};

/// Writes the same files without holding more than one whole tensor on any rank.
///
/// Calling   A collective: every rank calls it; rank 0 of `world` writes, and all return when the checkpoint
///           is there.
/// Memory    The largest tensor, as `get` gives it.
/// Errors    Of rank 0 as for the other form, and DataError if `get` gives another tensor than was announced:
///           it goes on taking part in `get` until the end, so that nobody waits for it in vain, and then it
///           gets its exception and the others PeerFailure. All can go on from there. A folder that cannot be
///           written to is found before the first tensor. What `get` throws is thrown at once, on the ranks
///           where it was: it is an error of the collective.
/// Example   CheckpointSources sources{.step = step};
///           sources.model = {infos, [&](const std::string& name) { return zero.whole(name); }};
///           sources.optimizer = ...;
///           save_checkpoint("run", sources, mesh.world());
void save_checkpoint(const std::filesystem::path& run_folder, const CheckpointSources& sources,
                     Communicator& world, int keep = 2);

/// True if `folder` holds a checkpoint that load_checkpoint would try to read.
[[nodiscard]] bool has_checkpoint(const std::filesystem::path& folder);

/// The latest checkpoint of a run folder, or the checkpoint folder itself, read tensor by tensor. Opening
/// reads the index and headers alone.
///
/// Errors    DataError: nothing there, a file missing or cut short, tensors that the index does not list, a
///           newer format.
/// Example   const CheckpointReader reader("run");
///           for (const auto& entry : reader.model().entries())
///             zero.load(entry.name, reader.model().read(entry.name));
class CheckpointReader {
 public:
  /// One of its two files.
  class Tensors {
   public:
    /// Names, dtypes and shapes, in the order of the file.
    [[nodiscard]] const std::vector<data::SafetensorsFile::Entry>& entries() const noexcept {
      return file_.entries();
    }
    [[nodiscard]] bool contains(const std::string& name) const { return file_.contains(name); }
    /// A copy on the cpu. DataError for an unknown name, or if its hash does not match the index.
    [[nodiscard]] Tensor read(const std::string& name) const;
    [[nodiscard]] NamedTensors read_all() const;

   private:
    friend class CheckpointReader;
    Tensors(const std::filesystem::path& path, std::map<std::string, std::string> hashes);

    std::filesystem::path path_;
    data::SafetensorsFile file_;
    std::map<std::string, std::string> hashes_;
  };

  /// Without the optimizer's file: for generation and evaluation.
  explicit CheckpointReader(const std::filesystem::path& folder, bool with_optimizer = true);

  [[nodiscard]] std::int64_t step() const noexcept { return step_; }
  /// Of step, metadata and the hashes of all tensors: other checkpoints have others, copies the same.
  [[nodiscard]] std::uint64_t index_hash() const noexcept { return index_hash_; }
  [[nodiscard]] const data::Metadata& metadata() const noexcept { return metadata_; }
  [[nodiscard]] const Tensors& model() const noexcept { return *model_; }
  /// DataError if it was left out.
  [[nodiscard]] const Tensors& optimizer() const;

 private:
  std::int64_t step_ = 0;
  std::uint64_t index_hash_ = 0;
  data::Metadata metadata_;
  std::unique_ptr<const Tensors> model_, optimizer_;
};

/// Reads all of a checkpoint. `with_optimizer` false skips the optimizer's part.
///
/// Errors    As of CheckpointReader, and of reading its tensors.
[[nodiscard]] Checkpoint load_checkpoint(const std::filesystem::path& folder, bool with_optimizer = true);

}  // namespace tessera::dist
