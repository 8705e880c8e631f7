// The behaviour of a backward pass, apart from what single operations compute: what is recorded, what
// accumulates, what is freed, what is refused.

#include "autograd/backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

using Values = std::vector<double>;

Tensor leaf(const Values& values) {
  Tensor x = from_vector<double>(values);
  x.set_requires_grad();
  return x;
}

Values values(const Tensor& x) { return x.to_vector<double>(); }

TEST(NoGrad, NothingIsRecordedAndLeavesMayBeChangedInPlace) {
  Tensor x = leaf({1, 2});
  {
    const NoGrad no_grad;
    EXPECT_FALSE((x * 2.0).requires_grad());
    EXPECT_FALSE(x.reshape({2, 1}).requires_grad());
    x.fill(3);
    const EnableGrad enable_grad;
    EXPECT_TRUE((x * 2.0).requires_grad());
  }
  EXPECT_TRUE((x * 2.0).requires_grad());
  EXPECT_EQ(values(x), (Values{3, 3}));
  expect_error<AutogradError>([&] { x.fill(1); }, {"fill", "f64 [2]", "NoGrad"});
  expect_error<AutogradError>([&] { x.add_scaled(ones({2})); }, {"add_scaled", "NoGrad"});
}

TEST(NoGrad, DetachCutsTheGraph) {
  Tensor x = leaf({2});
  sum(x * x.detach()).backward();
  EXPECT_EQ(values(x.grad()), (Values{2}));
}

TEST(Leaf, OnlyFloatingTensorsAndNoResultsCanBeOne) {
  Tensor ids = arange(0, 3);
  expect_error<DTypeError>([&] { ids.set_requires_grad(); }, {"i64 [3]"});
  Tensor y = leaf({1}) * 2.0;
  expect_error<AutogradError>([&] { y.set_requires_grad(); }, {"result of an operation", "detach()"});
  expect_error<ShapeError>([] { leaf({1, 2}).set_grad(zeros({3})); }, {"f32 [3]", "f64 [2]"});
}

TEST(Backward, TwoPassesAddUp) {
  Tensor x = leaf({1, 2, 3});
  sum(x * 2.0).backward();
  sum(x * x).backward();
  EXPECT_EQ(values(x.grad()), (Values{2 + 2, 2 + 4, 2 + 6}));
  x.set_grad({});
  EXPECT_FALSE(x.grad().defined());
  sum(x).backward();
  EXPECT_EQ(values(x.grad()), (Values{1, 1, 1}));
}

TEST(Backward, GradientsOfSixteenBitLeavesAccumulateInF32) {
  Tensor x = full({1}, 1, {.dtype = kBF16});
  x.set_requires_grad();
  // 256 + 1 has nine significant bits, one more than bf16 holds.
  sum(x * 256.0).backward();
  sum(x * 1.0).backward();
  EXPECT_EQ(x.grad().dtype(), kF32);
  EXPECT_EQ(x.grad().item(), 257.0);
}

TEST(Backward, AnOperandThatIsUsedTwiceGetsBothGradients) {
  Tensor x = leaf({3});
  const Tensor y = x * x;              // 2x = 6
  (y * y + y).reshape({}).backward();  // (2y + 1) · 2x = 19 · 6
  EXPECT_EQ(values(x.grad()), (Values{114}));
}

TEST(Backward, SeveralRootsAreOneSum) {
  Tensor x = leaf({1, 2});
  const Tensor roots[] = {sum(x), x * x};
  const Tensor weights[] = {Tensor(), from_vector<double>({10, 100})};
  backward(roots, weights);
  EXPECT_EQ(values(x.grad()), (Values{1 + 20, 1 + 400}));
}

TEST(Backward, RefusesRootsThatCannotBeDifferentiated) {
  Tensor x = leaf({1, 2});
  expect_error<AutogradError>([] { sum(ones({2})).backward(); }, {"does not depend", "requires gradients"});
  expect_error<ShapeError>([&] { (x * 2.0).backward(); }, {"f64 [2]", "only a scalar"});
  expect_error<ShapeError>([&] { backward(x * 2.0, ones({3})); }, {"f64 [2]", "[3]"});
}

TEST(Backward, ASecondPassOverAFreedGraphSaysWhatToDo) {
  Tensor x = leaf({1, 2});
  const Tensor loss = sum(x * x);
  loss.backward();
  expect_error<AutogradError>([&] { loss.backward(); },
                              {"backward: the graph of 'sum' was freed", "forward", "retain_graph"});
  EXPECT_EQ(values(x.grad()), (Values{2, 4})) << "a refused pass adds nothing";
}

TEST(Backward, RetainGraphAllowsAnotherPass) {
  Tensor x = leaf({1, 2});
  const Tensor loss = sum(exp(x) * x);
  backward(loss, {}, {.retain_graph = true});
  const Values once = values(x.grad());
  backward(loss, {}, {.retain_graph = true});
  loss.backward();
  for (std::size_t i = 0; i < 2; ++i) EXPECT_DOUBLE_EQ(values(x.grad())[i], 3 * once[i]);
  EXPECT_THROW(loss.backward(), AutogradError);
}

