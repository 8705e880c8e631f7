#include "data/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/error.h"
#include "tests/data/temporary_folder.h"

namespace tessera::data {
namespace {

// Tokens 0, 1, 2, ...: a token tells where it stands.
TokenFile counting_file(const TemporaryFolder& folder, std::int32_t num_tokens) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(num_tokens));
  std::iota(ids.begin(), ids.end(), 0);
  TokenFileWriter writer(folder / "tokens", 1 << 20, 0);
  writer.write(ids);
  writer.finish(1);
  return TokenFile::open(folder / "tokens");
}

TEST(SampleOrder, EachEpochIsAPermutation) {
  for (const std::int64_t size :
       {1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 100, 1000, 1023, 1025, 4097, 20000}) {
    for (const std::int64_t epoch : {0, 1, 5}) {
      const SampleOrder order{.seed = 42, .num_windows = size};
      std::vector<bool> seen(static_cast<std::size_t>(size));
      for (std::int64_t position = 0; position < size; ++position) {
        const std::int64_t window = order.window(epoch, position);
        ASSERT_GE(window, 0);
        ASSERT_LT(window, size);
        ASSERT_FALSE(seen[static_cast<std::size_t>(window)]) << "size " << size << ", epoch " << epoch;
        seen[static_cast<std::size_t>(window)] = true;
      }
    }
  }
}

TEST(SampleOrder, IsFixedForAllTime) {
  // Stored: a resumed run must go on with the data that it has not seen.
  const SampleOrder order{.seed = 1, .num_windows = 10};
  std::vector<std::int64_t> windows;
  for (std::int64_t i = 0; i < 10; ++i) windows.push_back(order.window(0, i));
  EXPECT_EQ(windows, std::vector<std::int64_t>({9, 8, 3, 5, 7, 4, 2, 6, 0, 1}));
}

TEST(SampleOrder, DiffersBySeedAndEpoch) {
  const auto windows = [](std::uint64_t seed, std::int64_t epoch) {
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < 100; ++i) all.push_back(SampleOrder{seed, 100}.window(epoch, i));
    return all;
  };
  EXPECT_NE(windows(1, 0), windows(2, 0));
  EXPECT_NE(windows(1, 0), windows(1, 1));
  EXPECT_NE(windows(1, 1), windows(2, 0));
  EXPECT_EQ(windows(1, 1), windows(1, 1));
}

// Each window must be as likely at each position. Over 6,000 epochs a cell of the 6 × 6 table expects 1,000
// with a standard deviation of sqrt(6000 · 1/6 · 5/6) = 29; 36 cells stay within 5 of them but for one run in
// 50,000 (and the seed is fixed).
TEST(SampleOrder, PutsEachWindowEverywhereEquallyOften) {
  constexpr std::int64_t kSize = 6, kEpochs = 6000;
  std::int64_t counts[kSize][kSize] = {};
  for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
    for (std::int64_t i = 0; i < kSize; ++i) ++counts[i][SampleOrder{7, kSize}.window(epoch, i)];
  }
  for (const auto& row : counts) {
    for (const std::int64_t count : row) EXPECT_NEAR(static_cast<double>(count), 1000.0, 145.0);
  }
}

TEST(SampleOrder, ShowsNoTrend) {
  // Rank correlation of position and window over 10,000: a standard deviation of 1/sqrt(n) = 0.01 when
  // random.
  constexpr std::int64_t kSize = 10000;
  double sum = 0, neighbours = 0;
  for (std::int64_t i = 0; i < kSize; ++i) {
    const double x = static_cast<double>(i) / kSize - 0.5;
    const double y = static_cast<double>(SampleOrder{3, kSize}.window(0, i)) / kSize - 0.5;
    const double next = static_cast<double>(SampleOrder{3, kSize}.window(0, (i + 1) % kSize)) / kSize - 0.5;
    sum += x * y;
    neighbours += y * next;
  }
  EXPECT_NEAR(sum / kSize * 12, 0.0, 0.05);
  EXPECT_NEAR(neighbours / kSize * 12, 0.0, 0.05);
}

TEST(SampleOrder, WorksForMoreWindowsThanCouldBeStored) {
  const SampleOrder order{.seed = 1, .num_windows = std::int64_t{1} << 45};
  std::set<std::int64_t> windows;
  for (std::int64_t i = 0; i < 1000; ++i) windows.insert(order.window(0, i));
  EXPECT_EQ(windows.size(), 1000u);
  EXPECT_THROW((void)order.window(0, std::int64_t{1} << 45), IndexError);
  EXPECT_THROW((void)order.window(0, -1), IndexError);
}

