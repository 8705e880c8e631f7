// Inputs of recomputed blocks, cut over the ranks that have the same: bytes kept, bytes sent, the same bits.

#include "dist/partitioned_activations.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/ops.h"
#include "dist/job.h"
#include "dist/mesh.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

using Mode = nn::RecomputeConfig::Mode;

constexpr std::int64_t B = 1, T = 7, D = 18, N = B * T * D;  // 126 elements: 4 and 8 ranks do not divide it
constexpr int kLayers = 3;

struct Measured {
  std::vector<std::vector<float>> gradients;
  std::int64_t kept = 0, kept_on_host = 0;  // by all blocks, between the passes
  std::int64_t sent = 0;                    // by this rank, in both passes
};

Measured train(Job& job, const nn::RecomputeConfig& config) {
  nn::Gpt2 model({.vocab = 11, .context = T, .layers = kLayers, .heads = 3, .width = D, .dropout = 0.1});
  model.set_recompute(config);
  const MemoryPool& pool = *RankContext::current().pool(cpu);
  const auto in_use = [&](MemoryCategory category) { return pool.report().of(category).current; };
  Measured result;
  const std::int64_t sent_before = job.tape().total_sent_bytes();
  {
    const Tensor ids = from_vector<std::int64_t>({3, 1, 4, 1, 5, 9, 2}).reshape({B, T});
    Tensor x = model.embed(ids, 0);
    x = x * 1.0;  // what the embeddings keep is not counted
    const std::int64_t before = in_use(MemoryCategory::kActivation) - N * 4;  // x counts for the first block
    for (int i = 0; i < kLayers; ++i) x = model.run_block(i, x);
    result.kept = in_use(MemoryCategory::kActivation) - before - N * 4;  // less the last block's result
    result.kept_on_host = in_use(MemoryCategory::kHostActivation);
    sum(square(model.head(x))).backward();
  }
  result.sent = job.tape().total_sent_bytes() - sent_before;
  for (const Tensor& parameter : model.parameters())
    result.gradients.push_back(parameter.grad().to_vector<float>());
  return result;
}

TEST(PartitionedActivations, KeepAPartOnEachRankAndGiveTheSameBits) {
  std::vector<std::vector<float>> alone;
  run_thread_ranks(1, [&](Job& job) { alone = train(job, {}).gradients; });
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (const bool on_host : {false, true}) {
      run_thread_ranks(ranks, [&](Job& job) {
        const Mesh mesh(MeshShape::parse(fmt::format("tp={}", ranks)), job.shared_world());
        const std::int64_t part = (N + ranks - 1) / ranks;
        const CheckpointOptions cut = partitioned_over(mesh, MeshAxis::kTp);
        const Measured measured =
            train(job, {.mode = Mode::kFull, .saved_inputs = on_host ? kept_in_host_memory(cut) : cut});
        EXPECT_TRUE(measured.gradients == alone) << job.rank() << " of " << ranks;
        EXPECT_EQ(measured.kept, on_host ? 0 : kLayers * part * 4);
        EXPECT_EQ(measured.kept_on_host, on_host ? kLayers * part * 4 : 0);
        EXPECT_EQ(measured.sent, kLayers * (ranks - 1) * part * 4);
      });
    }
  }
}

TEST(PartitionedActivations, OfEveryDtypeAndSizeComeBack) {
  for (const int ranks : {2, 3, 8}) {
    run_thread_ranks(ranks, [ranks](Job& job) {
      const Mesh mesh(MeshShape::parse(fmt::format("tp={}", ranks)), job.shared_world());
      const CheckpointOptions cut = partitioned_over(mesh, MeshAxis::kTp);
      for (const DType dtype : {kF64, kF32, kBF16}) {
        for (const Shape& shape : {Shape{5, 7}, Shape{1}, Shape{0, 3}, Shape{}}) {
          Tensor x = normal(shape, 0, 1, "x", {.dtype = dtype});
          x.set_requires_grad();
          std::vector<Tensor> seen;
          const Tensor y = checkpoint(
              [&](const Tensor& in) {
                seen.push_back(in.clone());
                return in * 2.0;
              },
              x, cut);
          sum(y).backward();
          ASSERT_EQ(seen.size(), 2u);
          EXPECT_EQ(seen[1].shape(), shape);
          EXPECT_EQ(seen[1].dtype(), dtype);
          EXPECT_EQ(seen[1].to_vector<double>(), seen[0].to_vector<double>());
        }
      }
    });
  }
}

// Sequence parallelism has cut the input already: nothing to save, nothing to send.
TEST(PartitionedActivations, KeepAsItIsWhatIsCutOverTpAlready) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("tp=2"), job.shared_world());
    job.tape().reset_totals();
    Tensor x = full({4, 6}, job.rank() + 1.0);
    x.set_requires_grad();
    x.set_layout(Layout().with(MeshAxis::kTp, AxisLayout::sharded(0)));
    std::vector<double> seen;
    const Tensor y = checkpoint(
        [&](const Tensor& in) {
          EXPECT_EQ(in.shape(), (Shape{4, 6}));
          seen.push_back(in.to_vector<double>()[23]);
          return in * 2.0;
        },
        x, partitioned_over(mesh, MeshAxis::kTp));
    backward(y, ones({4, 6}));
    EXPECT_EQ(seen, (std::vector<double>{job.rank() + 1.0, job.rank() + 1.0}));
    EXPECT_EQ(job.tape().total_sent_bytes(), 0);
  });
}

TEST(PartitionedActivations, RefuseAPartialSum) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("tp=2"), job.shared_world());
    Tensor x = ones({4, 6});
    x.set_requires_grad();
    x.set_layout(Layout().with(MeshAxis::kTp, AxisLayout::partial()));
    expect_error<LayoutError>(
        [&] {
          static_cast<void>(checkpoint([](const Tensor& in) { return in * 2.0; }, x,
                                       partitioned_over(mesh, MeshAxis::kTp)));
        },
        {"tp P", "partial sum", "all_reduce"});
  });
}

}  // namespace
}  // namespace tessera::dist
