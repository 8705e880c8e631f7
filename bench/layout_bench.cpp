// One global batch over layouts: seconds of a step, as ratios to one rank with all threads.
//
//     $ layout_bench                                  thread ranks, each with cores / ranks threads
//     $ layout_bench --model gpt2 --seq 256 --batch 4 --rows "dp=1;dp=2"
//     $ mpiexec -n 2 layout_bench                     the rows of two ranks, as processes
//
// "exposed" is the part of a step for which rank 0 stands still in communication, waiting for the others
// included; "compute" is the rest, communication that it hides included. A row that ends in "unchecked" runs
// without layout checks.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <sstream>
#include <thread>

#include "autograd/grad_mode.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

using namespace tessera;

namespace {

struct Options {
  std::string model = "layers=4,heads=8,width=256,context=256";
  std::string rows =
      "dp=1;dp=2;dp=2 unchecked;dp=2 zero=1;dp=2 zero=2;dp=2 zero=3;tp=2;tp=2 sp;cp=2;cp=2 ulysses;"
      "dp=4;dp=4 zero=3;dp=2,tp=2;dp=2,cp=2;dp=8;dp=2,cp=2,tp=2 zero=3";
  std::int64_t batch = 8, seq = 256, steps = 7;
};

struct Row {
  std::string text;
  dist::Config config;
  bool checked = true;
};

Row parse(const std::string& text) {
  Row row{.text = text, .config = {}};
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word == "sp") {
      row.config.sequence_parallel = true;
    } else if (word == "ulysses") {
      row.config.context_parallel = dist::Config::ContextParallel::kUlysses;
    } else if (word == "unchecked") {
      row.checked = false;
    } else if (word.starts_with("zero=")) {
      row.config.zero.stage = std::stoi(word.substr(5));
    } else {
      row.config.mesh = dist::MeshShape::parse(word);
    }
  }
  return row;
}

struct Figures {
  double seconds = 0.0, exposed = 0.0;
  std::int64_t sent = 0;
};

// Median over the steps, of rank 0.
Figures measure(const Row& row, const Options& options, dist::Job& job) {
  RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = job.threads_per_rank()});
  const RankContext::Scope scope(context);
  const LayoutChecks checks(row.checked);
  const dist::Mesh mesh(row.config.mesh, job.shared_world());
  const auto model = [&] {
    const DeviceScope on_meta(meta);
    return nn::make_language_model(options.model, 50257);
  }();
  dist::Config config = row.config;
  config.batch.global = options.batch;
  dist::EngineOptions engine_options;
  engine_options.seq = options.seq;
  dist::Engine engine(*model, config, mesh, engine_options);
  const auto source = [](std::int64_t step, std::int64_t first, std::int64_t, auto inputs, auto targets) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] =
          static_cast<std::int64_t>((i * 7919 + static_cast<std::size_t>(step + first) * 104729) % 50257);
      targets[i] = (inputs[i] + 1) % 50257;
    }
  };
  std::vector<double> seconds, exposed;
  std::int64_t sent = 0;
  for (std::int64_t step = 0; step < options.steps + 2; ++step) {
    job.world().barrier();
    job.tape().reset_totals();
    const auto start = std::chrono::steady_clock::now();
    static_cast<void>(engine.train_step(source));
    if (step < 2) continue;  // the first records the order of gathers, the second fills caches
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    double calls = 0.0;
    for (const dist::TapeTotal& total : job.tape().totals()) calls += total.wait_seconds;
    exposed.push_back(calls);
    sent = job.tape().total_sent_bytes();
  }
  std::ranges::sort(seconds);
  std::ranges::sort(exposed);
  return {seconds[seconds.size() / 2], exposed[exposed.size() / 2], sent};
}

void print(const Row& row, const Figures& f, double baseline, int threads, const char* backend,
           const Options& options) {
  fmt::print("{:<26} {:>7} x {} {:>10.4f} {:>8.2f} {:>12.0f} {:>10.4f} {:>10.2f}\n", row.text, backend,
             threads, f.seconds, baseline > 0.0 ? baseline / f.seconds : 1.0,
             static_cast<double>(options.batch * options.seq) / f.seconds, f.exposed,
             static_cast<double>(f.sent) / 1e6);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--model")
      options.model = value;
    else if (flag == "--rows")
      options.rows = value;
    else if (flag == "--batch")
      options.batch = std::stoll(value);
    else if (flag == "--seq")
      options.seq = std::stoll(value);
    else if (flag == "--steps")
      options.steps = std::stoll(value);
    else
      return fmt::print("unknown flag {}; known are --model, --rows, --batch, --seq, --steps\n", flag), 2;
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const bool by_mpi = dist::launch().by_mpi;
  if (!by_mpi || dist::launch().rank == 0) {
    fmt::print("{}: batch {} x {}, {} cores; speed is against the first row\n", options.model, options.batch,
               options.seq, cores);
    fmt::print("{:<26} {:>7} x {} {:>10} {:>8} {:>12} {:>10} {:>10}\n", "layout", "ranks", "threads",
               "s a step", "speed", "tokens/s", "exposed", "MB sent");
  }
  double baseline = 0.0;
  std::istringstream rows(options.rows);
  std::vector<Row> table;
  for (std::string text; std::getline(rows, text, ';');) table.push_back(parse(text));
  if (by_mpi) {
    return dist::run(argc, argv, [&](dist::Job& job) {
      for (const Row& row : table) {
        if (row.config.mesh.num_ranks() != job.size()) continue;
        const Figures figures = measure(row, options, job);
        if (baseline == 0.0) baseline = figures.seconds;
        if (job.is_root()) print(row, figures, baseline, job.threads_per_rank(), job.backend(), options);
      }
    });
  }
  for (const Row& row : table) {
    dist::JobOptions job_options;
    job_options.threads = std::max(1, cores / row.config.mesh.num_ranks());
    Figures figures;
    dist::run_thread_ranks(
        row.config.mesh.num_ranks(),
        [&](dist::Job& job) {
          const Figures own = measure(row, options, job);
          if (job.is_root()) figures = own;
        },
        job_options);
    if (baseline == 0.0) baseline = figures.seconds;
    print(row, figures, baseline, *job_options.threads, "threads", options);
  }
  return 0;
}
