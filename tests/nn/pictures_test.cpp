// Convolution, pooling and BatchNorm2d: against plain loops, in every dtype, on meta, and what they refuse.
// PyTorch's numbers are in tests/references.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/context.h"
#include "kernels/error.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"

namespace tessera::nn {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// conv2d as its definition says it, element by element; x of zeros outside.
double convolved(const Tensor& x, const Tensor& weight, const Conv2dConfig& c, std::int64_t n, std::int64_t o,
                 std::int64_t i, std::int64_t j) {
  const std::int64_t channels = weight.dim(1), first = o / (weight.dim(0) / c.groups) * channels;
  double sum = 0.0;
  for (std::int64_t k = 0; k < channels; ++k) {
    for (std::int64_t a = 0; a < weight.dim(2); ++a) {
      for (std::int64_t b = 0; b < weight.dim(3); ++b) {
        const std::int64_t row = i * c.stride.rows + a * c.dilation.rows - c.padding.rows;
        const std::int64_t column = j * c.stride.columns + b * c.dilation.columns - c.padding.columns;
        if (row < 0 || row >= x.dim(2) || column < 0 || column >= x.dim(3)) continue;
        sum += x.at({n, first + k, row, column}) * weight.at({o, k, a, b});
      }
    }
  }
  return sum;
}

TEST(Conv2d, IsItsDefinition) {
  const struct {
    const char* name;
    Shape x, weight;
    Conv2dConfig config;
    Shape y;
  } cases[] = {
      {"plain", {2, 3, 5, 7}, {4, 3, 2, 3}, {}, {2, 4, 4, 5}},
      {"of one element", {2, 3, 5, 7}, {4, 3, 1, 1}, {}, {2, 4, 5, 7}},
      {"padded", {1, 2, 5, 4}, {3, 2, 3, 3}, {.padding = {1, 2}}, {1, 3, 5, 6}},
      {"strides leave a rest", {1, 2, 8, 7}, {3, 2, 3, 2}, {.stride = {2, 4}}, {1, 3, 3, 2}},
      {"dilated", {1, 2, 7, 7}, {3, 2, 3, 2}, {.dilation = {3, 5}}, {1, 3, 1, 2}},
      {"groups", {2, 6, 4, 4}, {4, 3, 2, 2}, {.padding = 1, .groups = 2}, {2, 4, 5, 5}},
      {"a group a channel", {2, 3, 4, 4}, {6, 1, 3, 3}, {.groups = 3}, {2, 6, 2, 2}},
  };
  for (const auto& c : cases) {
    const Tensor x = pattern(c.x, 3), weight = pattern(c.weight, 5), bias = pattern({c.weight[0]}, 7);
    const Tensor y = conv2d(x, weight, bias, c.config);
    ASSERT_EQ(y.shape(), c.y) << c.name;
    std::vector<double> expected;
    for (std::int64_t n = 0; n < c.y[0]; ++n)
      for (std::int64_t o = 0; o < c.y[1]; ++o)
        for (std::int64_t i = 0; i < c.y[2]; ++i)
          for (std::int64_t j = 0; j < c.y[3]; ++j)
            expected.push_back(convolved(x, weight, c.config, n, o, i, j) + bias.at({o}));
    // Dyadic fractions: every product and sum is exact, in f32 as in f64.
    EXPECT_EQ("", difference(y, expected, 0.0)) << c.name;
    EXPECT_EQ("", difference(conv2d(x.to(kF32), weight.to(kF32), bias.to(kF32), c.config), expected, 0.0))
        << c.name;
    for (const DType dtype : {kF16, kBF16}) {  // sums in f32, rounded once
      const Tensor half = conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), c.config);
      EXPECT_EQ(half.dtype(), dtype);
      const Tensor wide =
          conv2d(x.to(dtype).to(kF32), weight.to(dtype).to(kF32), bias.to(dtype).to(kF32), c.config);
      EXPECT_EQ("", difference(half, wide.to(dtype), 0.0)) << c.name << ' ' << name(dtype);
    }
  }
}

TEST(Conv2d, LayerBeginsAsPyTorchsAndGradientsMatchFiniteDifferences) {
  Conv2d layer(4, 6, {3, 2}, {.stride = {2, 1}, .padding = 1, .groups = 2});
  EXPECT_EQ(layer.find_parameter("weight").shape(), (Shape{6, 2, 3, 2}));
  for (const Tensor& p : layer.parameters()) {  // ±1/√12
    EXPECT_LE(max(p).item(), 1 / std::sqrt(12.0));
    EXPECT_GE(min(p).item(), -1 / std::sqrt(12.0));
    EXPECT_LT(min(p).item(), 0.0);
  }
  set_pattern(layer);
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& x) { return layer(x); }, pattern({2, 4, 5, 3}, 3)));
}

