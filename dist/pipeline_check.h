#pragma once

#include <optional>
#include <string>

#include "dist/pipeline_schedule.h"

namespace tessera::dist {

/// Why a schedule can't be run: the first thing that is wrong, and whose.
struct ScheduleFault {
  int rank = 0;
  int index = -1;  ///< in the rank's list; −1: the action is not in it
  Action action;
  std::string reason;

  /// "rank 1, action 7, Forward of micro-batch 3: its input has not come; ...".
  [[nodiscard]] std::string to_string() const;
};

/// Runs the lists without data and proves that:
///
///  1. every action names a micro-batch and a chunk that there are, every message has a rank to go to;
///  2. on every stage every micro-batch has one Forward, and one Backward or one BackwardInput and one
///     BackwardWeight; every boundary between two ranks that it crosses has one send and one receive, each
///     way; in a schedule of forwards alone there is no backward, and one way;
///  3. an action comes after what it needs: Forward after its input has come, Backward and BackwardInput
///     after Forward and after the gradient of the output has come, BackwardWeight after BackwardInput, a
///     send after what makes its data;
///  4. each Recv takes the message that is next in its channel (Schedule says which that is);
///  5. with sends that never wait and receives that do, every rank comes to its end;
///  6. no rank holds more than most_live says, which is empty or has a number for each rank.
///
/// Nothing where all of it holds. One run proves it for all speeds of ranks and links: a rank's actions have
/// a fixed order, and a receive takes what is next in its channel whenever that comes.
///
/// Cost      Each action twice.
[[nodiscard]] std::optional<ScheduleFault> find_fault(const Schedule& schedule);

/// ConfigError with the fault, if there is one.
void check_legal(const Schedule& schedule);

}  // namespace tessera::dist
