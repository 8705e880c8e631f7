// The modes of recomputation: what a block keeps in each, byte by byte, and that gradients are the same bits.
//
// Elements that one block keeps for its backward pass, its own input counted, its result not, with
// N = B·T·D (an activation [B, T, D]), M = B·T·G·K (keys, or values), F = B·T·hidden:
//
//   GPT-2             none   selective                     Llama            none   selective
//   x                  N      N    saved by ln_1           x                 N      N
//   ln_1(x)            N      -    saved by c_attn         norm(x)           N      -    saved by q, k, v
//   qkv               3N     3N    saved by attention      q, k, v        N + 2M  N + 2M
//   o                  N      N    and by c_proj           o                 N      N
//   s = x + p          N      N    saved by ln_2           s                 N      N
//   ln_2(s)            N      -    saved by c_fc           norm(s)           N      -    gate and up
//   c_fc              4N     4N    saved by gelu           gate, up         2F     2F
//   gelu              4N      -    saved by c_proj         silu(gate)        F      -    saved by the product
//                                                          silu(gate)·up     F      -    saved by down_proj
//                   -----  -----                                          ---------------------------
//                    16N    10N                                    6N+2M+4F    4N+2M+2F
//
// and in f32, or in f64 where the rest is: mean and 1/σ of each row of a norm (RMSNorm: one of the two), and
// lse of each row of attention. Dropout keeps nothing: masks are functions of indices. With kFull a block
// keeps x alone.
//
// In Korthikanti et al.'s terms, 16 bits and [s, b, h]: 32·sbh is their 34·sbh of selective recomputation
// (no [T, T] probabilities) less 2·sbh of dropout masks; kSelective goes on to 20·sbh, kFull to their 2·sbh.

