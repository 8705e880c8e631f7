#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "kernels/random_key.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

const DType kFloats[] = {kF64, kF32, kF16, kBF16};

/// Calls f with every supported instruction set, float dtype and a trace of both.
void for_each_set_and_dtype(const std::function<void(const Normalization&, DType)>& f) {
  for (const InstructionSet set : supported_sets()) {
    for (const DType dtype : kFloats) {
      SCOPED_TRACE(std::string(name(set)) + ", " + name(dtype));
      f(cpu_kernels(set).normalization, dtype);
    }
  }
}

/// `actual` equals `expected` within `roundings` of the dtype in which it was computed, relative to
/// `magnitude`, and one rounding to its own dtype.
void expect_close(const HostArray& actual, const std::function<double(const Sizes&)>& expected,
                  double roundings, double magnitude, const char* what) {
  const DType compute = accumulation_dtype(actual.dtype());
  int wrong = 0;
  double worst = 0;
  actual.for_each([&](const Sizes& i) {
    const double error = std::abs(actual(i) - expected(i));
    const double bound = roundings * unit_roundoff(compute) * magnitude +
                         1.01 * unit_roundoff(actual.dtype()) * std::abs(expected(i)) +
                         (actual.dtype() == kF16 ? 0x1p-24 : 0.0);  // subnormal halves
    if (!(error <= bound)) ++wrong;
    worst = std::max(worst, error);
  });
  EXPECT_EQ(wrong, 0) << what << ": of " << actual.num_elements() << ", largest error " << worst;
  EXPECT_TRUE(actual.guards_intact()) << what;
}

/// Rows of `x` as [N, D] with a gap behind each row.
HostArray with_row_gap(DType dtype, std::int64_t rows, std::int64_t width) {
  HostArray x(dtype, {rows, width + 3});
  return x;
}

ConstView columns(const HostArray& x, std::int64_t width) {
  ConstView view = x.view();
  view.shape[1] = width;
  return view;
}
struct NormCase {
  const char* name;
  std::int64_t rows, width;
  bool bias = true;
};
const NormCase kNormCases[] = {
    {"one element", 1, 1},          {"narrow rows", 5, 3},
    {"width of a vector", 4, 16},   {"odd width", 33, 77},
    {"without bias", 6, 40, false}, {"many rows", 130, 20},
    {"wide rows", 3, 1030},         {"no rows", 0, 8},
};
constexpr double kEpsilon = 1e-5;

/// mean and 1/std (or 0 and 1/rms) of a row, in f64.
struct Statistics {
  double mean = 0, inverse = 0;
};
Statistics statistics(const std::function<double(std::int64_t)>& x, std::int64_t width, bool centered) {
  Statistics result;
  for (std::int64_t d = 0; d < width && centered; ++d) result.mean += x(d) / static_cast<double>(width);
  double squares = 0;
  for (std::int64_t d = 0; d < width; ++d) squares += (x(d) - result.mean) * (x(d) - result.mean);
  result.inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + kEpsilon);
  return result;
}

TEST(LayerNorm, EqualsItsDefinition) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const NormCase& test : kNormCases) {
      SCOPED_TRACE(test.name);
      const DType sums = accumulation_dtype(dtype);
      HostArray x = with_row_gap(dtype, test.rows, test.width).fill_random(1);
      const HostArray gain = HostArray::random(dtype, {test.width}, 2),
                      bias = HostArray::random(dtype, {test.width}, 3);
      HostArray y(dtype, {test.rows, test.width}), mean(sums, {test.rows}), inverse(sums, {test.rows});
      kernels.layer_norm(columns(static_cast<const HostArray&>(x), test.width), nullptr, nullptr, gain.view(),
                         test.bias ? bias.view() : ConstView(), kEpsilon, y.view(), mean.view(),
                         inverse.view());
      std::vector<Statistics> by_row;
      for (std::int64_t row = 0; row < test.rows; ++row) {
        by_row.push_back(statistics([&](std::int64_t d) { return x({row, d}); }, test.width, true));
      }
      const auto expected = [&](std::int64_t row) { return by_row[static_cast<std::size_t>(row)]; };
      // Sums of D terms in four times as many lanes as the vector has: fewer than D + 8 roundings each;
      // values ~ 5.
      const double roundings = 4.0 * static_cast<double>(test.width + 8);
      expect_close(
          mean, [&](const Sizes& i) { return expected(i[0]).mean; }, roundings, 1.0, "mean");
      // One element has variance 0: its inverse is 1/sqrt(epsilon) = 316.
      expect_close(
          inverse, [&](const Sizes& i) { return expected(i[0]).inverse; }, roundings, 316.0, "inverse");
      expect_close(
          y,
          [&](const Sizes& i) {
            const Statistics s = expected(i[0]);
            return (x(i) - s.mean) * s.inverse * gain({i[1]}) + (test.bias ? bias({i[1]}) : 0.0);
          },
          roundings, 30.0, "y");
    }
  });
}

