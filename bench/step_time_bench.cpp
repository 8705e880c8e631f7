// The seconds of a step over layouts, foretold by a dry run's counts and by rates measured here
// (dist/time_model.h), beside what the step takes.
//
//     $ step_time_bench                              layouts of 8 thread ranks
//     $ step_time_bench --rows "dp=2;tp=2;pp=2"      of as many as they have (tests/layout_row.h)
//     $ step_time_bench --rates rates.json           keeps the rates, for gpt2_train --dry-run --rates
//     $ step_time_bench --cpu-time                   on a machine that others use
//
// No layout that is foretold is looked at for a rate. All ranks measure a rate at once, so that they share
// cores, caches and memory as they do in a step:
//   calls                a model so narrow that nothing else matters, trained by each rank for itself
//   product, attention,  those kernels, with operands that are not in the first caches
//   update
//   other                what two layers of the model, trained by each rank for itself, take beyond those
//   links                each operation over groups of each size that a layout has, with 64 bytes and with as
//                        many as layouts send in a call
// In every round rates are measured and each layout is trained; the table has medians over the rounds.
//
// With --cpu-time seconds are those of CPU that the program used, over its cores: what others take does not
// count, nor does time in which cores are idle.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "autograd/attention.h"
#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/linear_algebra.h"
#include "dist/dry_run.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "dist/time_model.h"
#include "examples/command_line.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "optim/adam.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/layout_row.h"

using namespace tessera;
using dist::Collective;
using kernels::KernelKind;

namespace {

struct Workload {
  std::string model;
  std::int64_t vocabulary = 0, batch = 0, micro_batch = 0, seq = 0;
};

struct Options {
  Workload work{.model = "layers=8,heads=8,width=256,context=128",
                .vocabulary = 2048,
                .batch = 16,
                .micro_batch = 2,
                .seq = 128};
  std::string rows =
      "dp=8;dp=8 zero=1;dp=8 zero=2;dp=8 zero=3;dp=8 recompute=full;dp=8 pass=1;dp=4,tp=2;dp=4,tp=2 sp;"
      "dp=2,tp=4;dp=4,cp=2;pp=4,dp=2;pp=4,dp=2 schedule=gpipe;pp=4,dp=2 schedule=interleaved;"
      "pp=4,dp=2 schedule=zb-v;dp=2,tp=2,pp=2;pp=8";
  int rounds = 5, steps = 2;
  double rate_seconds = 0.1;  // that each rate is measured for
  bool quick = false, cpu_time = false;
  std::string rates_file;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t n = values.size();
  return n == 0 ? 0.0 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

// --- Layouts -----------------------------------------------------------------------------------------------

dist::Config parse_row(const std::string& text, const Workload& work) {
  dist::Config config;
  config.batch = {.global = work.batch, .micro_batch = work.micro_batch};
  return dist::read_layout(text, config);
}

dist::DryRunOptions dry(const Workload& work, const dist::Config& config) {
  dist::DryRunOptions options;
  options.make_model = [work] { return nn::make_language_model(work.model, work.vocabulary); };
  options.config = config;
  options.mesh = config.mesh;
  options.engine.seq = work.seq;
  return options;
}

struct Row {
  std::string text;
  dist::Config config;
  dist::DryRun planned;
  std::vector<double> seconds;
};

std::vector<Row> make_rows(const Options& options) {
  std::vector<Row> rows;
  std::istringstream in(options.rows);
  for (std::string text; std::getline(in, text, ';');) {
    const dist::Config config = parse_row(text, options.work);
    rows.push_back({text, config, dist::dry_run(dry(options.work, config)), {}});
    if (const int ranks = config.mesh.num_ranks(); ranks != rows.front().config.mesh.num_ranks())
      throw ConfigError(fmt::format("row '{}' has {} ranks, row '{}' has {}: rates are those of one number",
                                    text, ranks, rows.front().text, rows.front().config.mesh.num_ranks()));
  }
  if (rows.empty()) throw ConfigError("--rows: expected a layout");
  return rows;
}

/// A rank's part of a model in training.
class Training {
 public:
  Training(const Workload& work, const dist::Config& config, std::shared_ptr<dist::Communicator> world)
      : mesh_(config.mesh, std::move(world)), model_([&] {
          const DeviceScope on_meta(meta);
          return nn::make_language_model(work.model, work.vocabulary);
        }()) {
    dist::EngineOptions options;
    options.seq = work.seq;
    engine_ = std::make_unique<dist::Engine>(*model_, config, mesh_, options);
    samples_ = [vocabulary = work.vocabulary](auto step, auto first, auto, auto inputs, auto targets) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        inputs[i] = (static_cast<std::int64_t>(i) * 7919 + (step + first) * 104729) % vocabulary;
        targets[i] = (inputs[i] + 1) % vocabulary;
      }
    };
  }
  void step() { static_cast<void>(engine_->train_step(samples_)); }

