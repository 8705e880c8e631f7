// Products of a few rows with a weight [N, K], as a linear layer of a model that writes text computes them:
// c [M, N] ← a [M, K] · bᵀ (+ bias) (+ c).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

struct Types {
  DType input, output;
};
const Types kTypes[] = {{kF32, kF32}, {kF16, kF16}, {kF16, kF32}, {kBF16, kBF16}, {kBF16, kF32}};

struct Case {
  const char* name;
  std::int64_t n, k;
  std::int64_t a_gap = 0, b_gap = 0;  // elements between rows that belong to neither
  std::vector<int> c_order = {0, 1};
  std::int64_t c_step = 1;
  bool bias = false, accumulate = false;
};

const Case kCases[] = {
    {.name = "one element", .n = 1, .k = 1},
    {.name = "less than a step", .n = 5, .k = 7},
    {.name = "K = 0", .n = 6, .k = 0},
    {.name = "K = 0, bias and accumulate", .n = 6, .k = 0, .bias = true, .accumulate = true},
    {.name = "steps and no rest", .n = 8, .k = 96},
    {.name = "steps and a rest", .n = 23, .k = 97, .bias = true},
    {.name = "a rest of all but one", .n = 10, .k = 63, .accumulate = true},
    {.name = "rows cut from wider ones", .n = 19, .k = 75, .a_gap = 3, .b_gap = 5, .bias = true},
    {.name = "c transposed", .n = 21, .k = 40, .c_order = {1, 0}, .bias = true, .accumulate = true},
    {.name = "c every second", .n = 9, .k = 33, .c_step = 2, .accumulate = true},
    {.name = "enough for threads", .n = 301, .k = 1023, .b_gap = 1, .bias = true},
};

/// Rows [first, first + rows) and columns [column, column + columns) of the product of a case.
struct Part {
  std::int64_t first, rows, column, columns;
};

class Product {
 public:
  Product(const Case& test, const Types& types, std::int64_t rows) : test_(test) {
    a_ = HostArray::random(types.input, {rows, test.k + test.a_gap}, 1);
    b_ = HostArray::random(types.input, {test.n, test.k + test.b_gap}, 2);
    c_ = HostArray(types.output, {rows, test.n}, test.c_order, test.c_step).fill_random(3);
    bias_ = HostArray::random(types.input, {test.n}, 4);
    before_ = c_;
  }

  void run(InstructionSet set, const Part& part) {
    ConstView a = std::as_const(a_).view(), b = std::as_const(b_).view(), bias = std::as_const(bias_).view();
    View c = c_.view();
    a.data = at(a, part.first, 0);
    a.shape[0] = part.rows;
    a.shape[1] = test_.k;
    // [N, K] stored, [K, N] seen.
    b.data = at(b, part.column, 0);
    std::swap(b.strides[0], b.strides[1]);
    b.shape[0] = test_.k;
    b.shape[1] = part.columns;
    bias.data = at(bias, part.column, 0);
    bias.shape[0] = part.columns;
    c.data = const_cast<void*>(at(c, part.first, part.column));
    c.shape[0] = part.rows;
    c.shape[1] = part.columns;
    cpu_kernels(set).matmul.matmul(a, b, c,
                                   {.bias = test_.bias ? &bias : nullptr, .accumulate = test_.accumulate});
  }
  void run(InstructionSet set) { run(set, {0, c_.shape()[0], 0, test_.n}); }

  [[nodiscard]] const HostArray& c() const { return c_; }

  /// How many elements differ from a sum in f64 by more than roundings explain.
  [[nodiscard]] int wrong() const {
    const std::vector<double> a = values(a_, test_.k), b = values(b_, test_.k);
    int count = 0;
    c_.for_each([&](const Sizes& index) {
      double sum = 0, magnitude = 0;
      const auto add = [&](double term) {
        sum += term;
        magnitude += std::abs(term);
      };
      const std::int64_t first_a = index[0] * test_.k, first_b = index[1] * test_.k;
      for (std::int64_t k = 0; k < test_.k; ++k)
        add(a[static_cast<std::size_t>(first_a + k)] * b[static_cast<std::size_t>(first_b + k)]);
      if (test_.bias) add(bias_({index[1]}));
      if (test_.accumulate) add(before_(index));
      // K products and K + 2 additions in f32, then one rounding of the result.
      const double rounding =
          c_.dtype() == kF32 ? 0.0 : 1.01 * unit_roundoff(c_.dtype()) * std::abs(sum) + smallest(c_.dtype());
      const double bound =
          2.0 * static_cast<double>(test_.k + 2) * unit_roundoff(kF32) * magnitude + rounding;
      if (!(std::abs(c_(index) - sum) <= bound)) ++count;
    });
    return count;
  }

