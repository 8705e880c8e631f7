#pragma once

// What several ranks hold must be the same bits on each of them.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dist/communicator.h"
#include "dist/engine.h"

namespace tessera::dist::parity {

/// Hashes of what this rank holds.
class Replicas {
 public:
  /// The figures that are the same on every rank, the loss scale after the step among them.
  void add(const StepReport& report, double loss_scale);
  /// Weights, moments, masters and step counts, each put together from the rank's own pieces and, for what is
  /// cut, those of its peers in the cut. Ranks with the same place in a cut of dp or cp have other peers, so
  /// every copy of a piece is in the tensor of some rank; of what tp does not cut each rank gives its own.
  /// Calling   A collective of all ranks.
  void add(const CheckpointSources& sources);

  /// A copy of one parameter, by whoever has it: stages on different ranks of a pipeline.
  void add_copy(const std::string& parameter, const Tensor& whole) { add("the copy of " + parameter, whole); }

  /// "h.1.ln_2.weight: rank 1 holds other bits than rank 0", or "" where all agree. A collective.
  [[nodiscard]] std::string first_difference(Communicator& world) const;

 private:
  void add(const std::string& what, const Tensor& tensor);

  std::vector<std::pair<std::string, std::uint64_t>> hashes_;
};

}  // namespace tessera::dist::parity