 private:
  dist::Mesh mesh_;
  std::unique_ptr<nn::LanguageModel> model_;
  std::unique_ptr<dist::Engine> engine_;
  dist::SampleSource samples_;
};

// --- Rates -------------------------------------------------------------------------------------------------

constexpr int kWarmUp = 8;  // calls: each set of operands once, and what they leave behind

/// Times what all ranks do at once.
class Stopwatch {
 public:
  Stopwatch(const Options& options, dist::Job& job)
      : options_(options),
        job_(job),
        num_cores_(std::min<int>(job.size(), static_cast<int>(std::thread::hardware_concurrency()))) {}

  [[nodiscard]] int num_cores() const { return num_cores_; }

  /// Seconds from when the first rank begins until all have ended: ranks that share a core begin late.
  double time(const std::function<void()>& call, int repeats = 1) {
    double begin_end[2];
    job_.world().barrier();
    begin_end[0] = now();
    for (int i = 0; i < repeats; ++i) call();
    job_.world().barrier();
    begin_end[1] = now();
    job_.world().all_reduce(dist::buffer_of(begin_end), dist::ReduceOp::kMin);
    return (begin_end[1] - begin_end[0]) / repeats;
  }

  /// Of one call of one rank, on a core that it has for itself while all cores work.
  double core_seconds(const std::function<void()>& call) {
    for (int i = 0; i < kWarmUp; ++i) call();
    const double wanted = options_.rate_seconds / std::max(time(call), 1e-7);
    int repeats[] = {static_cast<int>(std::clamp(wanted, 1.0, 1e4))};
    job_.world().broadcast(dist::buffer_of(repeats), 0);
    return time(call, repeats[0]) * num_cores_ / job_.size();
  }

 private:
  [[nodiscard]] double now() const {
    timespec time{};
    clock_gettime(options_.cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    const int threads = options_.cpu_time ? num_cores_ * job_.threads_per_rank() : 1;
    return (static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec)) / threads;
  }

  const Options& options_;
  dist::Job& job_;
  int num_cores_;
};

/// What one rank does over and over, made for a device: on meta it is counted.
using Work = std::function<std::function<void()>(Device)>;

kernels::OpCounts counts_of(const Work& work, KernelKind kind) {
  RankContext context;
  const RankContext::Scope scope(context);
  work(meta)();
  return context.kernels.counts_by_kind[static_cast<std::size_t>(kind)];
}

double bytes_of(const kernels::OpCounts& counts) {
  return static_cast<double>(counts.bytes_read + counts.bytes_written);
}

Tensor operand(const Shape& shape, Device device) {
  return device == meta ? empty(shape, {.device = meta}) : full(shape, 0.1);
}

// The three products of a layer from k to n channels, forward and backward, of m tokens.
Work layer_products(std::int64_t m, std::int64_t k, std::int64_t n) {
  return [=](Device device) -> std::function<void()> {
    std::vector<std::array<Tensor, 3>> sets;  // x, weight, dy
    for (int i = 0; i < kWarmUp; ++i)
      sets.push_back({operand({m, k}, device), operand({n, k}, device), operand({m, n}, device)});
    return [sets, next = std::size_t{0}]() mutable {
      const NoGrad no_grad;
      const auto& [x, weight, dy] = sets[next++ % sets.size()];
      static_cast<void>(matmul(x, weight.transpose(0, 1)));
      static_cast<void>(matmul(dy, weight));
      static_cast<void>(matmul(dy.transpose(0, 1), x));
    };
  };
}

Work attention_passes(const Workload& work, std::int64_t width, std::int64_t heads) {
  return [=](Device device) -> std::function<void()> {
    std::vector<Tensor> inputs;
    for (int i = 0; i < kWarmUp; ++i)
      inputs.push_back(operand({work.micro_batch, work.seq, 3 * width}, device).set_requires_grad());
    return [inputs, heads, next = std::size_t{0}]() mutable {
      Tensor qkv = inputs[next++ % inputs.size()];
      qkv.set_grad({});
      const Tensor y = attention_packed(qkv, heads, heads);
      backward(y, y.detach());
    };
  };
}