TEST(LayerNorm, AddsTheResidualFirstAndKeepsTheRoundedSum) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const int in_place : {0, 1, 2}) {
      const std::int64_t rows = 5, width = 39;
      HostArray x = HostArray::random(dtype, {rows, width}, 1),
                residual = HostArray::random(dtype, {rows, width}, 2);
      const HostArray x0 = x, residual0 = residual;
      const HostArray gain = HostArray::random(dtype, {width}, 3),
                      bias = HostArray::random(dtype, {width}, 4);
      HostArray separate(dtype, {rows, width}), y(dtype, {rows, width});
      HostArray mean(accumulation_dtype(dtype), {rows}), inverse(accumulation_dtype(dtype), {rows});
      HostArray& sum = in_place == 0 ? separate : in_place == 1 ? x : residual;
      const ConstView residual_view = static_cast<const HostArray&>(residual).view();
      const View sum_view = sum.view();
      kernels.layer_norm(static_cast<const HostArray&>(x).view(), &residual_view, &sum_view, gain.view(),
                         bias.view(), kEpsilon, y.view(), mean.view(), inverse.view());
      expect_close(
          sum, [&](const Sizes& i) { return x0(i) + residual0(i); }, 1.0, 10.0, "sum");
      HostArray expected_y(dtype, {rows, width}), mean2 = mean, inverse2 = inverse;
      kernels.layer_norm(static_cast<const HostArray&>(sum).view(), nullptr, nullptr, gain.view(),
                         bias.view(), kEpsilon, expected_y.view(), mean2.view(), inverse2.view());
      EXPECT_TRUE(y.bitwise_equal(expected_y));
      EXPECT_TRUE(mean.bitwise_equal(mean2));
      EXPECT_TRUE(inverse.bitwise_equal(inverse2));
    }
  });
}

/// LayerNorm or RMSNorm with the inputs and weights of one test.
struct Norm {
  const Normalization& kernels;
  DType dtype;
  bool centered;
  HostArray x, gain, bias, dy;
  HostArray y, mean, inverse;

  Norm(const Normalization& family, DType type, bool is_centered, std::int64_t rows, std::int64_t width)
      : kernels(family), dtype(type), centered(is_centered) {
    x = HostArray::random(dtype, {rows, width}, 1);
    gain = HostArray::random(dtype, {width}, 2);
    bias = HostArray::random(dtype, {width}, 3);
    dy = HostArray::random(dtype, {rows, width}, 4);
    y = HostArray(dtype, {rows, width});
    mean = HostArray(accumulation_dtype(dtype), {rows});
    inverse = HostArray(accumulation_dtype(dtype), {rows});
    forward();
  }
  void forward() {
    const ConstView x_view = static_cast<const HostArray&>(x).view();
    if (centered) {
      kernels.layer_norm(x_view, nullptr, nullptr, static_cast<const HostArray&>(gain).view(),
                         static_cast<const HostArray&>(bias).view(), kEpsilon, y.view(), mean.view(),
                         inverse.view());
    } else {
      kernels.rms_norm(x_view, static_cast<const HostArray&>(gain).view(), kEpsilon, y.view(),
                       inverse.view());
    }
  }
  void backward(const View* dx, const View* dgain, const View* dbias) {
    const auto constant = [](const HostArray& array) { return array.view(); };
    if (centered) {
      kernels.layer_norm_backward(constant(dy), constant(x), constant(gain), constant(mean),
                                  constant(inverse), dx, dgain, dbias);
    } else {
      kernels.rms_norm_backward(constant(dy), constant(x), constant(gain), constant(inverse), dx, dgain);
    }
  }
  /// Σ dy · y: its gradients are those that backward() makes.
  double loss() {
    forward();
    double sum = 0;
    y.for_each([&](const Sizes& i) { sum += y(i) * dy(i); });
    return sum;
  }
  double slope(HostArray* input, const Sizes& at) {
    // Central difference: truncation error h² ~ 1e-9 and rounding 1e-16 · 100 / h ~ 1e-9 for h = 1e-5.
    const double h = 1e-5, value = (*input)(at);
    input->set(at, value + h);
    const double above = loss();
    input->set(at, value - h);
    const double below = loss();
    input->set(at, value);
    forward();
    return (above - below) / (2 * h);
  }
};

