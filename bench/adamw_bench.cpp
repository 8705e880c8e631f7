// One AdamW step over the parameters of GPT-2 small (124M), beside what this machine's memory gives.
//
//   build/release/bin/adamw_bench [--benchmark_filter=bf16] [--benchmark_repetitions=9]
//
// The update does little arithmetic for each byte, so memory bandwidth bounds it. Two plain loops on as many
// threads measure that bound in the same run: STREAM's triad, a ← b + s·c, counted as STREAM counts it (12
// bytes an element, though a cache that fetches what it will overwrite moves 16), and y ← y + s·x, which like
// the update writes only what it has read. Bytes of a step, for each element:
//   f32    reads p, g, m, v, writes p, m, v                                     28
//   bf16   the same with the f32 master for p, and writes the rounded p         30
//   bf16_state   reads p in two halves, g, m, v, writes all but g: 2 bytes each, g 4      20
//
// Peaks at 2.8 GB of memory. Expected: the updates within a tenth of the loop y ← y + s·x.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <map>
#include <string>

#include "optim/adam.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

// What GPT-2 small has: token and position embeddings, 12 blocks, a last LayerNorm. The head is tied.
NamedTensors gpt2_small_parameters(DType dtype) {
  constexpr std::int64_t kWidth = 768;
  NamedTensors parameters;
  const auto add = [&](const std::string& name, const Shape& shape) {
    const CategoryScope category(MemoryCategory::kParameter);
    Tensor p = full(shape, 0.02, {.dtype = dtype});
    p.set_requires_grad();
    p.set_grad(full(shape, 1e-3));
    parameters.emplace_back(name, p);
  };
  add("wte.weight", {50257, kWidth});
  add("wpe.weight", {1024, kWidth});
  for (int layer = 0; layer < 12; ++layer) {
    const std::string block = fmt::format("h.{}.", layer);
    for (const char* norm : {"ln_1", "ln_2"}) {
      add(block + norm + ".weight", {kWidth});
      add(block + norm + ".bias", {kWidth});
    }
    const struct {
      const char* name;
      std::int64_t in, out;
    } linears[] = {{"attn.c_attn", kWidth, 3 * kWidth},
                   {"attn.c_proj", kWidth, kWidth},
                   {"mlp.c_fc", kWidth, 4 * kWidth},
                   {"mlp.c_proj", 4 * kWidth, kWidth}};
    for (const auto& linear : linears) {
      add(block + linear.name + ".weight", {linear.in, linear.out});
      add(block + linear.name + ".bias", {linear.out});
    }
  }
  add("ln_f.weight", {kWidth});
  add("ln_f.bias", {kWidth});
  return parameters;
}

void adamw_step(benchmark::State& state, DType dtype, int bytes_per_element, DType state_dtype = kF32) {
  const NamedTensors parameters = gpt2_small_parameters(dtype);
  std::int64_t elements = 0;
  for (const auto& [name, p] : parameters) elements += p.num_elements();
  optim::AdamW optimizer(parameters,
                         {.lr = 6e-4, .beta2 = 0.95, .weight_decay = 0.1, .state_dtype = state_dtype},
                         optim::no_decay_for_biases_and_norms());
  optimizer.step();  // warm-up; also touches every page
  for (auto _ : state) optimizer.step({.grad_scale = 0.5});
  state.SetBytesProcessed(state.iterations() * elements * bytes_per_element);
  state.counters["elements"] = static_cast<double>(elements);
}

// Arrays far larger than any cache: 3 · 128 MiB.
constexpr std::int64_t kStreamElements = std::int64_t{32} << 20;

void stream_triad(benchmark::State& state) {
  Tensor a = zeros({kStreamElements}), b = ones({kStreamElements}), c = ones({kStreamElements});
  float* pa = a.mutable_data<float>();
  const float *pb = b.data<float>(), *pc = c.data<float>();
  [[maybe_unused]] const int num_threads = RankContext::current().kernels.num_threads;
  for (auto _ : state) {
#pragma omp parallel for simd num_threads(num_threads)
    for (std::int64_t i = 0; i < kStreamElements; ++i) pa[i] = pb[i] + 0.5f * pc[i];
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * kStreamElements * 12);
}

void stream_update(benchmark::State& state) {
  Tensor y = zeros({kStreamElements}), x = ones({kStreamElements});
  float* py = y.mutable_data<float>();
  const float* px = x.data<float>();
  [[maybe_unused]] const int num_threads = RankContext::current().kernels.num_threads;
  for (auto _ : state) {
#pragma omp parallel for simd num_threads(num_threads)
    for (std::int64_t i = 0; i < kStreamElements; ++i) py[i] += 0.5f * px[i];
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * kStreamElements * 12);
}

// Prints as usual, and keeps the median bandwidth of each benchmark for the last line.
class BandwidthReporter final : public benchmark::ConsoleReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const auto bandwidth = run.counters.find("bytes_per_second");
      if (run.aggregate_name == "median" && bandwidth != run.counters.end()) {
        medians_[run.run_name.function_name] = bandwidth->second.value;
      }
    }
    ConsoleReporter::ReportRuns(runs);
  }

  void compare() const {
    const auto update = medians_.find("stream_update"), triad = medians_.find("stream_triad");
    if (update == medians_.end() || triad == medians_.end()) return;
    for (const auto& [name, bandwidth] : medians_) {
      fmt::print("{:<16} {:6.1f} GB/s  {:3.0f} % of y += s x, {:3.0f} % of triad\n", name, bandwidth / 1e9,
                 100 * bandwidth / update->second, 100 * bandwidth / triad->second);
    }
  }

 private:
  std::map<std::string, double> medians_;
};

template <class F>
void add(const char* name, const F& run) {
  benchmark::RegisterBenchmark(name, run)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime()
      ->MinTime(0.5)
      ->Repetitions(5)
      ->ReportAggregatesOnly();
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  fmt::print("{} threads\n", tessera::RankContext::current().kernels.num_threads);
  tessera::add("stream_triad", tessera::stream_triad);
  tessera::add("stream_update", tessera::stream_update);
  tessera::add("adamw_f32", [](benchmark::State& s) { tessera::adamw_step(s, tessera::kF32, 28); });
  tessera::add("adamw_bf16", [](benchmark::State& s) { tessera::adamw_step(s, tessera::kBF16, 30); });
  tessera::add("adamw_bf16_state",
               [](benchmark::State& s) { tessera::adamw_step(s, tessera::kBF16, 20, tessera::kBF16); });
  tessera::BandwidthReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  reporter.compare();
}
