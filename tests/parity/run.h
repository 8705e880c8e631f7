#pragma once

// One training run, on any mesh and with any way to save memory, through dist::Engine; and the same run on
// one rank by a loop that uses nothing of dist. Everything that a layout could get wrong is in it: dropout,
// tied embeddings, an odd vocabulary, a length that few numbers of ranks divide, clipping that is active,
// weight decay by group, samples with few or no targets that count.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dist/config.h"
#include "dist/job.h"

namespace tessera::dist::parity {

/// A mistake in the run (tier T5): the comparison, or a layout check, must notice it.
enum class Mutant {
  kNone,
  kMeanOfMeans,          ///< each rank divides by its own count of targets
  kWrongDivisor,         ///< the sum over dp is divided by dp once more
  kIgnoredTargetsCount,  ///< the loss is divided by all targets, those that do not count as well
  kSharedSampleOffset,   ///< data ranks draw the same dropout masks
  kSharedSamples,        ///< every data rank trains on the first one's samples
  kSkippedMicroBatch,    ///< the first pass of a step has no gradient
  kUnreducedParameter,   ///< of one gain the gradient of the first data rank is taken for the sum
  kNoClipping,           ///< the gradient norm is not held to its bound
  kDecayDropped,         ///< pieces are one-dimensional: "nothing that is one-dimensional decays"
  kOwnSeed,              ///< ranks draw different random numbers
  kStaleCopy,            ///< one rank misses the update of a parameter that it holds a copy of
  kStaleTiedWeight,      ///< the output layer keeps the weights of the first step
  kStalePositions,       ///< the tokens of a cut sequence are numbered from 0
  kShiftedTargets,       ///< ids are dealt out in balanced chunks, targets in natural order
  kSharedHeads,          ///< tp ranks draw the dropout masks of the first rank's heads
  kBiasAddedTwice,       ///< a row-parallel bias is added once by each rank
  kReductionForgotten,   ///< behind a row-parallel layer stands no reduction, and its layout says otherwise
  kReductionDropped,     ///< behind a row-parallel layer stands no reduction
  kCopyDropped,          ///< before a column-parallel layer stands no copy_to_ranks
  kInvariantNorm,        ///< a norm on cut tokens is laid out as I: its gradient would not be summed over tp
};
[[nodiscard]] const char* name(Mutant mutant);

struct TrainingRun {
  std::string model;
  Config config;  ///< mesh, ZeRO, recomputation, batch
  int steps = 20;
  Mutant mutant = Mutant::kNone;
};

struct Result {
  std::vector<double> losses, grad_norms;
  std::vector<std::pair<std::string, std::vector<double>>> weights;  ///< whole
};

inline constexpr std::int64_t kVocab = 251, kTime = 13, kGlobalBatch = 12;
inline constexpr const char* kGpt2 = "layers=2,heads=4,width=16,context=13,dropout=0.1";
inline constexpr const char* kLlama =
    "family=llama,layers=2,heads=4,kv_heads=2,width=16,hidden=22,context=13,dropout=0.1,tied=1";

/// A collective of the job's ranks, as many as the mesh has; the same on every rank.
[[nodiscard]] Result run_on_mesh(const TrainingRun& run, Job& job);
/// On as many ranks of this process as the mesh has.
[[nodiscard]] Result run_on_threads(const TrainingRun& run);
/// One rank, one pass a step, no Engine.
[[nodiscard]] Result run_alone(const TrainingRun& run);

/// Largest relative differences of losses and gradient norms, largest absolute one of weights.
struct Difference {
  double losses = 0.0, norms = 0.0, weights = 0.0;
  [[nodiscard]] double largest() const;
};
[[nodiscard]] Difference compare(const Result& a, const Result& b);

/// Reads "dp=2,tp=2 zero=3 pass=2 recompute=full sp ulysses f32 ...": a row of the table.
[[nodiscard]] Config layout(const std::string& text);

}  // namespace tessera::dist::parity