// The fused loss writes its gradient over the logits, but never over those that a second pass needs.
TEST(Backward, RetainGraphKeepsWhatWouldBeOverwritten) {
  Tensor x = from_vector<double>({1, 2, 3, 4, 5, 6}, Shape{2, 3});
  x.set_requires_grad();
  const Tensor loss = cross_entropy(x * 2.0, from_vector<std::int64_t>({0, 2}));
  backward(loss, {}, {.retain_graph = true});
  const Values once = values(x.grad());
  loss.backward();
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_DOUBLE_EQ(values(x.grad())[i], 2 * once[i]);
}

TEST(Backward, GradientsAreReturnedWithoutTouchingAnyLeaf) {
  Tensor a = leaf({2}), b = leaf({5}), unused = leaf({1});
  const Tensor h = a * b;
  const Tensor y = h * h;  // dh = 2h = 20
  const Tensor wanted[] = {a, h, unused};
  const std::vector<Tensor> found = gradients(std::span(&y, 1), {}, wanted);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(values(found[0]), (Values{100}));
  EXPECT_EQ(values(found[1]), (Values{20}));
  EXPECT_FALSE(found[2].defined());
  EXPECT_FALSE(a.grad().defined());
  EXPECT_FALSE(b.grad().defined());
}

TEST(Backward, GradientsOfNothingTouchNoLeaf) {
  Tensor x = leaf({2});
  const Tensor y = x * x;
  EXPECT_TRUE(gradients(std::span(&y, 1), {}, {}).empty());
  EXPECT_FALSE(x.grad().defined());
}

// Only the way to the wanted tensor runs: the rest of the graph is still there for another pass.
TEST(Backward, GradientsRunOnlyWhatLeadsToTheWantedTensors) {
  Tensor a = leaf({2}), b = leaf({5});
  const Tensor left = exp(a), right = exp(b);
  const Tensor y = left * right;
  static_cast<void>(gradients(std::span(&y, 1), {}, std::span(&a, 1)));
  right.backward();
  EXPECT_DOUBLE_EQ(b.grad().item(), std::exp(5.0));
  EXPECT_THROW(left.backward(), AutogradError);
}

TEST(SavedValue, ChangedInPlaceIsCaughtAndTheOperationNamed) {
  Tensor x = leaf({1, 2});
  Tensor y = x * 1.0;
  const Tensor z = exp(y) * y;  // exp and multiply save y
  y.detach().fill(9);
  expect_error<AutogradError>([&] { sum(z).backward(); },
                              {"backward of 'multiply'", "f64 [2]", "changed in place", "clone it"});
}

TEST(SavedValue, ChangedThroughAnyViewIsCaught) {
  Tensor x = leaf({1, 2, 3, 4});
  const Tensor y = x * 1.0;
  const Tensor z = exp(y.reshape({2, 2}));
  y.detach().slice(0, 3, 4).fill(9);
  expect_error<AutogradError>([&] { sum(z).backward(); }, {"backward of 'exp'", "version"});
}

// A buffer of ids that is filled anew before backward() would send the gradient to other rows.
TEST(SavedValue, IdsOfAnEmbeddingAreWatchedToo) {
  Tensor table = leaf({1, 2, 3, 4});
  Tensor ids = from_vector<std::int64_t>({0, 1});
  const Tensor y = embedding(table.reshape({4, 1}), ids);
  ids.fill(3);
  expect_error<AutogradError>([&] { sum(y).backward(); }, {"backward of 'embedding'", "changed in place"});
}

TEST(SavedValue, AnOutputThatItsOperationSavedIsWatchedToo) {
  Tensor x = from_vector<double>({1, 2}, Shape{1, 2});
  x.set_requires_grad();
  const Tensor y = softmax(x);
  y.detach().fill(0.5);
  expect_error<AutogradError>([&] { sum(y * 2.0).backward(); }, {"backward of 'softmax'"});
}

TEST(SavedValue, AChangedParameterIsCalledByItsName) {
  Tensor weight = leaf({2});
  Storage storage = weight.storage();
  storage.set_name("h.0.ln_1.weight");
  const Tensor y = leaf({3}) * weight;
  {
    const NoGrad no_grad;
    weight.fill(1);
  }
  expect_error<AutogradError>([&] { y.backward(); }, {"'h.0.ln_1.weight'", "'multiply'"});
}

TEST(SavedValue, WhatNobodySavedMayBeChanged) {
  Tensor x = leaf({1, 2});
  Tensor y = x + 1.0;
  const Tensor z = y * 3.0;  // a sum and a product with a number need no values
  y.detach().fill(100);
  sum(z).backward();
  EXPECT_EQ(values(x.grad()), (Values{3, 3}));
}

// A sharded parameter: dropped after its forward pass, refilled before its backward pass.
TEST(SavedValue, OfADroppedStorageIsReadAgainAfterItIsRefilled) {
  Tensor x = leaf({10, 20});
  Tensor weight = leaf({3, 4});
  Storage storage = weight.storage();
  storage.set_name("wte.weight");
  const auto forward = [&] { return sum(x * weight); };
  Tensor loss = forward();
  storage.drop();
  expect_error<StorageError>([&] { backward(loss, {}, {.retain_graph = true}); },
                             {"backward of 'multiply'", "'wte.weight'", "dropped"});
  x.set_grad({});
  weight.set_grad({});
  storage.refill();
  const double back[] = {3, 4};
  std::memcpy(storage.data(), back, sizeof back);
  loss.backward();
  EXPECT_EQ(values(x.grad()), (Values{3, 4}));
  EXPECT_EQ(values(weight.grad()), (Values{10, 20}));
}

}  // namespace
}  // namespace tessera
