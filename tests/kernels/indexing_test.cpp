#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/error.h"
#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

const double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Embedding, CopiesRowsOfEveryDTypeAndLayout) {
  for (const InstructionSet set : supported_sets()) {
    std::mt19937 generator(1);
    for (const DType dtype : kAllDTypes) {
      for (const Layout layout : kInputLayouts) {
        for (const std::int64_t n : {0, 1, 50}) {
          SCOPED_TRACE(std::string(name(set)) + " " + name(dtype) + " " + name(layout) + " N " +
                       std::to_string(n));
          LaidOut table(dtype, {11, 37}, layout), ids(kI64, {n}, Layout::kStepped),
              y(dtype, {n, 37}, Layout::kContiguous);
          table.fill([&] { return double(generator() % 200); });
          ids.fill([&] { return double(generator() % 11); });
          cpu_kernels(set).indexing.embedding(table.view(), ids.view(), y.view());
          expect_elements(
              y,
              [&](const Sizes& i) {
                return table({static_cast<std::int64_t>(ids({i[0]})), i[1]});
              },
              0);
        }
      }
    }
  }
}

TEST(Embedding, NamesTheIdThatIsOutsideTheTable) {
  for (const std::int64_t bad : {-2, 11}) {
    HostArray table(kF32, {11, 4}), ids(kI64, {3}), y(kF32, {3, 4});
    ids.set({2}, static_cast<double>(bad));
    const Indexing& kernels = of(DeviceType::kCpu).indexing;
    try {
      kernels.embedding(table.view(), ids.view(), y.view());
      FAIL() << "no error";
    } catch (const IndexError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("id " + std::to_string(bad) + " at position 2"), std::string::npos) << message;
      EXPECT_NE(message.find("[0, 11)"), std::string::npos) << message;
    }
    EXPECT_THROW(kernels.embedding_backward(y.view(), ids.view(), table.view()), IndexError);
  }
}

TEST(Embedding, OfMinusOneIsZeros) {
  for (const InstructionSet set : supported_sets()) {
    for (const DType dtype : {kF64, kF32, kBF16}) {
      for (const Layout layout : kInputLayouts) {
        LaidOut table(dtype, {7, 5}, layout), ids(kI64, {4}, Layout::kStepped),
            y(dtype, {4, 5}, Layout::kContiguous);
        table.fill([] { return 3.0; });
        y.fill([] { return 8.0; });
        std::int64_t n = 0;
        ids.fill([&] { return n++ % 2 == 0 ? -1.0 : 6.0; });
        cpu_kernels(set).indexing.embedding(table.view(), ids.view(), y.view());
        expect_elements(
            y, [](const Sizes& i) { return i[0] % 2 == 0 ? 0.0 : 3.0; }, 0);
      }
    }
  }
}

TEST(EmbeddingBackward, OfMinusOneGoesNowhere) {
  for (const InstructionSet set : supported_sets()) {
    // Ids are sorted in two ways: by counting in a small table, by comparing in a large one.
    for (const std::int64_t vocabulary : {3, 3000}) {
      LaidOut table(kF32, {vocabulary, 4}, Layout::kContiguous), ids(kI64, {6}, Layout::kContiguous),
          dy(kF32, {6, 4}, Layout::kContiguous);
      table.fill([] { return 1.0; });
      dy.fill([] { return 2.0; });
      std::int64_t n = 0;
      ids.fill([&] { return std::vector<double>{-1, 2, 0, -1, 2, -1}[static_cast<std::size_t>(n++)]; });
      cpu_kernels(set).indexing.embedding_backward(dy.view(), ids.view(), table.view());
      expect_elements(
          table, [](const Sizes& i) { return i[0] == 2   ? 5.0
                                             : i[0] == 0 ? 3.0
                                                         : 1.0; }, 0);
    }
  }
}

