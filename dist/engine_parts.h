#pragma once

// What the engine is made of: each technique's part of the model. Private to dist/.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "dist/engine.h"
#include "dist/invariant.h"
#include "dist/pipeline.h"
#include "dist/sequence_cut.h"
#include "dist/tensor_parallel.h"
#include "dist/zero.h"
#include "optim/loss_scale.h"
#include "optim/optimizer.h"

namespace tessera::dist {

/// Members stand in the order in which they are made: pipeline and zero refer to laid_out.
struct Engine::Parts {
  /// All but zero and the optimizer, which come once recomputation and attention are set.
  Parts(nn::LanguageModel& model, const Config& config, const Mesh& mesh, const EngineOptions& options,
        std::int64_t num_passes);

  SequenceCut sequences;
  std::shared_ptr<const std::vector<std::int64_t>> token_positions{};  // null where sequences are not cut
  std::vector<double> part_parameters;  // before tp cuts them: each rank would have counts of its own
  LaidOut laid_out;
  std::unique_ptr<Pipeline> pipeline;  // null where pp is 1
  std::unique_ptr<Zero> zero{};
  std::unique_ptr<optim::Optimizer> optimizer{};
  optim::LossScaler scaler;
  std::optional<InvariantProducts> invariant_products{};
};

}  // namespace tessera::dist
