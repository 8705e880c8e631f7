// Accuracy of the elementary functions, seen through the kernels that use them.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

using Reference = long double (*)(long double);

struct AccuracyCase {
  const char* name;
  UnaryOp op;
  Reference reference;
  double low, high;  // f32
  double low64, high64;
  double ulp;  // largest error, in units in the last place of the result
};

const AccuracyCase kCases[] = {
    {"exp", UnaryOp::kExp, [](long double x) { return std::exp(x); }, -105, 89, -746, 710, 1.2},
    {"exp near 0", UnaryOp::kExp, [](long double x) { return std::exp(x); }, -1, 1, -1, 1, 1.2},
    {"log", UnaryOp::kLog, [](long double x) { return std::log(x); }, 1e-3, 1e4, 1e-3, 1e4, 1.0},
    {"log near 1", UnaryOp::kLog, [](long double x) { return std::log(x); }, 0.5, 2, 0.5, 2, 1.0},
    {"log of subnormals", UnaryOp::kLog, [](long double x) { return std::log(x); }, 1e-44, 1e-38, 1e-320,
     1e-308, 1.0},
    {"tanh", UnaryOp::kTanh, [](long double x) { return std::tanh(x); }, -10, 10, -20, 20, 1.5},
    {"tanh near 0", UnaryOp::kTanh, [](long double x) { return std::tanh(x); }, 1e-30, 0.7, 1e-30, 0.7, 1.5},
    {"erf", UnaryOp::kErf, [](long double x) { return std::erf(x); }, -5, 5, -6, 6, 1.6},
    {"erf near 0", UnaryOp::kErf, [](long double x) { return std::erf(x); }, 1e-30, 1, 1e-30, 1, 1.6},
    {"sigmoid", UnaryOp::kSigmoid, [](long double x) { return 1 / (1 + std::exp(-x)); }, -80, 20, -700, 40,
     2.7},
    {"softplus", UnaryOp::kSoftplus, [](long double x) { return std::log1p(std::exp(x)); }, -80, 20, -700, 40,
     2.5},
};

template <class T>
double largest_error(const Elementwise& kernels, const AccuracyCase& c, double low, double high) {
  const std::int64_t n = 200000;
  std::vector<T> x(static_cast<std::size_t>(n)), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<T>(low + (high - low) * static_cast<double>(i) / static_cast<double>(n - 1));
  }
  View x_view, y_view;
  x_view.data = x.data();
  y_view.data = y.data();
  x_view.dtype = y_view.dtype = dtype_of<T>;
  x_view.dims = y_view.dims = 1;
  x_view.shape[0] = y_view.shape[0] = n;
  x_view.strides[0] = y_view.strides[0] = 1;
  kernels.unary(c.op, x_view, y_view);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double exact = c.reference(static_cast<long double>(x[i]));
    const T rounded = static_cast<T>(exact);
    if (std::isinf(rounded)) {
      EXPECT_EQ(y[i], rounded) << c.name << " of " << x[i];
      continue;
    }
    const T ulp = std::nextafter(std::abs(rounded), std::numeric_limits<T>::infinity()) - std::abs(rounded);
    worst = std::max(worst, std::abs(static_cast<double>((static_cast<long double>(y[i]) - exact) / ulp)));
  }
  return worst;
}

TEST(Math, ElementaryFunctionsAreAccurateToTheLastPlaces) {
  for (const InstructionSet set : supported_sets()) {
    const Elementwise& kernels = cpu_kernels(set).elementwise;
    for (const AccuracyCase& c : kCases) {
      EXPECT_LE(largest_error<float>(kernels, c, c.low, c.high), c.ulp) << c.name << " f32 " << name(set);
      EXPECT_LE(largest_error<double>(kernels, c, c.low64, c.high64), c.ulp)
          << c.name << " f64 " << name(set);
    }
  }
}

}  // namespace
}  // namespace tessera::kernels::test
