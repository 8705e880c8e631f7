#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/error.h"
#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kPi = 3.14159265358979323846;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct UnaryCase {
  const char* name;
  UnaryOp op;
  double low, high;  // inputs
  double (*value)(double);
  double (*slope)(double);
  double roundings;  // of the value; the slope gets the same
  bool integers = false;
};

// Roundings count what the formula loses, mostly through its argument: e^x of |x| <= 3 has 2 ulp of its own.
const std::vector<UnaryCase> kUnaryCases = {
    {"neg", UnaryOp::kNeg, -3, 3, [](double x) { return -x; }, [](double) { return -1.0; }, 0, true},
    {"abs", UnaryOp::kAbs, -3, 3, [](double x) { return std::abs(x); },
     [](double x) { return double((x > 0) - (x < 0)); }, 0, true},
    {"sign", UnaryOp::kSign, -3, 3, [](double x) { return double((x > 0) - (x < 0)); },
     [](double) { return 0.0; }, 0, true},
    {"square", UnaryOp::kSquare, -3, 3, [](double x) { return x * x; }, [](double x) { return 2 * x; }, 2,
     true},
    {"sqrt", UnaryOp::kSqrt, 0.1, 3, [](double x) { return std::sqrt(x); },
     [](double x) { return 0.5 / std::sqrt(x); }, 4},
    {"rsqrt", UnaryOp::kRsqrt, 0.1, 3, [](double x) { return 1 / std::sqrt(x); },
     [](double x) { return -0.5 / (x * std::sqrt(x)); }, 6},
    {"reciprocal", UnaryOp::kReciprocal, 0.1, 3, [](double x) { return 1 / x; },
     [](double x) { return -1 / (x * x); }, 4},
    {"exp", UnaryOp::kExp, -3, 3, [](double x) { return std::exp(x); }, [](double x) { return std::exp(x); },
     6},
    {"log", UnaryOp::kLog, 0.1, 3, [](double x) { return std::log(x); }, [](double x) { return 1 / x; }, 6},
    {"sin", UnaryOp::kSin, -3, 3, [](double x) { return std::sin(x); }, [](double x) { return std::cos(x); },
     6},
    {"cos", UnaryOp::kCos, -3, 3, [](double x) { return std::cos(x); }, [](double x) { return -std::sin(x); },
     6},
    {"tanh", UnaryOp::kTanh, -3, 3, [](double x) { return std::tanh(x); },
     [](double x) { return 1 / (std::cosh(x) * std::cosh(x)); }, 12},
    {"sigmoid", UnaryOp::kSigmoid, -3, 3, sigmoid, [](double x) { return sigmoid(x) * sigmoid(-x); }, 12},
    {"erf", UnaryOp::kErf, -3, 3, [](double x) { return std::erf(x); },
     [](double x) { return 2 / std::sqrt(kPi) * std::exp(-x * x); }, 24},
    {"relu", UnaryOp::kRelu, -3, 3, [](double x) { return x > 0 ? x : 0; },
     [](double x) { return double(x > 0); }, 0},
    // The rest is compared on the scale of 1, not of the value, which passes through zero.
    {"gelu_tanh", UnaryOp::kGeluTanh, -3, 3,
     [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x))); },
     [](double x) {
       const double t = std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x));
       return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / kPi) * (1 + 3 * 0.044715 * x * x);
     },
     30},
    {"gelu_erf", UnaryOp::kGeluErf, -3, 3,
     [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); },
     [](double x) {
       return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi);
     },
     30},
    {"silu", UnaryOp::kSilu, -3, 3, [](double x) { return x * sigmoid(x); },
     [](double x) { return sigmoid(x) + x * sigmoid(x) * sigmoid(-x); }, 20},
    {"softplus", UnaryOp::kSoftplus, -3, 3, [](double x) { return std::log1p(std::exp(x)); }, sigmoid, 20},
};

