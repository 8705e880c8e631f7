// Runs combinations of dist's settings and says of each whether it trains what one rank trains.
//
//   every_layout                    all of them, with a table of what ran: an hour or two on two cores
//   every_layout --chosen 40        forty with nearly every pair of settings, and one of each refusal
//   every_layout --part 3/16        a sixteenth of all, for sixteen machines or sixteen evenings
//   every_layout --only "pp=2,tp=2 " --only zb-v      rows that have both texts in them

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/error.h"
#include "kernels/random_key.h"
#include "tests/parity/combinations.h"
#include "tests/parity/compare.h"
#include "tests/parity/run.h"

namespace tessera::dist::parity {
namespace {

struct Options {
  int chosen = 0;
  std::string part = "1/1";
  std::vector<std::string> only;
  int jobs = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  bool list = false, each = false;
};

enum class Outcome { kEqual, kRefused, kFailed };

struct Verdict {
  Outcome outcome = Outcome::kFailed;
  std::string text;      ///< how far it is from one rank, why it is refused, or what went wrong
  double seconds = 0.0;  ///< of the run on many ranks
};

// The f32 bound is one over twenty steps, and so are the errors that 16-bit runs are measured by. In f64 and
// in bits a mistake shows as soon as it is made; six steps are past the first wrong moment and the first
// stale weight.
int steps_of(const Combination& row) {
  return row.arithmetic == Arithmetic::kF64 || row.arithmetic == Arithmetic::kInvariant ? 6 : 20;
}

TrainingRun training_run(const Combination& row, const std::string& text) {
  return {.model = row.model(), .config = layout(text), .steps = steps_of(row), .overflows = false};
}

/// Runs of one rank, each made once, whoever asks.
class References {
 public:
  const OneRank& of(const Combination& row) {
    const bool invariant = row.arithmetic == Arithmetic::kInvariant;
    const TrainingRun wanted = training_run(row, row.to_string());
    const std::string key =
        fmt::format("{} {} {} {}", wanted.model, name(wanted.config.dtype), row.optimizer, invariant);
    Entry* entry = nullptr;
    {
      const std::lock_guard lock(mutex_);
      entry = &known_[key];
    }
    std::call_once(entry->made, [&] {
      TrainingRun alone = wanted;
      alone.config = layout("dp=1");
      alone.config.dtype = wanted.config.dtype;
      alone.config.optimizer = wanted.config.optimizer;
      if (!invariant) {
        entry->run = one_rank(alone);
        return;
      }
      // Bits are those of Invariant numerics on one rank. That these are a right answer at all is another
      // matter, for which the loop without dist stands: in f64, where no rounding hides a mistake.
      alone.config.numerics = Config::Numerics::kInvariant;
      entry->run.run = run_on_threads(alone);
      alone.config.dtype = kF64;
      if (const Distance d = distance(alone, run_on_threads(alone), one_rank(alone)); d.value > 1.0)
        throw Error("Invariant numerics on one rank are not what is trained without dist: " + d.shown);
    });
    return entry->run;
  }

