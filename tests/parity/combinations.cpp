#include "tests/parity/combinations.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace tessera::dist::parity {
namespace {

constexpr std::array kArithmetics{Arithmetic::kF64, Arithmetic::kF32, Arithmetic::kBF16,
                                  Arithmetic::kInvariant};
// One that updates element by element, one by norms of whole tensors, one by products of whole matrices. The
// others (SGD, Adagrad, Lion) are of the first kind; parity_test.cpp has rows of them.
constexpr std::array kOptimizers{"AdamW", "Lamb", "Muon"};
constexpr std::array kSchedules{"gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"};

const char* word(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kF64:
      return "f64";
    case Arithmetic::kF32:
      return "f32";
    case Arithmetic::kBF16:
      return "bf16";
    case Arithmetic::kInvariant:
      return "f32 invariant";
  }
  return "";
}

std::vector<std::string> named_axes(const Combination& row) {
  std::vector<std::string> result;
  for (const auto& [name, size] :
       {std::pair{"pp", row.pp}, std::pair{"dp", row.dp}, std::pair{"cp", row.cp}, std::pair{"tp", row.tp}}) {
    if (size > 1) result.emplace_back(name);
  }
  return result;
}

int chunks(const Combination& row) { return row.schedule == "interleaved" || row.schedule == "zb-v" ? 2 : 1; }

bool splits_backward(const Combination& row) { return row.schedule.starts_with("zb"); }

// Calls `use` with every mesh of up to eight ranks, and with the smallest that has all axes.
template <typename Use>
void for_each_mesh(const Use& use) {
  for (int pp = 1; pp <= kMostRanks; ++pp) {
    for (int dp = 1; pp * dp <= kMostRanks; ++dp) {
      for (int cp = 1; pp * dp * cp <= kMostRanks; ++cp) {
        for (int tp = 1; pp * dp * cp * tp <= kMostRanks; ++tp) use(pp, dp, cp, tp);
      }
    }
  }
  use(2, 2, 2, 2);
}

}  // namespace

std::string Combination::to_string() const {
  std::string text;
  for (const auto& [name, size] :
       {std::pair{"pp", pp}, std::pair{"dp", dp}, std::pair{"cp", cp}, std::pair{"tp", tp}})
    text += size > 1 ? fmt::format("{}{}={}", text.empty() ? "" : ",", name, size) : "";
  if (text.empty()) text = "dp=1";
  text += fmt::format(" zero={}", zero);
  if (!schedule.empty()) text += " schedule=" + schedule;
  if (recompute) text += " recompute=full";
  if (accumulate) text += " pass=1";
  if (sequence_parallel) text += " sp";
  if (ulysses) text += " ulysses";
  return text + fmt::format(" {} {}", optimizer, word(arithmetic));
}

std::string Combination::axes() const {
  const std::vector<std::string> names = named_axes(*this);
  return names.empty() ? "one rank" : fmt::format("{}", fmt::join(names, "×"));
}

std::string Combination::model() const {
  const int layers = pp == 1 ? 2 : pp * chunks(*this) + 1;
  return fmt::format("{},layers={},heads=4,width=16,context=13,dropout=0.1",
                     llama ? "family=llama,kv_heads=2,hidden=22,tied=1" : "family=gpt2", layers);
}

std::vector<std::string> Combination::settings() const {
  std::vector<std::string> result{fmt::format("dp={}", dp),
                                  fmt::format("tp={}", tp),
                                  fmt::format("pp={}", pp),
                                  fmt::format("cp={}", cp),
                                  fmt::format("zero={}", zero),
                                  recompute ? "recompute" : "no recompute",
                                  accumulate ? "many passes" : "one pass",
                                  optimizer,
                                  word(arithmetic),
                                  llama ? "llama" : "gpt2"};
  if (!schedule.empty()) result.push_back(schedule);
  if (tp > 1) result.emplace_back(sequence_parallel ? "sp" : "no sp");
  if (cp > 1) result.emplace_back(ulysses ? "ulysses" : "ring");
  return result;
}

