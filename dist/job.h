#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "dist/communicator.h"
#include "dist/tape.h"

namespace tessera::dist {

/// How this process was started, as the launcher's environment says; MPI need not be initialised.
struct Launch {
  bool by_mpi = false;  ///< by mpiexec (MPICH, Open MPI, srun with PMI)
  int rank = 0;
  int size = 1;
};
[[nodiscard]] Launch launch() noexcept;

struct JobOptions {
  /// `--ranks N`: run N ranks as threads of this process. Not together with mpiexec.
  std::optional<int> ranks;
  /// `--threads N`: threads of each rank. Default: cores that this process may use ÷ ranks that share them,
  /// at least 1.
  std::optional<int> threads;
  std::uint64_t seed = 0;  ///< of each rank's RankContext
  CommOptions communication;
  std::size_t tape_capacity = 1024;
  /// After one rank's error the others meet it in their next call. Those that make none for this long are
  /// ended with the process.
  std::chrono::milliseconds grace = std::chrono::seconds(10);
  /// Turn Ctrl-C and SIGTERM into stop_requested(). False: leave signals alone.
  bool handle_signals = true;
  /// Printed below an error: where its reader finds more. Empty: nothing.
  std::string hint;

  /// Takes `--ranks N` and `--threads N` (also `--ranks=N`) out of a command line and leaves the rest. For
  /// programs without a parser of their own. Errors: ConfigError.
  [[nodiscard]] static JobOptions take_from(int& argc, char** argv);
};

/// What a rank's program sees of the job it is part of.
///
/// Threads   Used by the rank's own thread.
class Job {
 public:
  Job(const JobOptions& options, std::shared_ptr<Communicator> world, int threads_per_rank)
      : options_(options), world_(std::move(world)), threads_per_rank_(threads_per_rank) {}
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  [[nodiscard]] int rank() const noexcept { return world_->rank(); }
  [[nodiscard]] int size() const noexcept { return world_->size(); }
  [[nodiscard]] bool is_root() const noexcept { return rank() == 0; }
  /// All ranks. Groups are made from it by split().
  [[nodiscard]] Communicator& world() const noexcept { return *world_; }
  [[nodiscard]] const std::shared_ptr<Communicator>& shared_world() const noexcept { return world_; }
  [[nodiscard]] const char* backend() const noexcept { return world_->backend(); }
  [[nodiscard]] Tape& tape() const noexcept { return world_->tape(); }
  [[nodiscard]] const JobOptions& options() const noexcept { return options_; }
  /// Threads of one kernel of this rank; also in RankContext::current().kernels.num_threads.
  [[nodiscard]] int threads_per_rank() const noexcept { return threads_per_rank_; }

  /// Writes a line to standard output, on rank 0 only.
  void log(std::string_view line) const;

  /// True once this process has got Ctrl-C or SIGTERM. Ranks may see it at different steps: act on
  /// agree_to_stop().
  [[nodiscard]] bool stop_requested() const noexcept;
  /// The same on every rank: true if any rank was asked to stop. A collective: every rank calls it, once a
  /// step, say.
  [[nodiscard]] bool agree_to_stop(std::source_location where = std::source_location::current());

  /// Runs `action` on rank 0 while the others wait. If it throws, rank 0 gets its exception and the others
  /// PeerFailure: nobody waits for a save that will not come. A collective.
  void on_root(const std::function<void()>& action,
               std::source_location where = std::source_location::current());

 private:
  JobOptions options_;
  std::shared_ptr<Communicator> world_;
  int threads_per_rank_;
};

/// Runs `action` on rank 0 of the group while the others wait; see Job::on_root.
void run_on_root(Communicator& group, const std::function<void()>& action,
                 std::source_location where = std::source_location::current());

/// Runs `program` on every rank of the job and returns the exit status for main: alone, as `options.ranks`
/// threads, or as this process's rank of an mpiexec.
///
/// Each rank's thread has its RankContext (rank, world size, threads, seed) installed. The program ends well
/// if every rank returns; then the status is 0, after a clean stop by Ctrl-C too. If a rank throws, the
/// others are woken, the first cause is printed once on standard error, as "error (rank 2 of 4): ...", and
/// the status is its Error::exit_code(): 2 for a user's mistake, 1 otherwise. A second Ctrl-C ends the
/// process at once. Under mpiexec an error ends all processes with that status.
///
/// Errors    None are thrown. Status 2 and a message for --ranks below 1, and for --ranks under mpiexec.
/// Example   int main(int argc, char** argv) {
///             dist::JobOptions options;
///             CLI::App app{"Trains a model."};
///             app.add_option("--ranks", options.ranks, "Ranks, as threads of this process");
///             app.add_option("--threads", options.threads, "Threads of each rank");
///             CLI11_PARSE(app, argc, argv);
///             return dist::run(options, [&](dist::Job& job) {
///               std::vector<float> x(3, static_cast<float>(job.rank()));
///               job.world().all_reduce(dist::buffer_of(x));
///               job.log("the sum of all ranks is " + std::to_string(x[0]));
///             });
///           }
///           ./program    ./program --ranks 4    mpiexec -n 4 ./program
[[nodiscard]] int run(const JobOptions& options, const std::function<void(Job&)>& program) noexcept;

/// The same for a program without options of its own, or that looks at what JobOptions::take_from leaves of
/// argv.
[[nodiscard]] int run(int& argc, char** argv, const std::function<void(Job&)>& program) noexcept;

/// Runs `program` on `num_ranks` threads of this process and throws the first cause, if there is one. For
/// tests, and programs that handle errors themselves. Never ends the process: waits for every rank.
void run_thread_ranks(int num_ranks, const std::function<void(Job&)>& program,
                      const JobOptions& options = {});

}  // namespace tessera::dist
