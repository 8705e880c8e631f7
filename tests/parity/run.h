#pragma once

// One training run, on any mesh and with any way to save memory, through dist::Engine; and the same run on
// one rank by a loop that uses nothing of dist. Everything that a layout could get wrong is in it: dropout,
// tied embeddings, an odd vocabulary, a length that few numbers of ranks divide, clipping that is active,
// weight decay by group, samples with few or no targets that count.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dist/config.h"
#include "dist/job.h"
#include "tests/parity/mutants.h"

namespace tessera::dist::parity {

struct TrainingRun {
  std::string model;
  Config config;  ///< mesh, ZeRO, recomputation, batch
  int steps = 20;
  Mutant mutant = Mutant::kNone;
  /// Checkpoints: where to go on from, up to `steps`, and what to write at the end; empty: none.
  std::filesystem::path resume_from{}, save_to{};
  bool overflows = true;  ///< in f16: in two steps, see run.cpp; passes of a pipeline can't be made to
};

/// Whether any step of the run is made to overflow.
[[nodiscard]] inline bool overflows(const TrainingRun& run) {
  return run.overflows && run.config.dtype == kF16;
}

using NamedValues = std::vector<std::pair<std::string, std::vector<double>>>;

struct Result {
  std::vector<double> losses, grad_norms;
  std::vector<bool> skipped;     ///< by step: f16 gradients overflowed, and nothing was updated
  NamedValues initial, weights;  ///< whole; of 16-bit weights their f32 masters
  double loss_scale = 1.0;       ///< at the end
  /// What is not the same on all ranks that hold it, or not what the update made it; "": nothing.
  std::string broken_replica;
};

inline constexpr std::int64_t kVocab = 251, kTime = 13, kGlobalBatch = 12;
inline constexpr const char* kGpt2 = "layers=2,heads=4,width=16,context=13,dropout=0.1";
inline constexpr const char* kLlama =
    "family=llama,layers=2,heads=4,kv_heads=2,width=16,hidden=22,context=13,dropout=0.1,tied=1";

/// A collective of the job's ranks, as many as the mesh has; the same on every rank.
[[nodiscard]] Result run_on_mesh(const TrainingRun& run, Job& job);
/// Gives the run's engine, before its first step. A collective as well.
void with_engine(const TrainingRun& run, Job& job, const std::function<void(Engine& engine)>& use);
/// On as many ranks of this process as the mesh has.
[[nodiscard]] Result run_on_threads(const TrainingRun& run);
/// One rank, one pass a step, no Engine.
[[nodiscard]] Result run_alone(const TrainingRun& run);
/// The same in f64, from weights that were rounded to the run's dtype, with its steps left out: what the
/// run would be if only its arithmetic were exact.
[[nodiscard]] Result run_exactly(const TrainingRun& run, const std::vector<bool>& left_out);

/// Samples [first, first + count) of a step's batch, and how many of their targets count.
void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
          std::span<std::int64_t> targets);
[[nodiscard]] std::int64_t count_targets(std::int64_t first, std::int64_t count);

/// A row of the table, as tests/layout_row.h reads it, in f64 unless it says otherwise.
[[nodiscard]] Config layout(const std::string& text);

}  // namespace tessera::dist::parity
