// Gradients of to(): back in the dtype that the input has, rounded once, and none through integers.

#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "tensor/create.h"

namespace tessera {
namespace {

constexpr DType kFloats[] = {kF64, kF32, kBF16, kF16};

TEST(Conversion, HandsTheGradientBackInTheInputsDtype) {
  for (const DType from : kFloats) {
    for (const DType to : kFloats) {
      Tensor leaf = from_vector<double>({1, 2, 3}).to(from);
      leaf.set_requires_grad();
      const Tensor x = leaf * 1.0;  // a result: its gradient keeps the dtype that to() gives it
      const Tensor weights = from_vector<double>({1, -2, 0.5}).to(to);
      const Tensor y = x.to(to) * weights;
      EXPECT_EQ(y.dtype(), to);
      sum(y).backward();
      EXPECT_EQ(leaf.grad().to_vector<double>(), (std::vector<double>{1, -2, 0.5})) << name(from) << name(to);
      EXPECT_EQ(leaf.grad().dtype(), from == kF64 ? kF64 : kF32);
    }
  }
}

// 1 + 2⁻⁷ + 2⁻⁹ lies between two bf16: the nearer is 1 + 2⁻⁷.
TEST(Conversion, RoundsTheGradientOnceOnItsWayBack) {
  Tensor leaf = ones({1}, {.dtype = kBF16});
  leaf.set_requires_grad();
  (leaf.to(kF32) * (1 + 0x1p-7 + 0x1p-9)).backward();
  EXPECT_EQ(leaf.grad().item(), 1 + 0x1p-7);
}

TEST(Conversion, ToAnIntegerEndsTheGraph) {
  Tensor x = ones({2});
  x.set_requires_grad();
  EXPECT_FALSE(x.to(kI64).requires_grad());
  EXPECT_FALSE(x.to(kBool).requires_grad());
}

}  // namespace
}  // namespace tessera
