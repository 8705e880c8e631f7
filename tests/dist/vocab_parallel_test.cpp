// A vocabulary cut over ranks: embedding, loss and their gradients are those of the whole.

#include "dist/vocab_parallel.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"
#include "tests/largest_difference.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;
constexpr std::int64_t kVocab = 23, kWidth = 6;  // 23: prime, so no layout cuts it evenly

Tensor random(const std::string& stream, const Shape& shape) {
  return normal(shape, 0, 2, stream, {.dtype = kF64});
}

Tensor ids_like_a_text() {
  return from_vector<std::int64_t>({0, 22, 7, 11, -100, 12, 5, 22, 1, 8, -100, 3}, Shape{3, 4});
}

MeshShape tp(int ranks) {
  MeshShape shape;
  shape.set(kTp, ranks);
  return shape;
}

Tensor own_rows(const Tensor& x, int dim, const Mesh& mesh) {
  const std::int64_t begin = shard_begin(x.dim(dim), mesh.size(kTp), mesh.index(kTp));
  return x.slice(dim, begin, begin + shard_size(x.dim(dim), mesh.size(kTp), mesh.index(kTp)))
      .detach()
      .clone();
}

class VocabParallel : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, VocabParallel, ::testing::Values(1, 2, 3, 4, 8, 24));

TEST_P(VocabParallel, LossAndGradientAreThoseOfWholeLogits) {
  const Tensor targets = ids_like_a_text();
  for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone}) {
    Tensor logits = random("logits", {3, 4, kVocab}).set_requires_grad();
    const Tensor weights = random("weights", {3, 4});
    const Tensor expected = cross_entropy(logits, targets, {.reduction = reduction});
    sum(reduction == Reduction::kNone ? expected * weights : expected).backward();
    run_thread_ranks(GetParam(), [&](Job& job) {
      const Mesh mesh(tp(job.size()), job.shared_world());
      Tensor own = own_rows(logits, 2, mesh);
      if (job.size() > 1) own.set_layout(Layout().with(kTp, AxisLayout::sharded(2)));
      own.set_requires_grad();
      const Tensor loss =
          vocab_parallel_cross_entropy(Tensor(own), targets, kVocab, mesh, kTp, {.reduction = reduction});
      EXPECT_TRUE(loss.layout().is_invariant());
      EXPECT_LE(largest_difference(loss, expected), 1e-14 * kVocab);
      sum(reduction == Reduction::kNone ? loss * weights : loss).backward();
      EXPECT_LE(largest_difference(own.grad(), own_rows(logits.grad(), 2, mesh)), 1e-14 * kVocab);
    });
  }
}

TEST_P(VocabParallel, EmbeddingOfMaskedIdsSumsToTheWholeTables) {
  const Tensor ids = from_vector<std::int64_t>({0, 22, 7, 11, 12, 5, 22, 1}, Shape{2, 4});
  Tensor table = random("table", {kVocab, kWidth}).set_requires_grad();
  const Tensor dy = random("dy", {2, 4, kWidth});
  const Tensor expected = embedding(table, ids);
  sum(expected * dy).backward();
  run_thread_ranks(GetParam(), [&](Job& job) {
    const Mesh mesh(tp(job.size()), job.shared_world());
    Tensor own = own_rows(table, 0, mesh);
    if (job.size() > 1) own.set_layout(Layout().with(kTp, AxisLayout::sharded(0)));
    own.set_requires_grad();
    const Tensor y = all_reduce(embedding(own, mask_foreign_ids(ids, kVocab, mesh, kTp)), mesh, kTp);
    EXPECT_EQ(largest_difference(y, expected), 0.0);  // one summand is not zero
    sum(y * dy).backward();
    EXPECT_EQ(largest_difference(own.grad(), own_rows(table.grad(), 0, mesh)), 0.0);
  });
}

// The gradient is written over logits that nobody else holds; here a second operation saved them, and both
// get them from one recomputation.
TEST(VocabParallelLoss, LeavesLogitsAloneThatAnotherOperationNeeds) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(tp(2), job.shared_world());
    std::vector<std::vector<double>> gradients;
    for (const bool again : {false, true}) {
      Tensor own = own_rows(random("logits", {12, kVocab}), 1, mesh);
      own.set_layout(Layout().with(kTp, AxisLayout::sharded(1))).set_requires_grad();
      Tensor logits = again ? recomputed([](const Tensor& x) { return sin(x); }, own) : sin(own);
      const Tensor squares = sum(square(logits));
      // The loss goes back first.
      const Tensor loss =
          vocab_parallel_cross_entropy(std::move(logits), ids_like_a_text().reshape({12}), kVocab, mesh, kTp);
      (loss + all_reduce(squares, mesh, kTp)).backward();
      gradients.push_back(own.grad().to_vector<double>());
    }
    EXPECT_EQ(gradients[1], gradients[0]);
  });
}

TEST(VocabParallelLoss, SendsTwoNumbersATargetAndAThirdForTheLargest) {
  run_thread_ranks(4, [&](Job& job) {
    const Mesh mesh(tp(4), job.shared_world());
    Tensor own = own_rows(random("logits", {3, 4, kVocab}), 2, mesh);
    own.set_layout(Layout().with(kTp, AxisLayout::sharded(2))).set_requires_grad();
    job.tape().reset_totals();
    vocab_parallel_cross_entropy(Tensor(own), ids_like_a_text(), kVocab, mesh, kTp).backward();
    // All-reduces of N and 2N numbers of 8 bytes: 2·(R−1)/R of each is sent; nothing in the backward pass.
    EXPECT_EQ(job.tape().total_sent_bytes(), 2 * 3 * (12 + 24) * 8 / 4);
  });
}

