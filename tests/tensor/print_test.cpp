// What people see of a tensor.

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "tensor/create.h"

namespace tessera {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct PrintCase {
  const char* name;
  Tensor x;
  const char* expected;
};

TEST(Print, ShowsElementsShapeAndDType) {
  const auto f32 = [](std::vector<float> values) { return from_vector<float>(values); };
  for (const PrintCase& c :
       {PrintCase{"whole numbers", f32({1, -2, 30}), "[ 1., -2., 30.]  f32 [3]"},
        {"fractions", f32({0.5f, -1, 22.25f}), "[ 0.5000, -1.0000, 22.2500]  f32 [3]"},
        {"tiny", f32({0.5f, 1e-5f}), "[5.0000e-01, 1.0000e-05]  f32 [2]"},
        {"huge", f32({0.5f, -2e6f}), "[ 5.0000e-01, -2.0000e+06]  f32 [2]"},
        {"zeros", zeros({2}), "[0., 0.]  f32 [2]"},
        {"f64", from_vector<double>({1.0 / 3}), "[0.3333]  f64 [1]"},
        {"bf16", full({2}, 1.0 / 3, {.dtype = kBF16}), "[0.3340, 0.3340]  bf16 [2]"},
        {"f16", full({1}, -1.0 / 3, {.dtype = kF16}), "[-0.3333]  f16 [1]"},
        {"i64", from_vector<std::int64_t>({std::numeric_limits<std::int64_t>::max(), -1}),
         "[9223372036854775807,                  -1]  i64 [2]"},
        {"i32", from_vector<std::int32_t>({-7, 12}), "[-7, 12]  i32 [2]"},
        {"u8", from_vector<std::uint8_t>({0, 255}), "[  0, 255]  u8 [2]"},
        {"bool", from_vector<bool>({true, false}), "[ true, false]  bool [2]"},
        {"not finite",
         f32({1, static_cast<float>(kNaN), static_cast<float>(-kInfinity), static_cast<float>(kInfinity)}),
         "[  1.,  nan, -inf,  inf]  f32 [4]"},
        {"no dimensions", scalar(2.5), "2.5000  f32 []"},
        {"empty", zeros({0}), "[]  f32 [0]"},
        {"empty rows", zeros({3, 0}), "[]  f32 [3, 0]"},
        {"on meta", zeros({2, 3}, {.device = meta}), "f32 [2, 3] on meta"}}) {
    EXPECT_EQ(to_string(c.x), c.expected) << c.name;
  }
}

TEST(Print, RowsStandBelowEachOther) {
  EXPECT_EQ(to_string(from_vector<float>({1, 2, 3, -4, 5, 60}, Shape{2, 3})),
            "[[ 1.,  2.,  3.],\n"
            " [-4.,  5., 60.]]  f32 [2, 3]");
  EXPECT_EQ(to_string(arange(0, 8).reshape({2, 2, 2})),
            "[[[0, 1],\n"
            "  [2, 3]],\n"
            " [[4, 5],\n"
            "  [6, 7]]]  i64 [2, 2, 2]");
}

TEST(Print, ViewsShowTheirOwnElements) {
  EXPECT_EQ(to_string(arange(0, 6).reshape({2, 3}).transpose(0, 1)),
            "[[0, 3],\n"
            " [1, 4],\n"
            " [2, 5]]  i64 [3, 2]");
  EXPECT_EQ(to_string(arange(0, 2).expand({2, 2})),
            "[[0, 1],\n"
            " [0, 1]]  i64 [2, 2]");
}

TEST(Print, LongDimensionsShowTheirEnds) {
  EXPECT_EQ(to_string(arange(0, 1000)).find("..."), std::string::npos);
  EXPECT_EQ(to_string(arange(0, 1001)), "[   0,    1,    2, ...,  998,  999, 1000]  i64 [1001]");
  EXPECT_EQ(to_string(arange(0, 2000).reshape({1000, 2})),
            "[[   0,    1],\n"
            " [   2,    3],\n"
            " [   4,    5],\n"
            " ...,\n"
            " [1994, 1995],\n"
            " [1996, 1997],\n"
            " [1998, 1999]]  i64 [1000, 2]");
}

TEST(Print, WhatIsNotShownDoesNotChangeTheForm) {
  Tensor x = ones({2000});
  x.set({1000}, 1e-9);
  EXPECT_EQ(to_string(x), "[1., 1., 1., ..., 1., 1., 1.]  f32 [2000]");
}

TEST(Print, ADroppedTensorSaysSoInsteadOfThrowing) {
  const Tensor x = zeros({2});
  Storage storage = x.storage();
  storage.drop();
  EXPECT_EQ(to_string(x), "f32 [2], dropped");
}

TEST(Print, GoesToAStream) {
  std::ostringstream out;
  out << arange(0, 2);
  EXPECT_EQ(out.str(), "[0, 1]  i64 [2]");
}

}  // namespace
}  // namespace tessera
