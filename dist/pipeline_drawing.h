#pragma once

#include <string>

#include "dist/pipeline_schedule.h"
#include "dist/pipeline_simulation.h"

namespace tessera::dist {

struct DrawingOptions {
  int width = 120;      ///< columns; a longer picture goes on below
  bool colour = false;  ///< ANSI colours behind the cells
};

/// A schedule for a terminal: a line for each rank, a cell for each computation, as wide as it takes long;
/// below it the bubble, idle time, the most activations that each rank holds, and messages.
///
///     1f1b: 2 ranks, 3 micro-batches    F forward, B backward
///     0  F0 F1 ......B0    F2 B1    ...B2
///     1  ...F0 B0    F1 B1    F2 B2    ......
///     bubble 25.0 % of 12
///     ...
///
/// With two chunks the letters of the second are small; with more, a letter behind the micro-batch tells them
/// apart: F3a, F3b, ...
[[nodiscard]] std::string draw(const Schedule& schedule, const Simulation& simulation,
                               const DrawingOptions& options = {});

}  // namespace tessera::dist
