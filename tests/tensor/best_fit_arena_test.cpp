// The arena of large blocks beside a list of intervals: what it hands out never overlaps, and comes together
// again when all is freed.

#include "tensor/best_fit_arena.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <vector>

namespace tessera::detail {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGranule = BestFitArena::kGranule;

std::size_t whole_granules(std::size_t size_bytes) {
  return (size_bytes + kGranule - 1) / kGranule * kGranule;
}

// A live block; its first and last bytes hold `stamp`, so that another that overlaps it shows.
struct Block {
  std::byte* data = nullptr;
  std::size_t size_bytes = 0;
  std::byte stamp{};

  void write() const { data[0] = data[size_bytes - 1] = stamp; }
  [[nodiscard]] bool is_intact() const { return data[0] == stamp && data[size_bytes - 1] == stamp; }
};

// The model: what is live, by address.
class LiveBlocks {
 public:
  void add(const Block& block) {
    const auto next = blocks_.lower_bound(block.data);
    if (next != blocks_.end()) {
      EXPECT_LE(block.data + block.size_bytes, next->first) << "it overlaps the block above";
    }
    if (next != blocks_.begin()) {
      const Block& below = std::prev(next)->second;
      EXPECT_LE(below.data + below.size_bytes, block.data) << "it overlaps the block below";
    }
    blocks_.emplace(block.data, block);
    block.write();
    bytes_ += whole_granules(block.size_bytes);
  }
  Block take(std::size_t i) {
    const auto chosen = std::next(blocks_.begin(), static_cast<std::ptrdiff_t>(i));
    const Block block = chosen->second;
    blocks_.erase(chosen);
    bytes_ -= whole_granules(block.size_bytes);
    return block;
  }
  [[nodiscard]] std::size_t count() const { return blocks_.size(); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  std::map<std::byte*, Block> blocks_;
  std::size_t bytes_ = 0;
};

TEST(BestFitArena, RandomRequestsNeverOverlapAndAllMergesInTheEnd) {
  for (const unsigned seed : {1u, 2u, 3u, 4u}) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    BestFitArena arena;
    LiveBlocks live;
    const auto below = [&random](std::size_t n) {
      return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
    };
    for (int i = 0; i < 3000; ++i) {
      if (live.count() == 0 || (live.bytes() < 200 * kMiB && below(2) == 0)) {
        Block block{.size_bytes = 1 + below(std::size_t{1} << (12 + below(12))), .stamp = std::byte(i % 251)};
        block.data = static_cast<std::byte*>(arena.allocate(block.size_bytes));
        ASSERT_NE(block.data, nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data) % kGranule, 0u);
        live.add(block);
      } else {
        const Block block = live.take(below(live.count()));
        EXPECT_TRUE(block.is_intact());
        arena.free(block.data, block.size_bytes);
      }
      if (i % 500 == 499) {
        arena.trim();  // what is live must survive it; what is free takes nothing
        EXPECT_EQ(arena.reserved_bytes(), live.bytes());
      }
      EXPECT_GE(arena.reserved_bytes(), live.bytes());
    }
    while (live.count() > 0) {
      const Block block = live.take(below(live.count()));
      EXPECT_TRUE(block.is_intact());
      arena.free(block.data, block.size_bytes);
    }
    EXPECT_EQ(arena.num_free_ranges(), 1u) << "what is free did not merge";
    const std::int64_t asked = arena.system_allocations();
    const std::size_t reserved = arena.reserved_bytes();
    EXPECT_GT(reserved, 0u);
    arena.trim();
    EXPECT_EQ(arena.reserved_bytes(), 0u);
    EXPECT_EQ(arena.num_free_ranges(), 0u);
    EXPECT_EQ(arena.system_allocations(), asked);
  }
}