// Gathered logits: every rank would count each logit, and the loss be off by log R.
TEST(VocabParallelLoss, RefusesGatheredLogits) {
  run_thread_ranks(2, [&](Job& job) {
    const Mesh mesh(tp(2), job.shared_world());
    Tensor own = own_rows(random("logits", {3, 4, kVocab}), 2, mesh);
    own.set_layout(Layout().with(kTp, AxisLayout::sharded(2)));
    Tensor gathered = all_gather(own, 2, mesh, kTp, kVocab);
    EXPECT_THROW(static_cast<void>(
                     vocab_parallel_cross_entropy(std::move(gathered), ids_like_a_text(), kVocab, mesh, kTp)),
                 LayoutError);
  });
}

// Nor is cross_entropy of gathered logits a loss from which every rank may go back: each would begin with the
// whole gradient, and the pieces that reduce_scatter gives back would be R times too large.
TEST(VocabParallelLoss, OfGatheredLogitsDoesNotGoBackFromEveryRankAsAWhole) {
  const Tensor logits = random("logits", {3, 4, kVocab});
  Tensor whole = logits.clone().set_requires_grad();
  cross_entropy(whole, ids_like_a_text()).backward();
  run_thread_ranks(2, [&](Job& job) {
    const Mesh mesh(tp(2), job.shared_world());
    Tensor own = own_rows(logits, 2, mesh);
    own.set_layout(Layout().with(kTp, AxisLayout::sharded(2))).set_requires_grad();
    const auto loss = [&] { return cross_entropy(all_gather(own, 2, mesh, kTp, kVocab), ids_like_a_text()); };
    EXPECT_THROW(loss().backward(), LayoutError);
    EXPECT_FALSE(own.grad().defined());
    backward(loss(), full({}, 0.5, {.dtype = kF64}));
    EXPECT_LE(largest_difference(own.grad(), own_rows(whole.grad(), 2, mesh)), 1e-15);
  });
}

TEST(VocabParallelLoss, RefusesAMeanWhereTokensAreCutBeforeAnythingIsSent) {
  run_thread_ranks(4, [&](Job& job) {
    for (const char* shape : {"dp=2,tp=2", "cp=2,tp=2", "dp=4", "tp=4"}) {
      const Mesh mesh(MeshShape::parse(shape), job.shared_world());
      const bool has_data_ranks = mesh.size(kTp) < 4;
      for (const bool with_layouts : {true, false}) {
        const LayoutChecks checks(with_layouts);
        Layout layout;
        for (const auto& [axis, dim] : {std::pair{MeshAxis::kDp, 0}, std::pair{MeshAxis::kCp, 1}}) {
          if (mesh.size(axis) > 1) layout = layout.with(axis, AxisLayout::sharded(dim));
        }
        Tensor targets = ids_like_a_text();
        Tensor own = own_rows(random("logits", {3, 4, kVocab}), 2, mesh);
        if (with_layouts) {
          targets.set_layout(layout);
          own.set_layout(mesh.size(kTp) > 1 ? layout.with(kTp, AxisLayout::sharded(2)) : layout);
        }
        const auto loss = [&](Reduction reduction) {
          static_cast<void>(vocab_parallel_cross_entropy(Tensor(own), targets, kVocab, mesh, kTp,
                                                         {.reduction = reduction}));
        };
        SCOPED_TRACE(fmt::format("{} {}", shape, with_layouts));
        job.tape().reset_totals();
        if (has_data_ranks) {
          expect_error<LayoutError>([&] { loss(Reduction::kMean); },
                                    {"vocab_parallel_cross_entropy", "kMean", "mean of means", "kSum"});
          EXPECT_EQ(job.tape().total_sent_bytes(), 0);
        } else {
          EXPECT_NO_THROW(loss(Reduction::kMean));
        }
        EXPECT_NO_THROW(loss(Reduction::kSum));
        EXPECT_NO_THROW(loss(Reduction::kNone));
      }
    }
  });
}

TEST(VocabParallelLoss, RefusesIdsOutsideOfTheVocabularyAndLabelSmoothing) {
  run_thread_ranks(2, [&](Job& job) {
    const Mesh mesh(tp(2), job.shared_world());
    EXPECT_THROW(static_cast<void>(mask_foreign_ids(from_vector<std::int64_t>({23}), kVocab, mesh, kTp)),
                 IndexError);
    EXPECT_THROW(static_cast<void>(mask_foreign_ids(from_vector<std::int64_t>({-1}), kVocab, mesh, kTp)),
                 IndexError);
    Tensor own = own_rows(random("logits", {3, 4, kVocab}), 2, mesh);
    own.set_layout(Layout().with(kTp, AxisLayout::sharded(2)));
    EXPECT_THROW(static_cast<void>(vocab_parallel_cross_entropy(Tensor(own), ids_like_a_text(), kVocab, mesh,
                                                                kTp, {.label_smoothing = 0.1})),
                 ConfigError);
  });
}

}  // namespace
}  // namespace tessera::dist
