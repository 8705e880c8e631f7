#pragma once

// One order for sums that ranks cut in different places: that of a binary counter which counts *leaves*.
//
//   leaves     0   1   2   3   4   5   6         [0, n) is [0, h) + [h, n), with h the largest power of two
//               \ /     \ /     \ /     |        below n, and so on down
//              [0,2)   [2,4)   [4,6)    |
//                  \   /           \   /         A rank that has leaves [2, 5) can add up [2, 4) and no more:
//                  [0,4)           [4,7)         its part of the sum is the list of nodes [2,4), [4,5).
//                       \         /
//                          [0,7)                 Lists of all ranks make the whole, whoever had which leaf.
//
// So the bits of a sum are a function of its leaves. What a leaf is, is up to whoever sums: a sample of the
// batch, or what lies between two places where a dimension may be cut over ranks.

#include <cstdint>
#include <span>
#include <vector>

#include "dist/communicator.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// Leaves [begin, end) of a sum.
struct LeafRange {
  std::int64_t begin = 0, end = 0;
  [[nodiscard]] std::int64_t size() const noexcept { return end - begin; }
  friend bool operator==(const LeafRange&, const LeafRange&) = default;
};

/// True if the tree over leaves [0, num_leaves) has this node. Cost: its depth.
[[nodiscard]] bool is_tree_node(LeafRange range, std::int64_t num_leaves) noexcept;
/// The largest nodes that a run of leaves is made of, in order; at most two for each level of the tree.
///
/// Example   tree_nodes({2, 5}, 7) is [2, 4), [4, 5); tree_nodes({4, 7}, 7) is [4, 7)
[[nodiscard]] std::vector<LeafRange> tree_nodes(LeafRange run, std::int64_t num_leaves);

/// The sum of the leaves of one rank as a list of nodes. Leaves may come in any order: that of the additions
/// is the tree's.
///
/// Memory    A tensor for each node that waits for its neighbour. Of n > 1 leaves in their order at most
///           2·⌊log₂ n⌋; where the run begins at 0, 1 + ⌊log₂ n⌋. In the worst order, half of the leaves.
class TreeAccumulator {
 public:
  TreeAccumulator() = default;
  /// Of leaves [run.begin, run.end) among `num_leaves`.
  TreeAccumulator(LeafRange run, std::int64_t num_leaves)
      : run_(run), next_(run.begin), num_leaves_(num_leaves) {}
  /// The leaf behind the last that was added so. `value` is copied if it must be kept.
  void add(const Tensor& value) { add_leaf(next_++, value); }
  /// The same; keeps `value` itself, which nobody else changes.
  void add(Tensor&& value);
  /// Any leaf of the run; `value` is copied if it must be kept.
  /// Errors   IndexError for a leaf outside of the run, or that is there.
  void add_leaf(std::int64_t leaf, const Tensor& value);
  [[nodiscard]] const std::vector<Tensor>& nodes() const noexcept { return nodes_; }
  [[nodiscard]] const std::vector<LeafRange>& ranges() const noexcept { return ranges_; }

 private:
  /// Where a leaf lies among the nodes; before it is one of them, unless a neighbour took it in.
  struct Place {
    std::size_t index = 0;
    bool is_taken_in = false;
  };
  [[nodiscard]] Place add_to_neighbour(std::int64_t leaf, const Tensor& value);
  [[nodiscard]] bool are_halves(LeafRange left, LeafRange right) const noexcept;
  void insert(std::size_t index, std::int64_t leaf, Tensor value);

  LeafRange run_;
  std::int64_t next_ = 0, num_leaves_ = 0;
  std::vector<LeafRange> ranges_;  // in the order of leaves
  std::vector<Tensor> nodes_;
};

/// Which leaves each rank of a group has. Together they are [0, num_leaves). Ranks that have the same ones
/// give parts of which at each element at most one is not 0: adding those is exact, in any order.
struct LeafOwners {
  std::int64_t num_leaves = 0;
  std::vector<LeafRange> runs;  ///< by rank
};

/// Nodes of the rank that has most of them: what an exchange makes room for.
[[nodiscard]] std::int64_t longest_list(const LeafOwners& owners);

/// The sum of all leaves, on every rank.
///
/// Shapes    nodes[i] [n] is this rank's sum of tree_nodes(runs[rank])[i]: contiguous, f32 or f64; result [n]
/// Calling   Every rank of the group calls it. On one rank nothing is sent.
/// Cost      An all_to_all of M pieces, M the longest list of nodes, and an all_gather: for M = 1 the bytes
///           of an all-reduce. Workspace of (2M + 1)·n.
/// Errors    ShapeError for a list of another length than the leaves make.
void tree_all_reduce(std::span<const Tensor> nodes, const LeafOwners& owners, Communicator& group,
                     Tensor& result);

/// The same; rank r gets the r-th of R equal pieces.
///
/// Shapes    nodes[i] [R·n], result [n]
void tree_reduce_scatter(std::span<const Tensor> nodes, const LeafOwners& owners, Communicator& group,
                         Tensor& result);

}  // namespace tessera::dist
