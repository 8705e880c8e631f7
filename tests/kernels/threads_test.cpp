// What threads may and may not do: results that do not depend on their number, errors that reach the caller.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/error.h"
#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

TEST(ParallelFor, CoversTheRangeOnceInMultiplesOfTheGrain) {
  for (const int threads : {1, 2, 5}) {
    for (const std::int64_t n : {0, 1, 9, 10, 11, 100, 1003}) {
      const WithThreads with(threads);
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(n));
      parallel_for(n, 10, [&](std::int64_t begin, std::int64_t end) {
        EXPECT_EQ(begin % 10, 0);
        EXPECT_LT(begin, end);
        for (std::int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
      });
      for (const std::atomic<int>& visit : visits) ASSERT_EQ(visit, 1) << n << " on " << threads;
    }
  }
}

TEST(ParallelFor, ThrowsTheErrorOfTheFirstRangeInTheCaller) {
  const WithThreads with(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    try {
      parallel_for(4, 1, [](std::int64_t begin, std::int64_t) {
        if (begin >= 1) throw std::runtime_error(std::to_string(begin));
      });
      FAIL() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "1");
    }
  }
}

TEST(ParallelFor, RunsInsideAnotherInOneThread) {
  const WithThreads with(2);
  std::atomic<std::int64_t> sum = 0;
  parallel_for(4, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      parallel_for(100, 1, [&](std::int64_t b, std::int64_t e) { sum += e - b; });
    }
  });
  EXPECT_EQ(sum, 400);
}

struct KernelCase {
  const char* name;
  std::function<std::vector<HostArray>(const DeviceKernels&)> run;
};

HostArray sized(DType dtype, const Sizes& shape) { return HostArray::random(dtype, shape, 9); }

