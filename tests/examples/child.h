#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace tessera::programs {

using namespace std::chrono_literals;

/// How a program ended, and what it said.
struct Outcome {
  int status = -1;  ///< exit status; 128 + signal if one ended it; −1 if the time limit did
  std::string out, err;
  double seconds = 0.0;

  [[nodiscard]] std::string all() const { return out + err; }
};

/// A built program that runs beside the test, in a process group of its own: what a shell makes of a command
/// line, so that a signal to the group is what Ctrl-C sends. Killed with its children when the test leaves
/// it.
class Child {
 public:
  struct Options {
    std::filesystem::path folder = ".";  ///< to run in
    bool terminal = false;               ///< standard output is a pseudo-terminal, `columns` wide
    unsigned short columns = 80;
    rlim_t largest_file = RLIM_INFINITY;  ///< bytes; a write beyond fails as on a full disk
    bool as_nobody = false;               ///< without root's way around permissions
  };

  Child(const std::vector<std::string>& command, const Options& options)
      : start_(std::chrono::steady_clock::now()) {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    if (options.terminal) {
      winsize size{24, options.columns, 0, 0};
      if (::openpty(&out[0], &out[1], nullptr, nullptr, &size) != 0)
        throw std::runtime_error("no pseudo-terminal");
    } else if (::pipe(out) != 0) {
      throw std::runtime_error("no pipe");
    }
    if (::pipe(err) != 0) throw std::runtime_error("no pipe");
    pid_ = ::fork();
    if (pid_ == 0) become(command, options, out[1], err[1]);
    ::close(out[1]);
    ::close(err[1]);
    out_ = out[0];
    err_ = err[0];
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(-pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(out_);
    ::close(err_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// To the program and all its children.
  void signal_group(int signal) const { ::kill(-pid_, signal); }
  /// What it has written so far; collects while it waits until `condition` holds or `limit` is over.
  bool wait_until(const std::function<bool(const Outcome&)>& condition,
                  std::chrono::milliseconds limit = 60s) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!condition(outcome_)) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      if (!collect(20)) std::this_thread::sleep_for(5ms);
    }
    return true;
  }
  /// Waits for its end, at most `limit`.
  Outcome wait(std::chrono::milliseconds limit = 60s) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) return outcome_;  // the destructor kills it
      if (!collect(20)) std::this_thread::sleep_for(2ms);
    }
    while (collect(0)) {
    }
    pid_ = -1;
    outcome_.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return outcome_;
  }

 private:
  [[noreturn]] static void become(const std::vector<std::string>& command, const Options& options, int out,
                                  int err) {
    ::setsid();
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    for (int descriptor = 3; descriptor < 256; ++descriptor) ::close(descriptor);
    for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ}) ::signal(signal, SIG_DFL);
    ::setenv("OMP_WAIT_POLICY", "passive", 1);  // tests share the cores with others
    const rlimit limit{options.largest_file, options.largest_file};
    if (options.largest_file != RLIM_INFINITY) ::setrlimit(RLIMIT_FSIZE, &limit);
    if (::chdir(options.folder.c_str()) != 0) ::_exit(126);
    if (options.as_nobody && (::setgid(65534) != 0 || ::setuid(65534) != 0)) ::_exit(126);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }

  // Reads what is there, waiting for `milliseconds` at most; true if there was something.
  bool collect(int milliseconds) {
    pollfd watched[2] = {{out_open_ ? out_ : -1, POLLIN, 0}, {err_open_ ? err_ : -1, POLLIN, 0}};
    if (::poll(watched, 2, milliseconds) <= 0) return false;
    bool any = false;
    const auto take = [&any](const pollfd& from, int descriptor, std::string& to, bool& open) {
      if (from.revents == 0) return;
      char part[4096];
      const ssize_t size = ::read(descriptor, part, sizeof(part));
      open = size > 0;
      if (open) to.append(part, static_cast<std::size_t>(size));
      any = any || open;
    };
    take(watched[0], out_, outcome_.out, out_open_);
    take(watched[1], err_, outcome_.err, err_open_);
    return any;
  }

  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
  bool out_open_ = true, err_open_ = true;
  Outcome outcome_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace tessera::programs
