#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

enum class Lie { kRows, kTransposed, kEverySecond };

/// [batch..., rows, columns], stored as `lie` says.
HostArray matrix(DType dtype, Sizes shape, Lie lie) {
  const int dims = static_cast<int>(shape.size());
  std::vector<int> order(shape.size());
  for (int d = 0; d < dims; ++d) order[static_cast<std::size_t>(d)] = d;
  if (lie == Lie::kTransposed) std::swap(order[order.size() - 1], order[order.size() - 2]);
  return HostArray(dtype, shape, order, lie == Lie::kEverySecond ? 2 : 1);
}

struct MatmulCase {
  const char* name;
  std::int64_t m, n, k;
  Sizes batch = {};
  Lie a = Lie::kRows, b = Lie::kRows, c = Lie::kRows;
  bool bias = false, accumulate = false;
  int a_lacks = 0, b_lacks = 0;  // leading batch dimensions along which it is broadcast
};

const MatmulCase kCases[] = {
    {.name = "one element", .m = 1, .n = 1, .k = 1},
    {.name = "odd sizes", .m = 7, .n = 13, .k = 5},
    {.name = "one row", .m = 1, .n = 70, .k = 33},
    {.name = "one row, b transposed", .m = 1, .n = 70, .k = 33, .b = Lie::kTransposed},
    {.name = "one column", .m = 37, .n = 1, .k = 19},
    {.name = "a transposed", .m = 20, .n = 31, .k = 17, .a = Lie::kTransposed},
    {.name = "b transposed", .m = 20, .n = 31, .k = 17, .b = Lie::kTransposed},
    {.name = "both transposed", .m = 20, .n = 31, .k = 17, .a = Lie::kTransposed, .b = Lie::kTransposed},
    {.name = "c transposed", .m = 20, .n = 31, .k = 17, .c = Lie::kTransposed},
    {.name = "c transposed, bias", .m = 20, .n = 31, .k = 17, .c = Lie::kTransposed, .bias = true},
    {.name = "no stride of 1",
     .m = 9,
     .n = 18,
     .k = 27,
     .a = Lie::kEverySecond,
     .b = Lie::kEverySecond,
     .c = Lie::kEverySecond},
    {.name = "bias", .m = 12, .n = 34, .k = 8, .bias = true},
    {.name = "accumulate", .m = 12, .n = 34, .k = 8, .accumulate = true},
    {.name = "bias and accumulate", .m = 12, .n = 34, .k = 8, .bias = true, .accumulate = true},
    {.name = "several passes over k", .m = 14, .n = 40, .k = 700, .bias = true, .accumulate = true},
    {.name = "several passes over k, transposed",
     .m = 14,
     .n = 40,
     .k = 601,
     .a = Lie::kTransposed,
     .b = Lie::kTransposed},
    {.name = "several blocks of rows", .m = 500, .n = 20, .k = 30},
    {.name = "batch", .m = 6, .n = 9, .k = 4, .batch = {2, 3}, .bias = true},
    {.name = "batch of transposed matrices",
     .m = 6,
     .n = 9,
     .k = 4,
     .batch = {5},
     .a = Lie::kTransposed,
     .b = Lie::kTransposed,
     .accumulate = true},
    {.name = "a batch meets one b", .m = 6, .n = 9, .k = 4, .batch = {3, 2}, .b_lacks = 2},
    {.name = "one a meets a batch", .m = 6, .n = 9, .k = 4, .batch = {3, 2}, .a_lacks = 2},
    {.name = "both repeat", .m = 6, .n = 9, .k = 4, .batch = {3, 2}, .a_lacks = 1, .b_lacks = 1},
    {.name = "rows of a batch meet one b", .m = 1, .n = 9, .k = 4, .batch = {3}, .b_lacks = 1},
    {.name = "K = 0", .m = 3, .n = 4, .k = 0},
    {.name = "K = 0, bias", .m = 3, .n = 4, .k = 0, .bias = true},
    {.name = "K = 0, accumulate", .m = 3, .n = 4, .k = 0, .accumulate = true},
    {.name = "M = 0", .m = 0, .n = 4, .k = 2},
    {.name = "N = 0", .m = 3, .n = 0, .k = 2},
    {.name = "empty batch", .m = 3, .n = 4, .k = 2, .batch = {0}},
    {.name = "large", .m = 260, .n = 300, .k = 270},
    {.name = "large, b transposed, bias", .m = 260, .n = 300, .k = 270, .b = Lie::kTransposed, .bias = true},
    {.name = "large, a transposed, accumulate",
     .m = 260,
     .n = 300,
     .k = 270,
     .a = Lie::kTransposed,
     .accumulate = true},
    {.name = "large, c transposed", .m = 260, .n = 300, .k = 130, .c = Lie::kTransposed},
    {.name = "large, no stride of 1", .m = 260, .n = 300, .k = 130, .a = Lie::kEverySecond},
    {.name = "large batch", .m = 260, .n = 300, .k = 64, .batch = {2}, .bias = true, .accumulate = true},
};

struct Types {
  DType input, output;
};
const Types kTypes[] = {{kF64, kF64}, {kF32, kF32},   {kF16, kF16},
                        {kF16, kF32}, {kBF16, kBF16}, {kBF16, kF32}};

Sizes joined(const Sizes& batch, std::int64_t rows, std::int64_t columns) {
  Sizes shape = batch;
  shape.push_back(rows);
  shape.push_back(columns);
  return shape;
}

struct Operands {
  HostArray a, b, c, bias;
  ConstView a_view, b_view, bias_view;