const KernelCase kCases[] = {
    {"binary",
     [](const DeviceKernels& k) {
       HostArray a = sized(kF32, {300, 500}), y(kF32, {300, 500});
       k.elementwise.binary(BinaryOp::kAdd, a.view(), a.view(), y.view());
       return std::vector{y};
     }},
    {"exp of a transposed view",
     [](const DeviceKernels& k) {
       HostArray x(kBF16, {300, 500}, {1, 0}, 1), y(kBF16, {300, 500});
       x.fill_random(3);
       k.elementwise.unary(UnaryOp::kExp, x.view(), y.view());
       return std::vector{y};
     }},
    {"sum of all",
     [](const DeviceKernels& k) {
       HostArray x = sized(kF32, {500000}), y(kF32, {1});
       k.reductions.reduce(ReduceOp::kSum, x.view(), y.view());
       return std::vector{y};
     }},
    {"sum of columns",
     [](const DeviceKernels& k) {
       HostArray x = sized(kF32, {5000, 96}), y(kF32, {1, 96});
       k.reductions.reduce(ReduceOp::kSum, x.view(), y.view());
       return std::vector{y};
     }},
    {"mean of rows",
     [](const DeviceKernels& k) {
       HostArray x = sized(kBF16, {300, 700}), y(kBF16, {300, 1});
       k.reductions.reduce(ReduceOp::kMean, x.view(), y.view());
       return std::vector{y};
     }},
    {"argmax",
     [](const DeviceKernels& k) {
       HostArray x = sized(kF16, {400, 300}), y(kI64, {400, 1});
       k.reductions.arg_reduce(true, x.view(), 1, y.view());
       return std::vector{y};
     }},
    {"sum of squares",
     [](const DeviceKernels& k) {
       const HostArray x = sized(kF32, {200000}), z = sized(kF32, {70000});
       const ConstView views[] = {x.view(), z.view(), x.view()};
       HostArray y(kF64, {1});
       y.set({0}, k.reductions.sum_of_squares(views));
       return std::vector{y};
     }},
    {"embedding backward",
     [](const DeviceKernels& k) {
       HostArray dy = sized(kBF16, {3000, 64}), ids(kI64, {3000}), table(kF32, {50, 64});
       ids.for_each([&](const Sizes& i) { ids.set(i, static_cast<double>(i[0] * i[0] % 47)); });
       k.indexing.embedding_backward(dy.view(), ids.view(), table.view());
       return std::vector{table};
     }},
    {"scatter add",
     [](const DeviceKernels& k) {
       HostArray src = sized(kF32, {1000, 90}), index(kI64, {1000, 90}), y(kF32, {10, 90});
       index.for_each([&](const Sizes& i) { index.set(i, static_cast<double>((i[0] + i[1]) % 10)); });
       k.indexing.scatter_add(y.view(), 0, index.view(), src.view());
       return std::vector{y};
     }},
    {"normal",
     [](const DeviceKernels& k) {
       HostArray y(kF32, {50000});
       k.random.normal(y.view(), 0, 1, {1, 2, 3}, GlobalIndex::row_major(y.view()));
       return std::vector{y};
     }},
    {"adam",
     [](const DeviceKernels& k) {
       HostArray p = sized(kF32, {100000}), g = sized(kF32, {100000}), m(kF32, {100000}), v(kF32, {100000}),
                 low(kBF16, {100000});
       const UpdateItem item = {p.view(), g.view(), m.view(), v.view(), low.view()};
       k.updates.adam({&item, 1}, {});
       return std::vector{p, m, v, low};
     }},
    {"adam of bf16 state",
     [](const DeviceKernels& k) {
       HostArray p = sized(kBF16, {100000}), g = sized(kF32, {100000}), m(kBF16, {100000}),
                 v(kBF16, {100000}), low(kU8, {200000});
       const UpdateItem item = {p.view(), g.view(), m.view(), v.view(), {}, low.view()};
       k.updates.adam({&item, 1}, {});
       return std::vector{p, m, v, low};
     }},
    {"LAMB's sums",
     [](const DeviceKernels& k) {
       HostArray p = sized(kF32, {100000}), g = sized(kF32, {100000}), m(kF32, {100000}), v(kF32, {100000});
       const UpdateItem item = {p.view(), g.view(), m.view(), v.view(), {}};
       LambSquares squares;
       k.updates.lamb_moments({&item, 1}, {.weight_decay = 0.1}, {&squares, 1});
       HostArray sums(kF64, {2});
       sums.set({0}, squares.parameter);
       sums.set({1}, squares.direction);
       return std::vector{sums, m, v};
     }},
};

TEST(Threads, DoNotChangeOneBitOfAnyResult) {
  for (const InstructionSet set : supported_sets()) {
    for (const KernelCase& c : kCases) {
      std::vector<HostArray> alone;
      for (const int threads : {1, 2, 3, 8}) {
        const WithThreads with(threads);
        std::vector<HostArray> results = c.run(cpu_kernels(set));
        if (threads == 1) alone = results;
        for (std::size_t i = 0; i < results.size(); ++i) {
          EXPECT_TRUE(results[i].bitwise_equal(alone[i])) << name(set) << " " << c.name << " on " << threads;
        }
      }
    }
  }
}

TEST(InstructionSet, IsOneThatTheMachineSupports) {
  EXPECT_TRUE(is_supported(instruction_set()));
  EXPECT_STREQ(cpu_instruction_set(), name(instruction_set()));
  if (const char* wanted = std::getenv("TESSERA_ISA"); wanted != nullptr) {
    EXPECT_STREQ(cpu_instruction_set(), wanted);
  }
}

TEST(InstructionSetDeathTest, AnUnknownOneInTheEnvironmentIsAnError) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";  // a new process: the choice is made once
  EXPECT_EXIT(
      {
        setenv("TESSERA_ISA", "z80", 1);
        try {
          (void)instruction_set();
        } catch (const ConfigError& error) {
          std::exit(std::string(error.what()).find("z80") != std::string::npos ? 3 : 4);
        }
      },
      testing::ExitedWithCode(3), "");
}

}  // namespace
}  // namespace tessera::kernels::test
