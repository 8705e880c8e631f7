#pragma once

// A run without data: the engine that trains, with its model on meta, as one rank of a world in which there
// is nobody else. Tensors have shapes and no elements, collectives are written to the tape and return at
// once, kernels count. So what it allocates, sends and computes is what a run does, for any number of ranks:
//
//   dist::DryRun planned =
//       dist::dry_run({.make_model = [] { return nn::make_language_model("gpt2-xl", 50257); },
//                      .config = config, .mesh = dist::MeshShape::parse("pp=4,dp=32,tp=8")});
//   fmt::print("{}", dist::describe(planned));
//
// docs/dry_run.md has an example with its output.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dist/config.h"
#include "dist/engine.h"
#include "dist/mesh.h"
#include "dist/pipeline_schedule.h"
#include "dist/tape.h"
#include "dist/zero_plan.h"
#include "kernels/context.h"
#include "nn/language_model.h"
#include "tensor/memory.h"

namespace tessera::dist {

struct DryRunOptions {
  /// Called once for each rank that is run, with meta as the default device.
  std::function<std::unique_ptr<nn::LanguageModel>()> make_model;
  Config config;
  MeshShape mesh;
  EngineOptions engine;
  /// Sequences of a step; 0: the batch of the config.
  std::int64_t num_samples = 0;
  /// The last one is shown. Two: in the first, parameters that are cut come in an order that is still to be
  /// learned.
  int steps = 2;
};

/// What one rank does in a step.
struct RankStep {
  int rank = 0;
  MemoryReport memory;             ///< peaks of this step; what is held after it
  ZeroMemory predicted;            ///< of parameters and gradients, from shapes alone
  std::vector<TapeTotal> traffic;  ///< by group and operation; times mean nothing
  kernels::OpCounts counts;        ///< of the kernels that computed
  kernels::CountsByKind counts_by_kind;
  std::int64_t num_elements = 0;  ///< of this rank's part of the model, its data ranks' parts included
};

/// Runs one rank dry.
///
/// Memory    Equals MemoryPool's of a run on the CPU to the byte, by category, but for kWorkspace: scratch of
///           kernels depends on threads and instruction set, and there is none on meta.
/// Traffic   Equals the tape's of a run in calls and bytes.
/// Calling   On any thread; under a rank context of its own, that of the caller is not touched.
/// Errors    As Engine: a layout that is refused is refused here.
[[nodiscard]] RankStep dry_run_rank(const DryRunOptions& options, int rank);

/// Ranks that differ in nothing that the dry run sees, or in little.
struct RankClass {
  int first_rank = 0, last_rank = 0;  ///< neighbours: those of one place on pp
  /// Of the first rank; and of the last one, where anything differs from it. Where heads, hidden units,
  /// vocabulary or samples do not divide, the first has the largest pieces and the last the smallest. Others
  /// are cut otherwise (tokens of a ring, slices of ZeRO, matrices of Muon): a rank between may hold a little
  /// more than both. dry_run_rank tells of any.
  RankStep first;
  std::optional<RankStep> last;
};

struct DryRun {
  MeshShape mesh;
  BatchSizes batch;
  std::int64_t seq = 0, num_samples = 0;
  std::int64_t num_parameters = 0;   ///< of the whole model
  std::vector<RankClass> classes;    ///< one for each place on pp
  std::optional<Schedule> schedule;  ///< of the pipeline
  /// Data ranks gather parameters (ZeRO stage 3) and sum gradients (2 and 3, unless full ones are kept) in
  /// every pass, not once a step.
  bool gathers_in_passes = false, reduces_in_passes = false;
};

/// Runs the first and the last rank of each place on pp dry.
[[nodiscard]] DryRun dry_run(const DryRunOptions& options);

/// For a person: per class memory at its peak and when that is, traffic, operations; the schedule's bubble.
[[nodiscard]] std::string describe(const DryRun& run);

}  // namespace tessera::dist
