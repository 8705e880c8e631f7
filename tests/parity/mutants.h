#pragma once

// Mistakes in a run on several ranks (tier T5): the comparison with one rank, the comparison of replicas, or
// a layout check must notice each.

#include <cstdint>

#include "dist/engine.h"

namespace tessera::dist::parity {

/// What is wrong with a run.
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
  kNothingTrained,       ///< the learning rate is zero
  kStaleCopy,            ///< one rank misses every update of a parameter that it holds a copy of
  kMissedLastUpdate,     ///< one rank misses the last update of one gain
  kNudgedReplica,        ///< after every update one number of one rank's copy is a unit in the last place off
  kStaleTiedWeight,      ///< the output layer keeps the weights of the first step
  kStalePositions,       ///< the tokens of a cut sequence are numbered from 0
  kShiftedTargets,       ///< ids are dealt out in balanced chunks, targets in natural order
  kSharedHeads,          ///< tp ranks draw the dropout masks of the first rank's heads
  kBiasAddedTwice,       ///< a row-parallel bias is added once by each rank
  kReductionForgotten,   ///< behind a row-parallel layer stands no reduction, and its layout says otherwise
  kReductionDropped,     ///< behind a row-parallel layer stands no reduction
  kCopyDropped,          ///< before a column-parallel layer stands no copy_to_ranks
  kInvariantNorm,        ///< a norm on cut tokens is laid out as I: its gradient would not be summed over tp
  kUnsummedNorm,         ///< a norm on cut tokens has the gradient of the first tp rank's tokens
  kUnsummedKeyValue,     ///< keys that several tp ranks read have the gradient of the first one's queries
};
[[nodiscard]] const char* name(Mutant mutant);

/// Mistakes in what the engine is made of.
void spoil_settings(Mutant mutant, Config& config, EngineOptions& options);
/// Mistakes that are made once, in what the engine has set up.
void spoil_model(Mutant mutant, Engine& engine);
/// Mistakes in what one pass is given; `own_first` is this rank's first sample.
void spoil_pass(Mutant mutant, const Engine& engine, std::int64_t own_first, MicroBatch& pass);
/// Mistakes in the number by which the loss of a pass is divided, as a factor.
[[nodiscard]] double wrong_scale(Mutant mutant, const Engine& engine, const MicroBatch& pass, bool is_first);

/// Mistakes in an update: made before and after the engine's step.
class SpoiltUpdate {
 public:
  SpoiltUpdate(Mutant mutant, Engine& engine, bool is_last);
  void after();

 private:
  Mutant mutant_;
  Engine& engine_;
  Tensor copy_, before_;  // undefined where this rank makes no mistake
};

}  // namespace tessera::dist::parity