std::vector<Combination> all_combinations() {
  std::vector<Combination> rows;
  for_each_mesh([&rows](int pp, int dp, int cp, int tp) {
    Combination row{.dp = dp, .tp = tp, .pp = pp, .cp = cp};
    std::vector<std::string> schedules{""};
    if (pp > 1) schedules.assign(kSchedules.begin(), kSchedules.end());
    for (row.zero = 0; row.zero <= 3; ++row.zero) {
      for (const std::string& schedule : schedules) {
        row.schedule = schedule;
        for (const bool recompute : {false, true}) {
          row.recompute = recompute;
          for (const bool accumulate : {false, true}) {
            row.accumulate = accumulate;
            for (const char* optimizer : kOptimizers) {
              row.optimizer = optimizer;
              for (const Arithmetic arithmetic : kArithmetics) {
                row.arithmetic = arithmetic;
                // Turns of lengths that share no divisor with those of the loops, nor with one another.
                const std::size_t turn = rows.size();
                row.llama = turn / 5 % 2 == 1;
                row.sequence_parallel = tp > 1 && turn / 7 % 2 == 1;
                row.ulysses = cp > 1 && turn / 11 % 2 == 1;
                rows.push_back(row);
              }
            }
          }
        }
      }
    }
  });
  return rows;
}

Chosen choose(const std::vector<Combination>& all, int count) {
  // Settings and pairs as numbers: a pair (a, b), a < b, is a·n + b.
  std::map<std::string, std::size_t> number;
  std::vector<std::pair<const Combination*, std::vector<std::size_t>>> candidates;
  for (const Combination& row : all) {
    if (expected_refusal(row)) continue;
    std::vector<std::size_t> settings;
    for (const std::string& setting : row.settings())
      settings.push_back(number.try_emplace(setting, number.size()).first->second);
    std::ranges::sort(settings);
    candidates.emplace_back(&row, std::move(settings));
  }
  const std::size_t n = number.size();
  const auto count_new = [n](const std::vector<std::size_t>& settings, const std::vector<char>& covered) {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < settings.size(); ++i) {
      for (std::size_t j = i + 1; j < settings.size(); ++j)
        sum += covered[settings[i] * n + settings[j]] == 0 ? 1 : 0;
    }
    return sum;
  };
  const auto cover = [n](const std::vector<std::size_t>& settings, std::vector<char>& covered) {
    for (std::size_t i = 0; i < settings.size(); ++i) {
      for (std::size_t j = i + 1; j < settings.size(); ++j) covered[settings[i] * n + settings[j]] = 1;
    }
  };

  Chosen chosen;
  std::vector<char> possible(n * n), covered(n * n);
  for (const auto& [row, settings] : candidates) cover(settings, possible);
  for (int i = 0; i < count; ++i) {
    const auto* best = &candidates.front();
    std::int64_t most = -1;
    for (const auto& candidate : candidates) {
      if (const std::int64_t gain = count_new(candidate.second, covered); gain > most)
        most = gain, best = &candidate;
    }
    if (most == 0) break;
    cover(best->second, covered);
    chosen.rows.push_back(*best->first);
  }
  chosen.num_pairs = std::ranges::count(possible, 1);
  chosen.num_covered = std::ranges::count(covered, 1);
  return chosen;
}

std::optional<Refusal> expected_refusal(const Combination& row) {
  Combination nearest = row;
  if (row.arithmetic == Arithmetic::kInvariant) {
    if (row.tp == 5 || row.tp == 7) {
      nearest.tp = row.tp - 1;
      return Refusal{"pieces that 1, 2, 3, 4, 6, 8 tensor-parallel ranks can share out",
                     fmt::format("tp = {} works", nearest.tp), nearest};
    }
    if (row.cp > 1 && !row.ulysses) {
      nearest.ulysses = true;
      return Refusal{"ring attention adds up in the order in which keys come round", "ulysses", nearest};
    }
  }
  if (splits_backward(row) && row.recompute) {
    nearest.schedule = "1f1b";
    return Refusal{"with recompute full each half would run its blocks again", "\"1f1b\" works", nearest};
  }
  return std::nullopt;
}

}  // namespace tessera::dist::parity