TEST(BatchPlan, VisitsEachWindowOnceAnEpoch) {
  for (const bool shift : {false, true}) {
    for (const std::int64_t num_tokens : {9, 10, 16, 17, 18, 100, 1000}) {
      const BatchPlan plan{.global_batch = 3, .seq_len = 8, .seed = 5, .shift_windows = shift};
      const std::int64_t num_windows = plan.windows_per_epoch(num_tokens);
      for (std::int64_t epoch = 0; epoch < 4; ++epoch) {
        std::set<std::int64_t> starts;
        for (std::int64_t n = epoch * num_windows; n < (epoch + 1) * num_windows; ++n) {
          starts.insert(plan.window_start(num_tokens, n / 3, n % 3));
        }
        EXPECT_EQ(static_cast<std::int64_t>(starts.size()), num_windows) << num_tokens;
        EXPECT_GE(*starts.begin(), 0);
        EXPECT_LT(*starts.begin(), shift ? 8 : 1);
        EXPECT_LE(*starts.rbegin() + 8, num_tokens - 1);
        for (const std::int64_t start : starts) EXPECT_EQ((start - *starts.begin()) % 8, 0);
        if (!shift) {
          EXPECT_EQ(num_windows, (num_tokens - 1) / 8);
        }
      }
    }
  }
}

TEST(BatchPlan, ShiftsTheWindowsFromEpochToEpoch) {
  const BatchPlan plan{.global_batch = 1, .seq_len = 8, .seed = 5};
  std::set<std::int64_t> offsets;
  const std::int64_t num_windows = plan.windows_per_epoch(100);
  for (std::int64_t epoch = 0; epoch < 100; ++epoch) {
    offsets.insert(plan.window_start(100, epoch * num_windows, 0) % 8);
  }
  EXPECT_EQ(offsets.size(), 8u);
}

TEST(BatchPlan, RefusesWhatCannotWork) {
  const BatchPlan plan{.global_batch = 4, .seq_len = 8};
  EXPECT_THROW((void)plan.windows_per_epoch(8), DataError);
  EXPECT_THROW((void)plan.windows_per_epoch(0), DataError);
  EXPECT_EQ(plan.windows_per_epoch(9), 1);
  EXPECT_THROW((void)(BatchPlan{.global_batch = 0, .seq_len = 8}.windows_per_epoch(100)), ConfigError);
  EXPECT_THROW((void)(BatchPlan{.global_batch = 1, .seq_len = 0}.windows_per_epoch(100)), ConfigError);
  EXPECT_THROW((void)plan.window_start(100, 0, 4), IndexError);
  EXPECT_THROW((void)plan.window_start(100, -1, 0), IndexError);
}

TEST(FillBatch, ShiftsTargetsByOne) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 1000);
  const BatchPlan plan{.global_batch = 4, .seq_len = 8, .seed = 1};
  std::vector<std::int64_t> inputs(32), targets(32);
  fill_batch(file, plan, 17, 0, 4, inputs, targets);
  for (std::int64_t row = 0; row < 4; ++row) {
    const std::int64_t start = plan.window_start(1000, 17, row);
    for (std::int64_t t = 0; t < 8; ++t) {
      EXPECT_EQ(inputs[static_cast<std::size_t>(row * 8 + t)], start + t);
      EXPECT_EQ(targets[static_cast<std::size_t>(row * 8 + t)], start + t + 1);
    }
  }
}

TEST(FillBatch, IsTheSameHoweverManyRanksShareIt) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 500);
  const BatchPlan plan{.global_batch = 12, .seq_len = 7, .seed = 9};
  for (const std::int64_t step : {0, 1, 6, 100}) {  // step 6 reaches over the end of the first epoch
    std::vector<std::int64_t> whole(84), whole_targets(84);
    fill_batch(file, plan, step, 0, 12, whole, whole_targets);
    for (const std::int64_t ranks : {1, 2, 3, 4, 6, 12}) {
      std::vector<std::int64_t> joined, joined_targets;
      const std::int64_t count = 12 / ranks;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        std::vector<std::int64_t> inputs(static_cast<std::size_t>(count * 7)), targets(inputs.size());
        fill_batch(file, plan, step, rank * count, count, inputs, targets);
        joined.insert(joined.end(), inputs.begin(), inputs.end());
        joined_targets.insert(joined_targets.end(), targets.begin(), targets.end());
      }
      EXPECT_EQ(joined, whole) << ranks << " ranks, step " << step;
      EXPECT_EQ(joined_targets, whole_targets) << ranks << " ranks, step " << step;
    }
  }
}

