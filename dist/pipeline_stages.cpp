#include "dist/pipeline_stages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <limits>

#include "autograd/reductions.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "kernels/suggest.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr std::array<const char*, 3> kPartitions{"uniform", "parameters", "time"};

void check_enough_blocks(std::int64_t num_blocks, int num_stages) {
  if (num_stages >= 1 && num_blocks >= num_stages) return;
  throw ConfigError(
      fmt::format("pipeline: {} blocks can't be cut into {} stages with a block each; up to {} "
                  "stages work",
                  num_blocks, num_stages, num_blocks));
}

// Ends of the blocks of each stage → the stages.
std::vector<StageParts> stages_up_to(const std::vector<std::int64_t>& ends) {
  std::vector<StageParts> stages;
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    stages.push_back({.first_block = begin, .end_block = end});
    begin = end;
  }
  stages.front().embeds = true;
  stages.back().has_head = true;
  return stages;
}

double count(const std::vector<nn::Module*>& modules) {
  std::int64_t elements = 0;
  for (const nn::Module* module : modules) elements += module->num_parameters();
  return static_cast<double>(elements);
}

}  // namespace

const char* name(PipelinePartition partition) noexcept {
  return kPartitions[static_cast<std::size_t>(partition)];
}

void require_enough_blocks(std::int64_t num_blocks, const Schedule& schedule) {
  if (num_blocks >= schedule.num_stages()) return;
  const bool one_each = schedule.num_chunks > 1 && num_blocks >= schedule.num_ranks;
  throw ConfigError(fmt::format(
      "pipeline: {} blocks can't be cut into {} stages (pp x chunks = {} x {}) with a block each; up to {} "
      "stages work: pp = {} at most{}",
      num_blocks, schedule.num_stages(), schedule.num_ranks, schedule.num_chunks, num_blocks,
      std::max<std::int64_t>(num_blocks / schedule.num_chunks, 1),
      one_each ? ", or schedule \"1f1b\", with one stage on each rank" : ""));
}

PipelinePartition parse_partition(std::string_view text) {
  for (std::size_t i = 0; i < kPartitions.size(); ++i) {
    if (text == kPartitions[i]) return static_cast<PipelinePartition>(i);
  }
  const std::vector<std::string> names(kPartitions.begin(), kPartitions.end());
  const std::string near = near_name(text, names);
  throw ConfigError(fmt::format("pipeline: partition '{}': there are {}{}", text, fmt::join(names, ", "),
                                near.empty() ? "" : "; did you mean '" + near + "'?"));
}

// best[s][b]: the dearest stage when the first s stages have the first b blocks. The classic linear partition
// problem, by dynamic programming.
std::vector<StageParts> cut_into_stages(std::span<const double> costs, int num_stages) {
  const auto num_blocks = static_cast<std::int64_t>(costs.size()) - 2;
  check_enough_blocks(num_blocks, num_stages);
  std::vector<double> before(static_cast<std::size_t>(num_blocks) + 1);  // of the first b blocks
  for (std::size_t b = 0; b < before.size() - 1; ++b) before[b + 1] = before[b] + costs[b + 1];
  const auto cost = [&](std::int64_t begin, std::int64_t end) {
    return before[static_cast<std::size_t>(end)] - before[static_cast<std::size_t>(begin)] +
           (begin == 0 ? costs.front() : 0.0) + (end == num_blocks ? costs.back() : 0.0);
  };
  const auto stages = static_cast<std::size_t>(num_stages);
  const double kNever = std::numeric_limits<double>::infinity();
  std::vector best(stages + 1, std::vector<double>(before.size(), kNever));
  std::vector from(stages + 1, std::vector<std::int64_t>(before.size(), 0));
  best[0][0] = 0.0;
  for (std::size_t s = 1; s <= stages; ++s) {
    for (std::int64_t end = 1; end <= num_blocks; ++end) {
      for (std::int64_t begin = end - 1; begin >= 0; --begin) {
        const double dearest = std::max(best[s - 1][static_cast<std::size_t>(begin)], cost(begin, end));
        if (dearest >= best[s][static_cast<std::size_t>(end)]) continue;
        best[s][static_cast<std::size_t>(end)] = dearest;
        from[s][static_cast<std::size_t>(end)] = begin;
      }
    }
  }
  std::vector<std::int64_t> ends(stages);
  std::int64_t end = num_blocks;
  for (std::size_t s = stages; s > 0; --s) {
    ends[s - 1] = end;
    end = from[s][static_cast<std::size_t>(end)];
  }
  return stages_up_to(ends);
}

std::vector<StageParts> cut_uniformly(std::int64_t num_blocks, int num_stages) {
  check_enough_blocks(num_blocks, num_stages);
  std::vector<std::int64_t> ends;
  for (int s = 0; s < num_stages; ++s)
    ends.push_back(shard_begin(num_blocks, num_stages, s) + shard_size(num_blocks, num_stages, s));
  return stages_up_to(ends);
}

std::vector<double> count_parameters(nn::LanguageModel& model) {
  std::vector<double> counts{count(model.embedding_modules())};
  for (nn::Block* block : model.blocks()) counts.push_back(count({block}));
  counts.push_back(count(model.head_modules()));
  return counts;
}

std::vector<double> measure_parts(nn::LanguageModel& model, std::int64_t batch, std::int64_t tokens) {
  const auto least_seconds = [](const std::function<Tensor()>& forward) {
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 4; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      sum(forward()).backward();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      if (i > 0) least = std::min(least, taken.count());
    }
    return least;
  };
  const Tensor ids = zeros({batch, tokens}, {.dtype = kI64});
  Tensor hidden = model.embed(ids, 0).detach();
  std::vector<double> seconds{least_seconds([&] { return model.embed(ids, 0); })};
  hidden.set_requires_grad();
  for (nn::Block* block : model.blocks()) seconds.push_back(least_seconds([&] { return (*block)(hidden); }));
  seconds.push_back(least_seconds([&] { return model.head(hidden); }));
  model.zero_grad();
  return seconds;
}

std::string to_string(std::span<const StageParts> stages) {
  std::string text;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    const StageParts& stage = stages[s];
    const std::int64_t last = stage.end_block - 1;
    text += fmt::format(
        "{}stage {}: {}block{} {}{}", s == 0 ? "" : " | ", s, stage.embeds ? "embedding, " : "",
        stage.first_block == last ? "" : "s",
        stage.first_block == last ? fmt::format("{}", last) : fmt::format("{}-{}", stage.first_block, last),
        stage.has_head ? ", head" : "");
  }
  return text;
}

std::vector<nn::Module*> modules_of(nn::LanguageModel& model, const StageParts& stage) {
  std::vector<nn::Module*> modules;
  const auto add = [&modules](const std::vector<nn::Module*>& more) {
    modules.insert(modules.end(), more.begin(), more.end());
  };
  if (stage.embeds) add(model.embedding_modules());
  for (std::int64_t b = stage.first_block; b < stage.end_block; ++b)
    modules.push_back(model.blocks().at(static_cast<std::size_t>(b)));
  if (stage.has_head) add(model.head_modules());
  return modules;
}

}  // namespace tessera::dist
