// Single elements, exact integers, and conversions between dtypes against hand values.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

TEST(Elements, ItemConvertsTheOnlyElement) {
  EXPECT_EQ(scalar(2.5).item(), 2.5);
  EXPECT_EQ(scalar(2.5).item<float>(), 2.5f);
  EXPECT_EQ(scalar(-2.5).item<int>(), -2);
  EXPECT_EQ(ones({1, 1, 1}).item(), 1.0);
  EXPECT_TRUE(from_vector<bool>({true}).item<bool>());
}

TEST(Elements, IntegersThatADoubleCannotHoldStayExact) {
  const Tensor x =
      from_vector<std::int64_t>({kLargest, kLargest - 1, -kLargest, (std::int64_t{1} << 53) + 1});
  EXPECT_EQ(x.select(0, 0).item<std::int64_t>(), kLargest);
  EXPECT_EQ(x.select(0, 1).item<std::int64_t>(), kLargest - 1);
  EXPECT_EQ(x.select(0, 3).item<std::int64_t>(), (std::int64_t{1} << 53) + 1);
  EXPECT_EQ(x.slice(0, 0, 4, 2).to_vector<std::int64_t>(), (std::vector<std::int64_t>{kLargest, -kLargest}));
  EXPECT_EQ(from_vector<std::int32_t>({2147483647}).to(kI64).item<std::int64_t>(), 2147483647);
}

TEST(Elements, ItemOfMoreOrLessThanOneElementIsAnError) {
  expect_error<ShapeError>(
      [] {
        static_cast<void>(zeros({2, 1}).item());
      },
      {"item", "one element", "f32 [2, 1]"});
  expect_error<ShapeError>([] { static_cast<void>(zeros({0}).item<int>()); }, {"f32 [0]"});
}

TEST(Elements, AtAndSetTakeNegativeIndices) {
  Tensor x = arange(0, 6).reshape({2, 3});
  EXPECT_EQ(x.at({-1, -2}), 4);
  x.set({1, -1}, 50);
  x.set({0, 0}, -7);
  EXPECT_EQ(x.to_vector<std::int64_t>(), (std::vector<std::int64_t>{-7, 1, 2, 3, 4, 50}));
  Tensor transposed = x.transpose(0, 1);
  transposed.set({2, 0}, 9);
  EXPECT_EQ(x.at({0, 2}), 9);
  Tensor zero_d = scalar(1);
  zero_d.set({}, 3);
  EXPECT_EQ(zero_d.at({}), 3);
}

TEST(Elements, IndicesOutsideNameTheTensor) {
  const Tensor x = zeros({2, 3});
  expect_error<IndexError>([&] { static_cast<void>(x.at({0, 3})); }, {"index 3", "f32"});
  expect_error<IndexError>([&] { static_cast<void>(x.at({0})); }, {"at: 1 indices", "f32 [2, 3]"});
}

TEST(Elements, DataIsTypedAndWritingCountsAsAChange) {
  Tensor x = from_vector<float>({1, 2});
  EXPECT_EQ(x.data<float>()[1], 2.0f);
  expect_error<DTypeError>([&] { static_cast<void>(x.data<double>()); }, {"f32 [2]", "read as f64", "to()"});
  const std::uint64_t version = x.storage().version();
  x.mutable_data<float>()[0] = 5;
  EXPECT_EQ(x.storage().version(), version + 1);
  EXPECT_EQ(x.at({0}), 5);
  EXPECT_EQ(x.slice(0, 1, 2).data<float>()[0], 2.0f);  // begins at its own first element
}

struct Conversion {
  const char* name;
  DType to;
  double value, expected;
};

