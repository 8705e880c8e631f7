// Random tensors: a value is f(seed, stream, step, index) and nothing else.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

std::vector<double> uniform_values(std::uint64_t seed, std::uint64_t step, std::string_view stream) {
  RankContext context({.seed = seed});
  const RankContext::Scope scope(context);
  context.step = step;
  return uniform({16}, 0, 1, stream, {.dtype = kF64}).to_vector<double>();
}

// The same numbers from the definition: Philox on (index / 4, step) under a key mixed from seed and stream.
TEST(RandomTensor, UniformIsPhiloxOfSeedStreamStepAndIndex) {
  const kernels::RandomKey key{.seed = 7, .stream = kernels::stream_id("h.0.weight"), .step = 3};
  const std::vector<double> values = uniform_values(7, 3, "h.0.weight");
  for (std::uint64_t i = 0; i < values.size(); ++i) {
    const std::uint32_t word = kernels::random_block(key, i / 4).x[i % 4];
    EXPECT_EQ(values[i], static_cast<double>(word >> 8) / 16777216.0) << i;
  }
}

// Numbers of one stream, computed by a second program from the definition (FNV-1a, two rounds of mixing,
// Philox, Box-Muller): a change of any part would change where every model starts.
TEST(RandomTensor, ValuesStayWhatTheyWere) {
  EXPECT_EQ(kernels::stream_id(""), 0xCBF29CE484222325ull);   // FNV-1a's offset basis,
  EXPECT_EQ(kernels::stream_id("a"), 0xAF63DC4C8601EC8Cull);  // and its published value for "a"
  const kernels::Philox4 zeros = kernels::philox(0, 0, 0, 0, 0, 0);
  EXPECT_EQ(zeros.x[0], 0x6627e8d5u);  // kat_vectors of Random123
  EXPECT_EQ(zeros.x[3], 0x9b00dbd8u);
  RankContext context({.seed = 42});
  const RankContext::Scope scope(context);
  const std::vector<float> u = uniform({4}, 0, 1, "wte.weight").to_vector<float>();
  const std::vector<float> n = normal({3}, 0, 1, "wte.weight").to_vector<float>();
  EXPECT_EQ(u, (std::vector<float>{0x8d598p-24f, 0xbe1b10p-24f, 0x75f4a8p-24f, 0x9e379ep-24f}));
  const std::vector<double> expected{-0.1205964681, -0.9179272354, -0.0844149209};
  for (std::size_t i = 0; i < n.size(); ++i)
    EXPECT_NEAR(n[i], expected[i], 1.2e-7) << i;  // one rounding to f32 below 2
}

TEST(RandomTensor, SeedStepAndStreamEachChangeTheNumbers) {
  const std::vector<double> values = uniform_values(1, 0, "a");
  EXPECT_EQ(values, uniform_values(1, 0, "a"));
  EXPECT_NE(values, uniform_values(2, 0, "a"));
  EXPECT_NE(values, uniform_values(1, 1, "a"));
  EXPECT_NE(values, uniform_values(1, 0, "b"));
}

TEST(RandomTensor, DoesNotDependOnRankOrThreads) {
  std::vector<double> first;
  for (const int rank : {0, 3}) {
    for (const int threads : {1, 4}) {
      RankContext context({.rank = rank, .world_size = 4, .num_threads = threads, .seed = 9});
      const RankContext::Scope scope(context);
      const std::vector<double> values = normal({70001}, 0, 1, "x", {.dtype = kF64}).to_vector<double>();
      if (first.empty()) first = values;
      EXPECT_EQ(values, first) << rank << ", " << threads;
    }
  }
}

// Only the row-major index counts, so another shape has the same elements.
TEST(RandomTensor, ShapeOnlyArrangesTheNumbers) {
  const Tensor flat = uniform({24}, 0, 1, "shape");
  EXPECT_EQ(uniform({2, 3, 4}, 0, 1, "shape").to_vector<float>(), flat.to_vector<float>());
  EXPECT_EQ(uniform({6}, 0, 1, "shape").to_vector<float>(), flat.slice(0, 0, 6).to_vector<float>());
}

// A rank that holds columns [begin, end) of a weight makes them alone: each element by its index in the
// whole.
TEST(RandomTensor, AShardMakesTheValuesOfTheWholeAtItsPlace) {
  for (const bool is_normal : {false, true}) {
    const Shape whole_shape{6, 10};
    const Tensor whole =
        is_normal ? normal(whole_shape, 1, 2, "shard") : uniform(whole_shape, -1, 1, "shard");
    for (std::int64_t begin = 0; begin < 10; begin += 5) {
      Tensor shard = empty({6, 5});
      const kernels::GlobalIndex index{.base = begin, .strides = {10, 1}};
      const kernels::RandomKey key = RankContext::current().random_key("shard");
      const kernels::Random& random = kernels::of(DeviceType::kCpu).random;
      if (is_normal) {
        random.normal(shard.mutable_view(), 1, 2, key, index);
      } else {
        random.uniform(shard.mutable_view(), -1, 1, key, index);
      }
      EXPECT_EQ(shard.to_vector<float>(), whole.slice(1, begin, begin + 5).to_vector<float>()) << begin;
    }
  }
}

// 20,000 draws: the mean of uniforms deviates by 1/√12/√20000 = 0.002, that of normals by 0.007; the variance
// of normals by √(2/20000) = 0.01. Bounds are five deviations.
TEST(RandomTensor, HasTheMomentsThatWereAskedFor) {
  const std::int64_t n = 20000;
  double sum = 0, normal_sum = 0, squares = 0;
  for (const double x : uniform({n}, -1, 3, "moments", {.dtype = kF64}).to_vector<double>()) {
    EXPECT_GE(x, -1);
    EXPECT_LT(x, 3);
    sum += x;
  }
  EXPECT_NEAR(sum / n, 1.0, 5 * 4 * 0.002);
  for (const double x : normal({n}, 2, 3, "moments", {.dtype = kF64}).to_vector<double>()) {
    normal_sum += x;
    squares += (x - 2) * (x - 2);
  }
  EXPECT_NEAR(normal_sum / n, 2.0, 5 * 3 * 0.007);
  EXPECT_NEAR(squares / n, 9.0, 5 * 9 * 0.01);
}

TEST(RandomTensor, SixteenBitFloatsAreTheSameNumbersRounded) {
  const Tensor wide = normal({100}, 0, 1, "rounded", {.dtype = kF64});
  for (const DType dtype : {kBF16, kF16}) {
    const double unit = dtype == kBF16 ? 0x1p-8 : 0x1p-11;
    const std::vector<double> narrow = normal({100}, 0, 1, "rounded", {.dtype = dtype}).to_vector<double>();
    const std::vector<double> exact = wide.to_vector<double>();
    // One rounding, and an f32 rounding before it.
    for (std::size_t i = 0; i < exact.size(); ++i)
      EXPECT_NEAR(narrow[i], exact[i], std::fabs(exact[i]) * (unit + 0x1p-23)) << name(dtype) << " " << i;
  }
}

TEST(RandomTensor, IntegersAreRefused) {
  expect_error<DTypeError>([] { static_cast<void>(uniform({2}, 0, 1, "x", {.dtype = kI64})); },
                           {"uniform", "i64"});
  expect_error<DTypeError>([] { static_cast<void>(normal({2}, 0, 1, "x", {.dtype = kBool})); },
                           {"normal", "bool"});
}

}  // namespace
}  // namespace tessera