TEST(Norms, BackwardMatchesFiniteDifferences) {
  for (const InstructionSet set : supported_sets()) {
    for (const bool centered : {true, false}) {
      SCOPED_TRACE(std::string(name(set)) + (centered ? ", layer_norm" : ", rms_norm"));
      Norm norm(cpu_kernels(set).normalization, kF64, centered, 3, 11);
      HostArray dx(kF64, {3, 11}), dgain(kF64, {11}), dbias(kF64, {11});
      const View dx_view = dx.view(), dgain_view = dgain.view(), dbias_view = dbias.view();
      norm.backward(&dx_view, &dgain_view, &dbias_view);
      dx.for_each([&](const Sizes& i) { EXPECT_NEAR(dx(i), norm.slope(&norm.x, i), 1e-7); });
      dgain.for_each([&](const Sizes& i) { EXPECT_NEAR(dgain(i), norm.slope(&norm.gain, i), 1e-7); });
      if (centered)
        dbias.for_each([&](const Sizes& i) { EXPECT_NEAR(dbias(i), norm.slope(&norm.bias, i), 1e-7); });
    }
  }
}

TEST(Norms, BackwardEqualsItsFormulaInEveryDtype) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const bool centered : {true, false}) {
      for (const NormCase& test : kNormCases) {
        SCOPED_TRACE(std::string(test.name) + (centered ? ", layer_norm" : ", rms_norm"));
        Norm norm(kernels, dtype, centered, test.rows, test.width);
        // Into f32 sums, and dx over dy.
        HostArray dgain(accumulation_dtype(dtype), {test.width}),
            dbias(accumulation_dtype(dtype), {test.width});
        const HostArray dy = norm.dy;
        const View dx_view = norm.dy.view(), dgain_view = dgain.view(), dbias_view = dbias.view();
        norm.backward(&dx_view, &dgain_view, &dbias_view);
        const auto normalized = [&](std::int64_t row, std::int64_t d) {
          return (norm.x({row, d}) - (centered ? norm.mean({row}) : 0.0)) * norm.inverse({row});
        };
        const double count = static_cast<double>(test.width);
        const double roundings = 4.0 * static_cast<double>(test.width + test.rows + 8);
        // |dx| <= inverse · |g| ~ 316 · 10 at worst (a row of one element), ~ 10 else.
        std::vector<double> mean_g(static_cast<std::size_t>(test.rows)), mean_gn = mean_g;
        dy.for_each([&](const Sizes& i) {
          const double g = dy(i) * norm.gain({i[1]});
          if (centered) mean_g[static_cast<std::size_t>(i[0])] += g / count;
          mean_gn[static_cast<std::size_t>(i[0])] += g * normalized(i[0], i[1]) / count;
        });
        expect_close(
            norm.dy,
            [&](const Sizes& i) {
              const auto row = static_cast<std::size_t>(i[0]);
              return norm.inverse({i[0]}) *
                     (dy(i) * norm.gain({i[1]}) - mean_g[row] - normalized(i[0], i[1]) * mean_gn[row]);
            },
            roundings, test.width == 1 ? 3000.0 : 30.0, "dx");
        expect_close(
            dgain,
            [&](const Sizes& i) {
              double sum = 0;
              for (std::int64_t row = 0; row < test.rows; ++row)
                sum += dy({row, i[0]}) * normalized(row, i[0]);
              return sum;
            },
            roundings, 30.0, "dgain");
        if (!centered) continue;
        expect_close(
            dbias,
            [&](const Sizes& i) {
              double sum = 0;
              for (std::int64_t row = 0; row < test.rows; ++row) sum += dy({row, i[0]});
              return sum;
            },
            roundings, 30.0, "dbias");
      }
    }
  });
}

