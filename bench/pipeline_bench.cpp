// Pipeline schedules: the measured bubble of each beside that of its simulation.
//
//     $ pipeline_bench                          two ranks of one thread, 8 micro-batches
//     $ pipeline_bench --ranks 4 --micro-batches 16
//     $ mpiexec -n 2 pipeline_bench
//
// The simulation is given what a forward and a backward pass of the embedding, a block and the head take on
// this machine while nothing else runs; a third of it each for forward, backward to inputs, backward to
// weights. The measured bubble is the part of a step in which ranks stand in calls for which others are not
// ready (dist/time_split.h), means over the ranks. The update at the end of a step is in the time and not in
// the simulation.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autograd/grad_mode.h"
#include "dist/collectives.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/pipeline.h"
#include "dist/pipeline_generators.h"
#include "dist/pipeline_simulation.h"
#include "dist/time_split.h"
#include "examples/command_line.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

using namespace tessera;

namespace {

constexpr std::int64_t kVocabulary = 2048;

struct Options {
  int ranks = 2;
  std::int64_t micro_batches = 8, layers = 8, width = 256, seq = 256;
  int steps = 5;
  [[nodiscard]] std::string model(std::int64_t num_layers) const {
    return fmt::format("layers={},heads=8,width={},context={}", num_layers, width, seq);
  }
};

// Seconds of embedding, block and head, measured by rank 0 while the others wait.
std::vector<double> measure_parts_alone(const Options& options, dist::Job& job) {
  std::vector<double> parts(3);
  job.on_root([&] {
    const auto sample = nn::make_language_model(options.model(1), kVocabulary);
    parts = dist::measure_parts(*sample, 1, options.seq);
  });
  job.world().broadcast(dist::buffer_of(parts), 0);
  std::vector<double> all(static_cast<std::size_t>(options.layers) + 2, parts[1]);
  all.front() = parts.front();
  all.back() = parts.back();
  return all;
}

double predicted_bubble(const dist::Schedule& schedule, const std::vector<dist::StageParts>& stages,
                        const std::vector<double>& seconds) {
  std::vector<dist::StageCost> costs;
  for (const dist::StageParts& stage : stages) {
    double sum = (stage.embeds ? seconds.front() : 0.0) + (stage.has_head ? seconds.back() : 0.0);
    for (std::int64_t b = stage.first_block; b < stage.end_block; ++b)
      sum += seconds[static_cast<std::size_t>(b) + 1];
    costs.push_back({.forward = sum / 3, .backward_input = sum / 3, .backward_weight = sum / 3});
  }
  return dist::simulate(schedule, costs).bubble();
}

struct Row {
  double seconds = 0.0;
  std::vector<double> bubbles;  // of each step
  double predicted = 0.0;
  std::string stages;
};

Row measure(const std::string& schedule, const Options& options, const std::vector<double>& part_seconds,
            dist::Job& job) {
  RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = 1});
  const RankContext::Scope scope(context);
  dist::Config config;
  config.mesh.set(MeshAxis::kPp, job.size());
  config.pipeline.schedule = schedule;
  config.pipeline.partition = "time";
  config.batch = {.global = options.micro_batches, .micro_batch = 1};
  const dist::Mesh mesh(config.mesh, job.shared_world());
  const auto model = [&] {
    const DeviceScope on_meta(meta);
    return nn::make_language_model(options.model(options.layers), kVocabulary);
  }();
  dist::EngineOptions engine_options;
  engine_options.part_seconds = part_seconds;
  dist::Engine engine(*model, config, mesh, engine_options);
  const dist::SampleSource samples = [](std::int64_t step, std::int64_t first, std::int64_t, auto inputs,
                                        auto targets) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = (static_cast<std::int64_t>(i) * 7919 + (step + first) * 104729) % kVocabulary;
      targets[i] = (inputs[i] + 1) % kVocabulary;
    }
  };
  Row row;
  row.stages = dist::to_string(engine.pipeline()->stages());
  row.predicted = predicted_bubble(engine.pipeline()->schedule(options.micro_batches),
                                   engine.pipeline()->stages(), part_seconds);
  for (int i = 0; i < 2; ++i) static_cast<void>(engine.train_step(samples));
  for (int step = 0; step < options.steps; ++step) {
    job.world().barrier();
    const double begin = dist::steady_seconds();
    static_cast<void>(engine.train_step(samples));
    double idle = 0.0, total = 0.0;
    for (const dist::TimeSplit& rank : dist::gather_time_splits(job.world(), begin, dist::steady_seconds())) {
      idle += rank.waiting;
      total += rank.seconds;
    }
    row.bubbles.push_back(idle / total);
    row.seconds += total / job.size() / options.steps;
  }
  std::ranges::sort(row.bubbles);
  return row;
}

void compare(const Options& options, dist::Job& job) {
  const std::vector<double> seconds = measure_parts_alone(options, job);
  job.log(
      fmt::format("{}: {} ranks of one thread ({}), {} micro-batches of 1 x {}; embedding {:.1f} ms, block "
                  "{:.1f} ms, head {:.1f} ms",
                  options.model(options.layers), job.size(), job.backend(), options.micro_batches,
                  options.seq, 1e3 * seconds.front(), 1e3 * seconds[1], 1e3 * seconds.back()));
  job.log(fmt::format("{:<14} {:>10} {:>28} {:>10}", "schedule", "s a step", "bubble measured", "predicted"));
  for (const std::string& name : dist::schedule_names()) {
    const Row row = measure(name, options, seconds, job);
    job.log(fmt::format("{:<14} {:>10.4f} {:>28} {:>10.3f}   {}", name, row.seconds,
                        fmt::format("{:.3f} ({:.3f}..{:.3f})", row.bubbles[row.bubbles.size() / 2],
                                    row.bubbles.front(), row.bubbles.back()),
                        row.predicted, row.stages));
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Bubbles of pipeline schedules, measured and predicted.", "pipeline_bench");
  app.option_defaults()->always_capture_default();
  app.add_option("--ranks", options.ranks, "Ranks as threads; under mpiexec its ranks")
      ->check(examples::at_least(2));
  app.add_option("--micro-batches", options.micro_batches,
                 "Of one sequence each, in a step; a multiple of ranks")
      ->check(examples::at_least(1));
  app.add_option("--layers", options.layers, "Blocks")->check(examples::at_least(2));
  app.add_option("--width", options.width, "Channels")->check(examples::at_least(8));
  app.add_option("--seq", options.seq, "Tokens of a sequence")->check(examples::at_least(1));
  app.add_option("--steps", options.steps, "That are measured, after two that are not")
      ->check(examples::at_least(1));
  examples::parse_or_exit(app, argc, argv);
  dist::JobOptions job;
  if (!dist::launch().by_mpi) job.ranks = options.ranks;
  job.threads = 1;
  job.tape_capacity = std::size_t{1} << 16;
  return dist::run(job, [&](dist::Job& ranks) { compare(options, ranks); });
}