TEST(Conv2d, GradientsOfSixteenBitWeightsAreInF32) {
  Conv2d layer(2, 3, 3);
  layer.to(kBF16);
  const Tensor y = layer(pattern({2, 2, 5, 5}).to(kBF16));
  backward(y, ones_like(y));
  for (const Tensor& p : layer.parameters()) EXPECT_EQ(p.grad().dtype(), kF32);
  EXPECT_EQ(layer.find_parameter("bias").grad().to_vector<double>(), std::vector<double>(3, 2.0 * 3 * 3));
}

TEST(Conv2d, NamesWhatDoesNotFit) {
  const Tensor x = ones({1, 4, 5, 5});
  expect_error<ShapeError>([&] { static_cast<void>(conv2d(x, ones({2, 3, 3, 3}))); }, "[1, 4, 5, 5]");
  expect_error<ShapeError>(
      [&] {
        static_cast<void>(conv2d(x, ones({3, 2, 3, 3}), {}, {.groups = 2}));
      },
      "groups = 2");
  expect_error<ShapeError>([&] { static_cast<void>(conv2d(x, ones({2, 4, 6, 3}))); }, "6 rows does not fit");
  expect_error<ShapeError>(
      [&] {
        static_cast<void>(conv2d(x, ones({2, 4, 3, 3}), {}, {.dilation = {1, 3}}));
      },
      "7 columns does not fit");
  expect_error<ShapeError>(
      [&] {
        static_cast<void>(conv2d(x, ones({2, 4, 3, 3}), {}, {.stride = 0}));
      },
      "stride");
  expect_error<ShapeError>(
      [&] {
        static_cast<void>(conv2d(x, ones({2, 4, 3, 3}), ones({3})));
      },
      "bias must be");
  expect_error<DTypeError>([&] { static_cast<void>(conv2d(x, ones({2, 4, 3, 3}, {.dtype = kF64}))); }, "f64");
  expect_error<ConfigError>([] { Conv2d layer(4, 6, 3, {.groups = 4}); }, "groups = 4");
}

// 2 · N · O · OH · OW · C/G · KH · KW operations of the product; copies of windows count none.
TEST(Conv2d, OnMetaGivesShapesAndCountsItsProduct) {
  const DeviceScope scope(meta);
  Conv2d layer(4, 6, {3, 2}, {.stride = 2, .padding = 1, .groups = 2, .bias = false});
  kernels::OpCounts& counts = kernels::kernel_context().counts;
  const std::uint64_t before = counts.flops;
  Tensor x = zeros({5, 4, 9, 8});
  x.set_requires_grad();
  const Tensor y = layer(x);
  EXPECT_EQ(y.shape(), (Shape{5, 6, 5, 5}));
  EXPECT_EQ(counts.flops - before, 2u * 5 * 6 * 5 * 5 * 2 * 3 * 2);
  backward(y, zeros_like(y));
  EXPECT_EQ(x.grad().shape(), x.shape());
  EXPECT_EQ(layer.find_parameter("weight").grad().shape(), (Shape{6, 2, 3, 2}));
}

TEST(MaxPool2d, TakesTheLargestAndTheFirstOfEquals) {
  Tensor x = from_vector<double>({1, 2, 5, 5,       //
                                  3, 3, 5, 5,       //
                                  -1, -2, kNan, 0,  //
                                  -4, -3, 9, 7},
                                 Shape{1, 4, 4});
  x.set_requires_grad();
  const Tensor y = max_pool2d(x);
  const std::vector<double> largest = y.to_vector<double>();
  EXPECT_EQ(largest[0], 3);
  EXPECT_EQ(largest[1], 5);
  EXPECT_EQ(largest[2], -1);
  EXPECT_TRUE(std::isnan(largest[3]));
  backward(y, from_vector<double>({10, 20, 30, 40}, Shape{1, 2, 2}));
  EXPECT_EQ(x.grad().to_vector<double>(),
            (std::vector<double>{0, 0, 20, 0, 10, 0, 0, 0, 30, 0, 40, 0, 0, 0, 0, 0}));
}