 private:
  struct Entry {
    std::once_flag made;
    OneRank run;
  };
  std::mutex mutex_;
  std::map<std::string, Entry> known_;
};

bool has_equal_bits(const Result& a, const Result& b) {
  return a.losses == b.losses && a.grad_norms == b.grad_norms && a.weights == b.weights;
}

Verdict train(const Combination& row, References& references) {
  const TrainingRun run = training_run(row, row.to_string());
  const OneRank& alone = references.of(row);
  const auto start = std::chrono::steady_clock::now();
  const Result trained = run_on_threads(run);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!trained.broken_replica.empty()) return {Outcome::kFailed, trained.broken_replica, seconds};
  const Distance d = distance(run, trained, alone);
  if (row.arithmetic == Arithmetic::kInvariant) {
    if (has_equal_bits(trained, alone.run)) return {Outcome::kEqual, "the same bits", seconds};
    return {Outcome::kFailed, "other bits: " + d.shown, seconds};
  }
  const std::string shown = fmt::format("{:.2g} of what is allowed: {}", d.value, d.shown);
  return {d.value <= 1.0 ? Outcome::kEqual : Outcome::kFailed, shown, seconds};
}

bool contains(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

// A row that must be refused is, with the reason, and with something that works: which is tried.
Verdict refuse(const Combination& row, const Refusal& refusal, References& references) {
  try {
    const Verdict verdict = train(row, references);
    return {Outcome::kFailed, "should be refused, but trained: " + verdict.text, verdict.seconds};
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    if (!contains(message, refusal.reason) || !contains(message, refusal.remedy))
      return {Outcome::kFailed, "refused for another reason: " + message};
  }
  // What works may itself need a second change: a ring of Invariant numerics on five tensor-parallel ranks.
  const auto next = expected_refusal(refusal.nearest);
  const Verdict nearest =
      next ? refuse(refusal.nearest, *next, references) : train(refusal.nearest, references);
  if (nearest.outcome == Outcome::kFailed)
    return {Outcome::kFailed,
            fmt::format("{}, which is said to work: {}", refusal.nearest.to_string(), nearest.text)};
  return {Outcome::kRefused, refusal.reason + " ... " + refusal.remedy};
}

Verdict judge(const Combination& row, References& references) {
  try {
    const auto refusal = expected_refusal(row);
    return refusal ? refuse(row, *refusal, references) : train(row, references);
  } catch (const std::exception& error) {
    return {Outcome::kFailed, error.what()};
  }
}

// --- The table ---------------------------------------------------------------------------------------------

struct Count {
  int equal = 0, refused = 0, failed = 0;
  void add(Outcome outcome) {
    (outcome == Outcome::kEqual ? equal : outcome == Outcome::kRefused ? refused : failed)++;
  }
  [[nodiscard]] std::string shown() const {
    if (equal + refused + failed == 0) return "";
    std::string text = std::to_string(equal);
    if (refused > 0) text += fmt::format(" +{}", refused);
    if (failed > 0) text += fmt::format(" !{}", failed);
    return text;
  }
};

void print_by(const char* title, const std::vector<Combination>& rows, const std::vector<Verdict>& verdicts,
              const std::function<std::string(const Combination&)>& line,
              const std::vector<std::string>& order) {
  std::map<std::string, std::map<std::string, Count>> cells;
  for (std::size_t i = 0; i < rows.size(); ++i)
    cells[line(rows[i])][rows[i].settings()[8]].add(verdicts[i].outcome);
  fmt::print("\n  {:<14}{:>16}{:>16}{:>16}{:>16}\n", title, "f64", "f32", "bf16", "invariant");
  for (const std::string& name : order) {
    if (!cells.contains(name)) continue;
    auto& of = cells[name];
    // fmt pads by bytes, and × has two.
    const int width = 14 + static_cast<int>(std::ranges::count(name, '\xc3'));
    fmt::print("  {:<{}}{:>16}{:>16}{:>16}{:>16}\n", name, width, of["f64"].shown(), of["f32"].shown(),
               of["bf16"].shown(), of["f32 invariant"].shown());
  }
}

void print_table(const std::vector<Combination>& rows, const std::vector<Verdict>& verdicts) {
  fmt::print("\nRows that train what one rank trains, +refused with a reason and what works, !failed\n");
  print_by("axes", rows, verdicts, [](const Combination& row) { return row.axes(); },
           {"one rank", "dp", "cp", "tp", "pp", "dp×cp", "dp×tp", "cp×tp", "pp×dp", "pp×cp", "pp×tp",
            "dp×cp×tp", "pp×dp×cp", "pp×dp×tp", "pp×cp×tp", "pp×dp×cp×tp"});
  print_by("ZeRO stage", rows, verdicts, [](const Combination& row) { return std::to_string(row.zero); },
           {"0", "1", "2", "3"});
  print_by("schedule", rows, verdicts,
           [](const Combination& row) { return row.schedule.empty() ? "none" : row.schedule; },
           {"none", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"});
  print_by("optimizer", rows, verdicts, [](const Combination& row) { return row.optimizer; },
           {"AdamW", "Lamb", "Muon"});
  print_by("recompute", rows, verdicts,
           [](const Combination& row) { return row.recompute ? "full" : "none"; }, {"none", "full"});
  print_by("passes", rows, verdicts, [](const Combination& row) { return row.accumulate ? "many" : "one"; },
           {"one", "many"});
  std::map<std::string, int> reasons;
  for (const Verdict& verdict : verdicts) {
    if (verdict.outcome == Outcome::kRefused) reasons[verdict.text]++;
  }
  if (!reasons.empty()) fmt::print("\nRefused, and what the message says works was tried:\n");
  for (const auto& [reason, count] : reasons) fmt::print("  {:>7}  {}\n", count, reason);
}

// --- Which rows --------------------------------------------------------------------------------------------

std::vector<Combination> part_of(const std::vector<Combination>& rows, const std::string& part) {
  std::size_t index = 0, count = 0;
  if (std::sscanf(part.c_str(), "%zu/%zu", &index, &count) != 2 || index < 1 || index > count)
    throw std::invalid_argument("--part: expected I/N with 1 <= I <= N, got " + part);
  // Every N-th in an order without periods, so that each part has some of everything.
  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (count > 1)
    std::ranges::sort(order, {},
                      [](std::size_t i) { return kernels::random_key_bits({.seed = 1, .stream = i}); });
  std::vector<Combination> result;
  for (std::size_t i = index - 1; i < rows.size(); i += count) result.push_back(rows[order[i]]);
  return result;
}

// One row of each reason.
std::vector<Combination> one_of_each_refusal(const std::vector<Combination>& rows) {
  std::set<std::string> seen;
  std::vector<Combination> result;
  for (const Combination& row : rows) {
    if (const auto refusal = expected_refusal(row); refusal && seen.insert(refusal->reason).second)
      result.push_back(row);
  }
  return result;
}

std::vector<Combination> rows_of(const Options& options) {
  std::vector<Combination> rows = all_combinations();
  if (options.chosen > 0) {
    const std::vector<Combination> refused = one_of_each_refusal(rows);
    Chosen chosen = choose(rows, options.chosen);
    fmt::print("{} rows with {} of {} pairs of settings, and {} that are refused\n", chosen.rows.size(),
               chosen.num_covered, chosen.num_pairs, refused.size());
    rows = std::move(chosen.rows);
    rows.insert(rows.end(), refused.begin(), refused.end());
  }
  std::erase_if(rows, [&options](const Combination& row) {
    const std::string text = row.to_string() + " " + row.model();
    return !std::ranges::all_of(options.only,
                                [&text](const std::string& words) { return contains(text, words); });
  });
  return part_of(rows, options.part);
}

int run(const Options& options) {
  const std::vector<Combination> rows = rows_of(options);
  if (options.list) {
    for (const Combination& row : rows) fmt::print("{}   {}\n", row.to_string(), row.model());
    return 0;
  }
  if (rows.empty()) throw std::invalid_argument("no row has all the texts of --only");
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  std::vector<Verdict> verdicts(rows.size());
  References references;
  std::mutex printing;
  std::atomic<std::size_t> next = 0;
  std::size_t done = 0, failed = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < rows.size(); i = next++) {
      verdicts[i] = judge(rows[i], references);
      const std::lock_guard lock(printing);
      ++done;
      const bool is_wrong = verdicts[i].outcome == Outcome::kFailed;
      failed += is_wrong ? 1 : 0;
      if (options.each || is_wrong) {
        fmt::print("{}{} ({}): {} ({:.2f} s)\n", is_wrong ? "FAILED " : "", rows[i].to_string(),
                   rows[i].llama ? "Llama" : "GPT-2", verdicts[i].text, verdicts[i].seconds);
      } else if (done % 1000 == 0) {
        fmt::print("{} of {} rows after {:.0f} s, {} failed\n", done, rows.size(), elapsed(), failed);
      }
      std::fflush(stdout);
    }
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < options.jobs; ++i) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();

  print_table(rows, verdicts);
  fmt::print("\n{} rows in {:.0f} s, {} failed\n", rows.size(), elapsed(), failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tessera::dist::parity

int main(int argc, char** argv) {
  using namespace tessera::dist::parity;
  Options options;
  CLI::App app("Trains every combination of layout settings and compares it with one rank.");
  app.add_option("--chosen", options.chosen,
                 "so many rows that cover pairs of settings, and one of each refusal")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--part", options.part, "I/N: the I-th of N parts, each with some of everything");
  app.add_option("--only", options.only, "rows that have this text in them; give it again for one more");
  app.add_option("--jobs", options.jobs, "rows at a time")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_flag("--list", options.list, "print the rows, run none");
  app.add_flag("--each", options.each, "a line for every row");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "every_layout: {}\n", error.what());
    return 2;
  }
}
