// Tensors without data: shapes are right, bytes are counted, nothing is allocated.

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

class MetaTest : public testing::Test {
 protected:
  RankContext context_;
  RankContext::Scope scope_{context_};
};

TEST_F(MetaTest, ATensorLargerThanAnyMemoryCostsNone) {
  const Tensor x = zeros({1 << 20, 1 << 20}, {.device = meta});  // 4 TiB
  const MemoryReport report = context_.pool(meta)->report();
  EXPECT_EQ(report.total.current, std::int64_t{1} << 42);
  EXPECT_EQ(report.reserved, 0);
  EXPECT_EQ(report.system_allocations, 0);
  EXPECT_EQ(context_.pool(cpu)->report().total.peak, 0);
  EXPECT_EQ(x.transpose(0, 1).reshape({-1}).num_elements(), std::int64_t{1} << 40);
}

TEST_F(MetaTest, PeaksAreCountedAsOnTheCpu) {
  for (const Device device : {cpu, meta}) {
    const Tensor x = zeros({10, 10}, {.device = device});
    { const Tensor y = x.transpose(0, 1).contiguous().to(kF64); }
    EXPECT_EQ(context_.pool(device)->report().total.peak, 400 + 400 + 800) << to_string(device);
    EXPECT_EQ(context_.pool(device)->report().total.current, 400);
  }
}

TEST_F(MetaTest, CopiesAndFillsAreCountedAsOperations) {
  const Tensor x = zeros({10, 10}, {.device = meta});
  const kernels::OpCounts before = context_.kernels.counts;
  static_cast<void>(x.to(kF64));
  const kernels::OpCounts& after = context_.kernels.counts;
  EXPECT_EQ(after.calls - before.calls, 1u);
  EXPECT_EQ(after.bytes_read - before.bytes_read, 400u);
  EXPECT_EQ(after.bytes_written - before.bytes_written, 800u);
  EXPECT_EQ(after.flops, before.flops);
}

TEST_F(MetaTest, AskingForDataIsAnErrorThatSaysWhatToDo) {
  const Tensor x = zeros({1}, {.device = meta});
  expect_error<DeviceError>([&] { static_cast<void>(x.item()); }, {"meta", "materialise"});
  expect_error<DeviceError>([&] { static_cast<void>(x.data<float>()); }, {"meta"});
  expect_error<DeviceError>([&] { static_cast<void>(x.to_vector<float>()); }, {"meta"});
  expect_error<DeviceError>([&] { static_cast<void>(x.to(cpu)); }, {"to: f32 [1] on meta has no data"});
}

TEST_F(MetaTest, DataGoesToMetaByBeingForgotten) {
  // A device that this build lacks is no reason to hand out memory without the values.
  expect_error<DeviceError>(
      [] { static_cast<void>(ones({2}).to(Device{.type = DeviceType::kCpu, .index = 1})); },
      {"no way from cpu to cpu 1"});
  const Tensor x = ones({2, 3}, {.dtype = kBF16}).to(meta);
  EXPECT_EQ(x.device(), meta);
  EXPECT_EQ(x.shape(), (Shape{2, 3}));
  EXPECT_EQ(x.dtype(), kBF16);
}

}  // namespace
}  // namespace tessera
