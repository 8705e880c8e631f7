// Sums of squares that have no order.

#include "dist/exact_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dist/job.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::testing {
namespace {

double squares_of(const std::vector<double>& values, DType dtype) {
  ExactSumOfSquares sum;
  sum.add(from_vector(values, Shape{static_cast<std::int64_t>(values.size())}).to(dtype));
  return sum.value();
}

TEST(ExactSum, IsRoundedOnce) {
  EXPECT_EQ(squares_of({}, kF32), 0.0);
  EXPECT_EQ(squares_of({3, -4}, kF32), 25.0);
  EXPECT_EQ(squares_of({0x1p-149}, kF32), 0x1p-298);  // the smallest float
  EXPECT_EQ(squares_of({0x1.fffffep127}, kF32), std::pow(0x1.fffffep127, 2));
  EXPECT_EQ(squares_of({0x1p-537}, kF64), 0x1p-1074);  // the smallest double
  EXPECT_EQ(squares_of({0x1p500, 0x1p-500}, kF64), 0x1p1000);
  // 2^53 + 1 + 2^-20 lies above the middle of two doubles; in f64 arithmetic each addition is lost.
  EXPECT_EQ(squares_of({0x1p26, 0x1p26, 1, 0x1p-10}, kF32), 0x1p53 + 2);
  EXPECT_EQ(squares_of({0x1p26, 0x1p26, 1}, kF32), 0x1p53);  // in the middle: to even
}

TEST(ExactSum, IsNotANumberIfAnElementIsNot) {
  EXPECT_TRUE(std::isnan(squares_of({1, std::numeric_limits<double>::infinity()}, kF32)));
  EXPECT_TRUE(std::isnan(squares_of({std::nan(""), 1}, kF64)));
}

// The order of elements, threads, pieces and ranks: one result, that of the same squares in long double.
TEST(ExactSum, HasNoOrder) {
  const Tensor x = normal({100'001}, 0, 1, "x");
  long double expected = 0;
  for (const float value : x.to_vector<float>()) expected += static_cast<long double>(value) * value;
  ExactSumOfSquares forward;
  forward.add(x);
  EXPECT_NEAR(forward.value() / static_cast<double>(expected), 1.0, 1e-15);  // 1e5 roundings of 2^-65
  for (const int ranks : {1, 2, 3}) {
    run_thread_ranks(ranks, [&](Job& job) {
      RankContext::current().kernels.num_threads = 1 + job.rank();
      ExactSumOfSquares part;
      // Cut where nobody else would, the last piece first.
      const std::int64_t begin = job.rank() * 31'007;
      const std::int64_t end = job.rank() == ranks - 1 ? 100'001 : begin + 31'007;
      part.add(x.slice(0, (begin + end) / 2, end));
      part.add(x.slice(0, begin, (begin + end) / 2));
      part.all_reduce(job.world());
      EXPECT_EQ(part.value(), forward.value());
    });
  }
}

}  // namespace
}  // namespace tessera::dist::testing
