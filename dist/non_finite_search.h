#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

#include "dist/mesh.h"
#include "nn/language_model.h"
#include "tensor/tensor.h"

// Private to dist/.
namespace tessera::dist {

/// A pass of this rank whose loss was not finite.
struct NonFinitePass {
  std::size_t pass = 0;
  double loss = 0.0;
};

/// Where values cease to be finite in a model that ranks share.
struct NonFiniteFinding {
  std::string loss{};     ///< "NaN" or "infinite"
  int rank = 0;           ///< of the world
  std::string message{};  ///< what it found, as nn::NonFinite says it; empty if nobody found anything
};

/// Nothing if no rank's loss was not finite. Else all run the first such pass again, each on its own part,
/// and watch their layers: one rank alone can't run it, and the first that meets such a value need not be the
/// one whose loss shows it. Parameters come before outputs, outputs of earlier stages before those of later
/// ones, and the earlier of one stage before the later.
///
/// Calling   A collective of all ranks of the mesh; `run` has those of a forward pass.
[[nodiscard]] std::optional<NonFiniteFinding> search_non_finite_together(
    nn::LanguageModel& model, const Mesh& mesh, const NamedTensors& pieces,
    const std::optional<NonFinitePass>& own, const std::function<void(std::size_t pass)>& run);

}  // namespace tessera::dist
