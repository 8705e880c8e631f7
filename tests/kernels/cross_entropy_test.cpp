#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

const DType kFloats[] = {kF64, kF32, kF16, kBF16};

struct LossCase {
  const char* name;
  std::int64_t rows, vocabulary;
  CrossEntropyOptions options = {};
};
const LossCase kCases[] = {
    {"one class", 3, 1},
    {"few classes", 5, 7},
    {"an odd vocabulary of several chunks", 4, 1543},
    {"label smoothing", 6, 50, {.label_smoothing = 0.1}},
    {"all smoothing", 6, 50, {.label_smoothing = 1.0}},
    {"an ignored class", 9, 3, {.ignore_index = 1}},
    {"many rows", 70, 5, {.ignore_index = 2, .label_smoothing = 0.2}},
    {"no rows", 0, 5},
};

/// Inputs and outputs of both passes. Logits have a gap behind each row.
struct Problem {
  const LossCase& test;
  HostArray logits, targets, losses, lse, dlosses, dlogits;

  Problem(const LossCase& with, DType dtype) : test(with) {
    logits = HostArray::random(dtype, {test.rows, test.vocabulary + 3}, 1, 3.0);
    targets = HostArray(kI64, {test.rows});
    targets.for_each(
        [&](const Sizes& i) { targets.set(i, static_cast<double>(i[0] * 5 % test.vocabulary)); });
    const DType sums = accumulation_dtype(dtype);
    losses = HostArray(sums, {test.rows});
    lse = HostArray(sums, {test.rows});
    dlosses = HostArray::random(sums, {test.rows}, 2);
    dlogits = HostArray(dtype, {test.rows, test.vocabulary});
  }
  [[nodiscard]] View logits_view() {
    View view = logits.view();
    view.shape[1] = test.vocabulary;
    return view;
  }
  void forward(const Losses& kernels) {
    kernels.cross_entropy(logits_view(), targets.view(), test.options, losses.view(), lse.view());
  }
  void backward(const Losses& kernels, const View& into) {
    kernels.cross_entropy_backward(dlosses.view(), logits_view(), targets.view(), lse.view(), test.options,
                                   into);
  }
  [[nodiscard]] bool ignored(std::int64_t row) const {
    return static_cast<std::int64_t>(targets({row})) == test.options.ignore_index;
  }
  [[nodiscard]] double log_sum(std::int64_t row) const {
    double sum = 0;
    for (std::int64_t v = 0; v < test.vocabulary; ++v) sum += std::exp(logits({row, v}));
    return std::log(sum);
  }
  [[nodiscard]] double target(std::int64_t row, std::int64_t v) const {
    const double smoothing = test.options.label_smoothing;
    return smoothing / static_cast<double>(test.vocabulary) +
           (static_cast<std::int64_t>(targets({row})) == v ? 1.0 - smoothing : 0.0);
  }
};

template <class F>
void for_each_case(const F& f) {
  for (const InstructionSet set : supported_sets()) {
    for (const DType dtype : kFloats) {
      for (const LossCase& test : kCases) {
        SCOPED_TRACE(std::string(test.name) + ", " + name(set) + ", " + name(dtype));
        Problem problem(test, dtype);
        f(cpu_kernels(set).losses, problem);
      }
    }
  }
}

TEST(CrossEntropy, EqualsItsDefinition) {
  for_each_case([](const Losses& kernels, Problem& p) {
    p.forward(kernels);
    // A sum of V exponentials, each within 3 roundings, relative to lse ~ 10; the smoothed sum of logits ~
    // 3·sqrt(V).
    const double bound = (static_cast<double>(p.test.vocabulary) + 16.0) * 30.0 *
                         unit_roundoff(accumulation_dtype(p.logits.dtype()));
    for (std::int64_t row = 0; row < p.test.rows; ++row) {
      const double lse = p.log_sum(row);
      double expected = 0;
      for (std::int64_t v = 0; v < p.test.vocabulary; ++v) {
        expected -= p.target(row, v) * (p.logits({row, v}) - lse);
      }
      EXPECT_NEAR(p.lse({row}), lse, bound);
      EXPECT_NEAR(p.losses({row}), p.ignored(row) ? 0.0 : expected, bound);
    }
    EXPECT_TRUE(p.losses.guards_intact());
    EXPECT_TRUE(p.lse.guards_intact());
  });
}