TEST(EmbeddingBackward, AddsRowsOfEqualIdsToWhatIsThere) {
  struct Types {
    DType dy, table;
  };
  for (const InstructionSet set : supported_sets()) {
    std::mt19937 generator(2);
    for (const Types types : {Types{kF64, kF64}, {kF32, kF32}, {kBF16, kBF16}, {kF16, kF32}, {kBF16, kF32}}) {
      // Few ids many times, and many ids few times (another way to sort them).
      for (const std::int64_t vocabulary : {5, 5000}) {
        for (const Layout layout : kInputLayouts) {
          SCOPED_TRACE(std::string(name(set)) + " " + name(types.dy) + " V " + std::to_string(vocabulary));
          const std::int64_t n = 60, width = 33;
          LaidOut dy(types.dy, {n, width}, layout), ids(kI64, {n}, Layout::kContiguous);
          LaidOut table(types.table, {vocabulary, width}, Layout::kContiguous);
          dy.fill([&] { return std::normal_distribution<double>()(generator); });
          ids.fill([&] { return double(generator() % static_cast<unsigned>(vocabulary)); });
          table.fill([&] { return double(generator() % 3); });
          HostArray expected(kF64, {vocabulary, width}), magnitude(kF64, {vocabulary, width});
          expected.for_each([&](const Sizes& i) { expected.set(i, table(i)); });
          HostArray::for_each_index({n, width}, [&](const Sizes& i) {
            const Sizes to = {static_cast<std::int64_t>(ids({i[0]})), i[1]};
            expected.set(to, expected(to) + dy(i));
            magnitude.set(to, magnitude(to) + std::abs(dy(i)));
          });
          cpu_kernels(set).indexing.embedding_backward(dy.view(), ids.view(), table.view());
          expect_elements(
              table, [&](const Sizes& i) { return expected(i); }, static_cast<double>(n),
              [&](const Sizes& i, double e) { return magnitude(i) + std::abs(e); });
        }
      }
    }
  }
}

struct GatherCase {
  const char* name;
  Sizes x, index;
  int dim;
  Layout index_layout;
};

const GatherCase kGatherCases[] = {
    {"vector", {9}, {20}, 0, Layout::kContiguous},
    {"rows, one index each", {9, 40}, {7, 40}, 0, Layout::kColumnBroadcast},
    {"rows, free", {9, 40}, {7, 40}, 0, Layout::kContiguous},
    {"columns", {9, 40}, {9, 3}, 1, Layout::kContiguous},
    {"columns, transposed index", {9, 40}, {9, 60}, 1, Layout::kReversed},
    {"middle", {4, 6, 5}, {4, 8, 5}, 1, Layout::kStepped},
    {"smaller index", {4, 6, 5}, {2, 3, 5}, 1, Layout::kContiguous},
    {"one index for all", {4, 6, 5}, {4, 6, 5}, 2, Layout::kScalarBroadcast},
    {"no elements", {4, 6}, {4, 0}, 1, Layout::kContiguous},
    {"large", {300, 70}, {300, 70}, 0, Layout::kContiguous},
};

TEST(Gather, PicksElementsAlongAnyDimension) {
  for (const InstructionSet set : supported_sets()) {
    const WithThreads threads(2);
    std::mt19937 generator(3);
    for (const GatherCase& c : kGatherCases) {
      for (const DType dtype : kAllDTypes) {
        for (const Layout layout : kInputLayouts) {
          SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + name(layout));
          LaidOut x(dtype, c.x, layout), index(kI64, c.index, c.index_layout),
              y(dtype, c.index, Layout::kStepped);
          const std::size_t dim = static_cast<std::size_t>(c.dim);
          x.fill([&] { return double(generator() % 200); });
          index.fill([&] { return double(generator() % static_cast<unsigned>(c.x[dim])); });
          cpu_kernels(set).indexing.gather(x.view(), c.dim, index.view(), y.view());
          expect_elements(
              y,
              [&](const Sizes& i) {
                Sizes from = i;
                from[dim] = static_cast<std::int64_t>(index(i));
                return x(from);
              },
              0);
        }
      }
    }
  }
}

TEST(ScatterAdd, AddsElementsAlongAnyDimension) {
  for (const InstructionSet set : supported_sets()) {
    const WithThreads threads(2);
    std::mt19937 generator(4);
    for (const GatherCase& c : kGatherCases) {
      for (const DType dtype : {kF64, kF32, kF16, kBF16, kI64, kI32}) {
        for (const Layout layout : kStoredLayouts) {
          SCOPED_TRACE(std::string(name(set)) + " " + c.name + " " + name(dtype) + " " + name(layout));
          LaidOut y(dtype, c.x, layout), index(kI64, c.index, c.index_layout), src(dtype, c.index, layout);
          const std::size_t dim = static_cast<std::size_t>(c.dim);
          y.fill([&] { return double(generator() % 9); });
          src.fill([&] { return double(generator() % 9) - 4; });  // small integers: every sum is exact
          index.fill([&] { return double(generator() % static_cast<unsigned>(c.x[dim])); });
          HostArray expected(kF64, c.x);
          expected.for_each([&](const Sizes& i) { expected.set(i, y(i)); });
          HostArray::for_each_index(c.index, [&](const Sizes& i) {
            Sizes to = i;
            to[dim] = static_cast<std::int64_t>(index(i));
            expected.set(to, expected(to) + src(i));
          });
          cpu_kernels(set).indexing.scatter_add(y.view(), c.dim, index.view(), src.view());
          expect_elements(
              y, [&](const Sizes& i) { return expected(i); }, 0);
        }
      }
    }
  }
}

