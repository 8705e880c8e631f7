// What users see of a job that does not end well, started as they start it: alone, as threads, under mpiexec.
// One rank's error ends all ranks within seconds, with the right exit status, and its cause is printed once.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace tessera::dist::testing {
namespace {

using Clock = std::chrono::steady_clock;

enum class Launcher { kAlone, kThreads, kMpi };

const char* name(Launcher launcher) {
  return launcher == Launcher::kAlone ? "alone" : launcher == Launcher::kThreads ? "threads" : "mpi";
}

/// A job under way, in a process group of its own as a shell would give it.
class RunningJob {
 public:
  RunningJob(Launcher launcher, std::vector<std::string> arguments, bool few_threads = false) {
    const std::string program =
        (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "dist_ranks").string();
    std::vector<std::string> command;
    if (launcher == Launcher::kMpi) command = {TESSERA_MPIEXEC, "-n", "3"};
    command.push_back(program);
    if (launcher == Launcher::kThreads) command.insert(command.end(), {"--ranks", "3"});
    command.insert(command.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : command) argv.push_back(argument.data());
    argv.push_back(nullptr);

    int output[2];
    if (pipe2(output, O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    process_ = fork();
    if (process_ == 0) {
      setpgid(0, 0);
      if (few_threads) {
        const rlimit stack{.rlim_cur = rlim_t{512} << 20, .rlim_max = rlim_t{512} << 20};
        const rlimit addresses{.rlim_cur = rlim_t{4} << 30, .rlim_max = rlim_t{4} << 30};
        setrlimit(RLIMIT_STACK, &stack);
        setrlimit(RLIMIT_AS, &addresses);
      }
      dup2(output[1], STDOUT_FILENO);
      dup2(output[1], STDERR_FILENO);
      const int nothing = open("/dev/null", O_RDONLY);
      dup2(nothing, STDIN_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    setpgid(process_, process_);  // in both, whoever comes first
    close(output[1]);
    output_fd_ = output[0];
  }
  RunningJob(const RunningJob&) = delete;
  RunningJob& operator=(const RunningJob&) = delete;
  ~RunningJob() {
    if (!ended_) {
      kill(-process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
    close(output_fd_);
  }

  [[nodiscard]] pid_t process() const { return process_; }
  void signal_group(int signal_number) const { kill(-process_, signal_number); }

  /// Reads on until the output has `part`; false if it ends before, or a minute passes.
  bool wait_for(const std::string& part) {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    while (output_.find(part) == std::string::npos) {
      if (!read_some(deadline)) return false;
    }
    return true;
  }

  /// The exit status; 128 + signal if one ended it, −1 if it did not end within a minute.
  int wait() {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    while (read_some(deadline)) {
    }
    if (Clock::now() >= deadline) return -1;
    int status = 0;
    waitpid(process_, &status, 0);
    ended_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  [[nodiscard]] const std::string& output() const { return output_; }
  [[nodiscard]] int count(const std::string& part) const {
    int found = 0;
    for (std::size_t at = output_.find(part); at != std::string::npos; at = output_.find(part, at + 1))
      ++found;
    return found;
  }
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(Clock::now() - start_).count();
  }

 private:
  bool read_some(Clock::time_point deadline) {
    pollfd waiting{.fd = output_fd_, .events = POLLIN, .revents = 0};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0 || poll(&waiting, 1, static_cast<int>(left.count())) <= 0) return false;
    std::array<char, 4096> part{};
    const ssize_t size = read(output_fd_, part.data(), part.size());
    if (size <= 0) return false;
    output_.append(part.data(), static_cast<std::size_t>(size));
    return true;
  }

  Clock::time_point start_ = Clock::now();
  pid_t process_ = -1;
  int output_fd_ = -1;
  bool ended_ = false;
  std::string output_;
};

// --- Errors ------------------------------------------------------------------------------------------------

struct ErrorRow {
  const char* how;
  int status;
  std::vector<std::string> parts;  // of the message, from all launchers
  double seconds = 15;             // measured: below 0.5 where nothing else is said
};

const std::vector<ErrorRow>& error_rows() {
  static const std::vector<ErrorRow> kRows{
      {"user_error", 2, {"error (rank 2 of 3): a mistake of the user's\n"}},
      {"other_error", 1, {"error (rank 2 of 3): a failure of the machine's\n"}},
      {"not_an_exception", 1, {"error (rank 2 of 3): an exception that is not a std::exception"}},
      {"every_rank", 2, {": the same mistake on every rank\n"}},
      {"error_under_way", 2, {"error (rank 2 of 3): a mistake while calls are under way\n"}},
      {"error_in_group", 2, {"error (rank 2 of 3): a mistake in a group of its own\n"}},
      {"error_while_others_compute",
       2,
       {"error (rank 2 of 3): a mistake while the others compute\n"}},  // 2 s of grace
      {"on_root", 1, {"error (rank 0 of 3): the disk of rank 0 is full\n"}},
      {"kind",
       1,
       {"all_reduce(1024 f32, sum) at ", "broadcast(1024 f32, root 0) at ", "rank_program.cpp:", "call 0"}},
      {"count", 1, {"all_reduce(1024 f32, sum) at ", "all_reduce(1000 f32, sum) at ", "group world"}},
      {"large_count", 1, {"all_reduce(300000 f32, sum) at ", "all_reduce(200000 f32, sum) at "}},
      {"dtype", 1, {"all_reduce(1024 f32, sum) at ", "all_reduce(1024 i32, sum) at "}},
      {"root", 1, {"broadcast(1024 f32, root 0) at ", "broadcast(1024 f32, root 1) at "}},
      {"reduction", 1, {"all_reduce(1024 f32, sum) at ", "all_reduce(1024 f32, max) at "}},
      {"order", 1, {"all_reduce(1024 f32, sum) at ", "all_reduce(10 f32, sum) at "}},
      {"message_size", 1, {"recv(99 f32, from rank 2, tag 0) at ", "rank_program.cpp:"}},
      {"leave_early",
       1,
       {"rank 2 calls nothing more (it has left the program)", "all_reduce(1024 f32, sum) at "}},
      {"leave_before_message",
       1,
       {"recv(1024 f32, from rank 2", "rank 2 has left the program and will not come"}},
      {"leave_group_early", 1, {"all_reduce(1024 f32, sum) at ", "rank 2 has left", "group team"}},
      {"silent", 1, {"all_reduce(1024 f32, sum) at ", "waited for 2 s"}},
      {"silent_sender", 1, {"recv(1024 f32, from rank 2, tag 5) at ", "waited for 2 s"}},
  };
  return kRows;
}

struct LaunchedRow {
  Launcher launcher;
  ErrorRow row;
};

std::vector<LaunchedRow> launched_rows() {
  std::vector<LaunchedRow> rows;
  for (const ErrorRow& row : error_rows()) {
    rows.push_back({Launcher::kThreads, row});
    if (std::string(TESSERA_MPIEXEC) != "") rows.push_back({Launcher::kMpi, row});
  }
  return rows;
}

class OneRanksError : public ::testing::TestWithParam<LaunchedRow> {};

TEST_P(OneRanksError, EndsAllRanksAndIsToldOnce) {
  const auto& [launcher, row] = GetParam();
  RunningJob job(launcher, {"fail", row.how});
  EXPECT_EQ(job.wait(), row.status) << job.output();
  EXPECT_LT(job.seconds(), row.seconds);
  EXPECT_EQ(job.count("error"), 1) << job.output();
  EXPECT_EQ(job.count("\n"), 1) << "one line and nothing else:\n" << job.output();
  for (const std::string& part : row.parts) EXPECT_GE(job.count(part), 1) << part << " in\n" << job.output();
}

INSTANTIATE_TEST_SUITE_P(Table, OneRanksError, ::testing::ValuesIn(launched_rows()),
                         [](const ::testing::TestParamInfo<LaunchedRow>& info) {
                           return std::string(info.param.row.how) + "_" + name(info.param.launcher);
                         });

class Launched : public ::testing::TestWithParam<Launcher> {
 protected:
  void SetUp() override {
    if (GetParam() == Launcher::kMpi && std::string(TESSERA_MPIEXEC).empty())
      GTEST_SKIP() << "built without MPI";
  }
};

INSTANTIATE_TEST_SUITE_P(By, Launched,
                         ::testing::Values(Launcher::kAlone, Launcher::kThreads, Launcher::kMpi),
                         [](const ::testing::TestParamInfo<Launcher>& info) {
                           return std::string(name(info.param));
                         });

TEST_P(Launched, EndsWithStatusZeroWhenAllRanksReturn) {
  RunningJob job(GetParam(), {"behaviours", "agreements"});
  EXPECT_EQ(job.wait(), 0) << job.output();
  EXPECT_EQ(job.count("all ranks are done\n"), 1) << job.output();
}

TEST_P(Launched, TellsEveryRankOfAMismatch) {
  if (GetParam() == Launcher::kAlone) GTEST_SKIP() << "one rank has nobody to differ from";
  RunningJob job(GetParam(), {"fail", "seen_everywhere"});
  EXPECT_EQ(job.wait(), 1) << job.output();
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(job.count("rank " + std::to_string(rank) + " sees: ranks make different calls: "), 1)
        << job.output();
  }
  EXPECT_EQ(job.count("all_reduce(300000 f32, sum) at "), 4) << "three ranks and the report\n"
                                                             << job.output();
  EXPECT_EQ(job.count("barrier() at "), 4) << job.output();
}

// --- Signals -----------------------------------------------------------------------------------------------

TEST_P(Launched, StopsCleanlyAtCtrlC) {
  RunningJob job(GetParam(), {"fail", "stop"});
  ASSERT_TRUE(job.wait_for("ready")) << job.output();
  job.signal_group(SIGINT);  // as a terminal does
  EXPECT_EQ(job.wait(), 0) << job.output();
  EXPECT_EQ(job.count("all ranks are done\n"), 1) << job.output();
}

// A signal that one process gets, here that of rank 0, stops all ranks after the same step.
TEST_P(Launched, StopsAllRanksWhenOneIsTerminated) {
  RunningJob job(GetParam(), {"fail", "stop"});
  ASSERT_TRUE(job.wait_for("process ") && job.wait_for("\n")) << job.output();
  const pid_t rank_0 = std::stoi(job.output().substr(job.output().find("process ") + 8));
  kill(rank_0, SIGTERM);
  EXPECT_EQ(job.wait(), 0) << job.output();
  EXPECT_EQ(job.count("all ranks are done\n"), 1) << job.output();
}

TEST_P(Launched, EndsAtOnceAtASecondCtrlC) {
  RunningJob job(GetParam(), {"fail", "deaf"});
  ASSERT_TRUE(job.wait_for("ready")) << job.output();
  job.signal_group(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));  // two signals within half a second are one
  job.signal_group(SIGINT);
  const int status = job.wait();
  EXPECT_NE(status, 0);
  EXPECT_NE(status, -1) << "still running";
  EXPECT_LT(job.seconds(), 30);
}

TEST(Mpiexec, EndsWhenARankIsKilled) {
  if (std::string(TESSERA_MPIEXEC).empty()) GTEST_SKIP() << "built without MPI";
  RunningJob job(Launcher::kMpi, {"fail", "killed"});
  const int status = job.wait();
  EXPECT_NE(status, 0);
  EXPECT_NE(status, -1) << "still running";
  EXPECT_LT(job.seconds(), 15);
  EXPECT_EQ(job.count("all ranks are done"), 0);
}

// --- Options -----------------------------------------------------------------------------------------------

TEST_P(Launched, RefusesImpossibleNumbersOfRanks) {
  struct Row {
    std::vector<std::string> arguments;
    const char* part;
  };
  const Row rows[] = {{{"--ranks", "0"}, "--ranks: expected a whole number from 1, got '0'"},
                      {{"--ranks=two"}, "got 'two'"},
                      {{"--threads", "-1"}, "--threads: expected a whole number from 1, got '-1'"},
                      {{"--ranks", "5000"}, GetParam() == Launcher::kMpi ? "--ranks" : "1 to 1024, got 5000"},
                      {{"behaviours", "--threads"}, "--threads: a number must follow"}};
  for (const Row& row : rows) {
    if (GetParam() == Launcher::kMpi && row.arguments.size() != 2) continue;
    RunningJob job(GetParam(), row.arguments);
    EXPECT_EQ(job.wait(), 2) << job.output();
    EXPECT_GE(job.count(row.part), 1) << job.output();
  }
}

// Room for a few stacks of 512 MiB, but not for 32. Users meet the same with `ulimit -u`.
TEST(Threads, TellWhenTheSystemHasNoneLeft) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "sanitizers need the addresses themselves";
#endif
  RunningJob job(Launcher::kAlone, {"--ranks", "32", "behaviours"}, /*few_threads=*/true);
  EXPECT_EQ(job.wait(), 1) << job.output();
  EXPECT_EQ(job.count("error: --ranks 32: the system refused thread "), 1) << job.output();
  EXPECT_EQ(job.count("\n"), 1) << job.output();
}

TEST(Mpiexec, RefusesThreadsAsRanksBeside) {
  if (std::string(TESSERA_MPIEXEC).empty()) GTEST_SKIP() << "built without MPI";
  RunningJob job(Launcher::kMpi, {"--ranks", "2", "behaviours"});
  EXPECT_EQ(job.wait(), 2) << job.output();
  EXPECT_EQ(job.count("--ranks 2 was given under mpiexec -n 3"), 1) << job.output();
}

}  // namespace
}  // namespace tessera::dist::testing