TEST(Norms, BackwardWritesOnlyWhatIsWanted) {
  Norm norm(of(DeviceType::kCpu).normalization, kF32, true, 40, 17);
  HostArray dx(kF32, {40, 17}), dgain(kF32, {17}), dbias(kF32, {17});
  const View dx_view = dx.view(), dgain_view = dgain.view(), dbias_view = dbias.view();
  norm.backward(&dx_view, &dgain_view, &dbias_view);
  HostArray only_dx(kF32, {40, 17}), only_dgain(kF32, {17}), only_dbias(kF32, {17});
  const View a = only_dx.view(), b = only_dgain.view(), c = only_dbias.view();
  norm.backward(&a, nullptr, nullptr);
  norm.backward(nullptr, &b, nullptr);
  norm.backward(nullptr, nullptr, &c);
  EXPECT_TRUE(dx.bitwise_equal(only_dx));
  EXPECT_TRUE(dgain.bitwise_equal(only_dgain));
  EXPECT_TRUE(dbias.bitwise_equal(only_dbias));
}

TEST(Norms, DoNotDependOnTheNumberOfThreads) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    std::vector<HostArray> first;
    for (const int threads : {1, 2, 3}) {
      const WithThreads with(threads);
      Norm norm(kernels, dtype, true, 301, 130);
      HostArray dx(dtype, {301, 130}), dgain(dtype, {130}), dbias(dtype, {130});
      const View dx_view = dx.view(), dgain_view = dgain.view(), dbias_view = dbias.view();
      norm.backward(&dx_view, &dgain_view, &dbias_view);
      const std::vector<HostArray> results = {norm.y, norm.mean, norm.inverse, dx, dgain, dbias};
      if (first.empty()) first = results;
      for (std::size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(results[i].bitwise_equal(first[i])) << i;
    }
  });
}

TEST(RmsNorm, EqualsItsDefinition) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const NormCase& test : kNormCases) {
      SCOPED_TRACE(test.name);
      const Norm norm(kernels, dtype, false, test.rows, test.width);
      const double roundings = 4.0 * static_cast<double>(test.width + 8);
      std::vector<double> by_row;
      for (std::int64_t row = 0; row < test.rows; ++row) {
        by_row.push_back(statistics(
                             [&](std::int64_t d) {
                               return norm.x({row, d});
                             },
                             test.width, false)
                             .inverse);
      }
      const auto expected = [&](std::int64_t row) { return by_row[static_cast<std::size_t>(row)]; };
      expect_close(
          norm.inverse, [&](const Sizes& i) { return expected(i[0]); }, roundings, 30.0, "inverse");
      expect_close(
          norm.y, [&](const Sizes& i) { return norm.x(i) * expected(i[0]) * norm.gain({i[1]}); }, roundings,
          30.0, "y");
    }
  });
}

struct SoftmaxCase {
  const char* name;
  Sizes shape;
  std::vector<int> order;
};
const SoftmaxCase kSoftmaxCases[] = {
    {"one element", {1}, {0}},
    {"a vector", {9}, {0}},
    {"rows", {7, 33}, {0, 1}},
    {"rows in another order", {3, 5, 20}, {1, 0, 2}},
    {"longer than a chunk", {2, 1300}, {0, 1}},
    {"no rows", {0, 4}, {0, 1}},
};

/// The index of a row: all but the last dimension.
Sizes row_of(const Sizes& index) { return {index.begin(), index.end() - 1}; }

TEST(Softmax, AndItsLogarithmEqualTheirDefinitionAlsoInPlace) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const SoftmaxCase& test : kSoftmaxCases) {
      for (const bool log : {false, true}) {
        SCOPED_TRACE(std::string(test.name) + (log ? ", log" : ""));
        HostArray x = HostArray(dtype, test.shape, test.order, 1).fill_random(1, 3.0);
        HostArray y(dtype, test.shape);
        kernels.softmax(static_cast<const HostArray&>(x).view(), log, y.view());
        const std::int64_t width = test.shape.back();
        // Logarithms reach −20, so do their errors.
        std::map<Sizes, double> sums;
        x.for_each([&](const Sizes& i) { sums[row_of(i)] += std::exp(x(i)); });
        expect_close(
            y,
            [&](const Sizes& i) {
              return log ? x(i) - std::log(sums[row_of(i)]) : std::exp(x(i)) / sums[row_of(i)];
            },
            static_cast<double>(width + 24), log ? 20.0 : 1.0, "y");
        HostArray in_place = x;
        kernels.softmax(static_cast<const HostArray&>(in_place).view(), log, in_place.view());
        y.for_each([&](const Sizes& i) { EXPECT_EQ(y(i), in_place(i)); });
      }
    }
  });
}

