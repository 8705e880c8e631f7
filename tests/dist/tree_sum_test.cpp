// One order of summation over leaves, whoever has which: the bits of a binary counter.

#include "dist/tree_sum.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/dist/tree_reference.h"

namespace tessera::dist::testing {
namespace {

constexpr std::int64_t kElements = 37;  // that no number of ranks here divides

// Of sizes that differ by powers of ten, so that another order is another sum.
Tensor leaf(std::int64_t index) {
  Tensor x = normal({kElements}, 0, 1, fmt::format("leaf {}", index));
  return x * std::pow(10.0, static_cast<double>(index * 7 % 5));
}

std::vector<float> counter_sum(std::int64_t num_leaves) {
  std::vector<std::vector<float>> values;
  for (std::int64_t i = 0; i < num_leaves; ++i) values.push_back(leaf(i).to_vector<float>());
  std::vector<float> sums;
  for (std::size_t e = 0; e < kElements; ++e) {
    std::vector<float> summands;
    for (const auto& value : values) summands.push_back(value[e]);
    sums.push_back(tree_reference(summands, ReduceOp::kSum));
  }
  return sums;
}

TEST(TreeSum, NamesTheLargestNodesOfARun) {
  EXPECT_EQ(tree_nodes({2, 5}, 7), (std::vector<LeafRange>{{2, 4}, {4, 5}}));
  EXPECT_EQ(tree_nodes({4, 7}, 7), (std::vector<LeafRange>{{4, 7}}));
  EXPECT_EQ(tree_nodes({0, 12}, 12), (std::vector<LeafRange>{{0, 12}}));
  EXPECT_EQ(tree_nodes({1, 7}, 8), (std::vector<LeafRange>{{1, 2}, {2, 4}, {4, 6}, {6, 7}}));
  EXPECT_TRUE(tree_nodes({3, 3}, 8).empty());
  EXPECT_TRUE(is_tree_node({4, 7}, 7));
  EXPECT_FALSE(is_tree_node({4, 7}, 8));
  EXPECT_FALSE(is_tree_node({2, 6}, 8));
}

// What a rank keeps of its samples' gradients, as docs/invariance.md says.
TEST(TreeSum, HasFewNodesForARun) {
  // The third of four ranks that share 25 samples: [13, 14), [14, 16), [16, 18), [18, 19).
  EXPECT_EQ(tree_nodes({13, 19}, 25).size(), 4u);
  for (std::int64_t num_leaves = 1; num_leaves <= 70; ++num_leaves) {
    for (std::int64_t begin = 0; begin < num_leaves; ++begin) {
      for (std::int64_t end = begin + 1; end <= num_leaves; ++end) {
        const int levels = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(end - begin))) - 1;
        const int most = begin == 0 ? 1 + levels : std::max(1, 2 * levels);
        ASSERT_LE(tree_nodes({begin, end}, num_leaves).size(), static_cast<std::size_t>(most))
            << '[' << begin << ", " << end << ") of " << num_leaves;
      }
    }
  }
}

// Leaves 0 ... 16, cut between ranks as evenly as possible, and unevenly with ranks that have none.
TEST(TreeSum, HasTheBitsOfABinaryCounterHoweverLeavesAreCut) {
  for (const std::int64_t num_leaves : {1, 2, 3, 7, 12, 16, 17}) {
    const std::vector<float> expected = counter_sum(num_leaves);
    for (const int ranks : {1, 2, 3, 4, 5, 8}) {
      for (const bool even : {true, false}) {
        LeafOwners owners{.num_leaves = num_leaves, .runs = {}};
        for (int r = 0; r < ranks; ++r) {
          const std::int64_t begin =
              even ? shard_begin(num_leaves, ranks, r) : std::min<std::int64_t>(num_leaves, 3 * r * r / 2);
          const std::int64_t end = r == ranks - 1 ? num_leaves
                                   : even         ? begin + shard_size(num_leaves, ranks, r)
                                          : std::min<std::int64_t>(num_leaves, 3 * (r + 1) * (r + 1) / 2);
          owners.runs.push_back({begin, end});
        }
        run_thread_ranks(ranks, [&](Job& job) {
          const LeafRange own = owners.runs[static_cast<std::size_t>(job.rank())];
          TreeAccumulator sum(own, num_leaves);
          for (std::int64_t i = own.begin; i < own.end; ++i) sum.add(leaf(i));
          ASSERT_EQ(sum.ranges(), tree_nodes(own, num_leaves));
          Tensor all = empty({kElements});
          tree_all_reduce(sum.nodes(), owners, job.world(), all);
          EXPECT_EQ(all.to_vector<float>(), expected) << num_leaves << " leaves, " << ranks << " ranks";

          const std::int64_t share = (kElements + ranks - 1) / ranks;
          std::vector<Tensor> padded;
          for (const Tensor& node : sum.nodes()) {
            padded.push_back(zeros({share * ranks}));
            padded.back().slice(0, 0, kElements).copy_from(node);
          }
          Tensor piece = empty({share});
          tree_reduce_scatter(padded, owners, job.world(), piece);
          const std::vector<float> own_piece = piece.to_vector<float>();
          for (std::int64_t i = 0; i < share; ++i) {
            const std::int64_t element = job.rank() * share + i;
            EXPECT_EQ(own_piece[static_cast<std::size_t>(i)],
                      element < kElements ? expected[static_cast<std::size_t>(element)] : 0.0f);
          }
        });
      }
    }
  }
}

