// One program, run by CTest and by launch_test.cpp as threads and under mpiexec:
//
//     mpiexec -n 4 dist_ranks behaviours          the table of behaviours.h; with a part of a name, those
//     mpiexec -n 4 dist_ranks parity              trains as one rank does
//     mpiexec -n 4 dist_ranks measure unchecked   what an all-reduce takes; without "unchecked", with checks
//     mpiexec -hosts a,b -n 4 dist_ranks hosts a,b,a,b    what ranks must see that stand on these hosts
//     dist_ranks --ranks 3 fail <how>             one way for a job to end; launch_test.cpp says what is seen
//
// It prints one line a behaviour on rank 0, and "all ranks are done" at the end.

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string_view>
#include <thread>

#include "kernels/error.h"
#include "tests/dist/behaviours.h"
#include "tests/dist/host_checks.h"
#include "tests/dist/training.h"

namespace tessera::dist::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

void run_behaviours(Job& job, std::string_view part) {
  int count = 0;
  for (const Behaviour& behaviour : all_behaviours()) {
    if (std::string_view(behaviour.name).find(part) == std::string_view::npos) continue;
    job.log(fmt::format("{} ...", behaviour.name));
    behaviour.run(job);
    ++count;
  }
  require(count > 0, "no behaviour has that name");
  job.log(fmt::format("{} behaviours hold on {} ranks ({})", count, job.size(), job.backend()));
}

// Tiers T1 and T2 as in data_parallel_test.cpp. Each rank also trains alone, and compares.
void check_parity(Job& job) {
  for (const std::string& model : {kGpt2, kLlama}) {
    for (const DType dtype : {kF64, kF32}) {
      for (const std::int64_t micro_batch : {0, 2}) {
        Training training{.model = model, .dtype = dtype, .micro_batch = micro_batch, .bucket_bytes = 4096};
        if (kGlobalBatch / job.size() % 2 != 0) training.micro_batch = 0;
        const Trained together = train(training, job.world());
        const Trained alone = train_alone(training);
        const double loss = largest_loss_difference(together, alone);
        const double weight = largest_weight_difference(together, alone);
        require(together.initial_weights == alone.initial_weights, "initial weights");
        require(loss <= (dtype == kF64 ? 1e-10 : 1e-6), fmt::format("losses differ by {}", loss));
        require(dtype == kF32 || weight <= 1e-10, fmt::format("weights differ by {}", weight));
        job.log(fmt::format("{} in {}, {} sequences a pass: losses differ by {:.1e}, weights by {:.1e}",
                            model, name(dtype), training.micro_batch, loss, weight));
      }
    }
  }
}

// What an all-reduce takes, with and without the comparison of calls; the tables of docs/dist.md.
void measure(Job& job) {
  const auto quiet_us = [&](Communicator& group, std::int64_t count) {
    std::vector<float> x(static_cast<std::size_t>(count), 1.0f);
    std::vector<double> times;
    const int repeats = count > 100000 ? 50 : 1000;
    for (int i = 0; i < repeats + repeats / 10; ++i) {
      const auto start = std::chrono::steady_clock::now();
      group.all_reduce(buffer_of(x));
      times.push_back(
          std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    times.erase(times.begin(), times.begin() + repeats / 10);  // warm-up
    std::ranges::sort(times);
    return times[times.size() / 10];  // what it takes while nobody else wants the cores
  };
  for (const std::int64_t count : {1, 1024, 16384, 262144, 4194304}) {
    const double us = quiet_us(job.world(), count);
    job.log(fmt::format("{}: {:>8} f32 on {} ranks: {:10.1f} us", job.backend(), count, job.size(), us));
  }
  Tape tape;
  TapeEntry entry;
  entry.group = "dp";
  std::vector<double> times;
  for (int batch = 0; batch < 1000; ++batch) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 100; ++i) tape.end(tape.begin(entry));
    times.push_back(
        std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / 100);
  }
  std::ranges::sort(times);
  job.log(fmt::format("a call on the tape, begin and end: {:.0f} ns", times[times.size() / 10]));
}