TEST(Softmax, BackwardEqualsItsFormulaAlsoInPlace) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const SoftmaxCase& test : kSoftmaxCases) {
      for (const bool log : {false, true}) {
        SCOPED_TRACE(std::string(test.name) + (log ? ", log" : ""));
        const HostArray x = HostArray(dtype, test.shape, test.order, 1).fill_random(1);
        HostArray y(dtype, test.shape), dx(dtype, test.shape);
        HostArray dy = HostArray(dtype, test.shape, test.order, 1).fill_random(2);
        const HostArray dy0 = dy;
        kernels.softmax(x.view(), log, y.view());
        const ConstView y_view = static_cast<const HostArray&>(y).view();
        kernels.softmax_backward(y_view, static_cast<const HostArray&>(dy).view(), log, dx.view());
        kernels.softmax_backward(y_view, static_cast<const HostArray&>(dy).view(), log, dy.view());
        const std::int64_t width = test.shape.back();
        // Sums of up to 1300 normal numbers: below 200.
        std::map<Sizes, double> sums;
        y.for_each([&](const Sizes& i) { sums[row_of(i)] += log ? dy0(i) : dy0(i) * y(i); });
        expect_close(
            dx,
            [&](const Sizes& i) {
              return log ? dy0(i) - std::exp(y(i)) * sums[row_of(i)] : y(i) * (dy0(i) - sums[row_of(i)]);
            },
            static_cast<double>(width + 24), log ? 200.0 : 5.0, "dx");
        dx.for_each([&](const Sizes& i) { EXPECT_EQ(dx(i), dy(i)); });
      }
    }
  });
}

TEST(Softmax, SurvivesLargeNumbersAndMaskedOnes) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const InstructionSet set : supported_sets()) {
    HostArray x(kF32, {3}), y(kF32, {3});
    x.set({0}, 1e30);
    x.set({1}, -infinity);
    x.set({2}, 1e30);
    cpu_kernels(set).normalization.softmax(static_cast<const HostArray&>(x).view(), false, y.view());
    EXPECT_EQ(y({0}), 0.5);
    EXPECT_EQ(y({1}), 0.0);
    EXPECT_EQ(y({2}), 0.5);
  }
}

const RandomKey kKey{.seed = 11, .stream = stream_id("dropout"), .step = 5};

TEST(Dropout, KeepsByTheWordOfEachGlobalIndex) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    const Sizes shape = {3, 5, 70};
    for (const std::vector<int>& order : {std::vector<int>{0, 1, 2}, {2, 0, 1}}) {
      for (const std::int64_t base : {0, 3, 1000001}) {
        const HostArray x = HostArray(dtype, shape, order, 1).fill_random(1);
        HostArray y(dtype, shape);
        const GlobalIndex index = GlobalIndex::row_major(x.view(), base);
        kernels.dropout(x.view(), 0.3, kKey, index, y.view());
        HostArray expected(dtype, shape);
        expected.for_each([&](const Sizes& i) {
          const auto at = static_cast<std::uint64_t>(base + (i[0] * 5 + i[1]) * 70 + i[2]);
          const double scale = dtype == kF64 ? 1.0 / 0.7 : static_cast<double>(static_cast<float>(1.0 / 0.7));
          expected.set(i, dropout_keeps(random_word(kKey, at), dropout_threshold(0.3)) ? x(i) * scale : 0.0);
        });
        // The product in f32 and in f64 may round to neighbours.
        expect_close(
            y, [&](const Sizes& i) { return expected(i); }, 2.0, 10.0, "y");
        int kept = 0;
        y.for_each([&](const Sizes& i) { kept += y(i) != 0.0 ? 1 : 0; });
        EXPECT_NEAR(kept, 0.7 * 1050, 5 * std::sqrt(0.21 * 1050));
      }
    }
  });
}

