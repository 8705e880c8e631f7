#include "dist/pipeline_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace tessera::dist {
namespace {

constexpr const char* kPlain = "\x1b[0m";

char letter(ActionKind kind) {
  if (kind == ActionKind::kForward) return 'F';
  return kind == ActionKind::kBackwardWeight ? 'W' : 'B';
}

// Black on blue, green, yellow; a second chunk in the brighter shade.
std::string colour(const Action& action) {
  const int base = letter(action.kind) == 'F' ? 44 : letter(action.kind) == 'B' ? 42 : 43;
  return fmt::format("\x1b[30;{}m", action.chunk % 2 == 0 ? base : base + 60);
}

std::string cell_text(const Schedule& schedule, const Action& action) {
  const int chunk = action.chunk;
  char first = letter(action.kind);
  if (schedule.num_chunks == 2 && chunk == 1)
    first = static_cast<char>(std::tolower(static_cast<unsigned char>(first)));
  std::string text = first + std::to_string(action.micro_batch);
  if (schedule.num_chunks > 2) text += static_cast<char>('a' + chunk % 26);
  return text;
}

// The shortest pass, but for those that make up less than a twentieth of all work: one stage with little to
// do must not stretch the picture.
double shortest_that_counts(const Simulation& simulation) {
  std::vector<double> durations;
  for (const auto& rank : simulation.timeline) {
    for (const TimedAction& timed : rank) {
      if (timed.action.is_compute()) durations.push_back(timed.end - timed.start);
    }
  }
  std::sort(durations.begin(), durations.end());
  const double work = std::accumulate(durations.begin(), durations.end(), 0.0);
  double shorter = 0;
  for (const double duration : durations) {
    shorter += duration;
    if (shorter > work / 20) return duration;
  }
  return work;
}

// A rank's whole line: characters, and where the colour changes.
struct Line {
  std::string text;
  std::vector<std::string> colours;  // [column], empty for idle
};

class Picture {
 public:
  Picture(const Schedule& schedule, const Simulation& simulation, const DrawingOptions& options)
      : schedule_(schedule), simulation_(simulation), options_(options) {
    const double unit = shortest_that_counts(simulation);
    const Action widest = Action::forward(schedule.num_micro_batches - 1, schedule.num_chunks - 1);
    const auto narrow = static_cast<int>(cell_text(schedule, widest).size());
    const double cells = simulation.total / unit;
    // With a space behind each cell, if the picture then fits into one row of blocks.
    cell_ = cells * (narrow + 1) <= room() ? narrow + 1 : narrow;
    columns_per_time_ = cell_ / unit;
  }

  [[nodiscard]] std::string text() const {
    std::vector<Line> lines;
    for (const auto& rank : simulation_.timeline) lines.push_back(line_of(rank));
    const int total = column(simulation_.total), block = std::max(cell_, room() / cell_ * cell_);
    std::string result = heading() + '\n';
    for (int begin = 0; begin < total; begin += block) {
      if (begin > 0) result += '\n';
      for (std::size_t rank = 0; rank < lines.size(); ++rank)
        result += fmt::format("{:<{}}{}\n", rank, label_width(),
                              part(lines[rank], begin, std::min(total, begin + block)));
    }
    return result + footing();
  }

 private:
  [[nodiscard]] int column(double time) const {
    return static_cast<int>(std::lround(time * columns_per_time_));
  }
  [[nodiscard]] int label_width() const { return schedule_.num_ranks > 10 ? 4 : 3; }
  [[nodiscard]] int room() const { return std::max(1, options_.width - label_width()); }

  [[nodiscard]] Line line_of(const std::vector<TimedAction>& rank) const {
    const auto total = static_cast<std::size_t>(column(simulation_.total));
    Line line{std::string(total, '.'), std::vector<std::string>(total)};
    for (const TimedAction& timed : rank) {
      if (!timed.action.is_compute()) continue;
      const int begin = column(timed.start), width = column(timed.end) - begin;
      std::string text = cell_text(schedule_, timed.action);
      text.resize(static_cast<std::size_t>(std::max(0, width)), ' ');
      line.text.replace(static_cast<std::size_t>(begin), text.size(), text);
      std::fill_n(line.colours.begin() + begin, text.size(), colour(timed.action));
    }
    return line;
  }

  [[nodiscard]] std::string part(const Line& line, int begin, int end) const {
    const auto from = static_cast<std::size_t>(begin), to = static_cast<std::size_t>(end);
    if (!options_.colour) {
      std::string text = line.text.substr(from, to - from);
      text.erase(text.find_last_not_of(' ') + 1);
      return text;
    }
    std::string text, current;
    for (std::size_t i = from; i < to; ++i) {
      if (line.colours[i] != current) text += line.colours[i].empty() ? kPlain : line.colours[i];
      current = line.colours[i];
      text += line.text[i];
    }
    return current.empty() ? text : text + kPlain;
  }

  [[nodiscard]] std::string heading() const {
    bool is_split = false;
    for (const TimedAction& timed : simulation_.timeline.front())
      is_split = is_split || timed.action.kind == ActionKind::kBackwardWeight;
    const int v = schedule_.num_chunks;
    const int p = schedule_.num_ranks, m = schedule_.num_micro_batches;
    std::string text = fmt::format("{}: {} rank{}, {} micro-batch{}", schedule_.name, p, p == 1 ? "" : "s", m,
                                   m == 1 ? "" : "es");
    if (v > 1) text += fmt::format(", {} chunks", v);
    if (schedule_.is_forward_only) return text + (v == 2 ? "    F forward, f of chunk 1" : "    F forward");
    text += is_split ? "    F forward, B to input, W to weights" : "    F forward, B backward";
    if (v == 2) text += is_split ? "; f, b, w: chunk 1" : "; f, b: chunk 1";
    if (v > 2) text += "; chunks a, b, ...";
    return text;
  }

  [[nodiscard]] std::string footing() const {
    std::string result =
        fmt::format("bubble {:.1f} % of {:.6g}\n", 100 * simulation_.bubble(), simulation_.total);
    const auto row = [&](const char* what, const std::vector<double>& values) {
      result += fmt::format("{:<38}", what);
      for (const double value : values)
        result += fmt::format(" {:.4g}", std::abs(value) < 1e-9 ? 0.0 : value);
      result += '\n';
    };
    row("idle, by rank", simulation_.idle);
    row("idle between first and last action", simulation_.idle_inside);
    row("most activations alive", simulation_.peak_activations);
    return result + fmt::format("messages {}\n", simulation_.num_messages);
  }

  const Schedule& schedule_;
  const Simulation& simulation_;
  DrawingOptions options_;
  int cell_ = 1;
  double columns_per_time_ = 0;
};

}  // namespace

std::string draw(const Schedule& schedule, const Simulation& simulation, const DrawingOptions& options) {
  if (simulation.timeline.size() != schedule.actions.size()) {
    throw ConfigError(fmt::format("draw: a schedule of {} ranks with a simulation of {}",
                                  schedule.actions.size(), simulation.timeline.size()));
  }
  if (!(simulation.total > 0))
    throw ConfigError(fmt::format("draw: every action of schedule {} takes no time", schedule.name));
  return Picture(schedule, simulation, options).text();
}

}  // namespace tessera::dist
