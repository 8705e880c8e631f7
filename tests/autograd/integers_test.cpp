// Integers and numbers with a fraction: the number is never cut to an integer without a word.

#include <gtest/gtest.h>

#include <limits>

#include "autograd/ops.h"
#include "tensor/create.h"

namespace tessera {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void expect_values(const Tensor& y, DType dtype, const std::vector<double>& expected) {
  EXPECT_EQ(y.dtype(), dtype);
  EXPECT_EQ(y.to_vector<double>(), expected);
}

TEST(Integers, WithAFractionBecomeF32) {
  const Tensor x = from_vector<std::int64_t>({4, 9});
  expect_values(x + 0.5, kF32, {4.5, 9.5});
  expect_values(0.5 - x, kF32, {-3.5, -8.5});
  expect_values(x * 0.5, kF32, {2, 4.5});
  expect_values(x / 0.5, kF32, {8, 18});
  expect_values(0.5 / x, kF32, {0.125, 0.5f / 9});
  expect_values(pow(x, 0.5), kF32, {2, 3});
  expect_values(clamp(x, 4.5, 8.5), kF32, {4.5, 8.5});
}

TEST(Integers, WithWholeNumbersStayIntegers) {
  const Tensor x = from_vector<std::int64_t>({4, 9});
  expect_values(x / 2.0, kI64, {2, 4});
  expect_values(20.0 / x, kI64, {5, 2});
  expect_values(pow(x, 3.0), kI64, {64, 729});
  expect_values(clamp(x, 5.0, 8.0), kI64, {5, 8});
}

TEST(Integers, MeetInfinity) {
  const std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  const Tensor x = from_vector<std::int64_t>({-largest, 4, largest});
  EXPECT_EQ(clamp(x, -kInfinity, 8.0).to_vector<std::int64_t>(), (std::vector<std::int64_t>{-largest, 4, 8}));
  EXPECT_EQ(clamp(x, 0.0, kInfinity).to_vector<std::int64_t>(), (std::vector<std::int64_t>{0, 4, largest}));
  expect_values(from_vector<std::int64_t>({1, -1}) * kInfinity, kF32, {kInfinity, -kInfinity});
}

}  // namespace
}  // namespace tessera