// Forwards, backwards, every other leaf first, and two orders that are nobody's.
TEST(TreeSum, HasTheSameBitsInWhateverOrderLeavesCome) {
  for (const LeafRange run : {LeafRange{0, 12}, LeafRange{0, 17}, LeafRange{3, 14}, LeafRange{5, 6}}) {
    const std::int64_t num_leaves = 17;
    TreeAccumulator in_order(run, num_leaves);
    for (std::int64_t i = run.begin; i < run.end; ++i) in_order.add(leaf(i));
    for (const std::int64_t stride : {-1, 2, 5, 7}) {
      std::vector<std::int64_t> order;
      for (std::int64_t i = run.begin; i < run.end; ++i) order.push_back(i);
      std::ranges::sort(order, {},
                        [stride](std::int64_t i) { return ((i * stride % 13 + 13) % 13) * 100 + i; });
      TreeAccumulator sum(run, num_leaves);
      for (const std::int64_t i : order) sum.add_leaf(i, leaf(i));
      ASSERT_EQ(sum.ranges(), tree_nodes(run, num_leaves));
      for (std::size_t i = 0; i < sum.nodes().size(); ++i)
        EXPECT_EQ(sum.nodes()[i].to_vector<float>(), in_order.nodes()[i].to_vector<float>()) << stride;
    }
  }
}

TEST(TreeSum, RefusesALeafThatIsThereOrNotOfTheRun) {
  TreeAccumulator sum({2, 5}, 8);
  sum.add_leaf(3, leaf(3));
  sum.add_leaf(2, leaf(2));
  for (const std::int64_t wrong : {1, 2, 3, 5})
    EXPECT_THROW(sum.add_leaf(wrong, leaf(wrong)), IndexError) << wrong;
  sum.add_leaf(4, leaf(4));
  EXPECT_EQ(sum.ranges(), tree_nodes({2, 5}, 8));
}

// What the tests above can notice: a sum in the order of the leaves has other bits.
TEST(TreeSum, IsNotTheSumInOrder) {
  Tensor in_order = leaf(0).clone();
  for (std::int64_t i = 1; i < 12; ++i) in_order.add_scaled(leaf(i));
  EXPECT_NE(in_order.to_vector<float>(), counter_sum(12));
}

TEST(TreeSum, AddsPartsOfEqualRunsAtEachElementOnce) {
  const LeafOwners owners{.num_leaves = 2, .runs = {{0, 1}, {0, 1}, {1, 2}, {1, 2}}};
  run_thread_ranks(4, [&](Job& job) {
    // Ranks 0 and 2 have the first elements of their leaf, 1 and 3 the others.
    Tensor part = leaf(job.rank() / 2).clone();
    (job.rank() % 2 == 0 ? part.slice(0, 20, kElements) : part.slice(0, 0, 20)).zero();
    Tensor sum = empty({kElements});
    tree_all_reduce({&part, 1}, owners, job.world(), sum);
    EXPECT_EQ(sum.to_vector<float>(), counter_sum(2));
  });
}

TEST(TreeSum, RefusesRunsThatLeaveLeavesOut) {
  const LeafOwners owners{.num_leaves = 3, .runs = {{0, 2}}};
  const Tensor node = leaf(0);
  Tensor sum = empty({kElements});
  run_thread_ranks(1, [&](Job& job) {
    EXPECT_THROW(tree_all_reduce({&node, 1}, owners, job.world(), sum), ShapeError);
  });
}

}  // namespace
}  // namespace tessera::dist::testing