#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "autograd/ops.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "nn/llama.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera::nn {
namespace {

using Mode = RecomputeConfig::Mode;

constexpr std::int64_t B = 2, T = 12, D = 24, H = 4, G = 2, Hidden = 40;
constexpr std::int64_t N = B * T * D, M = B * T * G * (D / H), F = B * T * Hidden;
constexpr int kLayers = 4;

std::unique_ptr<LanguageModel> make_gpt2() {
  return std::make_unique<Gpt2>(
      Gpt2Config{.vocab = 31, .context = T, .layers = kLayers, .heads = H, .width = D, .dropout = 0.2});
}

std::unique_ptr<LanguageModel> make_llama() {
  LlamaConfig config;
  config.vocab = 31;
  config.context = T;
  config.layers = kLayers;
  config.heads = H;
  config.kv_heads = G;
  config.width = D;
  config.hidden = Hidden;
  config.dropout = 0.2;
  return std::make_unique<Llama>(config);
}

struct Family {
  const char* name;
  std::unique_ptr<LanguageModel> (*make)();
  std::int64_t none, selective;  // elements
  std::int64_t statistics;       // f32 numbers of norms and attention
};

const Family kFamilies[] = {
    {"gpt2", make_gpt2, 16 * N, 10 * N, 4 * B* T + B* H* T},
    {"llama", make_llama, 6 * N + 2 * M + 4 * F, 4 * N + 2 * M + 2 * F, 2 * B* T + B* H* T},
};

std::int64_t bytes_of(MemoryCategory category, Device device = cpu) {
  return RankContext::current().pool(device)->report().of(category).current;
}

class Recompute : public testing::Test {
 protected:
  RankContext context_{{.seed = 5}};
  RankContext::Scope scope_{context_};
};

// What block `i` keeps, measured: bytes in use after it less those before it, its result put in place of its
// input, so that the input counts for the block that keeps it.
std::vector<std::int64_t> kept_by_blocks(LanguageModel& model, DType dtype, Device device) {
  Tensor x = ones({B, T, D}, {.dtype = dtype, .device = device});
  x.set_requires_grad();
  x = x * 1.0;
  std::vector<std::int64_t> kept;
  for (int i = 0; i < kLayers; ++i) {
    const std::int64_t before = bytes_of(MemoryCategory::kActivation, device);
    const Tensor y = model.run_block(i, x);
    kept.push_back(bytes_of(MemoryCategory::kActivation, device) - before);
    x = y;
  }
  return kept;
}

TEST_F(Recompute, KeepsTheBytesOfTheTable) {
  for (const Family& family : kFamilies) {
    for (const DType dtype : {kF32, kBF16}) {
      for (const Device device : {cpu, meta}) {
        for (const Mode mode : {Mode::kNone, Mode::kSelective, Mode::kFull}) {
          for (const int every : {1, 3}) {
            const DeviceScope on(device);
            const auto model = family.make();
            model->to(dtype);
            model->set_recompute({.mode = mode, .every = every});
            // The rotary tables are made on first use; the first pass is for them.
            static_cast<void>(kept_by_blocks(*model, dtype, device));
            const std::vector<std::int64_t> kept = kept_by_blocks(*model, dtype, device);
            const auto size = static_cast<std::int64_t>(size_bytes(dtype));
            for (int i = 0; i < kLayers; ++i) {
              const Mode here = i % every == 0 ? mode : Mode::kNone;
              const std::int64_t expected =
                  here == Mode::kFull ? N * size
                                      : (here == Mode::kSelective ? family.selective : family.none) * size +
                                            4 * family.statistics;
              EXPECT_EQ(kept[static_cast<std::size_t>(i)], expected)
                  << family.name << ", " << name(dtype) << " on " << to_string(device) << ", mode "
                  << static_cast<int>(mode) << ", every " << every << ", block " << i;
            }
          }
        }
      }
    }
  }
}

struct Gradients {
  float loss = 0;
  std::vector<std::vector<float>> by_parameter;
  std::int64_t peak_activations = 0, peak_host = 0;
};

// Two micro-batches; between the forward and the backward pass of each the context goes on, as in a pipeline.
Gradients gradients_of(const Family& family, DType dtype, const RecomputeConfig& config) {
  RankContext context({.seed = 5});
  const RankContext::Scope scope(context);
  const auto model = family.make();
  model->to(dtype);
  model->set_recompute(config);
  Gradients result;
  for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
    context.step = 7;
    context.sample_offset = B * micro_batch;
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < B * T; ++i) ids.push_back((7 * i + micro_batch) % 31);
    const Tensor tokens = from_vector(ids).reshape({B, T});
    const Tensor loss = model->loss(tokens, tokens);
    context.step = 8;
    context.sample_offset = 100;
    loss.backward();
    result.loss += loss.item<float>();
  }
  for (const Tensor& parameter : model->parameters())
    result.by_parameter.push_back(parameter.grad().to_vector<float>());
  const MemoryReport report = context.pool(cpu)->report();
  result.peak_activations = report.of(MemoryCategory::kActivation).peak;
  result.peak_host = report.of(MemoryCategory::kHostActivation).peak;
  EXPECT_EQ(report.of(MemoryCategory::kHostActivation).current, 0);
  return result;
}

TEST_F(Recompute, GradientsAreTheSameBitsInAllModes) {
  for (const Family& family : kFamilies) {
    for (const DType dtype : {kF32, kBF16}) {
      const Gradients plain = gradients_of(family, dtype, {});
      std::int64_t peak = plain.peak_activations;
      for (const RecomputeConfig& config :
           {RecomputeConfig{.mode = Mode::kSelective}, RecomputeConfig{.mode = Mode::kFull},
            RecomputeConfig{.mode = Mode::kFull, .saved_inputs = kept_in_host_memory()}}) {
        const Gradients recomputed = gradients_of(family, dtype, config);
        EXPECT_EQ(recomputed.loss, plain.loss);
        EXPECT_EQ(recomputed.by_parameter, plain.by_parameter) << family.name << ", " << name(dtype);
        EXPECT_LT(recomputed.peak_activations, peak) << "each mode holds less than the one before";
        peak = recomputed.peak_activations;
      }
      EXPECT_EQ(gradients_of(family, dtype, {.mode = Mode::kSelective, .every = 2}).by_parameter,
                plain.by_parameter);
    }
  }
}

