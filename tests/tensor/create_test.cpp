// Tensors out of nothing, out of containers and on memory of others.

#include "tensor/create.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

constexpr DType kAllDTypes[] = {kF64, kF32, kF16, kBF16, kI64, kI32, kU8, kBool};

TEST(Create, ZerosOnesAndFullHoldTheirValueInEveryDType) {
  for (const DType dtype : kAllDTypes) {
    SCOPED_TRACE(name(dtype));
    EXPECT_EQ(zeros({2, 3}, {.dtype = dtype}).to_vector<double>(), std::vector<double>(6, 0.0));
    EXPECT_EQ(ones({2, 3}, {.dtype = dtype}).to_vector<double>(), std::vector<double>(6, 1.0));
    const double seven = dtype == kBool ? 1.0 : 7.0;
    EXPECT_EQ(full({5}, 7, {.dtype = dtype}).to_vector<double>(), std::vector<double>(5, seven));
    EXPECT_EQ(zeros({2}, {.dtype = dtype}).dtype(), dtype);
  }
}

TEST(Create, TheDefaultIsF32OnTheCpuContiguousAndAligned) {
  const Tensor x = empty({3, 5});
  EXPECT_EQ(x.dtype(), kF32);
  EXPECT_EQ(x.device(), cpu);
  EXPECT_TRUE(x.is_contiguous());
  EXPECT_EQ(x.strides(), (Strides{5, 1}));
  EXPECT_EQ(x.size_bytes(), 60);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.data<float>()) % 64, 0u);
}

TEST(Create, LikeTakesShapeAndDTypeButNotStrides) {
  const Tensor x = zeros({4, 2}, {.dtype = kBF16}).transpose(0, 1);
  for (const Tensor& y : {empty_like(x), zeros_like(x), ones_like(x)}) {
    EXPECT_EQ(y.shape(), (Shape{2, 4}));
    EXPECT_EQ(y.dtype(), kBF16);
    EXPECT_TRUE(y.is_contiguous());
  }
  EXPECT_EQ(ones_like(x).to_vector<float>(), std::vector<float>(8, 1.0f));
}

TEST(Create, TensorsWithoutDimensionsHaveOneElementAndEmptyOnesNone) {
  EXPECT_EQ(scalar(2.5).num_elements(), 1);
  EXPECT_EQ(scalar(2.5).dims(), 0);
  EXPECT_EQ(scalar(2.5).item(), 2.5);
  for (const Shape& shape : {Shape{0}, Shape{3, 0, 2}, Shape{0, 0}}) {
    const Tensor x = zeros(shape);
    EXPECT_EQ(x.num_elements(), 0);
    EXPECT_EQ(x.size_bytes(), 0);
    EXPECT_TRUE(x.is_contiguous());
    EXPECT_TRUE(x.to_vector<float>().empty());
  }
}

TEST(Create, ArangeStopsBeforeItsEnd) {
  struct Case {
    const char* name;
    double start, end, step;
    std::vector<double> expected;
  };
  for (const Case& c : {Case{"counting", 0, 4, 1, {0, 1, 2, 3}},
                        {"end between two steps", 0, 5, 2, {0, 2, 4}},
                        {"end on a step", 1, 7, 3, {1, 4}},
                        {"downwards", 3, 0, -1, {3, 2, 1}},
                        {"fractions", 0, 1, 0.25, {0, 0.25, 0.5, 0.75}},
                        {"nothing", 3, 3, 1, {}},
                        {"wrong direction", 0, 3, -1, {}}}) {
    EXPECT_EQ(arange(c.start, c.end, c.step, {.dtype = kF64}).to_vector<double>(), c.expected) << c.name;
  }
  EXPECT_EQ(arange(0, 3).dtype(), kI64);
}

TEST(Create, ArangeRefusesStepsThatNeverArrive) {
  expect_error<ShapeError>([] { static_cast<void>(arange(0, 3, 0)); }, {"arange: from 0 to 3 in steps of 0"});
  const double infinity = std::numeric_limits<double>::infinity();
  expect_error<ShapeError>([&] { static_cast<void>(arange(0, infinity)); }, {"no finite number of steps"});
}

TEST(Create, EyeIsTheIdentity) {
  EXPECT_EQ(eye(3).to_vector<float>(), (std::vector<float>{1, 0, 0, 0, 1, 0, 0, 0, 1}));
  EXPECT_EQ(eye(0).shape(), (Shape{0, 0}));
}

