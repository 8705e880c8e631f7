#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dist/pipeline_schedule.h"

namespace tessera::dist {

/// What one micro-batch costs on one stage, in any unit of time and of memory.
struct StageCost {
  double forward = 1;
  double backward_input = 1;  ///< Backward takes this and backward_weight
  double backward_weight = 1;
  double transfer = 0;     ///< of the stage's output to the next rank, and of its gradient back
  double activations = 1;  ///< memory that Forward leaves for the backward pass
  /// What lives from BackwardInput to BackwardWeight, as a share of it: of each matrix product the input and
  /// the gradient of the output. Qi et al. (arXiv 2401.10241) count 32/(34 + 5·a·s/h) for a transformer block
  /// with a heads, s tokens and width h.
  double kept_for_weights = 1;

  /// Of one of `chunks` equal stages on a rank, if this is the cost of all its layers; messages stay as long.
  [[nodiscard]] StageCost per_chunk(int chunks) const;
};

struct TimedAction {
  Action action;
  double start = 0;
  double end = 0;  ///< of a Recv: when the rank goes on
};

/// When what happens. Idle is all time in which a rank does not compute, until the last rank has ended.
struct Simulation {
  std::vector<std::vector<TimedAction>> timeline;  ///< [rank], in the order of its list
  double total = 0;                                ///< from the first start to the last end
  std::vector<double> idle;                        ///< [rank]
  /// [rank], the part of idle that lies between the rank's first computation and its last. Only this is lost
  /// where ranks need not begin and end a step together.
  std::vector<double> idle_inside;
  /// [rank], as StageCost counts them. Where there are forwards alone: those of one pass, which go with it.
  std::vector<double> peak_activations;
  std::int64_t num_messages = 0;

  /// The share of all ranks' time that is idle: Σ idle / (p·total).
  [[nodiscard]] double bubble() const noexcept;
};

/// Runs a schedule without data: each action starts when the rank is through with the one before; a message
/// arrives `transfer` after it was sent, or after the message before it in the channel has arrived.
///
/// Costs     One for each stage; or one for all.
/// Errors    ConfigError for a schedule that is not legal, or costs for another number of stages.
/// Example   simulate(make_schedule("1f1b", {.ranks = 4, .micro_batches = 8})).bubble();   // 3/11
///           simulate(interleaved, StageCost{.transfer = 0.1}.per_chunk(interleaved.num_chunks));
[[nodiscard]] Simulation simulate(const Schedule& schedule, const StageCost& cost = {});
[[nodiscard]] Simulation simulate(const Schedule& schedule, std::span<const StageCost> costs);

}  // namespace tessera::dist
