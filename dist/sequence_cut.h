#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/communicator.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// Which tokens of a sequence each rank of a group has (context parallel).
///
/// Contiguous: rank r has the r-th of R pieces, as Tensor::chunk cuts. Under a causal mask that is unfair to
/// ring attention: the last rank has 2R − 1 times the pairs of queries and keys of the first.
///
/// Balanced: the sequence is cut into 2R chunks, and rank r has chunks r and 2R − 1 − r, an early one and a
/// late one. With 2R·c tokens every rank has (2R − 1)·c² + c·(c + 1) pairs (Llama 3: Dubey et al., "The Llama
/// 3 herd of models", 2024, section 3.3.2). Dealing out tokens one by one in turn is as fair (Brandon et al.,
/// "Striped attention", 2023), but then every block of scores is half masked and no two neighbours meet.
///
///     R = 3                  chunk   0   1   2   3   4   5
///                            rank    0   1   2   2   1   0
///
/// Where 2R (R) does not divide the length, the first chunks are longer by one; some may be empty.
class SequenceCut {
 public:
  [[nodiscard]] static SequenceCut balanced(std::int64_t length, int num_ranks);
  [[nodiscard]] static SequenceCut contiguous(std::int64_t length, int num_ranks);

  /// Tokens [begin, begin + size) of the sequence.
  struct Chunk {
    std::int64_t begin = 0;
    std::int64_t size = 0;
    friend bool operator==(const Chunk&, const Chunk&) = default;
  };

  [[nodiscard]] std::int64_t length() const noexcept { return length_; }
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] bool is_balanced() const noexcept { return is_balanced_; }
  /// What rank `rank` has, in the order of the sequence, which is also that of its tensors; empty ones left
  /// out.
  [[nodiscard]] std::vector<Chunk> chunks(int rank) const;
  /// How many tokens that is.
  [[nodiscard]] std::int64_t size(int rank) const;
  /// Their positions: for RankContext::token_positions.
  [[nodiscard]] std::shared_ptr<const std::vector<std::int64_t>> positions(int rank) const;
  /// S(dim), as the layout type of tensors that are so cut.
  [[nodiscard]] AxisLayout layout(int dim) const noexcept {
    return AxisLayout::sharded(dim,
                               is_balanced_ ? AxisLayout::Order::kBalanced : AxisLayout::Order::kInOrder);
  }
  /// For attention over the ranks of `group`, before any traffic: ShapeError if the cut is over another
  /// number of ranks, or q, k and v do not fit each other or this rank's tokens; DeviceError as for
  /// collectives.
  void check(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v,
             const Communicator& group) const;
  /// The layout of attention(q, k, v) along `axis` by something that brings the pieces together; {} where
  /// layouts are not checked. LayoutError unless all three are layout(1) there, and on other axes what
  /// `attention` takes.
  [[nodiscard]] Layout layout_of_attention(const char* operation, const Tensor& q, const Tensor& k,
                                           const Tensor& v, MeshAxis axis) const;
  /// The part of a whole tensor that rank `rank` has, along dimension `dim`. ShapeError if that is not of
  /// size length().
  [[nodiscard]] Tensor take(const Tensor& whole, int dim, int rank) const;

 private:
  SequenceCut(std::int64_t length, int num_ranks, bool is_balanced)
      : length_(length), num_ranks_(num_ranks), is_balanced_(is_balanced) {}

  std::int64_t length_;
  int num_ranks_;
  bool is_balanced_;
};

}  // namespace tessera::dist
