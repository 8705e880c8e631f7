// What belongs to a rank belongs to its thread.

#include "tensor/context.h"

#include <gtest/gtest.h>

#include <thread>

#include "kernels/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

TEST(RankContext, AScopeInstallsAndRestores) {
  RankContext& before = RankContext::current();
  RankContext outer({.rank = 1, .world_size = 4}), inner({.rank = 2, .world_size = 4});
  {
    const RankContext::Scope scope(outer);
    EXPECT_EQ(&RankContext::current(), &outer);
    EXPECT_EQ(&kernels::kernel_context(), &outer.kernels);
    {
      const RankContext::Scope nested(inner);
      EXPECT_EQ(RankContext::current().rank, 2);
      EXPECT_EQ(&kernels::kernel_context(), &inner.kernels);
    }
    EXPECT_EQ(RankContext::current().rank, 1);
    EXPECT_EQ(&kernels::kernel_context(), &outer.kernels);
  }
  EXPECT_EQ(&RankContext::current(), &before);
  EXPECT_EQ(&kernels::kernel_context(), &before.kernels);
}

TEST(RankContext, ThreadsAreRanksThatDoNotSeeEachOther) {
  constexpr int kRanks = 4;
  std::vector<std::int64_t> bytes(kRanks);
  std::vector<std::vector<float>> values(kRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      RankContext context({.rank = rank, .world_size = kRanks, .seed = 5});
      const RankContext::Scope scope(context);
      context.step = static_cast<std::uint64_t>(rank);
      context.grad_enabled = rank % 2 == 0;
      std::vector<Tensor> held;
      for (int i = 0; i < 100 * (rank + 1); ++i) held.push_back(zeros({8}));
      const auto r = static_cast<std::size_t>(rank);
      bytes[r] = context.pool(cpu)->report().total.current;
      context.step = 0;
      values[r] = uniform({8}, 0, 1, "same").to_vector<float>();
      EXPECT_EQ(RankContext::current().rank, rank);
      EXPECT_EQ(RankContext::current().grad_enabled, rank % 2 == 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t r = 0; r < kRanks; ++r) {
    EXPECT_EQ(bytes[r], static_cast<std::int64_t>(3200 * (r + 1)));
    EXPECT_EQ(values[r], values[0]);  // numbers belong to the seed, not to the rank
  }
}

TEST(RankContext, AThreadThatInstalledNoneHasADefaultOfItsOwn) {
  RankContext::current().step = 77;
  std::uint64_t step = 1;
  const RankContext* address = nullptr;
  std::thread([&] {
    step = RankContext::current().step;
    address = &RankContext::current();
    EXPECT_EQ(&kernels::kernel_context(), &RankContext::current().kernels);
  }).join();
  EXPECT_EQ(step, 0u);
  EXPECT_NE(address, &RankContext::current());
  RankContext::current().step = 0;
}

TEST(RankContext, ScopesOfDeviceAndCategoryNestAndEnd) {
  RankContext context;
  const RankContext::Scope scope(context);
  {
    const DeviceScope device(meta);
    EXPECT_EQ(zeros({2}).device(), meta);
    EXPECT_EQ(zeros({2}, {.device = cpu}).device(), cpu);
    const DeviceScope back(cpu);
    EXPECT_EQ(zeros({2}).device(), cpu);
  }
  EXPECT_EQ(zeros({2}).device(), cpu);
  EXPECT_EQ(context.category, MemoryCategory::kActivation);
}

}  // namespace
}  // namespace tessera
