#pragma once

// Whether a run is the one of one rank, within what its dtype allows.

#include <string>
#include <utility>
#include <vector>

#include "tests/parity/run.h"

namespace tessera::dist::parity {

/// The runs that others are compared with.
struct OneRank {
  Result run;
  Result exact;  ///< see run_exactly; of 16-bit runs
};
[[nodiscard]] OneRank one_rank(const TrainingRun& run);

/// Largest relative differences of losses and gradient norms, largest absolute one of weights. Infinity for a
/// NaN, and where the two do not have the same steps and weights.
struct Difference {
  double losses = 0.0, norms = 0.0, weights = 0.0;
};
[[nodiscard]] Difference compare(const Result& a, const Result& b);

/// How far a run is from the exact one: root mean squares over the steps for losses and norms (relative); for
/// weights ‖w − w_exact‖ / ‖w_exact − w_initial‖, the share of what was learned that is wrong: 0 for an exact
/// run, 1 for one that did not train.
struct RelativeError {
  double losses = 0.0, norms = 0.0, weights = 0.0;
  /// The weights of each parameter by itself, its worst element left out: where a gradient is 0 but for
  /// rounding, Adam's first step goes the one way or the other, as the rounding has it.
  std::vector<std::pair<std::string, double>> parameters;
};
[[nodiscard]] RelativeError error_of(const Result& run, const Result& exact);

/// How far a run is from that of one rank, in units of what is allowed: up to 1 it is the same run.
///
/// f64 (T1)       1e-10: rounding of a few thousand sums stays below 1e-14, and no mistake does.
/// f32 (T2)       Losses 1e-6, as promised; norms 2e-6 and weights 3e-6: ten times what twenty steps make of
///                roundings of 6e-8 in the layouts of the table (2e-7, 4e-7).
/// bf16, f16 (T6) No bound in numbers would hold for other models, so the dtype's own error is the measure:
///                that of one rank's 16-bit run against the exact run. A layout rounds at other places, so
///                its error is another of the same size: losses may be 4 times as far off, norms and weights
///                3 times, and one parameter 8 times as far as it, or as parameters on average, are for one
///                rank. (Layouts of the table: 1.6, 1.1, 1.7 and 3.6. One that did not train: 28, 40, 43.)
struct Distance {
  double value = 0.0;
  std::string shown;
};
[[nodiscard]] Distance distance(const TrainingRun& run, const Result& result, const OneRank& one_rank);

}  // namespace tessera::dist::parity
