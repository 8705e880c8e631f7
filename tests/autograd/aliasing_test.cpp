// Gradients may share memory on their way (y = a + b hands dy to both). These tests make sure that nobody
// notices: what is added to one gradient never shows up in another, nor in what the caller holds.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "tensor/create.h"

namespace tessera {
namespace {

Tensor leaf(std::vector<double> values) {
  Tensor x = from_vector<double>(values);
  x.set_requires_grad();
  return x;
}

std::vector<double> values(const Tensor& x) { return x.to_vector<double>(); }

TEST(Aliasing, TwoLeavesOfOneSumGetGradientsOfTheirOwn) {
  Tensor a = leaf({1, 2});
  Tensor b = leaf({3, 4});
  backward((a + b) * 2.0, ones({2}, {.dtype = kF64}));
  EXPECT_EQ(values(a.grad()), (std::vector<double>{2, 2}));
  a.grad().fill(7);
  EXPECT_EQ(values(b.grad()), (std::vector<double>{2, 2}));
}

TEST(Aliasing, ASecondPassAddsToEachLeafOnce) {
  Tensor a = leaf({1, 2});
  Tensor b = leaf({3, 4});
  for (int pass = 0; pass < 2; ++pass) backward((a + b) * 2.0, ones({2}, {.dtype = kF64}));
  EXPECT_EQ(values(a.grad()), (std::vector<double>{4, 4}));
  EXPECT_EQ(values(b.grad()), (std::vector<double>{4, 4}));
}

// a' gets dy from the sum and 3·dy from c; b' gets dy alone: 1 and 2 outside, so 4·1 and 1·2.
TEST(Aliasing, AContributionToOneOperandOfASumLeavesTheOtherAlone) {
  Tensor x = leaf({5});
  Tensor z = leaf({6});
  const Tensor a = x * 1.0;
  const Tensor b = z * 2.0;
  const Tensor c = a * 3.0;
  const Tensor y = a + b;
  backward((y + c) * 1.0, ones({1}, {.dtype = kF64}));
  EXPECT_EQ(values(x.grad()), (std::vector<double>{4}));
  EXPECT_EQ(values(z.grad()), (std::vector<double>{2}));
}

TEST(Aliasing, TheCallersRootGradientIsNeverWrittenTo) {
  Tensor x = leaf({1, 2});
  const Tensor g = from_vector<double>({10, 20});
  const Tensor y = x + 1.0;
  const Tensor z = y + y;
  backward(z, g);
  backward(x + 0.0, g);
  EXPECT_EQ(values(g), (std::vector<double>{10, 20}));
  EXPECT_EQ(values(x.grad()), (std::vector<double>{30, 60}));
}

TEST(Aliasing, AGradientThatAHookKeptIsNotWrittenTo) {
  Tensor x = leaf({1, 2});
  Tensor kept;
  const Tensor y = x * 1.0;
  register_hook(y, [&kept](const Tensor& grad) {
    kept = grad;
    return Tensor();
  });
  const Tensor a = y + 0.0;
  backward((a + 0.0) + y * 2.0, ones({2}, {.dtype = kF64}));
  x.grad().fill(-1);
  EXPECT_EQ(values(kept), (std::vector<double>{3, 3}));
}

TEST(Aliasing, ALeafsHookMayKeepItsGradient) {
  Tensor x = leaf({1, 2});
  Tensor kept;
  register_hook(x, [&kept](const Tensor& grad) {
    kept = grad;
    return Tensor();
  });
  for (int pass = 0; pass < 2; ++pass) backward(x * 2.0, ones({2}, {.dtype = kF64}));
  EXPECT_EQ(values(kept), (std::vector<double>{2, 2}));
  EXPECT_EQ(values(x.grad()), (std::vector<double>{4, 4}));
}

// The gradient of the logits takes over their memory only if nobody else can see them.
TEST(Aliasing, CrossEntropyLeavesLogitsAloneThatTheCallerHolds) {
  Tensor x = from_vector<double>({1, 2, 3, 4, 5, 6}, Shape{2, 3});
  x.set_requires_grad();
  const Tensor logits = x * 2.0;
  cross_entropy(logits, from_vector<std::int64_t>({0, 2})).backward();
  EXPECT_EQ(values(logits), (std::vector<double>{2, 4, 6, 8, 10, 12}));
  cross_entropy(x, from_vector<std::int64_t>({0, 2})).backward();
  EXPECT_EQ(values(x), (std::vector<double>{1, 2, 3, 4, 5, 6}));
}

TEST(Aliasing, DeferredGradientsReadTheGradientThatTheirOperationGot) {
  Tensor x = leaf({1, 2});
  Tensor w = leaf({3, 4});
  const Tensor h = x * 1.0;
  const Tensor c = h * 10.0;
  const Tensor y = h + w;  // hands one dy to h now, and to w later
  DeferredGradients later;
  backward((y + c) * 1.0, ones({2}, {.dtype = kF64}), {.deferred = &later});
  EXPECT_EQ(values(x.grad()), (std::vector<double>{11, 11}));
  EXPECT_FALSE(w.grad().defined());
  later.run();
  EXPECT_EQ(values(w.grad()), (std::vector<double>{1, 1}));
}

}  // namespace
}  // namespace tessera