// f16 has 11 significant bits, bf16 8; both round to nearest, halfway cases to even.
TEST(Conversion, RoundsToNearestEvenAndKeepsWhatIsSpecial) {
  for (const DType from : {kF32, kF64}) {
    for (const Conversion& c : {Conversion{"f16, tie to even below", kF16, 1 + 0x1p-11, 1.0},
                                {"f16, tie to even above", kF16, 1 + 3 * 0x1p-11, 1 + 0x1p-9},
                                {"f16, just above a tie", kF16, 1 + 0x1p-11 + 0x1p-20, 1 + 0x1p-10},
                                {"f16, largest", kF16, 65504, 65504},
                                {"f16, below overflow", kF16, 65519, 65504},
                                {"f16, overflow", kF16, 65520, kInfinity},
                                {"f16, smallest normal", kF16, 0x1p-14, 0x1p-14},
                                {"f16, subnormal", kF16, 3 * 0x1p-24, 3 * 0x1p-24},
                                {"f16, tie of subnormals", kF16, 2.5 * 0x1p-24, 2 * 0x1p-24},
                                {"f16, half of the smallest", kF16, 0x1p-25, 0.0},
                                {"f16, negative", kF16, -(1 + 3 * 0x1p-11), -(1 + 0x1p-9)},
                                {"bf16, tie to even below", kBF16, 1 + 0x1p-8, 1.0},
                                {"bf16, tie to even above", kBF16, 1 + 3 * 0x1p-8, 1 + 0x1p-6},
                                {"bf16, just above a tie", kBF16, 1 + 0x1p-8 + 0x1p-20, 1 + 0x1p-7},
                                {"bf16, large", kBF16, 0x1p127, 0x1p127},
                                {"bf16, overflow", kBF16, 3.4e38, kInfinity},
                                {"bf16, subnormal", kBF16, 0x1p-133, 0x1p-133},
                                {"f32, infinity", kF32, kInfinity, kInfinity},
                                {"f16, infinity", kF16, -kInfinity, -kInfinity},
                                {"bf16, infinity", kBF16, kInfinity, kInfinity},
                                {"i64, towards 0", kI64, -2.9, -2},
                                {"i32, towards 0", kI32, 2.9, 2},
                                {"u8, modulo 256", kU8, -1, 255},
                                {"bool, not 0", kBool, 0.25, 1},
                                {"bool, 0", kBool, -0.0, 0},
                                {"bool, NaN is not 0", kBool, kNaN, 1}}) {
      const double given = from == kF32 ? static_cast<double>(static_cast<float>(c.value)) : c.value;
      if (c.to == from) continue;
      EXPECT_EQ(full({3}, given, {.dtype = from}).to(c.to).at({1}), c.expected)
          << name(from) << ": " << c.name;
    }
  }
}

TEST(Conversion, RoundsOnceFromF64AndFromIntegers) {
  EXPECT_EQ(full({1}, 1 + 0x1p-8 + 0x1p-40, {.dtype = kF64}).to(kBF16).item(), 1 + 0x1p-7);
  EXPECT_EQ(full({1}, 1 + 0x1p-11 + 0x1p-50, {.dtype = kF64}).to(kF16).item(), 1 + 0x1p-10);
  EXPECT_EQ(from_vector<std::int64_t>({(1ll << 33) + (1ll << 25) + 1}).to(kBF16).item(), 0x1p33 + 0x1p26);
  EXPECT_EQ(full({1}, 1 + 0x1p-8 + 0x1p-40, {.dtype = kBF16}).item(), 1 + 0x1p-7);
}

TEST(Conversion, NaNStaysNaN) {
  for (const DType from : {kF64, kF32, kF16, kBF16}) {
    for (const DType to : {kF64, kF32, kF16, kBF16}) {
      EXPECT_TRUE(std::isnan(full({2}, kNaN, {.dtype = from}).to(to).at({1})))
          << name(from) << " " << name(to);
    }
  }
}

// All 65,536 bit patterns go to f32 and back unchanged, NaNs apart: widening is exact.
TEST(Conversion, EverySixteenBitFloatSurvivesTheWayThroughF32) {
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  for (const DType dtype : {kF16, kBF16}) {
    const Tensor x = from_memory(patterns.data(), {65536}, dtype);
    for (const DType wide : {kF32, kF64}) {
      const Tensor back = x.to(wide).to(dtype);
      const auto* bits = static_cast<const std::uint16_t*>(back.view().data);
      const std::vector<double> values = x.to_vector<double>();
      int wrong = 0;
      for (std::size_t i = 0; i < patterns.size(); ++i)
        wrong += std::isnan(values[i]) ? 0 : static_cast<int>(bits[i] != patterns[i]);
      EXPECT_EQ(wrong, 0) << name(dtype) << " through " << name(wide);
    }
  }
}

TEST(Conversion, ToItsOwnDTypeIsTheTensorItself) {
  const Tensor x = zeros({2});
  EXPECT_TRUE(x.to(kF32).is_same(x));
  EXPECT_TRUE(x.to(cpu).is_same(x));
}

TEST(Conversion, WorksOnStridedAndEmptyTensors) {
  const Tensor x = arange(0, 6).reshape({2, 3}).transpose(0, 1).to(kBF16);
  EXPECT_TRUE(x.is_contiguous());
  EXPECT_EQ(x.to_vector<double>(), (std::vector<double>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(zeros({2, 0}).to(kI32).shape(), (Shape{2, 0}));
  EXPECT_EQ(scalar(3.5).to(kI64).item(), 3);
}

}  // namespace
}  // namespace tessera
