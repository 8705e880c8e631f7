#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct ReduceCase {
  const char* name;
  ReduceOp op;
};

const ReduceCase kCases[] = {{"sum", ReduceOp::kSum}, {"mean", ReduceOp::kMean}, {"max", ReduceOp::kMax},
                             {"min", ReduceOp::kMin}, {"any", ReduceOp::kAny},   {"all", ReduceOp::kAll}};

double start(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMax:
      return -kInfinity;
    case ReduceOp::kMin:
      return kInfinity;
    case ReduceOp::kAll:
      return 1;
    default:
      return 0;
  }
}

long double step(ReduceOp op, long double a, double x) {
  switch (op) {
    case ReduceOp::kMax:
      return std::isnan(a) || a > x ? a : static_cast<long double>(x);
    case ReduceOp::kMin:
      return std::isnan(a) || a < x ? a : static_cast<long double>(x);
    case ReduceOp::kAny:
      return double(a != 0 || x != 0);
    case ReduceOp::kAll:
      return double(a != 0 && x != 0);
    default:
      return a + x;
  }
}

/// The output's index of an input's element.
Sizes collapse(const Sizes& index, const Sizes& output) {
  Sizes out = index;
  for (std::size_t d = 0; d < out.size(); ++d) out[d] = output[d] == 1 ? 0 : out[d];
  return out;
}

void check_reduce(const Reductions& kernels, ReduceOp op, LaidOut& x, LaidOut& y) {
  kernels.reduce(op, x.view(), y.view());
  std::map<Sizes, long double> expected, magnitude;  // wide, so that the reference rounds nothing
  long double count = 0;
  HostArray::for_each_index(y.shape(), [&](const Sizes& i) { expected[i] = start(op); });
  HostArray::for_each_index(x.shape(), [&](const Sizes& i) {
    const Sizes out = collapse(i, y.shape());
    expected[out] = step(op, expected[out], x(i));
    magnitude[out] += std::abs(x(i));
    ++count;
  });
  const long double outputs = std::max<long double>(1, expected.size());
  const long double divisor = op == ReduceOp::kMean ? count / outputs : 1;
  // Chains of at most 128 additions in the compute type, each with an error of one rounding of a partial sum.
  const double roundings = op == ReduceOp::kSum || op == ReduceOp::kMean ? 130 : 0;
  expect_elements(
      y, [&](const Sizes& i) { return static_cast<double>(expected[i] / divisor); }, roundings,
      [&](const Sizes& i, double) { return static_cast<double>(magnitude[i] / divisor); });
}

