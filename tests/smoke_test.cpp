// Read this first: what Tessera's tensors and gradients look like in use.

#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "tensor/create.h"

namespace tessera {
namespace {

TEST(Smoke, ATensorIsAHandleAndViewsShareItsElements) {
  Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, Shape{2, 3});
  EXPECT_EQ(x.transpose(0, 1).slice(0, 1, 3).to_vector<float>(), (std::vector<float>{2, 5, 3, 6}));
  x.select(0, 1).fill(0);
  EXPECT_EQ(to_string(x), "[[1., 2., 3.],\n [0., 0., 0.]]  f32 [2, 3]");
}

TEST(Smoke, ArithmeticWithNumbersRoundsOnceAndIntegersStayIntegers) {
  EXPECT_EQ((full({1}, 49.0, {.dtype = kF64}) / 49.0).item(), 1.0);
  EXPECT_EQ((from_vector<std::int64_t>({7, -7}) / 2).to_vector<std::int64_t>(),
            (std::vector<std::int64_t>{3, -3}));
}

// loss = mean((w·x − 1)²) for w = 2, x = {1, 2}:
//   (1 + 9)/2 = 5,  dloss/dw = mean(2·(w·x − 1)·x) = (2 + 12)/2 = 7
TEST(Smoke, BackwardGivesTheGradientOfALoss) {
  Tensor w = scalar(2.0);
  w.set_requires_grad();
  const Tensor x = from_vector<float>({1, 2});
  const Tensor loss = mse_loss(w * x, ones({2}));
  loss.backward();
  EXPECT_FLOAT_EQ(loss.item<float>(), 5.0f);
  EXPECT_FLOAT_EQ(w.grad().item<float>(), 7.0f);
}

}  // namespace
}  // namespace tessera