Work adamw(std::int64_t elements) {
  return [=](Device device) -> std::function<void()> {
    Tensor parameter = operand({elements}, device).set_requires_grad();
    parameter.set_grad(operand({elements}, device));
    auto optimizer =
        std::make_shared<optim::AdamW>(std::vector{parameter}, optim::AdamConfig{.weight_decay = 0.1});
    return [optimizer] { optimizer->step({.grad_scale = 0.5}); };
  };
}

/// Measures on all ranks; rank 0's count.
class RateMeter {
 public:
  RateMeter(const Options& options, const std::vector<Row>& rows, dist::Job& job)
      : options_(options), rows_(rows), job_(job), watch_(options, job) {}

  dist::Rates measure() {
    rates_ = {};
    rates_.cores = watch_.num_cores();
    const Workload tiny{.model = "layers=4,heads=2,width=8,context=8",
                        .vocabulary = 16,
                        .batch = 4,
                        .micro_batch = 1,
                        .seq = 8};
    const auto [tiny_counts, tiny_seconds] = train_alone(tiny);
    rates_.kernel_seconds = tiny_seconds / static_cast<double>(tiny_counts.counts.calls);
    measure_kernels();
    measure_links();
    return rates_;
  }

 private:
  std::pair<dist::RankStep, double> train_alone(const Workload& work) {
    dist::Config config;
    config.batch = {.global = work.batch, .micro_batch = work.micro_batch};
    const dist::RankStep counts = dist::dry_run_rank(dry(work, config), 0);
    Training training(work, config, job_.world().alone("alone"));
    return {counts, watch_.core_seconds([&] { training.step(); })};
  }

  // Of one call of `work`, without what calls of kernels cost by themselves.
  double seconds_of(const Work& work, KernelKind kind) {
    const double calls = static_cast<double>(counts_of(work, kind).calls);
    return std::max(watch_.core_seconds(work(cpu)) - calls * rates_.kernel_seconds, 1e-9);
  }

  dist::KernelRate& rate(KernelKind kind) { return rates_.kernels[static_cast<std::size_t>(kind)]; }

  void measure_kernels() {
    const auto model = [&] {
      const DeviceScope on_meta(meta);
      return nn::make_language_model(options_.work.model, options_.work.vocabulary);
    }();
    const std::int64_t width = model->width(), tokens = options_.work.micro_batch * options_.work.seq;
    std::string about = model->description();
    const std::int64_t heads = std::stoll(about.substr(about.find("heads=") + 6));
    const std::size_t layers = about.find("layers=") + 7;
    Workload two_layers = options_.work;
    two_layers.model = about.replace(layers, about.find(',', layers) - layers, "2");
    two_layers.batch = 2 * two_layers.micro_batch;

    // Wide layers and those that are left of them where many ranks cut them: two equations for the two rates.
    const Work wide = layer_products(tokens, width, 4 * width),
               slim = layer_products(tokens, width, width / 2);
    const auto w = counts_of(wide, KernelKind::kProduct), s = counts_of(slim, KernelKind::kProduct);
    const double tw = seconds_of(wide, KernelKind::kProduct), ts = seconds_of(slim, KernelKind::kProduct);
    const double fw = static_cast<double>(w.flops), fs = static_cast<double>(s.flops);
    const double per_byte = (ts * fw - tw * fs) / (bytes_of(s) * fw - bytes_of(w) * fs);
    const double per_flop = (tw - bytes_of(w) * per_byte) / fw;
    dist::KernelRate& product = rate(KernelKind::kProduct);
    product.flops = fw / tw;
    if (per_byte > 0.0 && per_flop > 0.0) product = {.flops = 1.0 / per_flop, .bytes = 1.0 / per_byte};

    const Work attention = attention_passes(two_layers, width, heads);
    rate(KernelKind::kAttention).flops =
        static_cast<double>(counts_of(attention, KernelKind::kAttention).flops) /
        seconds_of(attention, KernelKind::kAttention);
    // As many as the whole model has, up to what is beyond all caches: a step comes to each of them once.
    const Work update = adamw(std::min<std::int64_t>(model->num_parameters(), 16 << 20));
    rate(KernelKind::kUpdate).bytes =
        bytes_of(counts_of(update, KernelKind::kUpdate)) / seconds_of(update, KernelKind::kUpdate);

    const auto [counts, seconds] = train_alone(two_layers);
    const auto& other = counts.counts_by_kind[static_cast<std::size_t>(KernelKind::kOther)];
    // So far other kernels cost nothing but their calls.
    const double left = seconds - dist::time_of(counts, rates_).busy();
    rate(KernelKind::kOther).bytes = bytes_of(other) / std::max(left, 1e-9);
  }

