#include "dist/job.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "dist/mpi_runtime.h"
#include "dist/standard_streams.h"
#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

// --- Signals -----------------------------------------------------------------------------------------------

// A signal belongs to the process, and its handler can reach nothing else: the one mutable global of this
// library.
std::atomic<bool> stop_flag{false};
std::atomic<std::int64_t> stop_time_ns{0};  // of the first signal; 0: none has come
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a signal handler must not take a lock");

// mpiexec passes a Ctrl-C on to processes that already got it from the terminal: within this time it is one.
constexpr std::int64_t kSameSignalNs = 500'000'000;

extern "C" void on_stop_signal(int signal_number) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const std::int64_t now_ns = static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
  // The time before the flag: two threads may be in here at once, and the second must not take a missing
  // time for one that is long past.
  std::int64_t first_ns = 0;
  if (stop_time_ns.compare_exchange_strong(first_ns, now_ns)) {
    stop_flag = true;
  } else if (now_ns - first_ns > kSameSignalNs) {
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
  }
}

/// Handles Ctrl-C and SIGTERM while it lives.
class SignalScope {
 public:
  explicit SignalScope(bool enabled) : enabled_(enabled) {
    if (!enabled_) return;
    stop_flag = false;
    stop_time_ns = 0;
    struct sigaction action {};
    action.sa_handler = on_stop_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &previous_interrupt_);
    sigaction(SIGTERM, &action, &previous_terminate_);
  }
  ~SignalScope() {
    if (!enabled_) return;
    sigaction(SIGINT, &previous_interrupt_, nullptr);
    sigaction(SIGTERM, &previous_terminate_, nullptr);
  }
  SignalScope(const SignalScope&) = delete;
  SignalScope& operator=(const SignalScope&) = delete;

 private:
  bool enabled_;
  struct sigaction previous_interrupt_ {};
  struct sigaction previous_terminate_ {};
};

// --- Errors ------------------------------------------------------------------------------------------------

struct Failure {
  std::string message;
  int exit_code = 1;
  bool is_echo = false;  // of another rank's failure
};

Failure describe_exception(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const PeerFailure& error) {
    return {error.what(), error.exit_code(), true};
  } catch (const Error& error) {
    return {error.what(), error.exit_code(), false};
  } catch (const std::exception& error) {
    return {error.what(), 1, false};
  } catch (...) {
    return {"an exception that is not a std::exception", 1, false};
  }
}

void print_error(int rank, int size, const std::string& message, const JobOptions& options) {
  const std::string line = size == 1 ? fmt::format("error: {}\n", message)
                                     : fmt::format("error (rank {} of {}): {}\n", rank, size, message);
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
  if (!options.hint.empty()) std::fputs((options.hint + "\n").c_str(), stderr);
  std::fflush(stderr);
}

// --- Threads as ranks --------------------------------------------------------------------------------------

int available_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) == 0) return std::max(1, CPU_COUNT(&cores));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

/// Runs the program under the rank's context, and leaves the world with the others.
void run_rank(const JobOptions& options, const std::shared_ptr<Communicator>& world, int threads,
              const std::function<void(Job&)>& program) {
  RankContext context(
      {.rank = world->rank(), .world_size = world->size(), .num_threads = threads, .seed = options.seed});
  const RankContext::Scope scope(context);
  Job job(options, world, threads);
  program(job);
  world->finish();
}

class ThreadRanks {
 public:
  ThreadRanks(int num_ranks, const JobOptions& options, const std::function<void(Job&)>& program) {
    std::vector<std::shared_ptr<Tape>> tapes;
    for (int rank = 0; rank < num_ranks; ++rank)
      tapes.push_back(std::make_shared<Tape>(options.tape_capacity));
    const auto world = make_thread_communicators(tapes, options.communication);
    const int threads = options.threads.value_or(std::max(1, available_cores() / num_ranks));
    try {
      for (int rank = 0; rank < num_ranks; ++rank) {
        threads_.emplace_back(
            [this, rank, threads, &options, &program, communicator = world[static_cast<std::size_t>(rank)]] {
              if (all_exist()) run(rank, threads, options, program, communicator);
            });
      }
    } catch (const std::system_error& error) {
      let_start(Start::kNever);
      for (std::thread& thread : threads_) thread.join();
      throw Error(fmt::format(
          "--ranks {}: the system refused thread {} of {}: {}; use fewer ranks, or raise `ulimit -u`",
          num_ranks, threads_.size() + 1, num_ranks, error.what()));
    }
    let_start(Start::kNow);
  }

