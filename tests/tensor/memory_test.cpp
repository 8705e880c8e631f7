// What a rank's pool counts, and that it asks the system for nothing twice.

#include "tensor/memory.h"

#include <gtest/gtest.h>

#include <thread>

#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

class MemoryTest : public testing::Test {
 protected:
  [[nodiscard]] MemoryReport report() const { return context_.pool(cpu)->report(); }

  RankContext context_;
  RankContext::Scope scope_{context_};
};

TEST_F(MemoryTest, CountsWhatTensorsAskedForByCategory) {
  const Tensor activation = zeros({3});
  Tensor parameter, gradient;
  {
    const CategoryScope category(MemoryCategory::kParameter);
    parameter = zeros({5});
    const CategoryScope inner(MemoryCategory::kGradient);
    gradient = zeros({7}, {.dtype = kF64});
  }
  const Tensor late = zeros({1});  // the scopes are over
  EXPECT_EQ(report().of(MemoryCategory::kActivation).current, 12 + 4);
  EXPECT_EQ(report().of(MemoryCategory::kParameter).current, 20);
  EXPECT_EQ(report().of(MemoryCategory::kGradient).current, 56);
  EXPECT_EQ(report().total.current, 92);
  parameter = Tensor();
  EXPECT_EQ(report().of(MemoryCategory::kParameter).current, 0);
  EXPECT_EQ(report().of(MemoryCategory::kParameter).peak, 20);
}

// Peaks of the categories lie at different times: their sum is no peak of anything.
TEST_F(MemoryTest, ThePeakOfTheTotalIsNotTheSumOfThePeaks) {
  { const Tensor x = zeros({100}); }
  {
    const CategoryScope category(MemoryCategory::kCommunication);
    const Tensor y = zeros({60});
  }
  EXPECT_EQ(report().of(MemoryCategory::kActivation).peak, 400);
  EXPECT_EQ(report().of(MemoryCategory::kCommunication).peak, 240);
  EXPECT_EQ(report().total.peak, 400);
  context_.pool(cpu)->reset_peak();
  EXPECT_EQ(report().total.peak, 0);
  const Tensor z = zeros({10});
  EXPECT_EQ(report().total.peak, 40);
}

TEST_F(MemoryTest, ViewsAndHandlesCostNothing) {
  const Tensor x = zeros({100});
  const Tensor y = x.reshape({10, 10}).transpose(0, 1).expand({5, 10, 10});
  EXPECT_EQ(report().total.current, 400);
  EXPECT_EQ(y.num_elements(), 500);
}

TEST_F(MemoryTest, ASecondIdenticalStepAsksTheSystemForNothing) {
  const auto step = [] {
    std::vector<Tensor> held;
    for (std::int64_t n = 1; n < 300000; n = n * 3 + 1) held.push_back(zeros({n}));
    return zeros({7, 11});
  };
  static_cast<void>(step());
  const MemoryReport first = report();
  EXPECT_GT(first.system_allocations, 0);
  for (int i = 0; i < 3; ++i) static_cast<void>(step());
  EXPECT_EQ(report().system_allocations, first.system_allocations);
  EXPECT_EQ(report().reserved, first.reserved);
  EXPECT_EQ(report().total.current, 0);
}

TEST_F(MemoryTest, AFreedBlockServesTheNextTensorOfItsSize) {
  const void* first = nullptr;
  {
    const Tensor x = zeros({1000});
    first = x.data<float>();
  }
  EXPECT_EQ(zeros({1000}).data<float>(), first);
  EXPECT_EQ(zeros({1001}).data<float>(), first);  // of the same size class: 4004 bytes lie in a block of 4096
  EXPECT_EQ(report().system_allocations, 1);
}

TEST_F(MemoryTest, NoMoreThanAnEighthIsReservedInVain) {
  for (std::int64_t bytes = 1025; bytes < 5000000; bytes += bytes / 7) {
    RankContext context;
    const RankContext::Scope scope(context);
    const Tensor x = empty({bytes}, {.dtype = kU8});
    const MemoryReport r = context.pool(cpu)->report();
    EXPECT_GE(r.reserved, bytes);
    EXPECT_LE(r.reserved, bytes + bytes / 8 + 1) << bytes;
  }
}

TEST_F(MemoryTest, TrimGivesCachedBlocksBack) {
  const Tensor held = zeros({10});
  { const Tensor x = zeros({100000}); }
  EXPECT_GE(report().reserved, 400000);
  context_.pool(cpu)->trim();
  EXPECT_LT(report().reserved, 1000);
  EXPECT_EQ(held.to_vector<float>(), std::vector<float>(10, 0.0f));
}

TEST_F(MemoryTest, KernelsTakeTheirScratchFromTheSamePoolAndItIsCounted) {
  {
    const kernels::Workspace workspace(1000);
    EXPECT_EQ(report().of(MemoryCategory::kWorkspace).current, 1024);  // whole cache lines
  }
  EXPECT_EQ(report().of(MemoryCategory::kWorkspace).current, 0);
  EXPECT_EQ(report().of(MemoryCategory::kWorkspace).peak, 1024);
}

TEST_F(MemoryTest, AStorageMayDieOnAnotherThreadAndAfterItsRank) {
  Tensor x = zeros({50});
  std::thread([moved = std::move(x)]() mutable { moved = Tensor(); }).join();
  EXPECT_EQ(report().total.current, 0);
  Tensor survivor;
  {
    RankContext other;
    const RankContext::Scope scope(other);
    survivor = ones({3});
  }
  EXPECT_EQ(survivor.to_vector<float>(), std::vector<float>(3, 1.0f));
}

}  // namespace
}  // namespace tessera
