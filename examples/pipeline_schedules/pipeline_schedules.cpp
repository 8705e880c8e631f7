// Draws a pipeline schedule: what each rank does when, and what it costs in idle time, memory and messages.
//     $ pipeline_schedules --schedule 1f1b --ranks 2 --micro-batches 3
//     $ pipeline_schedules --schedule interleaved --chunks 4         four stages on each rank
//     $ pipeline_schedules --schedule zb-h1 --list 1                 what rank 1 does, message by message
//     $ pipeline_schedules --compare                                 all of them, a line each
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "dist/pipeline_drawing.h"
#include "dist/pipeline_generators.h"
#include "examples/command_line.h"
#include "kernels/error.h"

using namespace tessera;

struct Options {
  std::string schedule = "1f1b";
  dist::PipelineSize size{.ranks = 4, .micro_batches = 8};
  dist::StageCost cost;  // of all layers of a rank
  dist::DrawingOptions drawing{.width = 120, .colour = isatty(STDOUT_FILENO) == 1};
  std::optional<int> list;
  bool compare = false;
};

void print_comparison(const Options& options) {
  fmt::print("{:<12} {:>6} {:>8} {:>12} {:>9}\n", "schedule", "chunks", "bubble", "activations", "messages");
  for (const std::string& name : dist::schedule_names()) {
    try {
      const dist::Schedule schedule = dist::make_schedule(name, options.size);
      const dist::Simulation simulation =
          dist::simulate(schedule, options.cost.per_chunk(schedule.num_chunks));
      fmt::print("{:<12} {:>6} {:>6.1f} % {:>12.4g} {:>9}\n", name, schedule.num_chunks,
                 100 * simulation.bubble(), *std::ranges::max_element(simulation.peak_activations),
                 simulation.num_messages);
    } catch (const tessera::ConfigError& error) {
      fmt::print("{:<12} {}\n", name, error.what());
    }
  }
}

void print(const Options& options) {
  if (options.compare) return print_comparison(options);
  const dist::Schedule schedule = dist::make_schedule(options.schedule, options.size);
  if (options.list) {
    if (*options.list >= schedule.num_ranks)
      throw tessera::ConfigError(
          fmt::format("--list {}: ranks are 0 to {}", *options.list, schedule.num_ranks - 1));
    return fmt::print("{}\n", dist::list(schedule, *options.list));
  }
  fmt::print("{}", dist::draw(schedule, dist::simulate(schedule, options.cost.per_chunk(schedule.num_chunks)),
                              options.drawing));
}

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Draws a pipeline schedule: what each rank does when, its bubble, memory and messages.");
  app.option_defaults()->always_capture_default();
  app.add_option("--schedule", options.schedule, fmt::format("{}", fmt::join(dist::schedule_names(), ", ")));
  app.add_option("--ranks,--stages", options.size.ranks, "Ranks of the pipeline")
      ->check(examples::at_least(1));
  app.add_option("--micro-batches", options.size.micro_batches, "Micro-batches of one step")
      ->check(examples::at_least(1));
  app.add_option("--chunks", options.size.chunks, "Stages on each rank; 0: what the schedule has by itself")
      ->check(examples::at_least(0));
  app.add_option("--forward", options.cost.forward,
                 "Time of a micro-batch, forward in a rank's layers, in units of your choice")
      ->check(examples::at_least(0));
  app.add_option("--backward-input", options.cost.backward_input, "... backward to their input")
      ->check(examples::at_least(0));
  app.add_option("--backward-weight", options.cost.backward_weight, "... and to their weights")
      ->check(examples::at_least(0));
  app.add_option("--transfer", options.cost.transfer, "Time of a message")->check(examples::at_least(0));
  app.add_option("--width", options.drawing.width, "Columns of the picture")->check(examples::at_least(20));
  app.add_option("--list", options.list,
                 "Lists what this rank does, messages included, instead of a picture [none]")
      ->check(examples::at_least(0));
  app.add_flag("--compare", options.compare, "All schedules, a line each, instead of a picture");
  examples::parse_or_exit(app, argc, argv);
  return examples::run_program("pipeline_schedules", [&] { print(options); });
}
