// Two shapes become one, two dtypes become one, and the way back for gradients.

#include "tensor/broadcast.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

TEST(Broadcast, AlignsAtTheLastDimensionAndRepeatsOnes) {
  struct Case {
    const char* name;
    Shape a, b, expected;
  };
  for (const Case& c : {Case{"equal", {2, 3}, {2, 3}, {2, 3}},
                        {"a row", {2, 3}, {3}, {2, 3}},
                        {"a column", {2, 3}, {2, 1}, {2, 3}},
                        {"both grow", {4, 1}, {1, 5}, {4, 5}},
                        {"a scalar", {2, 3}, {}, {2, 3}},
                        {"two scalars", {}, {}, {}},
                        {"outer ones", {1, 1, 7}, {2}, {}},
                        {"empty with 1", {0, 3}, {1, 3}, {0, 3}},
                        {"empty with a row", {0, 3}, {3}, {0, 3}},
                        {"three dimensions", {5, 1, 3}, {4, 1}, {5, 4, 3}}}) {
    SCOPED_TRACE(c.name);
    if (c.name == std::string("outer ones")) {
      EXPECT_THROW(static_cast<void>(broadcast_shapes("add", c.a, c.b)), ShapeError);
      continue;
    }
    EXPECT_EQ(broadcast_shapes("add", c.a, c.b), c.expected);
    EXPECT_EQ(broadcast_shapes("add", c.b, c.a), c.expected);
  }
}

TEST(Broadcast, AnErrorNamesTheOperationBothShapesAndTheDimension) {
  expect_error<ShapeError>(
      [] {
        static_cast<void>(broadcast_shapes("multiply", {8, 3}, {4, 1}));
      },
      {"multiply: shapes [8, 3] and [4, 1]", "dimension -2", "8 and 4"});
  expect_error<ShapeError>([] { static_cast<void>(broadcast_shapes("add", {3}, {0})); },
                           {"[3] and [0]", "3 and 0"});
}

TEST(Broadcast, DTypesPromoteToTheWiderAndFloatsWin) {
  struct Case {
    DType a, b, expected;
  };
  for (const Case& c : {Case{kF32, kF32, kF32},
                        {kF32, kF64, kF64},
                        {kF16, kF32, kF32},
                        {kF16, kBF16, kF32},
                        {kBF16, kI64, kBF16},
                        {kI32, kI64, kI64},
                        {kU8, kI32, kI32},
                        {kBool, kU8, kU8},
                        {kBool, kF16, kF16},
                        {kBool, kBool, kBool},
                        {kI64, kF64, kF64}}) {
    EXPECT_EQ(promote(c.a, c.b), c.expected) << name(c.a) << " " << name(c.b);
    EXPECT_EQ(promote(c.b, c.a), c.expected) << name(c.b) << " " << name(c.a);
  }
}

TEST(Broadcast, SumToShapeIsTheAdjointOfExpand) {
  const Tensor x = arange(0, 12, 1, {.dtype = kF64}).reshape({2, 2, 3});
  EXPECT_EQ(sum_to_shape(x, {3}).to_vector<double>(), (std::vector<double>{18, 22, 26}));
  EXPECT_EQ(sum_to_shape(x, {2, 1}).to_vector<double>(), (std::vector<double>{3 + 21, 12 + 30}));
  EXPECT_EQ(sum_to_shape(x, {2, 1, 1}).to_vector<double>(), (std::vector<double>{15, 51}));
  EXPECT_EQ(sum_to_shape(x, {}).item(), 66);
  EXPECT_EQ(sum_to_shape(zeros({0, 3}), {3}).to_vector<double>(), (std::vector<double>{0, 0, 0}));
  EXPECT_TRUE(sum_to_shape(x, x.shape()).is_same(x));
}

TEST(Broadcast, OperandsOnTwoDevicesAreRefused) {
  const Tensor a = zeros({2}), b = zeros({3}, {.device = meta});
  expect_error<DeviceError>([&] { check_same_device("add", a, b); },
                            {"add: f32 [2] is on cpu, but f32 [3] is on meta"});
}

}  // namespace
}  // namespace tessera
