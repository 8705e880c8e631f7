#include "examples/gpt2/train_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/atomic_file.h"
#include "kernels/error.h"
#include "kernels/readable.h"

namespace gpt2 {
namespace {

using tessera::DataError;
using tessera::FileError;
using tessera::kNumMemoryCategories;
using tessera::MemoryCategory;

const char* category_name(int category) { return tessera::name(static_cast<MemoryCategory>(category)); }

std::string json_line(const StepReport& report) {
  nlohmann::ordered_json line;
  line["step"] = report.step;
  line["loss"] = report.loss;
  line["grad_norm"] = report.grad_norm;
  line["lr"] = report.lr;
  line["tokens_per_second"] = report.tokens_per_second();
  auto& peak = line["peak_bytes"] = nlohmann::ordered_json::object();
  for (int c = 0; c < kNumMemoryCategories; ++c)
    peak[category_name(c)] = report.peak_bytes[static_cast<std::size_t>(c)];
  peak["total"] = report.peak_total_bytes;
  line["sent_bytes"] = nlohmann::ordered_json(report.sent_bytes);
  if (report.loss_scale) line["loss_scale"] = *report.loss_scale;
  if (report.skipped) line["skipped"] = true;
  return line.dump();
}

std::string csv_header() {
  std::string header = "step,loss,grad_norm,lr,tokens_per_second,sent_bytes,peak_total_bytes";
  for (int c = 0; c < kNumMemoryCategories; ++c) header += fmt::format(",peak_{}_bytes", category_name(c));
  header += ",loss_scale";
  return header;
}

std::string csv_line(const StepReport& report) {
  std::int64_t sent = 0;
  for (const auto& [group, bytes] : report.sent_bytes) sent += bytes;
  std::string line = fmt::format("{},{},{},{},{:.1f},{},{}", report.step, report.loss, report.grad_norm,
                                 report.lr, report.tokens_per_second(), sent, report.peak_total_bytes);
  for (const std::int64_t bytes : report.peak_bytes) line += fmt::format(",{}", bytes);
  line += fmt::format(",{}", report.loss_scale.value_or(1.0));
  return line;
}

// The step that a line of either format belongs to; −1 for a header or a line cut short.
std::int64_t step_of(const std::string& line) {
  if (line.starts_with('{')) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    return json.is_object() && json.contains("step") && json["step"].is_number_integer()
               ? json["step"].get<std::int64_t>()
               : -1;
  }
  std::int64_t step = -1;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), step);
  return error == std::errc() && *end == ',' ? step : -1;
}

void drop_later_steps(const std::filesystem::path& path, std::int64_t steps_done, std::string kept) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    const std::int64_t step = step_of(line);
    if (step >= 1 && step <= steps_done) kept += line + '\n';
  }
  in.close();
  tessera::data::AtomicFile file(path);
  file.write(kept);
  file.commit();
}

}  // namespace

StepLog::StepLog(std::filesystem::path path, Format format, std::int64_t steps_done)
    : path_(std::move(path)), format_(format) {
  if (path_.empty()) return;
  if (path_.has_parent_path()) tessera::data::create_folder(path_.parent_path());
  const bool go_on = steps_done > 0 && std::filesystem::is_regular_file(path_);
  if (go_on) drop_later_steps(path_, steps_done, format_ == Format::kCsv ? csv_header() + '\n' : "");
  descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (go_on ? 0 : O_TRUNC), 0666);
  if (descriptor_ < 0)
    throw DataError(fmt::format("log {}: cannot be written: {}", path_.string(), std::strerror(errno)));
  if (format_ == Format::kCsv && !go_on) write_line(csv_header());
}

StepLog::~StepLog() {
  if (descriptor_ >= 0) close(descriptor_);
}

void StepLog::write(const StepReport& report) {
  if (descriptor_ < 0) return;
  write_line(format_ == Format::kCsv ? csv_line(report) : json_line(report));
}

void StepLog::write_line(const std::string& line) {
  const std::string bytes = line + '\n';
  const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
  if (written != static_cast<ssize_t>(bytes.size())) {
    throw FileError(fmt::format("log {}: cannot be written: {}", path_.string(),
                                written < 0 ? std::strerror(errno) : "no space left on the device"));
  }
}

std::string format_seconds(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(seconds));
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

