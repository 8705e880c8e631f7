#pragma once

// The run of training.h once more, with dist::Zero between the model and the optimizer.

#include <functional>
#include <string>
#include <vector>

#include "dist/job.h"
#include "dist/zero.h"
#include "tensor/memory.h"
#include "tests/dist/training.h"

namespace tessera::dist::testing {

struct ZeroTraining {
  std::string model;
  ZeroOptions zero;
  std::int64_t micro_batch = 0;  ///< sequences of a pass; 0: all of the rank's
  DType dtype = kF64;
  int steps = 6;
  bool recompute = false;
  bool sequence_parallel = false;  ///< where the mesh has a tp axis
  std::string mesh{};              ///< empty: all ranks on dp
  std::vector<std::string> frozen{};
  /// Called with the model laid out.
  std::function<void(nn::LanguageModel&, Job&)> prepare = nullptr;
  /// Called after each update.
  std::function<void(nn::LanguageModel&, Job&, int step)> after_step = nullptr;
  /// Goes on from what an earlier run of any layout left.
  const struct ZeroSaved* from = nullptr;
};

/// A run that was stopped: whole tensors.
struct ZeroSaved {
  int step = 0;
  NamedTensors parameters{};
  NamedTensors optimizer{};
};

struct ZeroTrained {
  Trained trained;
  MemoryReport between_steps;  ///< peaks are those of a step, without construction
  MemoryReport after_construction;
  std::vector<ZeroTraffic> traffic;  ///< of the last step, without the world's sums of losses and norms
  ZeroMemory predicted_memory;
  std::vector<ZeroTraffic> predicted_traffic;
  ZeroSaved saved;
  ZeroPlan plan;
};

/// What each rank has at the end of a run on threads.
[[nodiscard]] std::vector<ZeroTrained> train_with_zero(int num_ranks, const ZeroTraining& training);

}  // namespace tessera::dist::testing