// In all of these the last rank does what is wrong, and the others wait for it.
void fail(Job& job, std::string_view how) {
  const bool culprit = job.rank() == job.size() - 1;
  std::vector<float> x(1024);
  std::vector<float> large(300000);
  if (how == "user_error") {
    if (culprit) throw ConfigError("a mistake of the user's");
    job.world().all_reduce(buffer_of(x));
  } else if (how == "other_error") {
    if (culprit) throw std::runtime_error("a failure of the machine's");
    job.world().barrier();
  } else if (how == "not_an_exception") {
    if (culprit) throw 7;  // NOLINT
    job.world().barrier();
  } else if (how == "every_rank") {
    throw DataError("the same mistake on every rank");
  } else if (how == "error_under_way") {  // of a rank whose own calls are not complete
    Work reduction = job.world().all_reduce_async(buffer_of(large));
    Work message = culprit ? job.world().recv_async(buffer_of(x), 0) : Work();
    if (culprit) throw ConfigError("a mistake while calls are under way");
    reduction.wait();
    job.world().barrier();
  } else if (how == "error_in_group") {  // nobody of the other group waits for the culprit, until the end
    const auto group = job.world().split(culprit ? 1 : 0, 0, "group");
    if (culprit) throw ConfigError("a mistake in a group of its own");
    for (int i = 0; i < 10000000; ++i) group->barrier();
  } else if (how == "error_while_others_compute") {
    if (culprit) throw ConfigError("a mistake while the others compute");
    std::this_thread::sleep_for(seconds(60));  // no call for longer than `grace`
  } else if (how == "on_root") {
    job.on_root([] { throw FileError("the disk of rank 0 is full"); });
  } else if (how == "kind") {
    if (culprit) {
      job.world().broadcast(buffer_of(x), 0);
    } else {
      job.world().all_reduce(buffer_of(x));
    }
  } else if (how == "seen_everywhere") {  // every rank gets the error itself, with both calls
    try {
      if (culprit) {
        job.world().barrier();
      } else {
        job.world().all_reduce(buffer_of(large));
      }
    } catch (const CommError& error) {
      std::fputs(fmt::format("rank {} sees: {}\n", job.rank(), error.what()).c_str(), stdout);
      std::fflush(stdout);
      std::this_thread::sleep_for(seconds(1));  // so that the others have seen it when this one ends them
      throw;
    }
  } else if (how == "count") {
    x.resize(culprit ? 1000 : 1024);
    job.world().all_reduce(buffer_of(x));
  } else if (how == "large_count") {
    large.resize(culprit ? 200000 : 300000);
    job.world().all_reduce(buffer_of(large));
  } else if (how == "dtype") {
    std::vector<std::int32_t> integers(1024);
    job.world().all_reduce(culprit ? buffer_of(integers) : buffer_of(x));
  } else if (how == "root") {
    job.world().broadcast(buffer_of(x), culprit ? 1 : 0);
  } else if (how == "reduction") {
    job.world().all_reduce(buffer_of(x), culprit ? ReduceOp::kMax : ReduceOp::kSum);
  } else if (how == "order") {
    std::vector<float> y(10);
    for (int i = 0; i < 2; ++i) {
      if (culprit == (i == 0)) {
        job.world().all_reduce(buffer_of(y));
      } else {
        job.world().all_reduce(buffer_of(x));
      }
    }
  } else if (how == "message_size") {
    if (culprit) job.world().send({x.data(), 100, kF32}, 0);
    if (job.is_root()) job.world().recv({x.data(), 99, kF32}, job.size() - 1);
    job.world().barrier();
  } else if (how == "leave_early") {
    if (culprit) return;
    job.world().all_reduce(buffer_of(x));
  } else if (how == "leave_before_message") {
    if (culprit) return;
    if (job.is_root()) job.world().recv(buffer_of(x), job.size() - 1);
  } else if (how == "leave_group_early") {
    const auto group = job.world().split(0, job.rank(), "team");
    if (culprit) return;
    group->all_reduce(buffer_of(x));
  } else if (how == "silent") {  // comes to no call
    if (culprit) std::this_thread::sleep_for(seconds(60));
    job.world().all_reduce(buffer_of(x));
  } else if (how == "silent_sender") {
    if (!job.is_root()) std::this_thread::sleep_for(seconds(60));
    job.world().recv(buffer_of(x), job.size() - 1, 5);
  } else if (how == "killed") {
    job.world().barrier();
    if (culprit) std::raise(SIGKILL);
    for (int i = 0; i < 10000000; ++i) job.world().all_reduce(buffer_of(x));
  } else if (how == "stop") {  // waits for Ctrl-C, agrees on the step, and ends well
    job.log(fmt::format("ready, process {}", getpid()));
    int step = 0;
    while (!job.agree_to_stop()) {
      ++step;
      std::this_thread::sleep_for(milliseconds(5));
    }
    std::int64_t steps[2] = {step, -step};
    job.world().all_reduce(buffer_of(steps), ReduceOp::kMax);
    require(steps[0] == -steps[1], "all ranks stop after the same step");
    require(job.size() == 1 || job.backend() != std::string("threads") || job.stop_requested(), "the flag");
  } else if (how == "deaf") {  // does not look at stop_requested()
    job.log(fmt::format("ready, process {}", getpid()));
    std::this_thread::sleep_for(seconds(60));
  } else {
    throw ConfigError(fmt::format("fail: '{}' is unknown", how));
  }
}

}  // namespace
}  // namespace tessera::dist::testing

int main(int argc, char** argv) {
  using namespace tessera;
  // GCC 12's thread sanitizer loses a signal that comes while a thread waits for the first time of its
  // life, since it then sets up what it keeps of signals. The tests send theirs when this program says
  // "ready", just before it waits.
  std::this_thread::sleep_for(std::chrono::nanoseconds(1));
  dist::JobOptions options;
  try {
    options = dist::JobOptions::take_from(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
  const std::string_view what = argc > 1 ? argv[1] : "behaviours", which = argc > 2 ? argv[2] : "";
  // Only where silence is the subject: a loaded machine must not fail the rest.
  options.communication.timeout =
      which.starts_with("silent") ? std::chrono::seconds(2) : std::chrono::seconds(120);
  options.grace = std::chrono::seconds(2);
  options.communication.check_calls = which != "unchecked";
  return dist::run(options, [&](dist::Job& job) {
    if (what == "behaviours") {
      dist::testing::run_behaviours(job, which);
    } else if (what == "measure") {
      dist::testing::measure(job);
    } else if (what == "parity") {
      dist::testing::check_parity(job);
    } else if (what == "hosts") {
      dist::testing::check_hosts(job, which);
    } else {
      dist::testing::fail(job, which);
    }
    job.log("all ranks are done");
  });
}