TEST(FillBatch, ResumesAtAnyStep) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 300);
  const BatchPlan plan{.global_batch = 5, .seq_len = 6, .seed = 11};
  std::vector<std::vector<std::int64_t>> run;
  for (std::int64_t step = 0; step < 30; ++step) {
    std::vector<std::int64_t> inputs(30), targets(30);
    fill_batch(file, plan, step, 0, 5, inputs, targets);
    run.push_back(inputs);
  }
  const TokenFile reopened = TokenFile::open(folder / "tokens");
  for (std::int64_t step = 29; step >= 0; --step) {  // in another order, in another process's shoes
    std::vector<std::int64_t> inputs(30), targets(30);
    fill_batch(reopened, plan, step, 0, 5, inputs, targets);
    EXPECT_EQ(inputs, run[static_cast<std::size_t>(step)]);
  }
}

TEST(FillBatch, RefusesWhatCannotWork) {
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 8);
  std::vector<std::int64_t> a(32), b(32), wrong(31);
  const BatchPlan too_long{.global_batch = 4, .seq_len = 8};
  EXPECT_THROW(fill_batch(file, too_long, 0, 0, 4, a, b), DataError);
  const BatchPlan plan{.global_batch = 8, .seq_len = 4};
  EXPECT_THROW(fill_batch(file, plan, 0, 1, 8, a, b), IndexError);
  EXPECT_THROW(fill_batch(file, plan, 0, -1, 8, a, b), IndexError);
  EXPECT_THROW(fill_batch(file, plan, 0, 0, 8, wrong, b), ShapeError);
  EXPECT_THROW(fill_batch(file, plan, 0, 0, 8, a, wrong), ShapeError);
}

TEST(EvaluationWindows, PredictEachTokenButTheFirstOnce) {
  for (const std::int32_t num_tokens : {2, 3, 8, 9, 10, 16, 17, 100}) {
    const TemporaryFolder folder;
    const TokenFile file = counting_file(folder, num_tokens);
    const EvaluationWindows windows(num_tokens, 8);
    EXPECT_EQ(windows.size(), (num_tokens - 1 + 7) / 8);
    std::int64_t next = 1;  // target
    for (std::int64_t first = 0; first < windows.size(); first += 3) {
      std::vector<std::int64_t> inputs(24), targets(24);
      const auto lengths = windows.fill(file, first, 3, inputs, targets);
      ASSERT_EQ(lengths.size(), 3u);
      for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t t = 0; t < 8; ++t) {
          const bool inside = static_cast<std::int64_t>(t) < lengths[row];
          EXPECT_EQ(targets[row * 8 + t], inside ? next : kIgnoredTarget);
          EXPECT_EQ(inputs[row * 8 + t], inside ? next - 1 : 0);
          if (inside) ++next;
        }
      }
    }
    EXPECT_EQ(next, num_tokens);
    EXPECT_EQ(windows.num_targets(), num_tokens - 1);
  }
}

// Every target counts once, and has at least window − stride tokens before it, or all that there are.
TEST(EvaluationWindows, OverlapByWindowMinusStride) {
  for (const std::int64_t stride : {1, 3, 4, 8}) {
    for (const std::int32_t num_tokens : {2, 8, 9, 10, 11, 16, 17, 100}) {
      const TemporaryFolder folder;
      const TokenFile file = counting_file(folder, num_tokens);
      const EvaluationWindows windows(num_tokens, 8, stride);
      std::int64_t next = 1;  // target
      for (std::int64_t i = 0; i < windows.size(); ++i) {
        std::vector<std::int64_t> inputs(8), targets(8);
        static_cast<void>(windows.fill(file, i, 1, inputs, targets));
        for (std::int64_t t = 0; t < 8; ++t) {
          if (targets[static_cast<std::size_t>(t)] == kIgnoredTarget) continue;
          EXPECT_EQ(targets[static_cast<std::size_t>(t)], next);
          EXPECT_EQ(inputs[static_cast<std::size_t>(t)], next - 1);
          EXPECT_GE(t + 1, std::min(next, 8 - stride + 1));  // tokens seen, the input at t among them
          ++next;
        }
      }
      EXPECT_EQ(next, num_tokens) << "stride " << stride;
    }
  }
}

TEST(EvaluationWindows, RefuseWhatCannotWork) {
  EXPECT_THROW(EvaluationWindows(1, 8), DataError);
  EXPECT_THROW(EvaluationWindows(10, 8, 9), ConfigError);
  EXPECT_THROW(EvaluationWindows(10, 8, -1), ConfigError);
  EXPECT_THROW(EvaluationWindows(10, 0), ConfigError);
  const TemporaryFolder folder;
  const TokenFile file = counting_file(folder, 20);
  std::vector<std::int64_t> a(16), b(16);
  EXPECT_THROW((void)EvaluationWindows(21, 8).fill(file, 0, 2, a, b), DataError);
  EXPECT_THROW((void)EvaluationWindows(20, 8).fill(file, 0, 1, a, b), ShapeError);
  EXPECT_THROW((void)EvaluationWindows(20, 8).fill(file, -1, 2, a, b), IndexError);
}

}  // namespace
}  // namespace tessera::data
