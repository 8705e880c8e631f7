#include "examples/gpt2/dry_run.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "data/prepare.h"
#include "data/token_file.h"
#include "dist/dry_run.h"
#include "dist/pipeline_drawing.h"
#include "dist/pipeline_simulation.h"
#include "dist/time_model.h"
#include "examples/gpt2/trainer.h"
#include "kernels/error.h"
#include "kernels/readable.h"
#include "nn/model_factory.h"

namespace gpt2 {

using namespace tessera;

namespace {

// The data's; without data that of the model's specification, or GPT-2's.
std::int64_t vocabulary(const TrainOptions& options) {
  const std::filesystem::path tokens = options.data / data::kTrainFile;
  if (std::filesystem::exists(tokens)) return data::TokenFile::open(tokens).info().vocab_size;
  constexpr std::int64_t kGpt2 = 50257;
  return options.model.find("vocab=") == std::string::npos ? kGpt2 : 1;
}

}  // namespace

void print_dry_run(const TrainOptions& options) {
  std::optional<dist::Rates> rates;
  if (!options.rates.empty()) rates = dist::Rates::load(options.rates);
  dist::DryRunOptions dry;
  dry.config = options.config;
  dry.config.batch = with_default_batch(options.config.batch);
  if (dry.config.pipeline.partition == "time") {
    throw ConfigError(
        "--dry-run: nothing is computed, so no block's time is known; --partition parameters or uniform "
        "works");
  }
  const int mesh_ranks = options.config.mesh.num_ranks();
  dry.mesh = dist::resolve_mesh(dry.config, options.world.value_or(options.job.ranks.value_or(mesh_ranks)));
  const std::int64_t vocab = vocabulary(options);
  std::string description;
  dry.make_model = [&] {
    auto model = nn::make_language_model(options.model, vocab);
    description = model->description();
    return model;
  };
  dry.engine.seq = options.seq;
  dry.engine.schedule = options.schedule();
  const dist::DryRun run = dist::dry_run(dry);

  fmt::print("dry run     of {}, none of which is here: a step without data, after one to warm up\n",
             run.mesh.num_ranks() == 1 ? "1 rank" : with_commas(run.mesh.num_ranks()) + " ranks");
  fmt::print("model       {}: {} parameters in {}\n", description, with_commas(run.num_parameters),
             name(options.config.dtype));
  fmt::print("{}", dist::describe(dry.config, run.mesh, run.batch));
  fmt::print("{}", dist::describe(run));
  if (rates) fmt::print("{}", dist::describe(run, *rates));
  if (options.print_schedule && run.schedule) {
    const dist::StageCost cost = dist::StageCost{}.per_chunk(run.schedule->num_chunks);
    fmt::print("{}", dist::draw(*run.schedule, dist::simulate(*run.schedule, cost)));
  }
}

}  // namespace gpt2