TEST(Dropout, OfShardsEqualsShardsOfDropout) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    const std::int64_t rows = 6, width = 50;
    const HostArray x = HostArray::random(dtype, {rows, width}, 1);
    HostArray whole(dtype, {rows, width}), cut(dtype, {rows, width});
    const GlobalIndex global = GlobalIndex::row_major(x.view());
    kernels.dropout(x.view(), 0.5, kKey, global, whole.view());
    // Columns [0, 17) and [17, 50), as two tensor-parallel ranks would hold them.
    for (const std::int64_t begin : {0, 17}) {
      ConstView from = x.view();
      View to = cut.view();
      const std::int64_t offset = begin * static_cast<std::int64_t>(size_bytes(dtype));
      from.data = static_cast<const char*>(from.data) + offset;
      to.data = static_cast<char*>(to.data) + offset;
      from.shape[1] = to.shape[1] = begin == 0 ? 17 : width - 17;
      GlobalIndex shard = global;
      shard.base = begin;
      kernels.dropout(from, 0.5, kKey, shard, to);
    }
    EXPECT_TRUE(whole.bitwise_equal(cut));
    // And transposed: the index goes with the element, not with its place in memory.
    ConstView flipped = x.view();
    HostArray across(dtype, {width, rows});
    GlobalIndex index = global;
    std::swap(flipped.shape[0], flipped.shape[1]);
    std::swap(flipped.strides[0], flipped.strides[1]);
    std::swap(index.strides[0], index.strides[1]);
    kernels.dropout(flipped, 0.5, kKey, index, across.view());
    across.for_each([&](const Sizes& i) { EXPECT_EQ(across(i), whole({i[1], i[0]})); });
  });
}

TEST(Dropout, InPlaceAndOnSeveralThreadsGivesTheSame) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    const HostArray x = HostArray::random(dtype, {40001}, 1);
    HostArray expected(dtype, {40001});
    const GlobalIndex index = GlobalIndex::row_major(x.view(), 2);
    kernels.dropout(x.view(), 0.1, kKey, index, expected.view());
    for (const int threads : {2, 3}) {
      const WithThreads with(threads);
      HostArray y = x;
      kernels.dropout(static_cast<const HostArray&>(y).view(), 0.1, kKey, index, y.view());
      EXPECT_TRUE(y.bitwise_equal(expected));
    }
  });
}

TEST(Dropout, WithProbabilityZeroCopiesAndWithOneClears) {
  for (const InstructionSet set : supported_sets()) {
    const HostArray x = HostArray::random(kF32, {100}, 1);
    HostArray y(kF32, {100});
    const GlobalIndex index = GlobalIndex::row_major(x.view());
    cpu_kernels(set).normalization.dropout(x.view(), 0.0, kKey, index, y.view());
    EXPECT_TRUE(y.bitwise_equal(x));
    cpu_kernels(set).normalization.dropout(x.view(), 1.0, kKey, index, y.view());
    EXPECT_TRUE(y.bitwise_equal(HostArray(kF32, {100})));
  }
}

TEST(Rotary, TurnsPairsAndTurnsThemBack) {
  for_each_set_and_dtype([](const Normalization& kernels, DType dtype) {
    for (const std::int64_t half : {1, 4, 19}) {
      const Sizes shape = {2, 3, 2, 2 * half};
      const DType angles = accumulation_dtype(dtype);
      HostArray cosine(angles, {3, half}), sine(angles, {3, half});
      cosine.for_each([&](const Sizes& i) {
        const double angle = static_cast<double>(i[0]) / std::pow(100.0, static_cast<double>(i[1]) / 19.0);
        cosine.set(i, std::cos(angle));
        sine.set(i, std::sin(angle));
      });
      const ConstView c = static_cast<const HostArray&>(cosine).view(),
                      s = static_cast<const HostArray&>(sine).view();
      // Heads before time in memory, as attention may keep them.
      HostArray x = HostArray(dtype, shape, {0, 2, 1, 3}, 1).fill_random(1);
      HostArray y(dtype, shape);
      kernels.rotary(static_cast<const HostArray&>(x).view(), c, s, false, y.view());
      expect_close(
          y,
          [&](const Sizes& i) {
            const std::int64_t k = i[3] % half;
            const double x1 = x({i[0], i[1], i[2], k}), x2 = x({i[0], i[1], i[2], k + half});
            const double cos_t = cosine({i[1], k}), sin_t = sine({i[1], k});
            return i[3] < half ? x1 * cos_t - x2 * sin_t : x2 * cos_t + x1 * sin_t;
          },
          3.0, 5.0, "y");
      HostArray in_place = x;
      kernels.rotary(static_cast<const HostArray&>(in_place).view(), c, s, false, in_place.view());
      y.for_each([&](const Sizes& i) { EXPECT_EQ(in_place(i), y(i)); });
      kernels.rotary(static_cast<const HostArray&>(y).view(), c, s, true, y.view());
      // Twice rounded to the dtype, and cos² + sin² is 1 up to a rounding of the tables.
      y.for_each([&](const Sizes& i) { EXPECT_NEAR(y(i), x(i), 16.0 * unit_roundoff(dtype)); });
    }
  });
}

}  // namespace
}  // namespace tessera::kernels::test
