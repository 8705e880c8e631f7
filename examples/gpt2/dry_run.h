#pragma once

#include "examples/gpt2/train_options.h"

namespace gpt2 {

/// Prints what a training step of these settings holds, sends and computes on the ranks of
/// `options.world`, of which there is none: gpt2_train --dry-run.
///
/// Errors   ConfigError as the run itself would give.
void print_dry_run(const TrainOptions& options);

}  // namespace gpt2
