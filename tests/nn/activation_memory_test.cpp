// The peak activation memory of GPT-2 blocks, forward and backward, counted by hand.
//
// Elements, with N = B·T·D (one activation [B, T, D]); all is f32, dropout 0. What the forward pass of one
// block keeps:
//
//   ln_1     a = LN(x)                        N      saved by c_attn
//            mean, inv_std                  2·B·T
//   c_attn   qkv                             3N      saved by attention
//   attn     o                                N      saved by attention and by c_proj
//            lse                            B·H·T
//   c_proj   p                                -      read by ln_2, then gone
//   ln_2     s = x + p                        N      saved by ln_2
//            m = LN(s)                        N      saved by c_fc
//            mean, inv_std                  2·B·T
//   c_fc     f                               4N      saved by gelu
//   gelu     g                               4N      saved by c_proj
//   c_proj   q                                -      added to s, then gone
//                                    ---------------
//   kept by a block               15N + S           with S = 4·B·T + B·H·T
//
// and its input x, which is the result of the block before: N for every block but the first, whose input is
// the caller's. The caller holds y and dy: 2N.
//
// The backward pass begins with the last c_proj. While its closure runs, everything is still there, and it
// makes
//
//   dg 4N,   dW [D, 4D] = 4D²,   db D.
//
// That is the peak: its g (4N) then dies, dW and db become gradients, and the next closures make no more than
// die with them (gelu: df 4N, then f and dg go; c_fc: dm N, dW 4D², db 4D, with 8N less held). The forward
// pass reached only 17N + S in its last block (q and y beside what it keeps), 4N + 4D² + D less.

#include <gtest/gtest.h>

#include <memory>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "nn/gpt2.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

constexpr std::int64_t B = 2, T = 16, D = 32, H = 4;
constexpr std::int64_t N = B * T * D;
constexpr std::int64_t S = 4 * B * T + B * H * T;
constexpr std::int64_t kLastProjection = 4 * N + 4 * D * D + D;

struct Peak {
  std::int64_t activations = 0;
  std::int64_t gradients = 0;
};

enum class Recomputation { kNone, kSelective, kFull };

Peak measure(int num_blocks, Recomputation recomputation, Device device) {
  RankContext context;
  const RankContext::Scope scope(context);
  const DeviceScope device_scope(device);
  MemoryPool& pool = *context.pool(device);

  std::vector<std::unique_ptr<Gpt2Block>> blocks;
  for (int i = 0; i < num_blocks; ++i)
    blocks.push_back(std::make_unique<Gpt2Block>(Gpt2Config{.layers = num_blocks, .heads = H, .width = D}));
  Tensor x;
  {
    const CategoryScope category(MemoryCategory::kParameter);  // not an activation of the blocks
    x = ones({B, T, D});
    x.set_requires_grad();
  }
  EXPECT_EQ(pool.report().of(MemoryCategory::kActivation).current, 0);
  pool.reset_peak();
  {
    Tensor y = x;
    for (const auto& block : blocks) {
      block->recompute_cheap_values(recomputation == Recomputation::kSelective);
      y = recomputation == Recomputation::kFull
              ? checkpoint([&block](const Tensor& in) { return (*block)(in); }, y)
              : (*block)(y);
    }
    const Tensor dy = ones({B, T, D});
    backward(y, dy);
  }
  EXPECT_EQ(pool.report().of(MemoryCategory::kActivation).current, 0) << "something outlived the pass";
  return {pool.report().of(MemoryCategory::kActivation).peak,
          pool.report().of(MemoryCategory::kGradient).current};
}

TEST(ActivationMemory, OfGpt2BlocksIsTheHandCount) {
  for (const Device device : {cpu, meta}) {
    for (const int blocks : {1, 3}) {
      const std::int64_t kept = blocks * (15 * N + S) + (blocks - 1) * N;
      EXPECT_EQ(measure(blocks, Recomputation::kNone, device).activations,
                4 * (kept + 2 * N + kLastProjection))
          << blocks << " blocks on " << to_string(device);
    }
  }
}

// Recomputed, a block keeps its input only. The last one is run again while y, dy and all inputs are held;
// its own second result is one more N. Peaks in the same closure as before.
TEST(ActivationMemory, OfRecomputedBlocksIsTheHandCount) {
  for (const Device device : {cpu, meta}) {
    for (const int blocks : {1, 3}) {
      const std::int64_t inputs = (blocks - 1) * N;
      const std::int64_t run_again = 15 * N + S + N;
      EXPECT_EQ(measure(blocks, Recomputation::kFull, device).activations,
                4 * (inputs + 2 * N + run_again + kLastProjection))
          << blocks << " blocks on " << to_string(device);
    }
  }
}

// Selectively, a, m and g are not kept: 9N + S a block. The last c_proj makes its g again, 4N, and then what
// it made before: still the peak, for the closures that make m and a again hold 8N less by then.
TEST(ActivationMemory, OfSelectivelyRecomputedBlocksIsTheHandCount) {
  for (const Device device : {cpu, meta}) {
    for (const int blocks : {1, 3}) {
      const std::int64_t kept = blocks * (9 * N + S) + (blocks - 1) * N;
      EXPECT_EQ(measure(blocks, Recomputation::kSelective, device).activations,
                4 * (kept + 2 * N + 4 * N + kLastProjection))
          << blocks << " blocks on " << to_string(device);
    }
  }
}

// 12D² weights and 13D biases and gains for each block, and the gradient of x.
TEST(ActivationMemory, GradientsAreCountedAsGradients) {
  for (const Recomputation how : {Recomputation::kNone, Recomputation::kSelective, Recomputation::kFull}) {
    for (const Device device : {cpu, meta})
      EXPECT_EQ(measure(2, how, device).gradients, 4 * (2 * (12 * D * D + 13 * D) + N))
          << static_cast<int>(how);
  }
}

}  // namespace
}  // namespace tessera::nn