TEST(Reduce, EveryOperationOverAnyDimensionsOfEveryDTypeAndLayout) {
  for (const InstructionSet set : supported_sets()) {
    const Reductions& kernels = cpu_kernels(set).reductions;
    std::mt19937 generator(1);
    for (const ReduceCase& c : kCases) {
      for (const DType dtype : kAllDTypes) {
        const bool logical = c.op == ReduceOp::kAny || c.op == ReduceOp::kAll;
        if (dtype == kBool && !logical) continue;
        if (!is_floating(dtype) && c.op == ReduceOp::kMean) continue;
        for (const Sizes& shape : kShapes) {
          for (std::uint32_t mask = 0; mask < (1u << shape.size()) && mask < 32; ++mask) {
            for (const Layout layout : kInputLayouts) {
              Sizes output = shape;
              bool empty = false;
              for (std::size_t d = 0; d < shape.size(); ++d) {
                if ((mask >> d & 1u) != 0) output[d] = 1;
                empty = empty || shape[d] == 0;
              }
              if (empty && (c.op == ReduceOp::kMax || c.op == ReduceOp::kMin)) continue;
              SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + text(shape) +
                           " to " + text(output) + " " + name(layout));
              LaidOut x(dtype, shape, layout), y(logical ? kBool : dtype, output, Layout::kContiguous);
              x.fill([&] {
                if (logical) return double(generator() % 4 != 0);
                if (dtype == kU8) return double(generator() % 2) / (c.op == ReduceOp::kSum ? 1e9 : 1);
                return is_floating(dtype) ? std::uniform_real_distribution<double>(-1, 2)(generator)
                                          : double(generator() % 1000) - 500;
              });
              if (empty && c.op == ReduceOp::kMean) {
                kernels.reduce(c.op, x.view(), y.view());
                expect_elements(
                    y, [](const Sizes&) { return kNaN; }, 0);
              } else {
                check_reduce(kernels, c.op, x, y);
              }
              if (testing::Test::HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(Reduce, HalvesMayBeSummedIntoFloats) {
  LaidOut x(kBF16, {3000}, Layout::kContiguous), y(kF32, {1}, Layout::kContiguous);
  x.fill([] { return 1.0; });
  of(DeviceType::kCpu).reductions.reduce(ReduceOp::kSum, x.view(), y.view());
  EXPECT_EQ(y({0}), 3000);
}

TEST(Reduce, MaximumAndMinimumOfARowWithNaNAreNaN) {
  for (const std::int64_t n : {5, 40, 3000}) {
    for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
      for (const bool columns : {false, true}) {
        LaidOut x(kF32, columns ? Sizes{n, 3} : Sizes{3, n}, Layout::kContiguous);
        LaidOut y(kF32, columns ? Sizes{1, 3} : Sizes{3, 1}, Layout::kContiguous);
        x.fill([] { return -1.0; });
        x.array().set(columns ? Sizes{at, 1} : Sizes{1, at}, kNaN);
        for (const ReduceOp op : {ReduceOp::kMax, ReduceOp::kMin}) {
          of(DeviceType::kCpu).reductions.reduce(op, x.view(), y.view());
          const std::int64_t row = 1;
          expect_elements(
              y, [&](const Sizes& i) { return i[columns ? 1 : 0] == row ? kNaN : -1.0; }, 0);
        }
      }
    }
  }
}

TEST(Reduce, LongSumsOfFloatsKeepSixDigits) {
  // 10^7 times 0.1: adding one after the other in f32 would stop at 1.09 million.
  const std::int64_t n = 10000000;
  std::vector<float> values(static_cast<std::size_t>(n), 0.1f);
  View x;
  x.data = values.data();
  x.dims = 2;
  for (const Sizes& shape : {Sizes{1, n}, Sizes{n, 1}, Sizes{n / 4, 4}}) {
    for (int d = 0; d < 2; ++d) x.shape[d] = shape[static_cast<std::size_t>(d)];
    x.strides[0] = x.shape[1];
    x.strides[1] = 1;
    HostArray y(kF32, {1, 1});
    of(DeviceType::kCpu).reductions.reduce(ReduceOp::kSum, x, y.view());
    EXPECT_NEAR(y({0, 0}), static_cast<double>(0.1f) * static_cast<double>(n), 1.0) << text(shape);  // 1e-6
  }
}

TEST(ArgReduce, GivesTheFirstOfEqualsAndTheFirstNaNInEveryLayout) {
  for (const InstructionSet set : supported_sets()) {
    std::mt19937 generator(3);
    for (const DType dtype : kAllDTypes) {
      for (const Sizes& shape : kShapes) {
        for (std::size_t dim = 0; dim < shape.size(); ++dim) {
          if (shape[dim] == 0) continue;
          for (const Layout layout : kInputLayouts) {
            for (const bool largest : {false, true}) {
              for (const bool with_nan : {false, true}) {
                if (with_nan && !is_floating(dtype)) continue;
                SCOPED_TRACE(std::string(name(set)) + " " + name(dtype) + " " + text(shape) + " dim " +
                             std::to_string(dim) + " " + name(layout) + (largest ? " max" : " min"));
                Sizes output = shape;
                output[dim] = 1;
                LaidOut x(dtype, shape, layout), y(kI64, output, Layout::kReversed);
                x.fill([&] { return with_nan && generator() % 16 == 0 ? kNaN : double(generator() % 5); });
                cpu_kernels(set).reductions.arg_reduce(largest, x.view(), static_cast<int>(dim), y.view());
                expect_elements(
                    y,
                    [&](const Sizes& i) {
                      Sizes at = i, best = i;
                      for (at[dim] = 1; at[dim] < shape[dim]; ++at[dim]) {
                        const double a = x(best), b = x(at);
                        if (!std::isnan(a) && (std::isnan(b) || (largest ? b > a : b < a))) best = at;
                      }
                      return static_cast<double>(best[dim]);
                    },
                    0);
                if (testing::Test::HasFailure()) return;
              }
            }
          }
        }
      }
    }
  }
}

TEST(CumulativeSum, AddsEachRowFromOneEndToTheOther) {
  for (const InstructionSet set : supported_sets()) {
    const Reductions& kernels = cpu_kernels(set).reductions;
    for (const DType dtype : kFloatDTypes) {
      for (const Sizes& shape : {Sizes{1, 1}, Sizes{3, 7}, Sizes{0, 4}, Sizes{4, 0}, Sizes{600, 130}}) {
        for (const bool reverse : {false, true}) {
          SCOPED_TRACE(std::string(name(set)) + " " + name(dtype) + " " + text(shape) +
                       (reverse ? " reverse" : ""));
          HostArray x(dtype, shape), y(dtype, shape);
          int n = 0;
          x.for_each([&](const Sizes& i) { x.set(i, ++n % 17 - 8); });
          WithThreads threads(2);
          kernels.cumulative_sum(x.view(), reverse, y.view());
          // Partial sums are integers below 2⁸, exact in every dtype.
          for (std::int64_t row = 0; row < shape[0]; ++row) {
            double expected = 0;
            for (std::int64_t i = 0; i < shape[1]; ++i) {
              const std::int64_t at = reverse ? shape[1] - 1 - i : i;
              expected += x({row, at});
              ASSERT_EQ(y({row, at}), expected);
            }
          }
          ASSERT_TRUE(y.guards_intact());
          kernels.cumulative_sum(x.view(), reverse, x.view());
          ASSERT_TRUE(x.bitwise_equal(y)) << "in place";
        }
      }
    }
  }
}

TEST(SumOfSquares, AddsAllViewsInDoublePrecision) {
  LaidOut a(kF32, {300, 301}, Layout::kReversed), b(kBF16, {0}, Layout::kContiguous),
      c(kF16, {77}, Layout::kStepped);
  LaidOut d(kF64, {}, Layout::kContiguous);
  int n = 0;
  double expected = 0;
  for (LaidOut* x : {&a, &b, &c, &d}) {
    x->fill([&] { return 0.01 * (n++ % 100); });
    HostArray::for_each_index(x->shape(), [&](const Sizes& i) { expected += (*x)(i) * (*x)(i); });
  }
  const ConstView views[] = {a.view(), b.view(), c.view(), d.view()};
  EXPECT_NEAR(of(DeviceType::kCpu).reductions.sum_of_squares(views), expected, 1e-12 * expected);
  EXPECT_EQ(of(DeviceType::kCpu).reductions.sum_of_squares({}), 0.0);
  LaidOut large(kF32, {9}, Layout::kContiguous);
  large.fill([] { return 1e30; });  // squares overflow f32, not f64
  const ConstView view[] = {large.view()};
  EXPECT_NEAR(of(DeviceType::kCpu).reductions.sum_of_squares(view), 9e60, 1e54);
}

TEST(FirstNonFinite, GivesTheRowMajorIndexOfTheFirst) {
  for (const int threads : {1, 2}) {
    const WithThreads with(threads);
    for (const DType dtype : kFloatDTypes) {
      for (const Layout layout : kStoredLayouts) {
        LaidOut x(dtype, {90, 1000}, layout);
        EXPECT_EQ(of(DeviceType::kCpu).reductions.first_non_finite(x.view()), -1);
        x.array().set({80, 5}, kInfinity);
        EXPECT_EQ(of(DeviceType::kCpu).reductions.first_non_finite(x.view()), 80005);
        x.array().set({7, 999}, kNaN);
        EXPECT_EQ(of(DeviceType::kCpu).reductions.first_non_finite(x.view()), 7999);
      }
      LaidOut empty(dtype, {3, 0}, Layout::kContiguous);
      EXPECT_EQ(of(DeviceType::kCpu).reductions.first_non_finite(empty.view()), -1);
    }
  }
}

}  // namespace
}  // namespace tessera::kernels::test
