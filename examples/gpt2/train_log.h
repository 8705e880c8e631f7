#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dist/engine.h"
#include "examples/gpt2/train_options.h"

namespace gpt2 {

using tessera::dist::StepReport;

/// Appends one record a step to a file, as JSON lines or as CSV, and leaves it whole at every moment: a
/// record is one write.
///
/// On resuming, records of the steps that will be run again are taken out first.
/// Errors    DataError if the file can't be opened, FileError if a write fails (disk full).
class StepLog {
 public:
  enum class Format { kJsonLines, kCsv };
  /// Writes to `path`, if it is not empty; `steps_done` is 0 for a new run, which begins a new file.
  StepLog(std::filesystem::path path, Format format, std::int64_t steps_done);
  ~StepLog();
  StepLog(const StepLog&) = delete;
  StepLog& operator=(const StepLog&) = delete;

  void write(const StepReport& report);

 private:
  void write_line(const std::string& line);

  std::filesystem::path path_;
  Format format_;
  int descriptor_ = -1;
};

/// Shows a run to a person: one line that is written over, or a line now and then.
///
///   120/500 [####----------------]  loss 4.5123  lr 9.1e-04  22,410 tokens/s  0:51 left  71 MB
///
/// The bar fits the terminal: on a narrow one it has fewer cells, and then no learning rate.
class ProgressDisplay {
 public:
  ProgressDisplay(Progress kind, std::int64_t first_step, std::int64_t total_steps, std::int64_t lines_every);
  ~ProgressDisplay();
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;
  void step(const StepReport& report);
  /// A line that stays, above the bar. It is shown with Progress::kNone, too: a result is no progress.
  void note(const std::string& line);
  void end();

 private:
  void draw_bar(const std::string& step, std::vector<std::string> figures, double part_done);
  void clear_bar();

  Progress kind_;
  std::int64_t first_step_;
  std::int64_t total_steps_;
  std::int64_t lines_every_;
  std::string bar_;
  std::chrono::steady_clock::time_point last_drawn_{};
  double seconds_ = 0.0;  // of a step, averaged over the latest
};

/// 3671 s → "1:01:11".
[[nodiscard]] std::string format_seconds(double seconds);

}  // namespace gpt2
