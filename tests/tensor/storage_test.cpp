// Storages whose data comes and goes under their handles.

#include "tensor/storage.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

// A rank of its own, so that the pool is empty at the start.
class StorageTest : public testing::Test {
 protected:
  [[nodiscard]] MemoryReport report() const { return context_.pool(cpu)->report(); }

  RankContext context_;
  RankContext::Scope scope_{context_};
};

TEST_F(StorageTest, DroppedMemoryGoesBackAndComesAgainUnderAllHandles) {
  Tensor x = from_vector<float>({1, 2, 3, 4}, Shape{2, 2});
  const Tensor view = x.transpose(0, 1);
  Storage storage = x.storage();
  EXPECT_EQ(report().total.current, 16);
  storage.drop();
  EXPECT_EQ(report().total.current, 0);
  EXPECT_TRUE(x.storage().is_dropped());
  EXPECT_EQ(view.shape(), (Shape{2, 2}));  // geometry stays
  storage.drop();                          // twice is allowed
  EXPECT_EQ(report().total.current, 0);
  storage.refill();
  EXPECT_EQ(report().total.current, 16);
  const float values[] = {5, 6, 7, 8};
  std::memcpy(storage.data(), values, sizeof values);
  EXPECT_EQ(view.to_vector<float>(), (std::vector<float>{5, 7, 6, 8}));
  storage.refill();  // without effect
  EXPECT_EQ(x.at({0, 0}), 5);
}

TEST_F(StorageTest, EveryTouchOfADroppedStorageNamesTheParameter) {
  Tensor x = zeros({2, 3});
  Storage storage = x.storage();
  storage.set_name("h.0.attn.c_attn.weight");
  storage.drop();
  const std::vector<std::pair<const char*, std::function<void()>>> touches{
      {"data", [&] { static_cast<void>(x.data<float>()); }},
      {"mutable_data", [&] { static_cast<void>(x.mutable_data<float>()); }},
      {"item", [&] { static_cast<void>(x.select(0, 0).select(0, 0).item()); }},
      {"at",
       [&] {
         static_cast<void>(x.at({0, 0}));
       }},
      {"to_vector", [&] { static_cast<void>(x.to_vector<float>()); }},
      {"clone", [&] { static_cast<void>(x.clone()); }},
      {"to", [&] { static_cast<void>(x.to(kF64)); }},
      {"contiguous of a view", [&] { static_cast<void>(x.transpose(0, 1).contiguous()); }},
      {"fill", [&] { x.fill(1); }},
      {"copy_from", [&] { x.copy_from(zeros({3})); }},
      {"copy_from it",
       [&] {
         zeros({2, 3}).copy_from(x);
       }},
      {"add_scaled", [&] { x.add_scaled(zeros({3})); }},
      {"view", [&] { static_cast<void>(x.view()); }},
  };
  for (const auto& [what, touch] : touches) {
    SCOPED_TRACE(what);
    expect_error<StorageError>(touch, {"'h.0.attn.c_attn.weight'", "24 bytes", "dropped", "refill"});
  }
}

TEST_F(StorageTest, ValuesWrittenBackAreNoChangeAndNewOnesAre) {
  Tensor x = zeros({4});
  Storage storage = x.storage();
  const std::uint64_t version = storage.version();
  storage.drop();
  storage.refill();
  std::memset(storage.data(), 0, 16);
  EXPECT_EQ(storage.version(), version);
  x.fill(1);
  EXPECT_GT(storage.version(), version);
}

TEST_F(StorageTest, ADroppedStorageIsNotFreedTwice) {
  for (const bool refill : {false, true}) {
    {
      const Tensor x = zeros({100});
      Storage storage = x.storage();
      storage.drop();
      if (refill) storage.refill();
    }
    EXPECT_EQ(report().total.current, 0) << refill;
  }
}

TEST_F(StorageTest, ItsCategoryMovesWithItsBytesAndOutlivesADrop) {
  const Tensor x = zeros({4});
  Storage storage = x.storage();
  EXPECT_EQ(storage.category(), MemoryCategory::kActivation);
  storage.set_category(MemoryCategory::kParameter);
  EXPECT_EQ(report().of(MemoryCategory::kParameter).current, 16);
  EXPECT_EQ(report().of(MemoryCategory::kActivation).current, 0);
  storage.drop();
  storage.set_category(MemoryCategory::kGradient);  // nothing to count now
  EXPECT_EQ(report().total.current, 0);
  storage.refill();
  EXPECT_EQ(report().of(MemoryCategory::kGradient).current, 16);
}

TEST_F(StorageTest, OnMetaItHasNoDataButCanBeDroppedToo) {
  Tensor x = zeros({4}, {.device = meta});
  Storage storage = x.storage();
  storage.set_name("wte.weight");
  expect_error<DeviceError>([&] { static_cast<void>(storage.data()); }, {"'wte.weight'", "meta"});
  EXPECT_EQ(storage.data_or_null(), nullptr);
  EXPECT_EQ(context_.pool(meta)->report().total.current, 16);
  storage.drop();
  EXPECT_EQ(context_.pool(meta)->report().total.current, 0);
  expect_error<StorageError>([&] { static_cast<void>(x.view()); }, {"'wte.weight'", "dropped"});
}

TEST_F(StorageTest, KnowsWhetherAnybodyElseCanSeeIt) {
  Tensor x = zeros({4});
  EXPECT_TRUE(x.is_unshared());
  {
    const Tensor handle = x;
    EXPECT_FALSE(x.is_unshared());
  }
  {
    const Tensor view = x.slice(0, 0, 2);
    EXPECT_FALSE(x.is_unshared());
  }
  EXPECT_TRUE(x.is_unshared());
}

}  // namespace
}  // namespace tessera