// What lies in the padding is no picture: not even beside negative numbers.
TEST(MaxPool2d, PaddingIsNeverTheLargest) {
  for (const DType dtype : {kF64, kF32, kF16, kBF16}) {
    const Tensor y = max_pool2d(full({1, 2, 2}, -3.0, {.dtype = dtype}), {.window = 2, .padding = 1});
    EXPECT_EQ(y.to_vector<double>(), std::vector<double>(4, -3.0)) << name(dtype);
  }
}

TEST(AvgPool2d, PaddingCountsAsZero) {
  const Tensor x = from_vector<double>({1, 2, 3, 4}, Shape{1, 2, 2});
  EXPECT_EQ(avg_pool2d(x).to_vector<double>(), (std::vector<double>{2.5}));
  EXPECT_EQ(avg_pool2d(x, {.window = 2, .padding = 1}).to_vector<double>(),
            (std::vector<double>{0.25, 0.5, 0.75, 1}));
}

TEST(Pools, NameWhatDoesNotFit) {
  const Tensor x = ones({3, 3});
  expect_error<ShapeError>([&] { static_cast<void>(max_pool2d(x, {.window = 4})); }, "does not fit");
  expect_error<ShapeError>([&] { static_cast<void>(avg_pool2d(x, {.window = 2, .padding = 2})); },
                           "half of the window");
  expect_error<ShapeError>([&] { static_cast<void>(avg_pool2d(x, {.window = 2, .dilation = 2})); },
                           "no dilation");
  expect_error<ShapeError>([&] { static_cast<void>(max_pool2d(ones({3}))); }, "2 dimensions");
  expect_error<DTypeError>([&] { static_cast<void>(max_pool2d(ones({3, 3}, {.dtype = kI64}))); }, "i64");
}

TEST(BatchNorm2d, NormalisesChannelsAndFollowsThem) {
  BatchNorm2d layer(2, {.epsilon = 0.0, .momentum = 0.25});
  layer.to(kF64);
  // Channel 0 holds 1, 3; 5, 7 (mean 4, variance 5, unbiased 20/3); channel 1 is constant but for one.
  const Tensor x = from_vector<double>({1, 3, 0, 0, 5, 7, 0, 4}, Shape{2, 2, 1, 2});
  const Tensor y = layer(x);
  const double s = std::sqrt(5.0), t = std::sqrt(3.0);
  EXPECT_EQ("", difference(y, {-3 / s, -1 / s, -1 / t, -1 / t, 1 / s, 3 / s, -1 / t, 3 / t}, 1e-15));
  const NamedTensors state = layer.state();
  ASSERT_EQ(state.size(), 4u);
  EXPECT_EQ(state[2].first, "running_mean");
  EXPECT_EQ("", difference(state[2].second, {1.0, 0.25}, 1e-15));
  EXPECT_EQ(state[3].first, "running_var");
  EXPECT_EQ("", difference(state[3].second, {0.75 + 5.0 / 3, 0.75 + 1.0}, 1e-15));

  layer.eval();
  const double v0 = std::sqrt(0.75 + 5.0 / 3), v1 = std::sqrt(1.75);
  const Tensor z =
      layer(from_vector<double>({2, 2}, Shape{1, 2, 1, 1}));  // one element a channel is enough now
  EXPECT_EQ("", difference(z, {1 / v0, 1.75 / v1}, 1e-15));
  EXPECT_EQ("", difference(layer.state()[2].second, {1.0, 0.25}, 1e-15));  // unchanged
}

TEST(BatchNorm2d, GradientsMatchFiniteDifferencesInBothModes) {
  for (const bool training : {true, false}) {
    BatchNorm2d layer(3);
    set_pattern(layer);
    layer(pattern({2, 3, 2, 2}, 1) * 4.0);  // so that the running statistics are no zeros and ones
    layer.train(training);
    EXPECT_EQ("", gradient_errors(
                      layer, [&](const Tensor& x) { return layer(x); }, pattern({2, 3, 2, 2}, 4) * 8.0))
        << training;
  }
}

TEST(BatchNorm2d, NamesWhatDoesNotFit) {
  BatchNorm2d layer(3);
  expect_error<ShapeError>([&] { static_cast<void>(layer(ones({2, 4, 2, 2}))); }, "[N, 3, H, W]");
  expect_error<ShapeError>([&] { static_cast<void>(layer(ones({1, 3, 1, 1}))); }, "no variance");
  Tensor cut = ones({2, 3, 2, 2});
  cut.set_layout(Layout().with(MeshAxis::kDp, AxisLayout::sharded(0)));
  expect_error<LayoutError>([&] { static_cast<void>(layer(cut)); }, "its own count");
}

}  // namespace
}  // namespace tessera::nn