  void measure_links() {
    std::map<std::pair<Collective, int>, dist::TapeTotal> used;  // sums over layouts
    for (const Row& row : rows_) {
      for (const dist::RankClass& ranks : row.planned.classes) {
        for (const dist::TapeTotal& traffic : ranks.first.traffic) {
          if (traffic.num_ranks == 1 || traffic.group == "world" || traffic.op == Collective::kRecv) continue;
          dist::TapeTotal& sum = used[{traffic.op, traffic.num_ranks}];
          sum.calls += traffic.calls;
          sum.elements += traffic.elements;
        }
      }
    }
    used[{Collective::kAllReduce, job_.size()}].calls += 1;
    for (const auto& [key, sum] : used) {
      const auto [op, size] = key;
      const std::int64_t elements = std::max<std::int64_t>(sum.elements / sum.calls, 1 << 12);
      const auto group = job_.world().split(job_.rank() / size, job_.rank(), "link");
      dist::LinkRate link;
      link.latency = watch_.core_seconds(exchange(op, *group, 16));
      const double more = watch_.core_seconds(exchange(op, *group, elements)) - link.latency;
      link.bytes =
          static_cast<double>(dist::sent_bytes(op, elements, kF32, size, 0, 0)) / std::max(more, 1e-9);
      rates_.links[fmt::format("{}/{}", name(op), size)] = link;
    }
    // What all ranks tell each other at the end of a step is small.
    rates_.links["world"] = rates_.links[fmt::format("all_reduce/{}", job_.size())];
  }

  static std::function<void()> exchange(Collective op, dist::Communicator& group, std::int64_t elements) {
    const auto size = static_cast<std::size_t>(group.size()), n = static_cast<std::size_t>(elements);
    const auto small = std::make_shared<std::vector<float>>(n),
               large = std::make_shared<std::vector<float>>(n * size);
    const auto also_large = std::make_shared<std::vector<float>>(op == Collective::kAllToAll ? n * size : 0);
    return [=, &group] {
      using dist::buffer_of;
      const int rank = group.rank(), ranks = group.size();
      switch (op) {
        case Collective::kReduceScatter:
          return group.reduce_scatter(buffer_of(*large), buffer_of(*small));
        case Collective::kAllGather:
          return group.all_gather(buffer_of(*small), buffer_of(*large));
        case Collective::kAllToAll:
          return group.all_to_all(buffer_of(*large), buffer_of(*also_large));
        case Collective::kSend: {
          dist::Work sent = group.send_async(buffer_of(*small), (rank + 1) % ranks);
          group.recv(buffer_of(std::span(*large).first(small->size())), (rank + ranks - 1) % ranks);
          return sent.wait();
        }
        default:
          return group.all_reduce(buffer_of(*small));
      }
    };
  }

  const Options& options_;
  const std::vector<Row>& rows_;
  dist::Job& job_;
  Stopwatch watch_;
  dist::Rates rates_;
};

dist::Rates median_of(const std::vector<dist::Rates>& all) {
  dist::Rates result = all.front();
  const auto set = [&](auto field) {
    std::vector<double> values;
    for (dist::Rates rates : all) values.push_back(field(rates));
    field(result) = median(values);
  };
  set([](dist::Rates& r) -> double& { return r.kernel_seconds; });
  for (std::size_t kind = 0; kind < kernels::kNumKernelKinds; ++kind) {
    set([kind](dist::Rates& r) -> double& { return r.kernels[kind].flops; });
    set([kind](dist::Rates& r) -> double& { return r.kernels[kind].bytes; });
  }
  for (const auto& [key, link] : all.front().links) {
    set([&key = key](dist::Rates& r) -> double& { return r.links[key].latency; });
    set([&key = key](dist::Rates& r) -> double& { return r.links[key].bytes; });
  }
  return result;
}

// --- The table ---------------------------------------------------------------------------------------------