TEST(Create, RefusesSizesThatAreNegativeOrTooLarge) {
  expect_error<ShapeError>([] { static_cast<void>(zeros({2, -1})); }, {"[2, -1]", "negative"});
  expect_error<ShapeError>(
      [] {
        static_cast<void>(zeros({std::int64_t{1} << 40, std::int64_t{1} << 40}));
      },
      {"[1099511627776, 1099511627776]", "2^63"});
  expect_error<ShapeError>(
      [] {
        static_cast<void>(zeros({1, 1, 1, 1, 1, 1, 1, 1, 1}));
      },
      {"at most 8 dimensions"});
}

TEST(Create, TooMuchMemoryIsAnErrorThatTellsWhatIsInUse) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the program instead of refusing memory";
#endif
  RankContext context;
  const RankContext::Scope scope(context);
  const CategoryScope category(MemoryCategory::kParameter);
  const Tensor held = zeros({25});
  expect_error<StorageError>(
      [] { static_cast<void>(empty({std::int64_t{1} << 45})); },
      {"out of memory on cpu", "140737488355328 bytes", "parameter 100,", "total 100 bytes"});
  EXPECT_EQ(held.to_vector<float>(), std::vector<float>(25, 0.0f));
}

template <class T>
void expect_round_trip(const std::vector<T>& values, DType dtype) {
  const Tensor x = from_vector<T>(values);
  EXPECT_EQ(x.dtype(), dtype);
  EXPECT_EQ(x.shape(), (Shape{static_cast<std::int64_t>(values.size())}));
  EXPECT_EQ(x.to_vector<T>(), values);
}

TEST(Create, VectorsOfEveryElementTypeGoInAndOut) {
  expect_round_trip<double>({1.1, -2.2, 1e300}, kF64);
  expect_round_trip<float>({1.1f, -2.2f}, kF32);
  expect_round_trip<std::int64_t>(
      {std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}, kI64);
  expect_round_trip<std::int32_t>({2147483647, -2147483647 - 1}, kI32);
  expect_round_trip<std::uint8_t>({0, 255}, kU8);
  expect_round_trip<bool>({true, false, true}, kBool);
  expect_round_trip<double>({}, kF64);
  const Tensor halves = from_vector<Float16>({Float16(1.5f), Float16(-65504.0f)});
  EXPECT_EQ(halves.to_vector<float>(), (std::vector<float>{1.5f, -65504.0f}));
  const Tensor brains = from_vector<BFloat16>({BFloat16(1.5f), BFloat16(-3e38f)});
  EXPECT_EQ(brains.to_vector<BFloat16>()[0].bits, 0x3FC0);
}

TEST(Create, FromVectorFillsRowsFirst) {
  const Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, Shape{2, 3});
  EXPECT_EQ(x.at({0, 2}), 3);
  EXPECT_EQ(x.at({1, 0}), 4);
  expect_error<ShapeError>(
      [] {
        static_cast<void>(from_vector<float>({1, 2, 3}, Shape{2, 2}));
      },
      {"3 values", "[2, 2]"});
}

TEST(Create, FromMemoryCopiesAndBorrowMemoryDoesNot) {
  std::vector<float> values{1, 2, 3, 4};
  const Tensor copied = from_memory(values.data(), {2, 2}, kF32);
  Tensor borrowed = borrow_memory(values.data(), {2, 2}, kF32);
  values[3] = 40;
  EXPECT_EQ(copied.at({1, 1}), 4);
  EXPECT_EQ(borrowed.at({1, 1}), 40);
  borrowed.select(0, 0).fill(7);
  EXPECT_EQ(values, (std::vector<float>{7, 7, 3, 40}));
  EXPECT_EQ(borrowed.data<float>(), values.data());
}

TEST(Create, BorrowedMemoryIsNotCountedAndCannotBeDropped) {
  RankContext context;
  const RankContext::Scope scope(context);
  std::vector<float> values(1000);
  const Tensor x = borrow_memory(values.data(), {1000}, kF32);
  EXPECT_EQ(context.pool(cpu)->report().total.current, 0);
  Storage storage = x.storage();
  expect_error<StorageError>([&] { storage.drop(); }, {"borrows its memory"});
  EXPECT_EQ(x.at({999}), 0);
}

TEST(Create, AnUndefinedTensorSaysSo) {
  const Tensor x;
  EXPECT_FALSE(x.defined());
  expect_error<Error>([&] { static_cast<void>(x.shape()); }, {"undefined tensor"});
  EXPECT_EQ(to_string(x), "undefined tensor");
  EXPECT_EQ(describe(x), "undefined");
}

}  // namespace
}  // namespace tessera
