#pragma once

// Which layers of a model each stage of a pipeline has.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dist/pipeline_schedule.h"
#include "nn/language_model.h"

namespace tessera::dist {

/// Blocks [first_block, end_block) of a model; the first stage embeds before them, the last has the head
/// behind them.
struct StageParts {
  std::int64_t first_block = 0;
  std::int64_t end_block = 0;
  bool embeds = false;
  bool has_head = false;
  friend bool operator==(const StageParts&, const StageParts&) = default;
};

/// By what stages are made equal.
enum class PipelinePartition : std::uint8_t {
  kUniform,     ///< numbers of blocks; the first stages get one more where they do not divide
  kParameters,  ///< parameters, those of embedding and head included
  kTime,        ///< seconds, as measured (measure_parts)
};
/// "uniform", "parameters" or "time". ConfigError names these, and the one that is near.
[[nodiscard]] PipelinePartition parse_partition(std::string_view name);
[[nodiscard]] const char* name(PipelinePartition partition) noexcept;

/// ConfigError, with what works, if the schedule has more stages than there are blocks.
void require_enough_blocks(std::int64_t num_blocks, const Schedule& schedule);

/// Cuts a row of costs (embedding, each block, head) into `num_stages` with at least one block each, so that
/// the dearest stage costs as little as possible; among equals the earlier stages have more blocks.
///
/// Errors    ConfigError if there are fewer blocks than stages.
/// Example   costs {9, 1, 1, 1, 1, 0}, 2 stages  →  blocks [0, 1) and [1, 4)
[[nodiscard]] std::vector<StageParts> cut_into_stages(std::span<const double> costs, int num_stages);
/// Each block costs 1.
[[nodiscard]] std::vector<StageParts> cut_uniformly(std::int64_t num_blocks, int num_stages);

/// Parameters of the embedding, of each block and of the head; a tied weight counts in both of its places.
[[nodiscard]] std::vector<double> count_parameters(nn::LanguageModel& model);

/// Seconds of a forward and a backward pass through the embedding, each block and the head of a model that
/// has memory, on this rank alone: the least of three, after one that does not count.
[[nodiscard]] std::vector<double> measure_parts(nn::LanguageModel& model, std::int64_t batch,
                                                std::int64_t tokens);

/// "stage 0: embedding, blocks 0-2 | stage 1: blocks 3-5, head".
[[nodiscard]] std::string to_string(std::span<const StageParts> stages);

/// The modules that hold a stage's parameters.
[[nodiscard]] std::vector<nn::Module*> modules_of(nn::LanguageModel& model, const StageParts& stage);

}  // namespace tessera::dist