TEST(BestFitArena, TakesTheSmallestRangeThatHoldsTheRequestAndOfEqualsTheLowest) {
  BestFitArena arena;
  // Free ranges of 8, 4, 4 and 6 MiB, with live blocks between.
  std::vector<std::byte*> at;
  const std::vector<std::size_t> sizes = {8, 1, 4, 1, 4, 1, 6, 1};
  for (const std::size_t mib : sizes) at.push_back(static_cast<std::byte*>(arena.allocate(mib * kMiB)));
  for (std::size_t i = 1; i < at.size(); ++i)
    EXPECT_EQ(at[i], at[i - 1] + sizes[i - 1] * kMiB) << "a region grows by what lies next to it";
  for (std::size_t i = 0; i < at.size(); i += 2) arena.free(at[i], sizes[i] * kMiB);
  const std::size_t reserved = arena.reserved_bytes();

  EXPECT_EQ(arena.allocate(3 * kMiB), at[2]);
  EXPECT_EQ(arena.allocate(4 * kMiB), at[4]);
  EXPECT_EQ(arena.allocate(5 * kMiB), at[6]);
  EXPECT_EQ(arena.allocate(1 * kMiB), at[2] + 3 * kMiB) << "the rest of a range that was split";
  EXPECT_EQ(arena.allocate(2 * kMiB), at[0]);
  EXPECT_EQ(arena.allocate(6 * kMiB), at[0] + 2 * kMiB);
  EXPECT_EQ(arena.reserved_bytes(), reserved);
}

TEST(BestFitArena, OnlyWhatTheLastFreeRangeLacksIsAskedFor) {
  BestFitArena arena;
  void* const first = arena.allocate(32 * kMiB);
  void* const second = arena.allocate(16 * kMiB);
  arena.free(second, 16 * kMiB);
  EXPECT_EQ(arena.reserved_bytes(), 48 * kMiB);
  EXPECT_EQ(arena.allocate(20 * kMiB), second);
  EXPECT_EQ(arena.reserved_bytes(), 52 * kMiB);
  EXPECT_EQ(arena.system_allocations(), 3);
  arena.free(first, 32 * kMiB);
}

TEST(BestFitArena, TrimmedRangesBetweenBlocksAreReservedAgainWhenTheyAreUsed) {
  BestFitArena arena;
  auto* const low = static_cast<std::byte*>(arena.allocate(16 * kMiB));
  auto* const high = static_cast<std::byte*>(arena.allocate(16 * kMiB));
  std::memset(low, 1, 16 * kMiB);
  arena.free(low, 16 * kMiB);
  arena.trim();
  EXPECT_EQ(arena.reserved_bytes(), 16 * kMiB);
  const std::int64_t asked = arena.system_allocations();
  auto* const again = static_cast<std::byte*>(arena.allocate(10 * kMiB));
  EXPECT_EQ(again, low);
  EXPECT_EQ(again[5 * kMiB], std::byte{0}) << "the system still holds what was given back";
  EXPECT_EQ(arena.reserved_bytes(), 32 * kMiB);
  EXPECT_EQ(arena.system_allocations(), asked + 1);
  arena.free(high, 16 * kMiB);
  arena.free(again, 10 * kMiB);
  EXPECT_EQ(arena.num_free_ranges(), 1u);
  arena.trim();
  EXPECT_EQ(arena.reserved_bytes(), 0u);
}

// Blocks of many GiB are addresses until they are written to. The second needs a region of its own.
TEST(BestFitArena, ABlockMayBeLargerThanARegion) {
  BestFitArena arena;
  constexpr std::size_t kLarge = std::size_t{11} << 30;
  auto* const first = static_cast<std::byte*>(arena.allocate(kLarge));
  if (first == nullptr) GTEST_SKIP() << "the system promises no 11 GiB";
  auto* const second = static_cast<std::byte*>(arena.allocate(kLarge));
  ASSERT_NE(second, nullptr);
  first[kLarge - 1] = second[0] = std::byte{1};
  EXPECT_TRUE(second >= first + kLarge || second + kLarge <= first);
  arena.free(first, kLarge);
  arena.free(second, kLarge);
  EXPECT_EQ(arena.num_free_ranges(), 2u) << "regions do not merge";
}

TEST(BestFitArena, SaysNoWhereTheSystemHasNoMemoryAndGoesOn) {
  BestFitArena arena;
  void* const before = arena.allocate(2 * kMiB);
  for (const std::size_t size : {SIZE_MAX, SIZE_MAX / 2, std::size_t{1} << 50})
    EXPECT_EQ(arena.allocate(size), nullptr) << size;
  EXPECT_EQ(arena.reserved_bytes(), 2 * kMiB);
  void* const after = arena.allocate(2 * kMiB);
  EXPECT_EQ(after, static_cast<std::byte*>(before) + 2 * kMiB);
  arena.free(before, 2 * kMiB);
  arena.free(after, 2 * kMiB);
}

}  // namespace
}  // namespace tessera::detail
