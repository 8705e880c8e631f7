#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/random_key.h"
#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

const RandomKey kKey = {.seed = 42, .stream = stream_id("test"), .step = 3};

TEST(Philox, MatchesTheVectorsOfItsAuthors) {
  // kat_vectors of Random123 1.14: philox4x32, 10 rounds.
  struct Vector {
    std::uint32_t counter[4], key[2], result[4];
  };
  const Vector vectors[] = {{{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                            {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                             {0xffffffff, 0xffffffff},
                             {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                            {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                             {0xa4093822, 0x299f31d0},
                             {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const Vector& v : vectors) {
    const Philox4 words = philox(v.counter[0], v.counter[1], v.counter[2], v.counter[3], v.key[0], v.key[1]);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(words.x[i], v.result[i]);
  }
}

double uniform_reference(std::int64_t index) {
  return static_cast<double>(uniform_from_word(random_word(kKey, static_cast<std::uint64_t>(index))));
}

double normal_reference(std::int64_t index) {
  const double u =
      (static_cast<double>(random_word(kKey, static_cast<std::uint64_t>(2 * index))) + 1) / 4294967296.0;
  const double v =
      static_cast<double>(random_word(kKey, static_cast<std::uint64_t>(2 * index + 1))) / 4294967296.0;
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * 3.14159265358979323846 * v);
}

std::int64_t at(const GlobalIndex& index, const Sizes& i) {
  std::int64_t sum = index.base;
  for (std::size_t d = 0; d < i.size(); ++d) sum += i[d] * index.strides[d];
  return sum;
}

TEST(Random, EveryElementComesFromItsGlobalIndexInEveryDTypeAndLayout) {
  for (const InstructionSet set : supported_sets()) {
    const Random& kernels = cpu_kernels(set).random;
    for (const DType dtype : kFloatDTypes) {
      for (const Sizes& shape : kShapes) {
        for (const Layout layout : kStoredLayouts) {
          for (const int part : {0, 1}) {
            SCOPED_TRACE(std::string(name(set)) + " " + name(dtype) + " " + text(shape) + " " + name(layout));
            LaidOut y(dtype, shape, layout);
            GlobalIndex index = GlobalIndex::row_major(y.view(), 5);
            // As a slice of a larger tensor: rows farther apart than they are long.
            for (int d = 0; part == 1 && d + 1 < y.view().dims; ++d)
              index.strides[d] = 3 * index.strides[d] + 1;
            kernels.uniform(y.view(), 0, 1, kKey, index);
            HostArray rounded(dtype, {1});
            expect_elements(
                y,
                [&](const Sizes& i) {
                  rounded.set({0}, uniform_reference(at(index, i)));
                  return rounded({0}) < 1 ? rounded({0})
                                          : 1 - 2 * unit_roundoff(dtype) * 0.5;  // 1 is not in [0, 1)
                },
                0);
            kernels.normal(y.view(), -1, 2, kKey, index);
            expect_elements(
                y, [&](const Sizes& i) { return -1 + 2 * normal_reference(at(index, i)); },
                dtype == kF64 ? 16 : 1, [](const Sizes&, double e) { return 2 + std::abs(e); });
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Random, HasTheMomentsOfItsDistribution) {
  const std::int64_t n = 1000000;
  HostArray y(kF32, {n});
  const GlobalIndex index = GlobalIndex::row_major(y.view());
  const auto moments = [&](double& mean, double& variance, double& low, double& high) {
    const float* values = static_cast<const float*>(y.view().data);
    double sum = 0, squares = 0;
    low = high = static_cast<double>(values[0]);
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(values[i]);
      sum += x;
      squares += x * x;
      low = std::min(low, x);
      high = std::max(high, x);
    }
    mean = sum / static_cast<double>(n);
    variance = squares / static_cast<double>(n) - mean * mean;
  };
  double mean, variance, low, high;
  // Five standard errors of the estimates.
  of(DeviceType::kCpu).random.uniform(y.view(), -2, 4, kKey, index);
  moments(mean, variance, low, high);
  EXPECT_NEAR(mean, 1, 5 * std::sqrt(3.0 / 1e6));
  EXPECT_NEAR(variance, 3, 5 * std::sqrt(7.2 / 1e6));
  EXPECT_GE(low, -2);
  EXPECT_LT(high, 4);
  of(DeviceType::kCpu).random.normal(y.view(), 1, 3, kKey, index);
  moments(mean, variance, low, high);
  EXPECT_NEAR(mean, 1, 5 * 3 / 1e3);
  EXPECT_NEAR(variance, 9, 5 * 9 * std::sqrt(2.0 / 1e6));
  EXPECT_LT(high, 1 + 3 * 6.7);  // sqrt(2 ln 2^32) = 6.66
}

TEST(Random, NeverReachesTheUpperEnd) {
  // bf16 has no number between 1 - 2^-8 and 1: one of 256 draws would round up.
  for (const DType dtype : kFloatDTypes) {
    for (const double high : {1.0, -3.0, 0.3}) {
      HostArray y(dtype, {20000});
      of(DeviceType::kCpu).random.uniform(y.view(), high - 2, high, kKey, GlobalIndex::row_major(y.view()));
      y.for_each([&](const Sizes& i) { ASSERT_LT(y(i), high) << name(dtype); });
    }
  }
}

TEST(Random, StepStreamAndSeedGiveOtherNumbers) {
  HostArray a(kF32, {64}), b(kF32, {64});
  const GlobalIndex index = GlobalIndex::row_major(a.view());
  const Random& kernels = of(DeviceType::kCpu).random;
  kernels.uniform(a.view(), 0, 1, kKey, index);
  kernels.uniform(b.view(), 0, 1, kKey, index);
  EXPECT_TRUE(a.bitwise_equal(b));
  for (const RandomKey key :
       {RandomKey{43, kKey.stream, 3}, RandomKey{42, kKey.stream + 1, 3}, RandomKey{42, kKey.stream, 4}}) {
    kernels.uniform(b.view(), 0, 1, key, index);
    EXPECT_FALSE(a.bitwise_equal(b));
  }
}

}  // namespace
}  // namespace tessera::kernels::test