  /// Waits for all ranks, at most `grace` longer than the first failure; true if all have ended.
  bool wait(std::optional<std::chrono::milliseconds> grace) {
    std::unique_lock lock(mutex_);
    const auto all_ended = [this] { return num_ended_ == static_cast<int>(threads_.size()); };
    changed_.wait(lock, [&] { return all_ended() || (grace && first_ != nullptr); });
    if (!all_ended() && !changed_.wait_for(lock, *grace, all_ended)) return false;
    lock.unlock();
    for (std::thread& thread : threads_) thread.join();
    return true;
  }

  /// Of the rank that failed first of its own accord; null if none did.
  [[nodiscard]] std::exception_ptr first_cause() const {
    const std::lock_guard lock(mutex_);
    return first_;
  }
  [[nodiscard]] int first_rank() const {
    const std::lock_guard lock(mutex_);
    return first_rank_;
  }

 private:
  // No rank begins before all are there: a job that lacks one would only end in errors about it.
  enum class Start { kNotYet, kNow, kNever };

  void let_start(Start start) {
    const std::lock_guard lock(mutex_);
    start_ = start;
    changed_.notify_all();
  }
  bool all_exist() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return start_ != Start::kNotYet; });
    return start_ == Start::kNow;
  }

  void run(int rank, int threads, const JobOptions& options, const std::function<void(Job&)>& program,
           const std::shared_ptr<Communicator>& communicator) {
    try {
      run_rank(options, communicator, threads, program);
    } catch (...) {
      record(rank, *communicator, std::current_exception());
    }
    const std::lock_guard lock(mutex_);
    ++num_ended_;
    changed_.notify_all();
  }

  void record(int rank, Communicator& communicator, std::exception_ptr exception) {
    const Failure failure = describe_exception(exception);
    {
      const std::lock_guard lock(mutex_);
      // An echo stands in only until the cause itself comes.
      if (first_ == nullptr || (first_is_echo_ && !failure.is_echo)) {
        first_ = std::move(exception);
        first_rank_ = rank;
        first_is_echo_ = failure.is_echo;
      }
      changed_.notify_all();
    }
    communicator.abort(fmt::format("rank {}: {}", rank, failure.message));
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Start start_ = Start::kNotYet;
  std::exception_ptr first_;
  int first_rank_ = 0;
  bool first_is_echo_ = false;
  int num_ended_ = 0;
  std::vector<std::thread> threads_;
};

int run_as_threads(int num_ranks, const JobOptions& options, const std::function<void(Job&)>& program) {
  // Not on the stack: if a rank does not end, the process does, with this still in use.
  auto ranks = std::make_unique<ThreadRanks>(num_ranks, options, program);
  const bool all_ended = ranks->wait(options.grace);
  const std::exception_ptr cause = ranks->first_cause();
  if (cause == nullptr) return 0;
  const Failure failure = describe_exception(cause);
  print_error(ranks->first_rank(), num_ranks, failure.message, options);
  if (!all_ended) std::_Exit(failure.exit_code);  // what mpiexec does to processes
  return failure.exit_code;
}

int run_alone(const JobOptions& options, const std::function<void(Job&)>& program) {
  try {
    const auto world =
        make_self_communicator(std::make_shared<Tape>(options.tape_capacity), options.communication);
    run_rank(options, world, options.threads.value_or(available_cores()), program);
    return 0;
  } catch (...) {
    const Failure failure = describe_exception(std::current_exception());
    print_error(0, 1, failure.message, options);
    return failure.exit_code;
  }
}

// --- Processes as ranks ------------------------------------------------------------------------------------

int run_under_mpi(const JobOptions& options, const std::function<void(Job&)>& program) {
  MpiRuntime runtime;
  try {
    const auto world = runtime.world(std::make_shared<Tape>(options.tape_capacity), options.communication);
    run_rank(options, world, options.threads.value_or(runtime.threads_per_rank()), program);
    return 0;
  } catch (...) {
    const Failure failure = describe_exception(std::current_exception());
    // The rank with the cause reports it; an echo waits to be ended, and speaks only if nobody else does.
    if (failure.is_echo) std::this_thread::sleep_for(std::chrono::seconds(3));
    if (runtime.claim_report()) {
      print_error(runtime.rank(), runtime.size(), failure.message, options);
      runtime.abort(failure.exit_code);
    }
    std::this_thread::sleep_for(options.grace);
    runtime.abort(failure.exit_code);
  }
}

int parse_count(std::string_view option, std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) {
    throw ConfigError(fmt::format("{}: expected a whole number from 1, got '{}'", option, text));
  }
  return value;
}

