#pragma once

// Linear layers of Invariant numerics. A product over what tensor parallelism may cut (the inputs of a
// row-parallel layer; the outputs of a column-parallel one, for dx) is a sum over *leaves*:
//
//   hidden units   0          10          20          30          40      one product x[:, leaf]·W[leaf, :]
//   2 ranks        |                       |                       |      a leaf, and above them the tree of
//   3 ranks        |               |               |               |      dist/tree_sum.h: on one rank as on
//   4 ranks        |           |           |           |           |      eight
//   leaves         |           |   |       |       |   |           |
//
// so the cuts are where they are in Fast numerics, and each is a cut of the tree.
//
// Private to dist/.

#include <array>
#include <cstdint>
#include <vector>

#include "dist/mesh.h"
#include "dist/placement.h"
#include "dist/range.h"
#include "dist/tree_sum.h"
#include "nn/linear.h"

namespace tessera::dist {

/// Numbers of tensor-parallel ranks whose cuts the leaves respect.
inline constexpr std::array<int, 6> kLeafRanks{1, 2, 3, 4, 6, 8};

/// The most of them that is not above `most`.
[[nodiscard]] int largest_leaf_ranks(std::int64_t most) noexcept;

/// The pieces of a dimension that are left when every number of ranks in kLeafRanks has made its cuts. A leaf
/// has the same rows of each block (see Cut).
class ContractionLeaves {
 public:
  /// How a number of ranks cuts the dimension; one that is left out has it whole.
  struct RankCut {
    int ranks = 1;
    Cut cut{};
  };
  /// All cuts are of equal blocks.
  ContractionLeaves(std::int64_t size, std::vector<RankCut> cuts);
  /// The same cut for every number of ranks.
  ContractionLeaves(std::int64_t size, const Cut& cut);

  [[nodiscard]] std::int64_t count() const noexcept { return static_cast<std::int64_t>(bounds_.size()) - 1; }
  [[nodiscard]] std::int64_t blocks() const noexcept { return blocks_; }
  /// Which leaves each of `num_ranks` ranks has; 1, or a number that was given a cut.
  [[nodiscard]] LeafOwners owners(int num_ranks) const;
  /// Where a leaf of a rank lies in the rank's part of the dimension, block by block.
  [[nodiscard]] std::vector<Range> in_part(std::int64_t leaf, int num_ranks, int rank) const;

 private:
  [[nodiscard]] Range own_rows(int num_ranks, int rank) const;

  std::vector<RankCut> cuts_;
  std::int64_t blocks_ = 1, block_size_ = 0;
  std::vector<std::int64_t> bounds_;  // in a block: leaf i is rows [bounds[i], bounds[i + 1])
};

enum class LinearCut : std::uint8_t { kOutputs, kInputs };

/// What an nn::Linear computes where its outputs (inputs) are cut over the mesh's tp axis, be it into one
/// part: y = x·Wᵀ + b.
///
/// kOutputs  x [B, T, I] is I on tp, and y S(2): dx is summed over leaves and ranks here, so no copy_to_ranks
///           stands before the layer. W is S(0), b S(0).
/// kInputs   x is S(2), and y I: summed here, and the bias added once. W is S(1), b I.
/// is_whole  Every rank has all of the layer, which other numbers of ranks cut: nothing is sent, and y is I.
/// Over cp   x has this rank's tokens. For dW and db all are brought together, of which each cp rank makes
///           its share of the rows; the others are 0, as befits parameters that are R there.
/// Errors    LayoutError for another x.
[[nodiscard]] nn::Linear::Function invariant_linear(LinearCut side, const ContractionLeaves& leaves,
                                                    const Mesh& mesh, bool is_whole = false);

}  // namespace tessera::dist
