#pragma once

// How the engine turns a configuration into a layout: what each technique is told, and what is refused.
// Private to dist/.

#include <memory>
#include <string>

#include "dist/config.h"
#include "dist/engine.h"
#include "dist/mesh.h"
#include "dist/pipeline.h"
#include "dist/sequence_cut.h"
#include "dist/tensor_parallel.h"
#include "dist/zero_plan.h"

namespace tessera::dist {

/// Errors   ConfigError for what this engine cannot honour, with the nearest that works. What Invariant
///          numerics cannot honour is in dist/invariant.h.
void check_supported(const nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                     std::int64_t seq);

[[nodiscard]] SequenceCut cut_sequences(const Config& config, const Mesh& mesh, std::int64_t seq);

[[nodiscard]] LaidOut lay_out_for_engine(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                                         const EngineOptions& options);

/// Puts ring attention or Ulysses into every attention layer.
void replace_attention(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                       const SequenceCut& cut);

void set_recomputation(nn::LanguageModel& model, const Config& config, const Mesh& mesh);

/// Null where pp is 1. `part_parameters`: as in PipelineOptions; `num_passes`: of a step, as the config has
/// it.
[[nodiscard]] std::unique_ptr<Pipeline> make_pipeline(nn::LanguageModel& model, const Config& config,
                                                      const Mesh& mesh, const EngineOptions& options,
                                                      std::vector<double> part_parameters,
                                                      std::int64_t num_passes);

/// `laid_out` and `pipeline` (may be null) outlive what is made with these options.
[[nodiscard]] ZeroOptions zero_options(const Config& config, const Mesh& mesh, const LaidOut& laid_out,
                                       const Pipeline* pipeline);

/// What this rank is going to hold of the model, to the byte.
[[nodiscard]] ZeroMemory predict_memory(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                                        const ZeroOptions& zero);
/// "memory      rank 0 of 4 holds 1,234 bytes (1.2 kB) between steps: ...", what comes to it within a step,
/// and what is not counted.
[[nodiscard]] std::string describe_memory(const ZeroMemory& memory, const Mesh& mesh);

}  // namespace tessera::dist