void check(const JobOptions& options) {
  constexpr int kMaxThreadRanks = 1024;
  if (options.ranks && (*options.ranks < 1 || *options.ranks > kMaxThreadRanks)) {
    throw ConfigError(
        fmt::format("--ranks: expected a number from 1 to {}, got {}", kMaxThreadRanks, *options.ranks));
  }
  if (options.threads && (*options.threads < 1 || *options.threads > 4096)) {
    throw ConfigError(fmt::format("--threads: expected a number from 1 to 4096, got {}", *options.threads));
  }
  if (options.ranks && launch().by_mpi) {
    throw ConfigError(fmt::format(
        "--ranks {} was given under mpiexec -n {}: ranks are either threads of one process or processes "
        "of mpiexec; leave one of the two out",
        *options.ranks, launch().size));
  }
}

}  // namespace

// --- Launch ------------------------------------------------------------------------------------------------

Launch launch() noexcept {
  struct Names {
    const char* rank;
    const char* size;
  };
  // MPICH and Intel MPI (also srun --mpi=pmi2); Open MPI; MVAPICH.
  constexpr Names kLaunchers[] = {{"PMI_RANK", "PMI_SIZE"},
                                  {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                  {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"}};
  for (const Names& names : kLaunchers) {
    const char* rank = std::getenv(names.rank);
    const char* size = std::getenv(names.size);
    if (rank != nullptr && size != nullptr) return {true, std::atoi(rank), std::max(1, std::atoi(size))};
  }
  return {};
}

JobOptions JobOptions::take_from(int& argc, char** argv) {
  JobOptions options;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    std::optional<int>* target = nullptr;
    std::string_view option;
    for (const std::string_view candidate : {"--ranks", "--threads"}) {
      if (argument == candidate || (argument.starts_with(candidate) && argument[candidate.size()] == '=')) {
        option = candidate;
        target = candidate == "--ranks" ? &options.ranks : &options.threads;
      }
    }
    if (target == nullptr) {
      argv[kept++] = argv[i];
    } else if (argument.size() > option.size()) {
      *target = parse_count(option, argument.substr(option.size() + 1));
    } else if (i + 1 < argc) {
      *target = parse_count(option, argv[++i]);
    } else {
      throw ConfigError(fmt::format("{}: a number must follow", option));
    }
  }
  if (kept < argc) argv[kept] = nullptr;
  argc = kept;
  return options;
}

// --- Job ---------------------------------------------------------------------------------------------------

void Job::log(std::string_view line) const {
  if (!is_root()) return;
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

bool Job::stop_requested() const noexcept { return stop_flag.load(std::memory_order_relaxed); }

bool Job::agree_to_stop(std::source_location where) {
  std::int32_t stop[1] = {stop_requested() ? 1 : 0};
  world_->all_reduce(buffer_of(stop), ReduceOp::kMax, where);
  return stop[0] != 0;
}

void Job::on_root(const std::function<void()>& action, std::source_location where) {
  run_on_root(*world_, action, where);
}

void run_on_root(Communicator& group, const std::function<void()>& action, std::source_location where) {
  std::uint8_t failed[1] = {0};
  std::exception_ptr exception;
  if (group.rank() == 0) {
    try {
      action();
    } catch (...) {
      exception = std::current_exception();
      failed[0] = 1;
    }
  }
  group.broadcast(buffer_of(failed), 0, where);
  if (exception != nullptr) std::rethrow_exception(exception);
  if (failed[0] != 0) {
    throw PeerFailure(fmt::format("rank 0 failed in what it did for all ranks (rank {} of {}, {}:{})",
                                  group.rank(), group.size(), where.file_name(), where.line()),
                      where);
  }
}

// --- run ---------------------------------------------------------------------------------------------------

int run(const JobOptions& options, const std::function<void(Job&)>& program) noexcept {
  reserve_standard_streams();
  const SignalScope signals(options.handle_signals);
  try {
    check(options);
    if (launch().by_mpi) return run_under_mpi(options, program);
    if (options.ranks && *options.ranks > 1) return run_as_threads(*options.ranks, options, program);
    return run_alone(options, program);
  } catch (...) {
    const Failure failure = describe_exception(std::current_exception());
    if (launch().rank == 0)
      print_error(0, 1, failure.message, options);  // every process of an mpiexec comes here
    return failure.exit_code;
  }
}

int run(int& argc, char** argv, const std::function<void(Job&)>& program) noexcept {
  try {
    return run(JobOptions::take_from(argc, argv), program);
  } catch (...) {
    const Failure failure = describe_exception(std::current_exception());
    if (launch().rank == 0) print_error(0, 1, failure.message, {});
    return failure.exit_code;
  }
}

void run_thread_ranks(int num_ranks, const std::function<void(Job&)>& program, const JobOptions& options) {
  if (num_ranks < 1) throw ConfigError(fmt::format("run_thread_ranks: {} ranks; at least 1", num_ranks));
  ThreadRanks ranks(num_ranks, options, program);
  ranks.wait(std::nullopt);
  if (const std::exception_ptr cause = ranks.first_cause()) std::rethrow_exception(cause);
}

}  // namespace tessera::dist