TEST(ScatterAdd, RoundsHalvesOnce) {
  // 1 + 512 · 2^-9 = 2; one addition after the other in bf16 (8 bits) would stay at 1.
  HostArray y(kBF16, {1}), index(kI64, {512}), src(kBF16, {512});
  y.set({0}, 1);
  of(DeviceType::kCpu).elementwise.fill(src.view(), 0x1p-9);
  of(DeviceType::kCpu).indexing.scatter_add(y.view(), 0, index.view(), src.view());
  EXPECT_EQ(y({0}), 2);
}

TEST(Gather, NamesTheIndexThatIsOutside) {
  HostArray x(kF32, {4, 5}), index(kI64, {2, 5}), y(kF32, {2, 5});
  index.set({1, 3}, 4);
  EXPECT_THROW(of(DeviceType::kCpu).indexing.gather(x.view(), 0, index.view(), y.view()), IndexError);
  EXPECT_THROW(of(DeviceType::kCpu).indexing.scatter_add(x.view(), 0, index.view(), y.view()), IndexError);
}

/// A row's positions in order: NaN largest, equals by position.
std::vector<std::int64_t> reference_order(LaidOut& x, std::int64_t row, bool descending) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(x.shape()[1]));
  std::iota(order.begin(), order.end(), 0);
  const auto less = [](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t i, std::int64_t j) {
    return descending ? less(x({row, j}), x({row, i})) : less(x({row, i}), x({row, j}));
  });
  return order;
}

TEST(Sort, IsStableAndPutsNaNAsTheLargest) {
  std::mt19937 generator(5);
  for (const DType dtype : kAllDTypes) {
    for (const Layout layout : kInputLayouts) {
      for (const Sizes& shape : {Sizes{7, 50}, Sizes{1, 1}, Sizes{0, 4}, Sizes{3, 0}, Sizes{40, 700}}) {
        for (const bool descending : {false, true}) {
          SCOPED_TRACE(std::string(name(dtype)) + " " + name(layout) + " " + text(shape) +
                       (descending ? " down" : ""));
          const WithThreads threads(2);
          LaidOut x(dtype, shape, layout), values(dtype, shape, Layout::kContiguous),
              indices(kI64, shape, Layout::kReversed);
          x.fill([&] {
            if (is_floating(dtype) && generator() % 10 == 0) return generator() % 2 == 0 ? kNaN : -0.0;
            return double(generator() % 9) - (dtype == kU8 ? 0 : 4);
          });
          of(DeviceType::kCpu).indexing.sort(x.view(), descending, values.view(), indices.view());
          for (std::int64_t row = 0; row < shape[0]; ++row) {
            const std::vector<std::int64_t> order = reference_order(x, row, descending);
            for (std::int64_t i = 0; i < shape[1]; ++i) {
              const std::int64_t from = order[static_cast<std::size_t>(i)];
              ASSERT_EQ(indices({row, i}), static_cast<double>(from)) << row << " " << i;
              const double value = values({row, i}), expected = x({row, from});
              ASSERT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected)));
            }
          }
        }
      }
    }
  }
}

TEST(TopK, GivesTheFirstOfADescendingSort) {
  std::mt19937 generator(6);
  for (const DType dtype : kAllDTypes) {
    for (const std::int64_t k : {0, 1, 3, 100, 300}) {
      SCOPED_TRACE(std::string(name(dtype)) + " k " + std::to_string(k));
      LaidOut x(dtype, {5, 300}, Layout::kReversed), values(dtype, {5, k}, Layout::kContiguous),
          indices(kI64, {5, k}, Layout::kContiguous);
      x.fill([&] { return is_floating(dtype) && generator() % 50 == 0 ? kNaN : double(generator() % 40); });
      of(DeviceType::kCpu).indexing.top_k(x.view(), k, values.view(), indices.view());
      for (std::int64_t row = 0; row < 5; ++row) {
        const std::vector<std::int64_t> order = reference_order(x, row, true);
        for (std::int64_t i = 0; i < k; ++i) {
          ASSERT_EQ(indices({row, i}), static_cast<double>(order[static_cast<std::size_t>(i)]))
              << row << " " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera::kernels::test
