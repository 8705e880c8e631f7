// dist::reduce on its own: the kernel below every reduction.

#include "dist/reduce.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tests/dist/behaviours.h"
#include "tests/dist/tree_reference.h"

namespace tessera::dist::testing {
namespace {

template <class T>
std::vector<T> reduce_all(const std::vector<std::vector<T>>& inputs, ReduceOp op) {
  std::vector<const void*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  std::vector<T> output(inputs[0].size());
  void* const target = output.data();
  reduce(pointers, {&target, 1}, static_cast<std::int64_t>(output.size()), dtype_of<T>, op);
  return output;
}

// 2^24 + 1 is 2^24 in f32: only the promised order, (a + b) + (c + d) and ((a + b) + (c + d)) + e, gives
// these sums.
TEST(Reduce, CombinesInTheOrderOfATree) {
  const float big = 16777216.0f;
  EXPECT_EQ(reduce_all<float>({{big}, {1}, {1}}, ReduceOp::kSum)[0], big);           // (big + 1) + 1
  EXPECT_EQ(reduce_all<float>({{1}, {1}, {big}}, ReduceOp::kSum)[0], big + 2);       // (1 + 1) + big
  EXPECT_EQ(reduce_all<float>({{big}, {1}, {1}, {1}}, ReduceOp::kSum)[0], big + 2);  // (big + 1) + (1 + 1)
  EXPECT_EQ(reduce_all<float>({{1}, {1}, {1}, {big}}, ReduceOp::kSum)[0], big + 2);  // (1 + 1) + (1 + big)
  EXPECT_EQ(reduce_all<float>({{1}, {1}, {1}, {1}, {big}}, ReduceOp::kSum)[0], big + 4);
}

TEST(Reduce, AgreesWithABinaryCounterForAnyNumberOfInputs) {
  for (int num_inputs = 1; num_inputs <= 17; ++num_inputs) {
    for (const std::int64_t count : {1, 1023, 1024, 1025, 2049}) {
      std::vector<std::vector<float>> inputs;
      for (int r = 0; r < num_inputs; ++r) inputs.push_back(sample_vector<float>(1, r, count));
      const std::vector<float> result = reduce_all(inputs, ReduceOp::kSum);
      for (std::size_t i = 0; i < result.size(); ++i) {
        std::vector<float> summands;
        for (const auto& input : inputs) summands.push_back(input[i]);
        ASSERT_EQ(result[i], tree_reference(summands, ReduceOp::kSum))
            << num_inputs << " inputs, element " << i;
      }
    }
  }
}

TEST(Reduce, GivesTheSameBitsWithAnyNumberOfThreads) {
  RankContext context({.num_threads = 3});
  const RankContext::Scope scope(context);
  std::vector<std::vector<float>> inputs;
  for (int r = 0; r < 5; ++r) inputs.push_back(sample_vector<float>(2, r, 300007));
  const std::vector<float> by_three = reduce_all(inputs, ReduceOp::kSum);
  context.kernels.num_threads = 1;
  EXPECT_EQ(by_three, reduce_all(inputs, ReduceOp::kSum));
}

TEST(Reduce, MayWriteToItsInputsAndToSeveralOutputs) {
  std::vector<std::int32_t> a(2000, 1), b(2000, 2), c(2000, 4), d(2000, 0);
  const void* inputs[] = {a.data(), b.data(), c.data()};
  void* outputs[] = {c.data(), d.data(), a.data()};
  reduce(inputs, outputs, 2000, kI32, ReduceOp::kSum);
  EXPECT_EQ(a, std::vector<std::int32_t>(2000, 7));
  EXPECT_EQ(c, a);
  EXPECT_EQ(d, a);
  EXPECT_EQ(b, std::vector<std::int32_t>(2000, 2));
}

TEST(Reduce, RefusesTypesWithoutAnOrderOrASum) {
  std::uint8_t byte = 1;
  const void* input = &byte;
  void* output = &byte;
  EXPECT_THROW(reduce({&input, 1}, {&output, 1}, 1, kU8, ReduceOp::kSum), DTypeError);
  EXPECT_THROW(reduce({&input, 1}, {&output, 1}, 1, kBool, ReduceOp::kMax), DTypeError);
  EXPECT_FALSE(is_reducible(kU8));
  EXPECT_TRUE(is_reducible(kF16));
}

}  // namespace
}  // namespace tessera::dist::testing
