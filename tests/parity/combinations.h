#pragma once

// Every combination of what a layout is made of, as rows of one table: {dp, tp, pp, cp} up to eight ranks and
// all four at once × ZeRO 0..3 × pipeline schedules × recomputation × accumulation × optimizers × {f64, f32,
// bf16, Invariant}. A row either trains what one rank trains, or is refused before any step with the reason
// and a setting that works, which is then tried as well.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tessera::dist::parity {

inline constexpr int kMostRanks = 8;

/// How a row computes, and so which tier it belongs to.
enum class Arithmetic : std::uint8_t { kF64, kF32, kBF16, kInvariant };  // T1, T2, T6, T3

/// The settings that multiply; for each combination of these there is one row.
struct Combination {
  int dp = 1, tp = 1, pp = 1, cp = 1;
  int zero = 0;
  std::string schedule{};  ///< empty where pp is 1
  bool recompute = false;
  bool accumulate = false;  ///< passes of one sample each, more than there are stages; otherwise one pass
  std::string optimizer = "AdamW";
  Arithmetic arithmetic = Arithmetic::kF64;
  // Not multiplied: rows take these by turns.
  bool sequence_parallel = false;
  bool ulysses = false;
  bool llama = false;

  [[nodiscard]] int num_ranks() const { return dp * tp * pp * cp; }
  /// "dp=2,pp=2 zero=3 schedule=zb-v recompute=full pass=1 Muon f64", as layout() reads it.
  [[nodiscard]] std::string to_string() const;
  /// "pp×tp", "one rank", ...: the axes that are longer than 1.
  [[nodiscard]] std::string axes() const;
  /// Has one block more than it has stages, so that stages are uneven.
  [[nodiscard]] std::string model() const;
  /// Each setting as a text of its own: "dp=2", "zero=3", ... Two of them are a pair to be covered.
  [[nodiscard]] std::vector<std::string> settings() const;
};

/// In a fixed order.
[[nodiscard]] std::vector<Combination> all_combinations();

/// `count` rows, none of them refused, that have as many pairs of settings between them as can be found by
/// always taking the row with most new ones.
struct Chosen {
  std::vector<Combination> rows;
  std::int64_t num_pairs = 0, num_covered = 0;  ///< of pairs that are in any row that is not refused
};
[[nodiscard]] Chosen choose(const std::vector<Combination>& all, int count);

/// Why a row is refused: words of the message, words for what works, and the row with that.
struct Refusal {
  std::string reason, remedy;
  Combination nearest;
};
/// Nothing for a row that must train.
[[nodiscard]] std::optional<Refusal> expected_refusal(const Combination& row);

}  // namespace tessera::dist::parity
