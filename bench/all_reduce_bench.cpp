// All-reduce between the ranks of one host beside MPI's own, and beside what the memory can do:
//
//   mpiexec -n 2 build/release/bin/all_reduce_bench [--rounds 9]
//
// A round measures, one after the other: Tessera's ranks that are threads (all of them in rank 0's process,
// while the other processes sleep), Tessera's ranks that are processes, MPI_Allreduce of the same processes,
// and, for the large size, memory. The table has medians over the rounds and the ratio of medians.
//
// Memory: each process adds one array of the large size to another, all at once; that reads two bytes and
// writes one for each byte of the array, 3n by each rank. All-reduce of n bytes between R ranks can't do with
// less than reading R·n and writing R·n: "of memory" is 2·R·n over its time, over the rate of memory.

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dist/job.h"
#include "dist/tape.h"
#include "examples/command_line.h"
#include "kernels/error.h"

using namespace tessera;

namespace {

struct Size {
  std::int64_t bytes = 0;
  int calls = 0;  // of a round
  std::string name;
};

const std::vector<Size> kSizes = {{8, 4000, "8 B"}, {64 << 10, 1000, "64 KiB"}, {128'000'000, 2, "128 MB"}};
constexpr std::int64_t kLarge = 1 << 20;  // bytes from which memory is what counts

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

// Seconds of one of `calls` calls by all ranks of the world at once: those of the slowest.
double seconds_of(dist::Communicator& world, int calls, const std::function<void()>& call) {
  call();  // who was asleep is awake
  world.barrier();
  const double begin = dist::steady_seconds();
  for (int i = 0; i < calls; ++i) call();
  double seconds[1] = {(dist::steady_seconds() - begin) / calls};
  world.all_reduce(dist::buffer_of(seconds), dist::ReduceOp::kMax);
  return seconds[0];
}

void require_sum(const char* who, std::span<const float> x, int num_ranks) {
  const float sum = 0.5f * static_cast<float>(num_ranks * (num_ranks + 1));  // of 1 ... R
  if (!std::ranges::all_of(x, [sum](float value) { return value == sum; }))
    throw CommError(std::string(who) + ": a wrong sum");
}

// Sums zeros, after one call whose result is looked at: what is added up again and again overflows.
double all_reduce_seconds(const char* who, const Size& size, std::vector<float>& x, dist::Communicator& world,
                          const std::function<void(std::vector<float>&)>& all_reduce) {
  x.assign(static_cast<std::size_t>(size.bytes) / sizeof(float), static_cast<float>(world.rank() + 1));
  all_reduce(x);
  require_sum(who, x, world.size());
  std::ranges::fill(x, 0.0f);
  return seconds_of(world, size.calls, [&] { all_reduce(x); });
}

double of_communicator(const char* who, const Size& size, std::vector<float>& x, dist::Communicator& world) {
  return all_reduce_seconds(who, size, x, world,
                            [&](std::vector<float>& y) { world.all_reduce(dist::buffer_of(y)); });
}

struct Times {
  std::vector<double> threads, processes, mpi, memory;  // seconds of a call, by round
};

// In rank 0's process, while the others wait without spinning.
double of_threads(const Size& size, dist::Job& job) {
  double seconds[1] = {0.0};
  job.on_root([&] {
    dist::JobOptions options;
    options.threads = 1;
    options.handle_signals = false;
    dist::run_thread_ranks(
        job.size(),
        [&](dist::Job& threads) {
          std::vector<float> x;
          const double mine = of_communicator("threads", size, x, threads.world());
          if (threads.is_root()) seconds[0] = mine;
        },
        options);
  });
  return seconds[0];  // of rank 0, which prints
}

double of_mpi(const Size& size, std::vector<float>& x, dist::Job& job) {
  return all_reduce_seconds("MPI_Allreduce", size, x, job.world(), [](std::vector<float>& y) {
    if (MPI_Allreduce(MPI_IN_PLACE, y.data(), static_cast<int>(y.size()), MPI_FLOAT, MPI_SUM,
                      MPI_COMM_WORLD) != MPI_SUCCESS)
      throw CommError("MPI_Allreduce failed");
  });
}

double of_memory(const Size& size, std::vector<float>& x, std::vector<float>& y, dist::Job& job) {
  x.assign(static_cast<std::size_t>(size.bytes) / sizeof(float), 0.0f);
  y.resize(x.size());
  return seconds_of(job.world(), size.calls, [&] {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  });
}

void print(const Size& size, const Times& times, int num_ranks) {
  const auto n = static_cast<double>(size.bytes);
  const bool large = size.bytes >= kLarge;
  const auto rate = [&](double seconds) {
    return large ? fmt::format("{:.2f}", n / seconds / 1e9) : fmt::format("{:.2f}", seconds * 1e6);
  };
  const double threads = median(times.threads), processes = median(times.processes), mpi = median(times.mpi);
  fmt::print("{:<20} {:>7} {:>10} {:>10} {:>10} {:>9.2f} {:>9.2f}", "all-reduce " + size.name,
             large ? "GB/s" : "us", rate(threads), rate(processes), rate(mpi), mpi / threads,
             mpi / processes);
  if (large) {
    const double memory = 3.0 * num_ranks * n / median(times.memory);
    const auto part = [&](double seconds) { return 100.0 * 2.0 * num_ranks * n / seconds / memory; };
    fmt::print(" {:>10.1f} {:>7.0f}% {:>8.0f}% {:>4.0f}%", memory / 1e9, part(threads), part(processes),
               part(mpi));
  }
  fmt::print("\n");
  std::fflush(stdout);
}

void measure(dist::Job& job, int rounds) {
  if (job.is_root()) {
    fmt::print("{} ranks of one host; median of {} rounds in turns\n", job.size(), rounds);
    fmt::print("{:<20} {:>7} {:>10} {:>10} {:>10} {:>9} {:>9} {:>10} {:>8} {:>9} {:>5}\n", "", "", "threads",
               "processes", "MPI", "threads:", "proc.:", "memory", "threads", "processes", "MPI");
    fmt::print("{:<20} {:>7} {:>10} {:>10} {:>10} {:>9} {:>9} {:>10} {:>24}\n", "", "", "", "", "", "MPI",
               "MPI", "GB/s", "of memory");
    std::fflush(stdout);
  }
  for (const Size& size : kSizes) {
    Times times;
    std::vector<float> x, y;
    for (int round = 0; round < rounds; ++round) {
      times.threads.push_back(of_threads(size, job));
      times.processes.push_back(of_communicator("processes", size, x, job.world()));
      times.mpi.push_back(of_mpi(size, x, job));
      if (size.bytes >= kLarge) times.memory.push_back(of_memory(size, x, y, job));
    }
    if (job.is_root()) print(size, times, job.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 7;
  const int status = examples::run_program("all_reduce_bench", [&] {
    CLI::App app("All-reduce of threads and of processes beside MPI_Allreduce and memory.",
                 "all_reduce_bench");
    app.add_option("--rounds", rounds, "Turns of each")->check(examples::at_least(1))->capture_default_str();
    examples::parse_or_exit(app, argc, argv);
    if (!dist::launch().by_mpi || dist::launch().size < 2)
      throw ConfigError("needs two ranks of MPI: mpiexec -n 2 all_reduce_bench");
  });
  if (status != 0) return status;
  dist::JobOptions options;
  options.threads = 1;
  return dist::run(options, [rounds](dist::Job& job) { measure(job, rounds); });
}