void measure(Row& row, const Options& options, dist::Job& job) {
  Stopwatch watch(options, job);
  Training training(options.work, row.config, job.shared_world());
  for (int i = 0; i < 2; ++i) training.step();
  for (int i = 0; i < options.steps; ++i) {
    const double seconds = watch.time([&] { training.step(); });
    if (job.is_root()) row.seconds.push_back(seconds);
  }
}

void print(const std::vector<Row>& rows, const dist::Rates& rates, const Options& options) {
  const Workload& work = options.work;
  fmt::print("{}", rates.json());
  fmt::print(
      "{}, vocabulary {}: batch {} x {} in passes of {}; {} ranks on {} cores; {} rounds of {} steps{}\n",
      work.model, work.vocabulary, work.batch, work.seq, work.micro_batch,
      rows.front().config.mesh.num_ranks(), rates.cores, options.rounds, options.steps,
      options.cpu_time ? "; CPU time over cores" : "");
  constexpr const char* kLine = "{:<30} {:>9} {:>9} {:>8}   {:>8} {:>8} {:>8} {:>8} {:>8}\n";
  fmt::print(kLine, "ms a step", "foretold", "measured", "error", "compute", "memory", "calls", "links",
             "idle");
  double sum = 0.0, largest = 0.0;
  for (const Row& row : rows) {
    const dist::StepTime step = dist::predict(row.planned, rates);
    const double measured = median(row.seconds), error = 100 * (step.seconds() / measured - 1);
    const auto ms = [](double seconds) { return fmt::format("{:.1f}", 1e3 * seconds); };
    fmt::print(kLine, row.text, ms(step.seconds()), ms(measured), fmt::format("{:+.1f} %", error),
               ms(step.compute), ms(step.memory), ms(step.overhead), ms(step.communication), ms(step.idle));
    sum += std::fabs(error);
    largest = std::max(largest, std::fabs(error));
  }
  fmt::print("absolute error: mean {:.1f} %, largest {:.1f} %\n", sum / static_cast<double>(rows.size()),
             largest);
}

Options parse_options(int argc, char** argv) {
  Options options;
  CLI::App app("The time of a step over layouts, foretold and measured.", "step_time_bench");
  app.option_defaults()->always_capture_default();
  app.add_option("--rows", options.rows,
                 "Layouts of one number of ranks, separated by ';': a mesh, then zero=STAGE, sp, ulysses, "
                 "schedule=NAME, recompute=full, pass=MICRO-BATCH");
  app.add_option("--model", options.work.model, "As gpt2_train takes it, with layers= and heads=");
  app.add_option("--batch", options.work.batch, "Sequences of a step")->check(examples::at_least(1));
  app.add_option("--seq", options.work.seq, "Tokens of a sequence")->check(examples::at_least(1));
  app.add_option("--rounds", options.rounds, "In each, rates and layouts once")->check(examples::at_least(1));
  app.add_option("--steps", options.steps, "Of a layout in a round, after two that are not measured")
      ->check(examples::at_least(1));
  app.add_option("--rates", options.rates_file, "Write the rates to this file");
  app.add_flag("--cpu-time", options.cpu_time, "CPU time over cores instead of time");
  app.add_flag("--quick", options.quick, "A small model, few layouts, one round: does it run?");
  examples::parse_or_exit(app, argc, argv);
  if (options.quick) {
    if (app.count("--rows") == 0) options.rows = "dp=2;tp=2;pp=2";
    options.work = {.model = "layers=2,heads=2,width=32,context=16",
                    .vocabulary = 64,
                    .batch = 4,
                    .micro_batch = 1,
                    .seq = 16};
    options.rounds = options.steps = 1;
    options.rate_seconds = 1e-3;
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run_program("step_time_bench", [&] {
    const Options options = parse_options(argc, argv);
    std::vector<Row> rows = make_rows(options);
    std::vector<dist::Rates> rates;
    dist::run_thread_ranks(rows.front().config.mesh.num_ranks(), [&](dist::Job& job) {
      RateMeter meter(options, rows, job);
      for (int round = 0; round < options.rounds; ++round) {
        const dist::Rates measured = meter.measure();
        if (job.is_root()) rates.push_back(measured);
        for (Row& row : rows) measure(row, options, job);
      }
    });
    const dist::Rates medians = median_of(rates);
    if (!options.rates_file.empty()) {
      std::ofstream out(options.rates_file);
      if (!(out << medians.json()).flush())
        throw FileError(fmt::format("--rates: cannot write {}", options.rates_file));
    }
    print(rows, medians, options);
  });
}