  Operands(const MatmulCase& test, const Types& types) {
    const Sizes& batch = test.batch;
    a = matrix(types.input, joined({batch.begin() + test.a_lacks, batch.end()}, test.m, test.k), test.a)
            .fill_random(1);
    b = matrix(types.input, joined({batch.begin() + test.b_lacks, batch.end()}, test.k, test.n), test.b)
            .fill_random(2);
    c = matrix(types.output, joined(batch, test.m, test.n), test.c).fill_random(3);
    bias = HostArray::random(types.input, {test.n}, 4);
    a_view = widened(static_cast<const HostArray&>(a).view(), batch);
    b_view = widened(static_cast<const HostArray&>(b).view(), batch);
    bias_view = static_cast<const HostArray&>(bias).view();
  }

  static ConstView widened(ConstView view, const Sizes& batch) {
    const int wanted = static_cast<int>(batch.size()) + 2;
    while (view.dims < wanted) {
      view = HostArray::broadcast(view, batch[static_cast<std::size_t>(wanted - view.dims - 1)]);
    }
    return view;
  }
};

void run(const MatmulCase& test, Operands* operands, InstructionSet set, int num_threads,
         bool invariant = false) {
  const WithThreads threads(num_threads);
  kernel_context().invariant_products = invariant;
  cpu_kernels(set).matmul.matmul(
      operands->a_view, operands->b_view, operands->c.view(),
      {.bias = test.bias ? &operands->bias_view : nullptr, .accumulate = test.accumulate});
}

void check_against_triple_loop(bool invariant) {
  for (const InstructionSet set : supported_sets()) {
    for (const Types& types : kTypes) {
      for (const MatmulCase& test : kCases) {
        SCOPED_TRACE(std::string(test.name) + ", " + name(types.input) + " -> " + name(types.output) + ", " +
                     name(set));
        if (types.input != kF32 && std::string(test.name).rfind("large", 0) == 0) continue;
        const Operands before(test, types);
        Operands operands(test, types);
        run(test, &operands, set, 2, invariant);
        ASSERT_TRUE(operands.c.guards_intact());
        const DType compute = accumulation_dtype(types.input);
        int wrong = 0;
        operands.c.for_each([&](const Sizes& index) {
          Sizes at_a = index, at_b = index;
          double sum = 0, magnitude = 0;
          const auto add = [&](double term) {
            sum += term;
            magnitude += std::abs(term);
          };
          for (std::int64_t k = 0; k < test.k; ++k) {
            at_a.back() = k;
            at_b[at_b.size() - 2] = k;
            add(HostArray::get_at(operands.a_view, at_a) * HostArray::get_at(operands.b_view, at_b));
          }
          if (test.bias) add(before.bias({index.back()}));
          if (test.accumulate) add(before.c(index));
          // k + 2 additions and k products, each off by at most one rounding of the compute type, and one
          // rounding of the result. The reference in f64 errs by as much in f64.
          const double bound =
              2.0 * static_cast<double>(test.k + 2) * unit_roundoff(compute) * magnitude +
              (types.output == compute ? 0.0 : 1.01 * unit_roundoff(types.output) * std::abs(sum));
          if (!(std::abs(operands.c(index) - sum) <= bound + 1e-7 * unit_roundoff(types.output))) ++wrong;
        });
        ASSERT_EQ(wrong, 0) << "of " << operands.c.num_elements();
      }
    }
  }
}

TEST(Matmul, EqualsTheTripleLoopInEveryDtypeLayoutAndInstructionSet) { check_against_triple_loop(false); }

TEST(Matmul, InvariantProductsEqualTheTripleLoop) { check_against_triple_loop(true); }

TEST(Matmul, InvariantProductsDoNotDependOnTheNumberOfThreads) {
  for (const InstructionSet set : supported_sets()) {
    for (const Types& types : kTypes) {
      for (const MatmulCase& test : kCases) {
        SCOPED_TRACE(std::string(test.name) + ", " + name(types.input) + " -> " + name(types.output) + ", " +
                     name(set));
        Operands one(test, types);
        run(test, &one, set, 1, true);
        for (const int threads : {2, 3}) {
          Operands many(test, types);
          run(test, &many, set, threads, true);
          ASSERT_TRUE(one.c.bitwise_equal(many.c)) << threads << " threads";
        }
      }
    }
  }
}

TEST(Matmul, InvariantProductsGiveARowTheSameBitsInWhateverCutOfTheRows) {
  // What makes a product independent of how a batch is divided among ranks. f64 never goes to oneDNN.
  for (const InstructionSet set : supported_sets()) {
    const HostArray a = HostArray::random(kF64, {101, 300}, 1), b = HostArray::random(kF64, {300, 50}, 2);
    HostArray whole(kF64, {101, 50}), cut(kF64, {101, 50});
    cpu_kernels(set).matmul.matmul(a.view(), b.view(), whole.view(), {});
    for (std::int64_t row = 0; row < 101; row += 9) {
      const std::int64_t rows = std::min<std::int64_t>(9, 101 - row);
      ConstView some_a = a.view();
      View some_c = cut.view();
      some_a.shape[0] = some_c.shape[0] = rows;
      some_a.data = static_cast<const double*>(some_a.data) + row * 300;
      some_c.data = static_cast<double*>(some_c.data) + row * 50;
      cpu_kernels(set).matmul.matmul(some_a, b.view(), some_c, {});
    }
    EXPECT_TRUE(whole.bitwise_equal(cut)) << name(set);
  }
}

}  // namespace
}  // namespace tessera::kernels::test