TEST(CrossEntropy, BackwardEqualsItsFormulaAlsoInPlace) {
  for_each_case([](const Losses& kernels, Problem& p) {
    p.forward(kernels);
    p.backward(kernels, p.dlogits.view());
    const double compute = unit_roundoff(accumulation_dtype(p.logits.dtype()));
    for (std::int64_t row = 0; row < p.test.rows; ++row) {
      for (std::int64_t v = 0; v < p.test.vocabulary; ++v) {
        const double expected =
            p.ignored(row)
                ? 0.0
                : p.dlosses({row}) * (std::exp(p.logits({row, v}) - p.log_sum(row)) - p.target(row, v));
        // lse ~ 10 is known to V roundings; |dloss| < 4.
        const double bound = (static_cast<double>(p.test.vocabulary) + 40.0) * 30.0 * compute +
                             1.01 * unit_roundoff(p.logits.dtype()) * std::abs(expected) + 0x1p-24;
        ASSERT_NEAR(p.dlogits({row, v}), expected, bound) << row << ", " << v;
        if (p.test.vocabulary > 100) v += 12;  // the reference sums V terms for each element
      }
    }
    EXPECT_TRUE(p.dlogits.guards_intact());
    p.backward(kernels, p.logits_view());
    p.dlogits.for_each([&](const Sizes& i) { ASSERT_EQ(p.logits(i), p.dlogits(i)); });
  });
}

TEST(CrossEntropy, BackwardMatchesFiniteDifferences) {
  for (const InstructionSet set : supported_sets()) {
    const Losses& kernels = cpu_kernels(set).losses;
    const LossCase test{"", 3, 6, {.ignore_index = 5, .label_smoothing = 0.1}};
    Problem p(test, kF64);
    p.forward(kernels);
    p.backward(kernels, p.dlogits.view());
    p.dlogits.for_each([&](const Sizes& at) {
      // Truncation h² and rounding 1e-16 · 10 / h, both ~ 1e-10, for h = 1e-5.
      const double h = 1e-5, value = p.logits(at);
      double difference = 0;
      for (const double sign : {1.0, -1.0}) {
        p.logits.set(at, value + sign * h);
        p.forward(kernels);
        for (std::int64_t row = 0; row < test.rows; ++row)
          difference += sign * p.losses({row}) * p.dlosses({row});
      }
      p.logits.set(at, value);
      EXPECT_NEAR(p.dlogits(at), difference / (2 * h), 1e-8) << name(set);
    });
  }
}

TEST(CrossEntropy, DoesNotDependOnTheNumberOfThreads) {
  for_each_case([](const Losses& kernels, Problem& p) {
    p.forward(kernels);
    p.backward(kernels, p.dlogits.view());
    for (const int threads : {2, 3}) {
      const WithThreads with(threads);
      Problem again(p.test, p.logits.dtype());
      again.forward(kernels);
      again.backward(kernels, again.dlogits.view());
      EXPECT_TRUE(again.losses.bitwise_equal(p.losses));
      EXPECT_TRUE(again.dlogits.bitwise_equal(p.dlogits));
    }
  });
}

TEST(CrossEntropy, NamesRowTargetAndVocabularyOfATargetOutOfRange) {
  for (const std::int64_t wrong : {7, -1, -99}) {
    const LossCase test{"", 5, 7};
    Problem p(test, kF32);
    p.targets.set({3}, static_cast<double>(wrong));
    try {
      p.forward(of(DeviceType::kCpu).losses);
      FAIL() << "accepted target " << wrong;
    } catch (const IndexError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("target " + std::to_string(wrong)), std::string::npos) << message;
      EXPECT_NE(message.find("3"), std::string::npos) << message;
      EXPECT_NE(message.find("[0, 7)"), std::string::npos) << message;
    }
    EXPECT_THROW(p.backward(of(DeviceType::kCpu).losses, p.dlogits.view()), IndexError);
  }
}

TEST(CrossEntropy, SurvivesLargeLogitsAndMaskedClasses) {
  // 600 masked classes first: a whole chunk of −∞ before the first number.
  const LossCase test{"", 1, 602};
  for (const InstructionSet set : supported_sets()) {
    Problem p(test, kF32);
    for (std::int64_t v = 0; v < 600; ++v) p.logits.set({0, v}, -std::numeric_limits<double>::infinity());
    p.logits.set({0, 600}, 20000.0);
    p.logits.set({0, 601}, 20000.0);
    p.targets.set({0}, 601);
    p.dlosses.set({0}, 1.0);
    p.forward(cpu_kernels(set).losses);
    EXPECT_NEAR(p.losses({0}), std::log(2.0), 2e-3);  // a rounding of 20000 is 1e-3
    p.backward(cpu_kernels(set).losses, p.dlogits.view());
    EXPECT_EQ(p.dlogits({0, 0}), 0.0);
    EXPECT_NEAR(p.dlogits({0, 600}), 0.5, 2e-3);
    EXPECT_NEAR(p.dlogits({0, 601}), -0.5, 2e-3);
  }
}

}  // namespace
}  // namespace tessera::kernels::test
