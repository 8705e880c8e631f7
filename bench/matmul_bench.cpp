// Matrix products of GPT-2's shapes, by oneDNN and by Tessera's own loops: which of the two
// kernels/cpu/matmul.cpp picks, and what that is worth.
//
//   build/release/bin/matmul_bench [--benchmark_filter=f32] [--benchmark_repetitions=5]
//
// Each row is c [M, N] ← a [M, K] · b [N, K]ᵀ, as a linear layer computes it, on as many threads as there are
// cores; the rate counts 2·M·N·K operations. "chosen" is what a program gets; "own" is what it gets with
// invariant products, and for f64 always, since oneDNN has no f64 on CPUs.

#include <benchmark/benchmark.h>

#include <thread>

#include "autograd/linear_algebra.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

void multiply(benchmark::State& state, DType dtype, bool own) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  RankContext& context = RankContext::current();
  context.kernels.num_threads = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
  context.kernels.invariant_products = own;
  const Tensor a = normal({m, k}, 0, 1, "a", {.dtype = dtype}),
               b = normal({n, k}, 0, 1, "b", {.dtype = dtype});
  for (auto _ : state) {
    const Tensor c = linear(a, b, {});
    benchmark::DoNotOptimize(c.view().data);
  }
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * static_cast<double>(m * n * k),
                                                 benchmark::Counter::kIsIterationInvariantRate);
  context.kernels.invariant_products = false;
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"M", "N", "K"})->Unit(benchmark::kMicrosecond)->UseRealTime();
  benchmark->Args({1024, 2304, 768});  // GPT-2 small: queries, keys and values of 1,024 tokens
  benchmark->Args({1024, 3072, 768});  // up
  benchmark->Args({1024, 768, 3072});  // down
  benchmark->Args({1024, 8192, 768});  // a part of the language-model head
  benchmark->Args({2048, 512, 128});   // a character model
  for (const std::int64_t m : {1, 4, 8})
    benchmark->Args({m, 50257, 768});  // the head, for so many new tokens
  for (const std::int64_t n : {8, 16, 32, 64, 128}) benchmark->Args({n, n, n});
}

BENCHMARK_CAPTURE(multiply, f32_chosen, kF32, false)->Apply(shapes);
BENCHMARK_CAPTURE(multiply, f32_own, kF32, true)->Apply(shapes);
BENCHMARK_CAPTURE(multiply, bf16_chosen, kBF16, false)->Apply(shapes);
BENCHMARK_CAPTURE(multiply, bf16_own, kBF16, true)->Apply(shapes);
BENCHMARK_CAPTURE(multiply, f64_own, kF64, false)->Apply(shapes);

}  // namespace
}  // namespace tessera

BENCHMARK_MAIN();