 private:
  /// The first `columns` of each row.
  static std::vector<double> values(const HostArray& x, std::int64_t columns) {
    std::vector<double> all;
    for (std::int64_t i = 0; i < x.shape()[0]; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) all.push_back(x({i, j}));
    }
    return all;
  }
  /// Half of the smallest number above 0: what a result near 0 is off by.
  static double smallest(DType dtype) { return dtype == kF16 ? 0x1p-25 : 0x1p-134; }
  template <class Pointer>
  static const void* at(const BasicView<Pointer>& view, std::int64_t i, std::int64_t j) {
    const std::int64_t offset = i * view.strides[0] + (view.dims > 1 ? j * view.strides[1] : 0);
    return static_cast<const char*>(view.data) + offset * static_cast<std::int64_t>(size_bytes(view.dtype));
  }

  const Case& test_;
  HostArray a_, b_, c_, bias_, before_;
};

/// Calls f for all cases in all types, in every build of the loops.
template <class F>
void for_all(const F& f) {
  for (const InstructionSet set : supported_sets()) {
    for (const Types& types : kTypes) {
      for (const Case& test : kCases) {
        SCOPED_TRACE(std::string(test.name) + ", " + name(types.input) + " -> " + name(types.output) + ", " +
                     name(set));
        f(set, types, test);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(FewRows, EqualASumInF64) {
  for_all([](InstructionSet set, const Types& types, const Case& test) {
    for (std::int64_t rows = 1; rows <= 9; ++rows) {  // nine are no longer few
      const WithThreads threads(2);
      Product product(test, types, rows);
      product.run(set);
      ASSERT_EQ(product.wrong(), 0) << rows << " rows, of " << product.c().num_elements();
      ASSERT_TRUE(product.c().guards_intact()) << rows << " rows";
    }
  });
}

TEST(FewRows, DoNotDependOnTheNumberOfThreads) {
  for_all([](InstructionSet set, const Types& types, const Case& test) {
    for (const std::int64_t rows : {1, 3, 8}) {
      Product one(test, types, rows);
      {
        const WithThreads threads(1);
        one.run(set);
      }
      for (const int count : {2, 3, 5}) {
        const WithThreads threads(count);
        Product many(test, types, rows);
        many.run(set);
        ASSERT_TRUE(one.c().bitwise_equal(many.c())) << rows << " rows, " << count << " threads";
      }
    }
  });
}

// A text is the same whether it is written alone or in a batch.
TEST(FewRows, GiveARowTheSameBitsAloneAndAmongOthers) {
  for_all([](InstructionSet set, const Types& types, const Case& test) {
    const WithThreads threads(2);
    Product whole(test, types, 8), cut(test, types, 8);
    whole.run(set);
    for (std::int64_t row = 0, rows = 1; row < 8; row += rows++) {  // 1, 2, 3, and the last two
      cut.run(set, {row, std::min<std::int64_t>(rows, 8 - row), 0, test.n});
    }
    ASSERT_TRUE(whole.c().bitwise_equal(cut.c()));
  });
}

TEST(FewRows, GiveAColumnTheSameBitsAloneAndAmongOthers) {
  for_all([](InstructionSet set, const Types& types, const Case& test) {
    const WithThreads threads(2);
    Product whole(test, types, 5), cut(test, types, 5);
    whole.run(set);
    for (std::int64_t column = 0, columns = 1; column < test.n; column += columns++) {
      cut.run(set, {0, 5, column, std::min(columns, test.n - column)});
    }
    ASSERT_TRUE(whole.c().bitwise_equal(cut.c()));
  });
}

// Invariant products give a row the same bits among few rows and among many: they do not come here.
TEST(FewRows, AreLikeManyWhereProductsAreInvariant) {
  for_all([](InstructionSet set, const Types& types, const Case& test) {
    const WithThreads threads(2);
    kernel_context().invariant_products = true;
    Product whole(test, types, 30), cut(test, types, 30);
    whole.run(set);
    for (std::int64_t row = 0; row < 30; row += 4) {
      cut.run(set, {row, std::min<std::int64_t>(4, 30 - row), 0, test.n});
    }
    ASSERT_TRUE(whole.c().bitwise_equal(cut.c()));
  });
}

}  // namespace
}  // namespace tessera::kernels::test
