#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dist/communicator.h"

namespace tessera::dist {

/// Where a rank's time went in a step. The rest, while other ranks' data travel or not, is computing.
struct TimeSplit {
  double seconds = 0.0;
  double waiting = 0.0;   ///< it stood in a call to which another rank had not come yet
  double transfer = 0.0;  ///< it stood in a call to which all had come: copying, reducing, being sent to

  [[nodiscard]] double exposed() const noexcept { return waiting + transfer; }
  [[nodiscard]] double compute() const noexcept { return seconds - exposed(); }
};

/// One call of a rank as its tape has it, in seconds of steady_seconds().
struct TimedCall {
  std::uint64_t match = 0;  ///< equal for the calls that belong together, on all of their ranks
  double arrived = 0.0;
  double inside = 0.0;  ///< within the calls that started and tested it
  double wait_begin = 0.0, wait_end = 0.0;
};

struct TimedRank {
  double begin = 0.0, end = 0.0;
  std::vector<TimedCall> calls;
};

/// What is between `begin` and `end` on a tape, without calls in groups of one rank. Begins where no call is
/// under way: behind a barrier.
/// Errors   CommError if the tape no longer has all of it: JobOptions::tape_capacity.
[[nodiscard]] TimedRank timed_calls(const Tape& tape, double begin, double end);

/// The split of every rank, by rank.
///
/// Formula   Of a wait from a to b in a call to which the last rank came at t, max(0, min(t, b) − a) is
///           waiting and the rest transfer, as is the time inside of the calls that start and test it.
[[nodiscard]] std::vector<TimeSplit> split_times(std::span<const TimedRank> ranks);

/// The same of what each rank of `world` did between its `begin` and `end`, on every rank. A collective.
///
/// Clock     Ranks are compared by steady_seconds(): those of one host have one clock, as threads or as
///           processes. Over hosts clocks differ, and only exposed() and compute() mean something.
/// Example   world.barrier();
///           const double begin = steady_seconds();
///           engine.train_step(source);
///           const auto splits = gather_time_splits(world, begin, steady_seconds());
[[nodiscard]] std::vector<TimeSplit> gather_time_splits(Communicator& world, double begin, double end);

}  // namespace tessera::dist
