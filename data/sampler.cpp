#include "data/sampler.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "kernels/random_key.h"

namespace tessera::data {
namespace {

using kernels::random_word;
using kernels::RandomKey;
using kernels::stream_id;

// 4 make a strong permutation of large ranges (Luby & Rackoff); small ranges need more.
constexpr int kRounds = 8;

// One pass through a Feistel network over 2 · half_bits bits. Any round function gives a permutation.
std::uint64_t feistel(std::uint64_t x, int half_bits, const RandomKey& key) {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  std::uint64_t left = x >> half_bits;
  std::uint64_t right = x & mask;
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    // Words of one block would be neighbours' words too: each (round, right) has a block of its own.
    const std::uint64_t f = random_word(key, (round << 32 | right) * 4);
    const std::uint64_t next = left ^ (f & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

// Where the windows of an epoch begin.
std::int64_t epoch_offset(const BatchPlan& plan, std::int64_t num_tokens, std::int64_t num_windows,
                          std::int64_t epoch) {
  if (!plan.shift_windows) return 0;
  const std::int64_t spare = num_tokens - 1 - num_windows * plan.seq_len;
  const std::int64_t choices = std::min(spare, plan.seq_len - 1) + 1;
  const RandomKey key{plan.seed, stream_id("data.offset"), static_cast<std::uint64_t>(epoch)};
  const std::uint64_t bits = static_cast<std::uint64_t>(random_word(key, 0)) << 32 | random_word(key, 1);
  return static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(choices));  // bias < 2^-32
}

void check_size(const char* what, std::size_t size, std::int64_t count, std::int64_t seq_len) {
  if (static_cast<std::int64_t>(size) == count * seq_len) return;
  throw ShapeError(
      fmt::format("{}: [{}, {}] has {} elements, the span {}", what, count, seq_len, count * seq_len, size));
}

}  // namespace

std::int64_t SampleOrder::window(std::int64_t epoch, std::int64_t position) const {
  if (position < 0 || position >= num_windows) {
    throw IndexError(fmt::format("SampleOrder: position {} is not in [0, {})", position, num_windows));
  }
  int half_bits = 1;
  while ((std::int64_t{1} << (2 * half_bits)) < num_windows && half_bits < 31) ++half_bits;
  const RandomKey key{seed, stream_id("data.order"), static_cast<std::uint64_t>(epoch)};
  auto x = static_cast<std::uint64_t>(position);
  do {
    x = feistel(x, half_bits, key);
  } while (x >= static_cast<std::uint64_t>(num_windows));
  return static_cast<std::int64_t>(x);
}

std::int64_t BatchPlan::windows_per_epoch(std::int64_t num_tokens) const {
  if (global_batch < 1 || seq_len < 1) {
    throw ConfigError(
        fmt::format("BatchPlan: global_batch {} and seq_len {} must be at least 1", global_batch, seq_len));
  }
  const std::int64_t pairs = num_tokens - 1;
  if (pairs < seq_len) {
    throw DataError(
        fmt::format("a sequence of {} tokens and its targets need {} tokens, the data has {}; use shorter "
                    "sequences or more text",
                    seq_len, seq_len + 1, num_tokens));
  }
  // Shifted windows must fit behind every offset, so that all epochs have the same number of them.
  const std::int64_t most_shift = shift_windows ? seq_len - 1 : 0;
  return std::max<std::int64_t>(1, (pairs - most_shift) / seq_len);
}

std::int64_t BatchPlan::window_start(std::int64_t num_tokens, std::int64_t step, std::int64_t index) const {
  const std::int64_t num_windows = windows_per_epoch(num_tokens);
  if (step < 0 || index < 0 || index >= global_batch) {
    throw IndexError(
        fmt::format("BatchPlan: no sequence {} in step {}: a batch has {}", index, step, global_batch));
  }
  const std::int64_t sample = step * global_batch + index;
  const std::int64_t epoch = sample / num_windows;
  const std::int64_t window = SampleOrder{seed, num_windows}.window(epoch, sample % num_windows);
  return epoch_offset(*this, num_tokens, num_windows, epoch) + window * seq_len;
}

void fill_batch(const TokenFile& file, const BatchPlan& plan, std::int64_t step, std::int64_t first_index,
                std::int64_t count, std::span<std::int64_t> inputs, std::span<std::int64_t> targets) {
  if (first_index < 0 || count < 0 || count > plan.global_batch || first_index > plan.global_batch - count) {
    throw IndexError(fmt::format("fill_batch: sequences {} to {} are not all in a batch of {}", first_index,
                                 first_index + count - 1, plan.global_batch));
  }
  check_size("fill_batch: inputs", inputs.size(), count, plan.seq_len);
  check_size("fill_batch: targets", targets.size(), count, plan.seq_len);
  const auto length = static_cast<std::size_t>(plan.seq_len);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t start = plan.window_start(file.size(), step, first_index + i);
    file.read(start, inputs.subspan(static_cast<std::size_t>(i) * length, length));
    file.read(start + 1, targets.subspan(static_cast<std::size_t>(i) * length, length));
  }
}

EvaluationWindows::EvaluationWindows(std::int64_t num_tokens, std::int64_t seq_len, std::int64_t stride)
    : num_tokens_(num_tokens), seq_len_(seq_len), stride_(stride == 0 ? seq_len : stride), num_windows_(0) {
  if (seq_len < 1)
    throw ConfigError(fmt::format("EvaluationWindows: seq_len {} must be at least 1", seq_len));
  if (stride_ < 1 || stride_ > seq_len) {
    throw ConfigError(fmt::format("EvaluationWindows: stride {} is not between 1 and the window's {} tokens",
                                  stride, seq_len));
  }
  if (num_tokens < 2) {
    throw DataError(
        fmt::format("evaluation needs at least 2 tokens (one to predict the other), got {}", num_tokens));
  }
  const std::int64_t behind_first = std::max<std::int64_t>(num_tokens - 1 - seq_len, 0);
  num_windows_ = 1 + (behind_first + stride_ - 1) / stride_;
}

std::int64_t EvaluationWindows::length(std::int64_t i) const noexcept {
  return i < 0 || i >= num_windows_ ? 0 : std::min(seq_len_, num_tokens_ - 1 - i * stride_);
}

std::vector<std::int64_t> EvaluationWindows::fill(const TokenFile& file, std::int64_t first,
                                                  std::int64_t count, std::span<std::int64_t> inputs,
                                                  std::span<std::int64_t> targets) const {
  check_size("EvaluationWindows: inputs", inputs.size(), count, seq_len_);
  check_size("EvaluationWindows: targets", targets.size(), count, seq_len_);
  if (file.size() != num_tokens_) {
    throw DataError(fmt::format("token file {}: has {} tokens, the windows were made for {}",
                                file.path().string(), file.size(), num_tokens_));
  }
  if (first < 0) throw IndexError(fmt::format("EvaluationWindows: first window {} is below 0", first));
  std::vector<std::int64_t> lengths;
  std::fill(inputs.begin(), inputs.end(), 0);
  std::fill(targets.begin(), targets.end(), kIgnoredTarget);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t window_length = length(first + i);
    lengths.push_back(window_length);
    if (window_length == 0) continue;
    const auto row = static_cast<std::size_t>(i * seq_len_);
    const std::int64_t start = (first + i) * stride_;
    file.read(start, inputs.subspan(row, static_cast<std::size_t>(window_length)));
    const std::int64_t counted_before = first + i == 0 ? 0 : seq_len_ - stride_;  // by earlier windows
    if (window_length > counted_before) {
      file.read(start + counted_before + 1,
                targets.subspan(row + static_cast<std::size_t>(counted_before),
                                static_cast<std::size_t>(window_length - counted_before)));
    }
  }
  return lengths;
}

}  // namespace tessera::data