int terminal_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  // Under mpiexec the output is a pipe: whoever knows the width may say it, as shells do.
  const char* columns = std::getenv("COLUMNS");
  const int width = columns == nullptr ? 0 : std::atoi(columns);
  return width > 0 && width <= 1000 ? width : 80;
}

ProgressDisplay::ProgressDisplay(Progress kind, std::int64_t first_step, std::int64_t total_steps,
                                 std::int64_t lines_every)
    : kind_(kind), first_step_(first_step), total_steps_(total_steps), lines_every_(lines_every) {
  if (kind_ == Progress::kAuto) kind_ = isatty(STDOUT_FILENO) == 1 ? Progress::kBar : Progress::kLines;
}

void ProgressDisplay::step(const StepReport& report) {
  if (kind_ == Progress::kNone) return;
  // The first steps are slower than the rest: memory is allocated there.
  seconds_ = report.step - first_step_ < 3 ? report.seconds : 0.95 * seconds_ + 0.05 * report.seconds;
  const bool last = report.step == total_steps_;
  const auto now = std::chrono::steady_clock::now();
  if (kind_ == Progress::kLines) {
    if (report.step % lines_every_ != 0 && report.step != first_step_ + 1 && !last) return;
  } else if (!last && now - last_drawn_ < std::chrono::milliseconds(100)) {
    return;
  }
  last_drawn_ = now;
  const std::string step =
      fmt::format("{:>{}}/{}", report.step, std::to_string(total_steps_).size(), total_steps_);
  std::vector<std::string> figures{
      fmt::format("loss {:.4f}", report.loss), fmt::format("lr {:.1e}", report.lr),
      tessera::with_commas(std::llround(static_cast<double>(report.tokens) / seconds_)) + " tokens/s",
      format_seconds(seconds_ * static_cast<double>(total_steps_ - report.step)) + " left",
      tessera::with_byte_unit(report.peak_total_bytes)};
  if (report.loss_scale) figures.insert(figures.begin() + 2, fmt::format("scale {:g}", *report.loss_scale));
  if (kind_ == Progress::kLines) {
    fmt::print("step {}  {}\n", step, fmt::join(figures, "  "));
    std::fflush(stdout);
  } else {
    draw_bar(step, figures, static_cast<double>(report.step) / static_cast<double>(total_steps_));
  }
}

void ProgressDisplay::draw_bar(const std::string& step, std::vector<std::string> figures, double part_done) {
  // A line as wide as the terminal would wrap, and the next one could not be written over it.
  const auto room = static_cast<std::size_t>(std::max(terminal_width() - 1, 1));
  constexpr std::size_t kMostCells = 20, kLeastCells = 5;
  std::string text = fmt::format("{}", fmt::join(figures, "  "));
  std::size_t used = step.size() + text.size() + 5;  // " [", "]", and the two spaces after it
  if (used + kLeastCells > room) {
    figures.erase(figures.begin() + 1);  // lr tells least
    text = fmt::format("{}", fmt::join(figures, "  "));
    used = step.size() + text.size() + 5;
  }
  std::string bar = step;
  if (used + kLeastCells <= room) {
    const std::size_t cells = std::min(room - used, kMostCells);
    const auto filled = static_cast<std::size_t>(static_cast<double>(cells) * part_done);
    bar += fmt::format(" [{}{}]", std::string(filled, '#'), std::string(cells - filled, '-'));
  }
  bar += "  " + text;
  bar.resize(std::min(bar.size(), room));
  // Spaces wipe out what a longer line before it left.
  const std::size_t previous = std::min(bar_.size(), room);
  bar_ = bar;
  fmt::print("\r{:<{}}", bar_, std::max(previous, bar_.size()));
  std::fflush(stdout);
}

void ProgressDisplay::clear_bar() {
  if (bar_.empty()) return;
  fmt::print("\r{:<{}}\r", "", bar_.size());
  bar_.clear();
}

void ProgressDisplay::note(const std::string& line) {
  clear_bar();
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

ProgressDisplay::~ProgressDisplay() {
  if (!bar_.empty()) std::fputc('\n', stdout);  // after an error, whose message then begins a line
}

void ProgressDisplay::end() {
  if (!bar_.empty()) fmt::print("\n");
  bar_.clear();
  std::fflush(stdout);
}

}  // namespace gpt2