TEST(Unary, EveryOperationOfEveryDTypeAndLayoutMatchesTheFormula) {
  for (const InstructionSet set : supported_sets()) {
    const Elementwise& kernels = cpu_kernels(set).elementwise;
    std::size_t count = 0;
    for (const UnaryCase& c : kUnaryCases) {
      std::mt19937 generator(1);
      std::uniform_real_distribution<double> uniform(c.low, c.high);
      for (const DType dtype : kAllDTypes) {
        if (!is_floating(dtype) && !(c.integers && (dtype == kI64 || dtype == kI32))) continue;
        for (const Sizes& shape : kShapes) {
          for (const Layout in : kInputLayouts) {
            // Every layout of the output comes with every one of the input, over the shapes.
            const Layout out = kStoredLayouts[(count + count / kInputLayouts.size()) % kStoredLayouts.size()];
            ++count;
            SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + text(shape) +
                         " from " + name(in) + " to " + name(out));
            LaidOut x(dtype, shape, in), y(dtype, shape, out);
            x.fill([&] { return is_floating(dtype) ? uniform(generator) : std::floor(uniform(generator)); });
            kernels.unary(c.op, x.view(), y.view());
            expect_elements(
                y, [&](const Sizes& i) { return c.value(x(i)); }, c.roundings,
                [](const Sizes&, double e) { return std::max(1.0, std::abs(e)); });
            if (!is_floating(dtype)) continue;
            LaidOut dy(dtype, shape, Layout::kReversed), dx(dtype, shape, out);
            dy.fill([&] { return uniform(generator); });
            kernels.unary_backward(c.op, x.view(), dy.view(), dx.view());
            expect_elements(
                dx, [&](const Sizes& i) { return dy(i) * c.slope(x(i)); }, c.roundings + 2,
                [&](const Sizes& i, double e) { return std::max(std::abs(dy(i)), std::abs(e)); });
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Unary, WorksInPlace) {
  for (const DType dtype : kFloatDTypes) {
    LaidOut x(dtype, {37, 41}, Layout::kReversed), before(dtype, {37, 41}, Layout::kReversed);
    double next = -3;
    x.fill([&] { return next += 0.003; });
    before.array() = x.array();
    of(DeviceType::kCpu).elementwise.unary(UnaryOp::kExp, x.view(), x.view());
    expect_elements(
        x, [&](const Sizes& i) { return std::exp(before(i)); }, 6);
  }
}

struct LimitCase {
  const char* name;
  UnaryOp op;
  double x, value;
};

TEST(Unary, InfinitiesNaNAndOverflowComeOutAsInTheCLibrary) {
  const LimitCase cases[] = {
      {"exp of inf", UnaryOp::kExp, kInfinity, kInfinity},
      {"exp of -inf", UnaryOp::kExp, -kInfinity, 0},
      {"exp of much", UnaryOp::kExp, 1000, kInfinity},
      {"exp of little", UnaryOp::kExp, -1000, 0},
      {"exp of NaN", UnaryOp::kExp, kNaN, kNaN},
      {"log of 0", UnaryOp::kLog, 0, -kInfinity},
      {"log of less", UnaryOp::kLog, -1, kNaN},
      {"log of inf", UnaryOp::kLog, kInfinity, kInfinity},
      {"log of NaN", UnaryOp::kLog, kNaN, kNaN},
      {"tanh of inf", UnaryOp::kTanh, kInfinity, 1},
      {"tanh of -inf", UnaryOp::kTanh, -kInfinity, -1},
      {"tanh of NaN", UnaryOp::kTanh, kNaN, kNaN},
      {"erf of inf", UnaryOp::kErf, kInfinity, 1},
      {"erf of -inf", UnaryOp::kErf, -kInfinity, -1},
      {"erf of NaN", UnaryOp::kErf, kNaN, kNaN},
      {"sigmoid of inf", UnaryOp::kSigmoid, kInfinity, 1},
      {"sigmoid of -inf", UnaryOp::kSigmoid, -kInfinity, 0},
      {"sigmoid of NaN", UnaryOp::kSigmoid, kNaN, kNaN},
      {"relu of NaN", UnaryOp::kRelu, kNaN, kNaN},
      {"relu of -inf", UnaryOp::kRelu, -kInfinity, 0},
      {"sign of NaN", UnaryOp::kSign, kNaN, kNaN},
      {"softplus of much", UnaryOp::kSoftplus, 1e4, 1e4},
      {"softplus of little", UnaryOp::kSoftplus, -1e4, 0},
      {"softplus of inf", UnaryOp::kSoftplus, kInfinity, kInfinity},
      {"gelu of much", UnaryOp::kGeluTanh, 3e4, 3e4},
      {"gelu of little", UnaryOp::kGeluTanh, -3e4, 0},
  };
  for (const InstructionSet set : supported_sets()) {
    for (const LimitCase& c : cases) {
      for (const DType dtype : kFloatDTypes) {
        SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype));
        LaidOut x(dtype, {19}, Layout::kContiguous), y(dtype, {19}, Layout::kContiguous);
        x.fill([&] { return c.x; });
        cpu_kernels(set).elementwise.unary(c.op, x.view(), y.view());
        expect_elements(
            y, [&](const Sizes&) { return c.value; }, 0);
      }
    }
  }
}

TEST(Unary, SlopesOfActivationsStayFiniteFarOut) {
  const UnaryOp ops[] = {UnaryOp::kTanh,    UnaryOp::kSigmoid, UnaryOp::kGeluTanh,
                         UnaryOp::kGeluErf, UnaryOp::kSilu,    UnaryOp::kSoftplus};
  for (const UnaryOp op : ops) {
    for (const double far : {-1e30, -200.0, 200.0, 1e30}) {
      LaidOut x(kF32, {9}, Layout::kContiguous), dy(kF32, {9}, Layout::kContiguous),
          dx(kF32, {9}, Layout::kContiguous);
      x.fill([&] { return far; });
      dy.fill([] { return 1.0; });
      of(DeviceType::kCpu).elementwise.unary_backward(op, x.view(), dy.view(), dx.view());
      const bool bounded = op == UnaryOp::kTanh || op == UnaryOp::kSigmoid;
      expect_elements(
          dx, [&](const Sizes&) { return !bounded && far > 0 ? 1.0 : 0.0; }, 0);
    }
  }
}

TEST(Unary, NotTurnsBooleansAround) {
  LaidOut x(kBool, {5, 40}, Layout::kReversed), y(kBool, {5, 40}, Layout::kContiguous);
  int n = 0;
  x.fill([&] { return n++ % 3 == 0 ? 1.0 : 0.0; });
  of(DeviceType::kCpu).elementwise.unary(UnaryOp::kNot, x.view(), y.view());
  expect_elements(
      y, [&](const Sizes& i) { return x(i) == 0 ? 1.0 : 0.0; }, 0);
}

struct BinaryCase {
  const char* name;
  BinaryOp op;
  double (*value)(double, double);
  double roundings;
  bool floats = true, integers = true, booleans = false;
};

const std::vector<BinaryCase> kBinaryCases = {
    {"add", BinaryOp::kAdd, [](double a, double b) { return a + b; }, 1},
    {"sub", BinaryOp::kSub, [](double a, double b) { return a - b; }, 1},
    {"mul", BinaryOp::kMul, [](double a, double b) { return a * b; }, 1},
    {"div", BinaryOp::kDiv, [](double a, double b) { return a / b; }, 1, true, false},
    {"integer div", BinaryOp::kDiv, [](double a, double b) { return std::trunc(a / b); }, 0, false, true},
    {"pow", BinaryOp::kPow, [](double a, double b) { return std::pow(a, b); }, 4},
    {"maximum", BinaryOp::kMaximum, [](double a, double b) { return a > b ? a : b; }, 0},
    {"minimum", BinaryOp::kMinimum, [](double a, double b) { return a < b ? a : b; }, 0},
    {"and", BinaryOp::kAnd, [](double a, double b) { return double(a != 0 && b != 0); }, 0, false, false,
     true},
    {"or", BinaryOp::kOr, [](double a, double b) { return double(a != 0 || b != 0); }, 0, false, false, true},
};

bool takes(const BinaryCase& c, DType dtype) {
  return dtype == kBool ? c.booleans : is_floating(dtype) ? c.floats : c.integers;
}

/// Positive, so that every operation is defined; small, so that powers fit a byte.
double operand(DType dtype, std::mt19937& generator) {
  if (dtype == kBool) return double(generator() % 2);
  if (!is_floating(dtype)) return double(1 + generator() % 4);
  return std::uniform_real_distribution<double>(0.5, 2.0)(generator);
}

/// What a result becomes in an 8-bit integer.
double wrap(DType dtype, double x) { return dtype == kU8 ? x - 256 * std::floor(x / 256) : x; }

TEST(Binary, EveryOperationOfEveryDTypeAndLayoutMatchesTheFormula) {
  for (const InstructionSet set : supported_sets()) {
    const Elementwise& kernels = cpu_kernels(set).elementwise;
    std::mt19937 generator(2);
    for (const BinaryCase& c : kBinaryCases) {
      for (const DType dtype : kAllDTypes) {
        if (!takes(c, dtype)) continue;
        for (const Sizes& shape : kShapes) {
          for (const Layout in : kInputLayouts) {
            for (const bool swap : {false, true}) {
              const Layout out = swap ? Layout::kReversed : Layout::kContiguous;
              SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + text(shape) +
                           " from " + name(in) + (swap ? " second" : " first"));
              LaidOut a(dtype, shape, swap ? Layout::kContiguous : in),
                  b(dtype, shape, swap ? in : Layout::kContiguous);
              LaidOut y(dtype, shape, out);
              a.fill([&] { return operand(dtype, generator); });
              b.fill([&] { return operand(dtype, generator); });
              kernels.binary(c.op, a.view(), b.view(), y.view());
              expect_elements(
                  y, [&](const Sizes& i) { return wrap(dtype, c.value(a(i), b(i))); }, c.roundings,
                  [](const Sizes&, double e) { return std::max(1.0, std::abs(e)); });
              const double scalar = is_floating(dtype) ? 1.5 : dtype == kBool ? 1 : 3;
              kernels.binary_scalar(c.op, a.view(), scalar, swap, y.view());
              expect_elements(
                  y,
                  [&](const Sizes& i) {
                    return wrap(dtype, swap ? c.value(scalar, a(i)) : c.value(a(i), scalar));
                  },
                  c.roundings, [](const Sizes&, double e) { return std::max(1.0, std::abs(e)); });
              if (testing::Test::HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(Binary, MaximumAndMinimumLetNaNThrough) {
  for (const DType dtype : kFloatDTypes) {
    for (const bool first : {false, true}) {
      LaidOut a(dtype, {20}, Layout::kContiguous), b(dtype, {20}, Layout::kContiguous),
          y(dtype, {20}, Layout::kContiguous);
      a.fill([&] { return first ? kNaN : 1.0; });
      b.fill([&] { return first ? 1.0 : kNaN; });
      for (const BinaryOp op : {BinaryOp::kMaximum, BinaryOp::kMinimum}) {
        of(DeviceType::kCpu).elementwise.binary(op, a.view(), b.view(), y.view());
        expect_elements(
            y, [](const Sizes&) { return kNaN; }, 0);
      }
    }
  }
}

TEST(Binary, IntegerDivisionByZeroThrowsAndTheSmallestIntegerDividesByMinusOne) {
  const Elementwise& kernels = of(DeviceType::kCpu).elementwise;
  HostArray a(kI64, {4}), b(kI64, {4}), y(kI64, {4});
  for (std::int64_t i = 0; i < 4; ++i) {
    a.set({i}, -0x1p63);
    b.set({i}, -1);
  }
  kernels.binary(BinaryOp::kDiv, a.view(), b.view(), y.view());
  EXPECT_EQ(y({0}), -0x1p63);  // wraps around
  b.set({2}, 0);
  EXPECT_THROW(kernels.binary(BinaryOp::kDiv, a.view(), b.view(), y.view()), IndexError);
  EXPECT_THROW(kernels.binary_scalar(BinaryOp::kDiv, a.view(), 0, false, y.view()), IndexError);
}

TEST(Binary, AddsInPlaceAndTwoThreadsThrowOneError) {
  WithThreads threads(2);
  const std::int64_t n = 200000;
  HostArray a(kI64, {n}), b(kI64, {n});
  const Elementwise& kernels = of(DeviceType::kCpu).elementwise;
  kernels.fill(a.view(), 6);
  kernels.fill(b.view(), 2);
  kernels.binary(BinaryOp::kMul, a.view(), b.view(), a.view());
  EXPECT_EQ(a({0}), 12);
  EXPECT_EQ(a({n - 1}), 12);
  b.set({5}, 0);
  b.set({n - 5}, 0);
  EXPECT_THROW(kernels.binary(BinaryOp::kDiv, a.view(), b.view(), a.view()), IndexError);
}

struct CompareCase {
  const char* name;
  CompareOp op;
  bool (*value)(double, double);
};

TEST(Compare, EveryOperationOfEveryDTypeAndLayoutMatches) {
  const CompareCase cases[] = {{"==", CompareOp::kEq, [](double a, double b) { return a == b; }},
                               {"!=", CompareOp::kNe, [](double a, double b) { return a != b; }},
                               {"<", CompareOp::kLt, [](double a, double b) { return a < b; }},
                               {"<=", CompareOp::kLe, [](double a, double b) { return a <= b; }},
                               {">", CompareOp::kGt, [](double a, double b) { return a > b; }},
                               {">=", CompareOp::kGe, [](double a, double b) { return a >= b; }}};
  for (const InstructionSet set : supported_sets()) {
    const Elementwise& kernels = cpu_kernels(set).elementwise;
    std::mt19937 generator(3);
    for (const CompareCase& c : cases) {
      for (const DType dtype : kAllDTypes) {
        for (const Sizes& shape : kShapes) {
          for (const Layout in : kInputLayouts) {
            SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + text(shape) + " " +
                         name(in));
            LaidOut a(dtype, shape, in), b(dtype, shape, Layout::kContiguous),
                y(kBool, shape, Layout::kReversed);
            a.fill([&] { return double(generator() % 3); });
            b.fill(
                [&] { return is_floating(dtype) && generator() % 8 == 0 ? kNaN : double(generator() % 3); });
            kernels.compare(c.op, a.view(), b.view(), y.view());
            expect_elements(
                y, [&](const Sizes& i) { return double(c.value(a(i), b(i))); }, 0);
            for (const double scalar : {1.0, 0.5}) {
              kernels.compare_scalar(c.op, a.view(), scalar, y.view());
              expect_elements(
                  y, [&](const Sizes& i) { return double(c.value(a(i), scalar)); }, 0);
            }
            if (testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Copy, ConvertsBetweenAnyTwoDTypesAndLayouts) {
  for (const InstructionSet set : supported_sets()) {
    const Elementwise& kernels = cpu_kernels(set).elementwise;
    std::mt19937 generator(4);
    for (const DType from : kAllDTypes) {
      for (const DType to : kAllDTypes) {
        for (const Sizes& shape : kShapes) {
          for (const Layout in : kInputLayouts) {
            for (const Layout out : kStoredLayouts) {
              SCOPED_TRACE(std::string(name(set)) + " " + name(from) + " to " + name(to) + " " + text(shape) +
                           " " + name(in) + " to " + name(out));
              LaidOut x(from, shape, in), y(to, shape, out);
              x.fill([&] { return std::uniform_real_distribution<double>(0, 100)(generator); });
              kernels.copy(x.view(), y.view());
              HostArray rounded(to, {1});
              expect_elements(
                  y,
                  [&](const Sizes& i) {
                    rounded.set({0}, x(i));
                    return rounded({0});
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

TEST(Copy, TransposesLargeMatricesOfEverySize) {
  for (const DType dtype : {kF64, kF32, kBF16, kU8}) {
    for (const Sizes& shape : {Sizes{65, 130}, Sizes{64, 64}, Sizes{2, 100, 3, 33}, Sizes{8, 300}}) {
      SCOPED_TRACE(std::string(name(dtype)) + " " + text(shape));
      LaidOut x(dtype, shape, Layout::kReversed), y(dtype, shape, Layout::kContiguous);
      int n = 0;
      x.fill([&] { return double(n++ % 251); });
      WithThreads threads(2);
      of(DeviceType::kCpu).elementwise.copy(x.view(), y.view());
      expect_elements(
          y, [&](const Sizes& i) { return x(i); }, 0);
    }
  }
}

TEST(Copy, RoundsHalvesToNearestEvenAndKeepsSpecialValues) {
  const double values[] = {1 + 0x1p-11, 1 + 3 * 0x1p-11, 65519.0,   65520.0,   0x1p-25,
                           0x1p-24,     1.5 * 0x1p-24,   kInfinity, -kInfinity};
  const double halves[] = {1.0, 1 + 0x1p-9, 65504.0, kInfinity, 0.0, 0x1p-24, 0x1p-23, kInfinity, -kInfinity};
  HostArray x(kF32, {9}), y(kF16, {9}), nan(kF32, {3}), nan16(kF16, {3});
  for (std::int64_t i = 0; i < 9; ++i) x.set({i}, values[i]);
  of(DeviceType::kCpu).elementwise.copy(x.view(), y.view());
  for (std::int64_t i = 0; i < 9; ++i) EXPECT_EQ(y({i}), halves[i]) << values[i];
  nan.set({1}, kNaN);
  of(DeviceType::kCpu).elementwise.copy(nan.view(), nan16.view());
  EXPECT_TRUE(std::isnan(nan16({1})));
}

// 1 + 2⁻⁸ lies halfway between two bf16 (1 + 2⁻¹¹ between two f16); a bit far behind it decides. A detour
// over f32 would lose that bit.
TEST(Copy, RoundsToSixteenBitsOnce) {
  struct Case {
    const char* name;
    DType from, to;
    double value, expected;
  };
  for (const Case& c : {Case{"above a tie", kF64, kBF16, 1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-7},
                        {"at a tie, even below", kF64, kBF16, 1 + 0x1p-8, 1.0},
                        {"at a tie, even above", kF64, kBF16, 1 + 3 * 0x1p-8, 1 + 0x1p-6},
                        {"below a tie", kF64, kBF16, -1 - 3 * 0x1p-8 + 0x1p-40, -1 - 0x1p-7},
                        {"above a tie", kF64, kF16, -1 - 0x1p-11 - 0x1p-50, -1 - 0x1p-10},
                        {"to a subnormal", kF64, kF16, 0x1p-25 + 0x1p-60, 0x1p-24},
                        {"to 0", kF64, kF16, 0x1p-25, 0.0},
                        {"overflow of f16", kF64, kF16, 65520.0, kInfinity},
                        {"below overflow of f16", kF64, kF16, 65520.0 - 0x1p-30, 65504.0},
                        {"overflow of f32", kF64, kBF16, -1e300, -kInfinity},
                        {"integer above a tie", kI64, kBF16, 0x1p33 + 0x1p25 + 1, 0x1p33 + 0x1p26},
                        {"small integer above a tie", kI32, kBF16, 0x1p30 + 0x1p22 + 1, 0x1p30 + 0x1p23}}) {
    for (const InstructionSet set : supported_sets()) {
      // Long enough for whole vectors and a rest.
      HostArray x(c.from, {37}), y(c.to, {37});
      for (std::int64_t i = 0; i < 37; ++i) x.set({i}, c.value);
      cpu_kernels(set).elementwise.copy(x.view(), y.view());
      for (std::int64_t i = 0; i < 37; ++i) {
        EXPECT_EQ(y({i}), c.expected)
            << c.name << ", " << name(c.from) << " to " << name(c.to) << ", " << name(set);
      }
    }
  }
  HostArray x(kF64, {1}), y(kBF16, {1});
  x.set({0}, kNaN);
  of(DeviceType::kCpu).elementwise.copy(x.view(), y.view());
  EXPECT_TRUE(std::isnan(y({0})));
}

TEST(Fill, FillsEveryDTypeAndLayoutAndNothingElse) {
  for (const DType dtype : kAllDTypes) {
    for (const Sizes& shape : kShapes) {
      for (const Layout layout : kStoredLayouts) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + text(shape) + " " + name(layout));
        LaidOut y(dtype, shape, layout);
        of(DeviceType::kCpu).elementwise.fill(y.view(), 3);
        expect_elements(
            y, [&](const Sizes&) { return dtype == kBool ? 1.0 : 3.0; }, 0);
      }
    }
  }
}

TEST(Arange, CountsFromStartInSteps) {
  for (const DType dtype : {kF64, kF32, kI64, kI32}) {
    LaidOut y(dtype, {5000}, Layout::kContiguous);
    of(DeviceType::kCpu).elementwise.arange(y.view(), 7, -2);
    expect_elements(
        y, [](const Sizes& i) { return 7.0 - 2.0 * static_cast<double>(i[0]); }, 0);
  }
}

TEST(Where, ChoosesByConditionInEveryDTypeAndLayout) {
  std::mt19937 generator(5);
  for (const DType dtype : kAllDTypes) {
    for (const Sizes& shape : kShapes) {
      for (const Layout layout : kInputLayouts) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + text(shape) + " " + name(layout));
        LaidOut condition(kBool, shape, layout), a(dtype, shape, Layout::kReversed), b(dtype, shape, layout);
        LaidOut y(dtype, shape, Layout::kContiguous);
        condition.fill([&] { return double(generator() % 2); });
        a.fill([&] { return double(generator() % 100); });
        b.fill([&] { return double(generator() % 100); });
        of(DeviceType::kCpu).elementwise.where(condition.view(), a.view(), b.view(), y.view());
        expect_elements(
            y, [&](const Sizes& i) { return condition(i) != 0 ? a(i) : b(i); }, 0);
      }
    }
  }
}

TEST(AddScaled, AddsFloatsOfAnotherDType) {
  std::mt19937 generator(6);
  for (const DType to : kFloatDTypes) {
    for (const DType from : kFloatDTypes) {
      for (const Layout layout : kInputLayouts) {
        SCOPED_TRACE(std::string(name(from)) + " into " + name(to) + " " + name(layout));
        LaidOut y(to, {13, 90}, Layout::kReversed), before(to, {13, 90}, Layout::kReversed),
            x(from, {13, 90}, layout);
        y.fill([&] { return operand(to, generator); });
        x.fill([&] { return operand(from, generator); });
        before.array() = y.array();
        of(DeviceType::kCpu).elementwise.add_scaled(y.view(), x.view(), 0.25);
        expect_elements(
            y, [&](const Sizes& i) { return before(i) + 0.25 * x(i); }, 2);
      }
    }
  }
}

}  // namespace
}  // namespace tessera::kernels::test
