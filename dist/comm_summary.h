#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace tessera::dist {

/// What one rank sent in the steps of a run, and in nothing else: making groups, evaluating and saving use
/// the same tape and stay out.
///
///     dist::CommSummary summary(job.world());
///     for (...) {
///       summary.begin_step();
///       train(...);
///       summary.end_step();
///     }
///     job.log(summary.table());
///
/// An Engine keeps one of its steps: job.log(engine.comm_summary().table()).
///
/// Lifetime  The communicator outlives this. Its tape's totals are not reset between begin_step() and
///           end_step().
/// Threads   Of its rank.
/// Cost      A copy of the tape's totals, a row for each group and operation, at each end of a step.
class CommSummary {
 public:
  explicit CommSummary(const Communicator& world) : world_(&world) {}

  /// Forgets a step that has begun and not ended.
  void begin_step();
  /// Returns what the step came to: rows as Tape::totals(), those with calls.
  std::vector<TapeTotal> end_step();

  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
  /// Of all steps, sorted by group and operation.
  [[nodiscard]] const std::vector<TapeTotal>& totals() const noexcept { return totals_; }
  [[nodiscard]] std::int64_t sent_bytes() const noexcept;

  /// Calls, bytes and time waited by group and operation: the mean of a step, with one decimal where steps
  /// differ. The first step stands apart, unless it is the only one: ranks begin it at different times, and
  /// what is agreed on once is sent in it. On several hosts, rows of groups that reach over hosts say so and
  /// have a sum of their own: what goes from host to host is a part of it, since such a group may have ranks
  /// on one host too.
  ///
  /// Example   sent by rank 0 of 2, a step (mean of 19, the first apart):
  ///           group        operation             calls            bytes    waited ms
  ///           dp           reduce_scatter            4           22,976        0.214
  ///           ...
  ///           first step                            14           46,120       35.102
  [[nodiscard]] std::string table() const;

 private:
  const Communicator* world_;
  std::vector<TapeTotal> before_;  // of the step under way
  std::vector<TapeTotal> totals_;
  std::vector<TapeTotal> first_;  // of the first step
  std::int64_t steps_ = 0;
};

}  // namespace tessera::dist