// All inputs of blocks leave the activations: what is on the host at most is each block's, once.
TEST_F(Recompute, KeptInHostMemoryInputsAreNoActivations) {
  for (const Family& family : kFamilies) {
    const RecomputeConfig on_host{.mode = Mode::kFull, .saved_inputs = kept_in_host_memory()};
    EXPECT_EQ(gradients_of(family, kF32, on_host).peak_host, kLayers * N * 4) << family.name;
    EXPECT_EQ(gradients_of(family, kF32, {.mode = Mode::kFull}).peak_host, 0) << family.name;

    const auto model = family.make();
    model->set_recompute(on_host);
    static_cast<void>(kept_by_blocks(*model, kF32, cpu));
    const std::int64_t host = bytes_of(MemoryCategory::kHostActivation);
    Tensor x = ones({B, T, D});
    x.set_requires_grad();
    const Tensor y = model->run_block(0, x * 1.0);
    EXPECT_EQ(bytes_of(MemoryCategory::kHostActivation) - host, N * 4);
  }
}

// On meta, where kernels count operations: selective recomputation runs no product again.
TEST_F(Recompute, SelectiveCostsNoProduct) {
  const DeviceScope on(meta);
  std::uint64_t flops[3];
  for (const Mode mode : {Mode::kNone, Mode::kSelective, Mode::kFull}) {
    // Wide, so that products are nearly all of a block's work, as they are in real ones.
    Gpt2 model({.vocab = 8, .context = 64, .layers = 2, .heads = 4, .width = 512});
    model.set_recompute({.mode = mode});
    const Tensor ids = empty({2, 64}, {.dtype = kI64});
    const std::uint64_t before = context_.kernels.counts.flops;
    model.loss(ids, ids).backward();
    flops[static_cast<int>(mode)] = context_.kernels.counts.flops - before;
  }
  const double selective = static_cast<double>(flops[1]) / static_cast<double>(flops[0]);
  const double full = static_cast<double>(flops[2]) / static_cast<double>(flops[0]);
  EXPECT_GT(selective, 1.0) << "something is made again";
  EXPECT_LT(selective, 1.01);
  EXPECT_GT(full, 1.3) << "a forward pass more, of three";
  EXPECT_LT(full, 1.34);
}

// As after an evaluation that forgot NoGrad.
TEST_F(Recompute, AGraphThatIsNeverDifferentiatedLeavesNothing) {
  for (const Family& family : kFamilies) {
    for (const Mode mode : {Mode::kNone, Mode::kSelective, Mode::kFull}) {
      const auto model = family.make();
      model->set_recompute({.mode = mode});
      const std::int64_t before = bytes_of(MemoryCategory::kActivation);
      static_cast<void>(kept_by_blocks(*model, kF32, cpu));
      EXPECT_EQ(bytes_of(MemoryCategory::kActivation), before)
          << family.name << ", mode " << static_cast<int>(mode);
    }
  }
}

TEST_F(Recompute, TurnsOffAgain) {
  const auto model = make_gpt2();
  static_cast<void>(kept_by_blocks(*model, kF32, cpu));
  const auto plain = kept_by_blocks(*model, kF32, cpu);
  model->set_recompute({.mode = Mode::kSelective});
  EXPECT_LT(kept_by_blocks(*model, kF32, cpu)[0], plain[0]);
  model->set_recompute(true);
  EXPECT_EQ(model->recompute().mode, Mode::kFull);
  EXPECT_EQ(kept_by_blocks(*model, kF32, cpu)[0], N * 4) << "not selective as well";
  model->set_recompute(false);
  EXPECT_EQ(kept_by_blocks(*model, kF32, cpu), plain);
}

TEST_F(Recompute, RefusesWhatItCannotDo) {
  const auto model = make_gpt2();
  expect_error<ConfigError>([&] { model->set_recompute({.mode = Mode::kFull, .every = 0}); },
                            {"every n-th block", "0"});
  expect_error<ConfigError>(
      [&] { model->set_recompute({.mode = Mode::kSelective, .saved_inputs = kept_in_host_memory()}); },
      {"kFull"});
}

}  // namespace
}  // namespace tessera::nn
