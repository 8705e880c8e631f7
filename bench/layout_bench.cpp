// One global batch over layouts, each in turns with one rank that has all threads.
//
//     $ layout_bench                                  thread ranks, each with cores / ranks threads
//     $ layout_bench --model gpt2 --seq 256 --batch 4 --rows "dp=1;dp=2"
//     $ layout_bench --per-rank --rows "dp=4 zero=3"  a line for each rank
//     $ mpiexec -n 2 layout_bench                     the rows of two ranks, as processes
//     $ layout_bench --checks                         what layout checks cost
//
// A pair is some steps of the row and then as many of one rank; "speed" is the median over the pairs of the
// ratio of their means, behind it the least and the largest. The row "dp=1" is compared with itself: it shows
// what the machine resolves. tests/layout_row.h says what a row may say; one that ends in "unchecked" runs
// without layout checks.
//
// A step's time on a rank is compute + waiting + transfer: "waiting" it stands in a call to which another
// rank has not come yet, "transfer" in a call to which all have (dist/time_split.h). Columns show mean and
// largest over the ranks.

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <numeric>
#include <optional>
#include <sstream>
#include <thread>
#include <unordered_set>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/time_split.h"
#include "examples/command_line.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tests/layout_row.h"

using namespace tessera;

namespace {

constexpr int kWarmUp = 2;  // steps: the first records the order of gathers, the second fills caches

/// What is trained.
struct Workload {
  std::string model;
  std::int64_t vocabulary = 50257, batch = 0, seq = 0;
};

struct Options {
  Workload work{.model = "layers=4,heads=8,width=256,context=256", .batch = 8, .seq = 256};
  std::string rows =
      "dp=1;dp=1 invariant;dp=2;dp=2 unchecked;dp=2 invariant;dp=2 zero=1;dp=2 zero=2;dp=2 zero=3;"
      "tp=2;tp=2 sp;tp=2 invariant;cp=2;cp=2 ulysses;"
      "dp=4;dp=4 zero=3;dp=2,tp=2;dp=2,cp=2;dp=8;dp=2,cp=2,tp=2 zero=3";
  int pairs = 5, steps = 3;
  bool per_rank = false;
  bool checks = false;
  double reference_seconds = 0.0;
};

struct Row {
  std::string text;
  dist::Config config;
  bool checked = true;
};

Row parse_row(const std::string& text) {
  Row row{.text = text, .config = {}};
  row.config = dist::read_layout(text, {}, [&row](const std::string& key, const std::string&) {
    if (key == "unchecked") row.checked = false;
    return key == "unchecked";
  });
  return row;
}

std::vector<Row> parse_rows(const std::string& text) {
  std::vector<Row> rows;
  std::istringstream in(text);
  for (std::string row; std::getline(in, row, ';');) rows.push_back(parse_row(row));
  return rows;
}

dist::SampleSource samples_of(std::int64_t vocabulary) {
  return [vocabulary](std::int64_t step, std::int64_t first, std::int64_t, auto inputs, auto targets) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      inputs[i] = (static_cast<std::int64_t>(i) * 7919 + (step + first) * 104729) % vocabulary;
      targets[i] = (inputs[i] + 1) % vocabulary;
    }
  };
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Of what was measured several times.
struct Spread {
  double least = 0.0, quarter = 0.0, median = 0.0, three_quarters = 0.0, largest = 0.0;
};
Spread spread_of(std::vector<double> values) {
  std::ranges::sort(values);
  // Between the two nearest where there is no middle one.
  const auto at = [&values](double part) {
    const double place = part * static_cast<double>(values.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const std::size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return {.least = at(0.0),
          .quarter = at(0.25),
          .median = at(0.5),
          .three_quarters = at(0.75),
          .largest = at(1.0)};
}

/// A rank's part of a model in training under one layout.
class Training {
 public:
  Training(const Row& row, const Workload& work, int num_threads, std::shared_ptr<dist::Communicator> world)
      : context_({.rank = world->rank(), .world_size = world->size(), .num_threads = num_threads}),
        checked_(row.checked),
        samples_(samples_of(work.vocabulary)) {
    const RankContext::Scope scope(context_);
    const LayoutChecks checks(checked_);
    mesh_ = std::make_unique<dist::Mesh>(row.config.mesh, world);
    model_ = [&] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model(work.model, work.vocabulary);
    }();
    dist::Config config = row.config;
    config.batch.global = work.batch;
    dist::EngineOptions options;
    options.seq = work.seq;
    engine_ = std::make_unique<dist::Engine>(*model_, config, *mesh_, options);
  }
  ~Training() {
    const RankContext::Scope scope(context_);
    engine_.reset();
    model_.reset();
    mesh_.reset();
  }
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;

  void step() {
    const RankContext::Scope scope(context_);
    const LayoutChecks checks(checked_);
    static_cast<void>(engine_->train_step(samples_));
  }
  void check_layouts(bool on) noexcept { checked_ = on; }

  /// Recorded operations of a step.
  [[nodiscard]] std::int64_t count_operations();

  [[nodiscard]] dist::Engine& engine() noexcept { return *engine_; }

 private:
  RankContext context_;
  bool checked_;
  dist::SampleSource samples_;
  std::unique_ptr<dist::Mesh> mesh_;
  std::unique_ptr<nn::LanguageModel> model_;
  std::unique_ptr<dist::Engine> engine_;
};

std::int64_t Training::count_operations() {
  const RankContext::Scope scope(context_);
  std::int64_t operations = 0;
  for (const dist::MicroBatch& micro_batch : engine_->micro_batches(samples_)) {
    const Tensor loss = engine_->forward(micro_batch);
    std::unordered_set<const Node*> seen;
    std::vector<const Node*> left{grad_info(loss)->producer.get()};
    while (!left.empty()) {
      const Node* node = left.back();
      left.pop_back();
      if (node == nullptr || !seen.insert(node).second) continue;
      for (const auto& input : node->inputs)
        if (input != nullptr) left.push_back(input->producer.get());
    }
    operations += static_cast<std::int64_t>(seen.size());
    engine_->backward(loss);
  }
  static_cast<void>(engine_->step());
  return operations;
}

// --- Rows --------------------------------------------------------------------------------------------------

struct Figures {
  Spread speed;
  double seconds = 0.0;                // of a step: the mean, of the rank that took longest
  std::vector<dist::TimeSplit> ranks;  // means over the steps
  double sent_bytes = 0.0;             // of rank 0, a step
};

Figures measure(const Row& row, const Options& options, dist::Job& job) {
  dist::Communicator& world = job.world();
  Training training(row, options.work, job.threads_per_rank(), job.shared_world());
  std::optional<Training> alone;
  if (job.is_root()) {
    alone.emplace(parse_row("dp=1"), options.work, job.threads_per_rank() * job.size(),
                  world.alone("baseline"));
  }
  Figures figures;
  figures.ranks.resize(static_cast<std::size_t>(job.size()));
  std::vector<double> ratios;
  for (int i = 0; i < kWarmUp; ++i) training.step();
  for (int i = 0; alone && i < kWarmUp; ++i) alone->step();
  for (int pair = 0; pair < options.pairs; ++pair) {
    double of_row = 0.0;
    for (int step = 0; step < options.steps; ++step) {
      world.barrier();
      const double begin = dist::steady_seconds();
      training.step();
      const auto splits = dist::gather_time_splits(world, begin, dist::steady_seconds());
      double longest = 0.0;
      for (std::size_t r = 0; r < splits.size(); ++r) {
        figures.ranks[r].seconds += splits[r].seconds;
        figures.ranks[r].waiting += splits[r].waiting;
        figures.ranks[r].transfer += splits[r].transfer;
        longest = std::max(longest, splits[r].seconds);
      }
      of_row += longest;
    }
    figures.seconds += of_row;
    world.barrier();
    if (!alone) continue;  // at the next barrier until rank 0 has had its turn
    const double begin = dist::steady_seconds();
    for (int step = 0; step < options.steps; ++step) alone->step();
    ratios.push_back((dist::steady_seconds() - begin) / of_row);
  }
  const auto steps = static_cast<double>(options.pairs * options.steps);
  figures.seconds /= steps;
  for (dist::TimeSplit& rank : figures.ranks) {
    rank.seconds /= steps;
    rank.waiting /= steps;
    rank.transfer /= steps;
  }
  const dist::CommSummary& sent = training.engine().comm_summary();
  figures.sent_bytes = static_cast<double>(sent.sent_bytes()) / static_cast<double>(sent.steps());
  if (alone) figures.speed = spread_of(ratios);
  world.barrier();
  return figures;
}

std::string mean_and_largest(const std::vector<dist::TimeSplit>& ranks,
                             double (*part)(const dist::TimeSplit&)) {
  std::vector<double> values;
  for (const dist::TimeSplit& rank : ranks) values.push_back(part(rank));
  return fmt::format("{:.4f} {:.4f}", mean(values), *std::ranges::max_element(values));
}

constexpr const char* kLine = "{:<26} {:>11} {:>9} {:>21} {:>9} {:>15} {:>15} {:>15} {:>9}\n";

void print_head(const Options& options, int cores) {
  fmt::print("{}: batch {} x {}, {} cores; {} pairs of {} steps in turns with dp=1 on all threads\n",
             options.work.model, options.work.batch, options.work.seq, cores, options.pairs, options.steps);
  fmt::print(fmt::runtime(kLine), "", "ranks x", "", "speed", "", "compute", "waiting", "transfer",
             "MB sent");
  fmt::print(fmt::runtime(kLine), "layout", "threads", "s a step", "median (least..most)", "tokens/s",
             "mean max", "mean max", "mean max", "by rank 0");
}

void print(const Row& row, const Figures& f, const dist::Job& job, const Options& options) {
  const auto compute = [](const dist::TimeSplit& s) { return s.compute(); };
  const auto waiting = [](const dist::TimeSplit& s) { return s.waiting; };
  const auto transfer = [](const dist::TimeSplit& s) { return s.transfer; };
  fmt::print(fmt::runtime(kLine), row.text,
             fmt::format("{} {} x {}", job.backend() == std::string("mpi") ? "mpi" : "threads", job.size(),
                         job.threads_per_rank()),
             fmt::format("{:.4f}", f.seconds),
             fmt::format("{:.3f} ({:.3f}..{:.3f})", f.speed.median, f.speed.least, f.speed.largest),
             fmt::format("{:.0f}", static_cast<double>(options.work.batch * options.work.seq) / f.seconds),
             mean_and_largest(f.ranks, compute), mean_and_largest(f.ranks, waiting),
             mean_and_largest(f.ranks, transfer), fmt::format("{:.2f}", f.sent_bytes / 1e6));
  for (std::size_t r = 0; options.per_rank && r < f.ranks.size(); ++r) {
    const auto of = [&](auto part) { return fmt::format("{:.4f}", part(f.ranks[r])); };
    fmt::print(fmt::runtime(kLine), fmt::format("  rank {}", r), "",
               fmt::format("{:.4f}", f.ranks[r].seconds), "", "", of(compute), of(waiting), of(transfer), "");
  }
  std::fflush(stdout);
}

// --- Layout checks -----------------------------------------------------------------------------------------
//
// A check looks at layouts, never at elements: it costs as much for one element as for a million. So GPT-2
// with all of its operations and hardly any elements shows, in CPU time, what checks cost at any width.

const Workload kNarrow{
    .model = "layers=12,heads=2,width=8,context=8", .vocabulary = 64, .batch = 2, .seq = 8};

double thread_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct CheckCost {
  std::int64_t operations = 0;
  Spread with, without, difference;  // CPU seconds of a rank and step, over pairs of blocks
};

CheckCost measure_checks(const Row& row, const Options& options, dist::Job& job) {
  dist::Communicator& world = job.world();
  Training training(row, kNarrow, 1, job.shared_world());
  if (row.config.mesh[MeshAxis::kPp] > 1)
    throw ConfigError(
        fmt::format("row '{}': --checks counts the operations of whole passes; leave pp out", row.text));
  CheckCost cost;
  cost.operations = training.count_operations();
  // CPU time of all ranks, for a rank may do another's part of a reduction; a rank that waits uses none.
  const auto block = [&](bool checked) {
    training.check_layouts(checked);
    world.barrier();
    const double begin = thread_cpu_seconds();
    for (int step = 0; step < options.steps; ++step) training.step();
    double seconds[] = {thread_cpu_seconds() - begin};
    world.all_reduce(dist::buffer_of(seconds));
    return seconds[0] / (options.steps * job.size());
  };
  static_cast<void>(block(true));
  static_cast<void>(block(false));
  std::vector<double> with, without, difference;
  for (int i = 0; i < options.pairs; ++i) {
    // Either comes first as often as the other.
    const bool checked_first = i % 2 == 0;
    const double first = block(checked_first), second = block(!checked_first);
    with.push_back(checked_first ? first : second);
    without.push_back(checked_first ? second : first);
    difference.push_back(with.back() - without.back());
  }
  cost.with = spread_of(with);
  cost.without = spread_of(without);
  cost.difference = spread_of(difference);
  return cost;
}

// GPT-2 124M, 4 x 256 tokens, on one rank with all threads: what the difference is compared with.
double measure_reference() {
  double seconds = 0.0;
  dist::run_thread_ranks(1, [&seconds](dist::Job& job) {
    Training training(parse_row("dp=1"), {.model = "gpt2", .batch = 4, .seq = 256}, job.threads_per_rank(),
                      job.shared_world());
    training.step();
    std::vector<double> steps;
    for (int i = 0; i < 3; ++i) {
      const double begin = dist::steady_seconds();
      training.step();
      steps.push_back(dist::steady_seconds() - begin);
    }
    seconds = spread_of(steps).median;
  });
  return seconds;
}

void print_checks(const std::string& layout, const CheckCost& cost, double reference) {
  const auto micro = [](const Spread& s) {
    return fmt::format("{:.1f} ({:.1f}..{:.1f})", 1e6 * s.median, 1e6 * s.quarter, 1e6 * s.three_quarters);
  };
  const auto percent = [reference](double seconds) { return 100.0 * seconds / reference; };
  fmt::print("{:<14} {:>10} {:>26} {:>26} {:>24} {:>26}\n", layout, cost.operations, micro(cost.with),
             micro(cost.without), micro(cost.difference),
             fmt::format("{:.4f} ({:.4f}..{:.4f})", percent(cost.difference.median),
                         percent(cost.difference.quarter), percent(cost.difference.three_quarters)));
  std::fflush(stdout);
}

// --- Ranks -------------------------------------------------------------------------------------------------

dist::JobOptions job_options(int threads) {
  dist::JobOptions options;
  options.threads = threads;
  options.tape_capacity = std::size_t{1} << 16;  // all calls of a step
  return options;
}

Options parse_options(int argc, char** argv) {
  Options options;
  CLI::App app("Speed of layouts against one rank with all threads, in turns.", "layout_bench");
  app.add_option("--model", options.work.model, "As gpt2_train takes it")->capture_default_str();
  app.add_option("--rows", options.rows,
                 "Layouts, separated by ';': a mesh, then zero=STAGE, sp, ulysses, schedule=NAME, unchecked");
  app.add_option("--batch", options.work.batch, "Sequences of a step")
      ->check(examples::at_least(1))
      ->capture_default_str();
  app.add_option("--seq", options.work.seq, "Tokens of a sequence")
      ->check(examples::at_least(1))
      ->capture_default_str();
  app.add_option("--pairs", options.pairs, "Turns that the row and one rank take, or checks on and off")
      ->check(examples::at_least(1))
      ->capture_default_str();
  app.add_option("--steps", options.steps, "Steps of a turn")
      ->check(examples::at_least(1))
      ->capture_default_str();
  app.add_flag("--per-rank", options.per_rank, "A line for each rank");
  app.add_flag("--checks", options.checks,
               "CPU time of layout checks in a step, whatever the width, on the rows given [dp=1;dp=2;tp=2]; "
               "200 pairs of 10 steps");
  app.add_option("--reference-seconds", options.reference_seconds,
                 "--checks: a step of GPT-2 124M, 4 x 256, that they are compared with [measured]")
      ->check(CLI::PositiveNumber);
  examples::parse_or_exit(app, argc, argv);
  if (options.checks) {  // other defaults
    if (app.count("--rows") == 0) options.rows = "dp=1;dp=2;tp=2";
    if (app.count("--pairs") == 0) options.pairs = 200;
    if (app.count("--steps") == 0) options.steps = 10;
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::vector<Row> table;
  const int status = examples::run_program("layout_bench", [&] {
    options = parse_options(argc, argv);
    table = parse_rows(options.rows);
  });
  if (status != 0) return status;
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const bool by_mpi = dist::launch().by_mpi;

  // By rank 0, before the first row.
  const auto print_start = [&] {
    if (!options.checks) return print_head(options, cores);
    if (options.reference_seconds == 0.0) options.reference_seconds = measure_reference();
    fmt::print("{}, batch {} x {}, {} pairs of {} steps with and without layout checks in turns\n",
               kNarrow.model, kNarrow.batch, kNarrow.seq, options.pairs, options.steps);
    fmt::print("{:<14} {:>10} {:>26} {:>26} {:>24} {:>26}\n", "median", "operations",
               "CPU us a step and rank", "", "",
               fmt::format("% of a step of {:.3f} s", options.reference_seconds));
    fmt::print("{:<14} {:>10} {:>26} {:>26} {:>24} {:>26}\n", "(middle half)", "a step", "with", "without",
               "difference", "(GPT-2 124M, 4 x 256)");
  };
  const auto run_row = [&](const Row& row, dist::Job& job) {
    if (options.checks) {
      const CheckCost cost = measure_checks(row, options, job);
      if (job.is_root()) print_checks(row.text, cost, options.reference_seconds);
    } else {
      const Figures figures = measure(row, options, job);
      if (job.is_root()) print(row, figures, job, options);
    }
  };
  if (by_mpi) {
    const auto program = [&](dist::Job& job) {
      job.on_root(print_start);
      for (const Row& row : table)
        if (row.config.mesh.num_ranks() == job.size()) run_row(row, job);
    };
    return dist::run(job_options(std::max(1, cores / dist::launch().size)), program);
  }
  return examples::run_program("layout_bench", [&] {
    print_start();
    for (const Row& row : table) {
      const int num_ranks = row.config.mesh.num_ranks();
      dist::run_thread_ranks(
          num_ranks, [&](dist::Job& job) { run_row(row, job); }, job_options(std::max(1, cores / num_ranks)));
    }
  });
}
