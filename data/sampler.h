#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/token_file.h"

namespace tessera::data {

/// Target that losses skip; fills the rows of evaluation windows behind their last token.
inline constexpr std::int64_t kIgnoredTarget = -100;

/// The order in which the windows of a text are visited: in each epoch a fresh permutation of all of them, so
/// that every window is seen exactly once before any is seen again.
///
/// No permutation is stored. A Feistel network, keyed by Philox of (seed, epoch), permutes the smallest power
/// of four that is not below num_windows; an image outside the range is sent through again until it falls
/// inside ("cycle walking", fewer than 4 rounds on average). So sample n is found in O(1) time and memory, by
/// any rank, at any time.
///
/// Source    Luby & Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988;
///           Black & Rogaway, "Ciphers with arbitrary finite domains", 2002.
/// Example   SampleOrder{.seed = 1, .num_windows = 1000}.window(2, 0) is the first window of the third epoch.
struct SampleOrder {
  std::uint64_t seed = 0;
  std::int64_t num_windows = 0;  ///< at least 1

  /// The window at `position` of `epoch`.
  /// Errors    IndexError, if position is not in [0, num_windows).
  [[nodiscard]] std::int64_t window(std::int64_t epoch, std::int64_t position) const;
};

/// How training cuts batches out of a token file. Sequence `index` of step `step` is sample n = step ·
/// global_batch + index: a function of the plan, the file and n only. Which rank reads it, how many ranks
/// there are, and what was read before have no say; so a run resumes at a step by asking for that step.
///
/// A file of N tokens has N − 1 pairs of input and target; they make W windows of T = seq_len. Epoch e holds
/// samples e·W to (e+1)·W − 1; a batch may reach over its end.
///
/// With `shift_windows` the windows of an epoch start at a random offset below T, so that the cuts fall
/// elsewhere each time: T − 1 tokens at most are left out at each end of that epoch. Without it they start at
/// token 0.
struct BatchPlan {
  std::int64_t global_batch = 0;  ///< sequences per step, over all ranks and micro-batches
  std::int64_t seq_len = 0;       ///< T, tokens per sequence
  std::uint64_t seed = 0;
  bool shift_windows = true;

  /// W, windows per epoch of a file of `num_tokens`.
  /// Errors    ConfigError, if batch or length is not positive; DataError, if num_tokens < seq_len + 1.
  [[nodiscard]] std::int64_t windows_per_epoch(std::int64_t num_tokens) const;

  /// The first token of sequence `index` (0 ≤ index < global_batch) of `step`.
  [[nodiscard]] std::int64_t window_start(std::int64_t num_tokens, std::int64_t step,
                                          std::int64_t index) const;
};

/// Reads sequences first_index ... first_index + count − 1 of `step`'s batch, each T = seq_len tokens and, as
/// targets, the same shifted by one.
///
/// Shapes    inputs [count, T], targets [count, T], row-major.
/// Errors    DataError, if the file is shorter than T + 1 tokens; IndexError, if the sequences are not all in
///           the batch; ShapeError, if a span has another size.
/// Threads   Safe from any number of threads.
/// Example   Rank r of R, per-rank batch b = global_batch / R:
///
///     data::fill_batch(tokens, plan, step, r * b, b, inputs, targets);
void fill_batch(const TokenFile& file, const BatchPlan& plan, std::int64_t step, std::int64_t first_index,
                std::int64_t count, std::span<std::int64_t> inputs, std::span<std::int64_t> targets);

/// Cuts a text into windows for evaluation, in order, so that every token but the first is predicted exactly
/// once. The last window may be shorter.
///
/// With a stride below seq_len windows overlap: each but the first counts only its last `stride` targets, so
/// that all of these are predicted from at least seq_len − stride tokens before them. A smaller stride is
/// fairer to the model and costs seq_len / stride times as much.
///
/// Example
///     data::EvaluationWindows windows(tokens.size(), 256);
///     for (std::int64_t i = 0; i < windows.size(); i += 8) windows.fill(tokens, i, 8, inputs, targets);
class EvaluationWindows {
 public:
  /// `stride` 0 means seq_len: no overlap.
  /// Errors    ConfigError, if seq_len is not positive or stride not in [0, seq_len]; DataError, if there are
  ///           fewer than 2 tokens.
  EvaluationWindows(std::int64_t num_tokens, std::int64_t seq_len, std::int64_t stride = 0);

  /// Number of windows: 1 + (num_tokens − 1 − seq_len) / stride, rounded up.
  [[nodiscard]] std::int64_t size() const noexcept { return num_windows_; }

  /// Number of targets that count, over all windows: num_tokens − 1.
  [[nodiscard]] std::int64_t num_targets() const noexcept { return num_tokens_ - 1; }

  /// Tokens of window i: seq_len, less for the last one, 0 behind the end.
  [[nodiscard]] std::int64_t length(std::int64_t i) const noexcept;

  /// Reads windows first ... first + count − 1 and returns their lengths. Behind a window's end inputs are 0;
  /// there, and where an earlier window counts the target, targets are kIgnoredTarget; rows behind the last
  /// window are all padding, so ranks may all run the same number of batches.
  ///
  /// Shapes    inputs [count, T], targets [count, T] → lengths [count].
  /// Errors    ShapeError, if a span has another size; DataError, if the file is not of num_tokens.
  std::vector<std::int64_t> fill(const TokenFile& file, std::int64_t first, std::int64_t count,
                                 std::span<std::int64_t> inputs, std::span<std::int64_t> targets) const;

 private:
  std::int64_t num_tokens_;
  std::int64_t seq_len_;
  std::int64_t stride_;
  std::int64_t num_windows_;
};

}  // namespace tessera::data
