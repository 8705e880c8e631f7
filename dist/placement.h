#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/range.h"
#include "nn/module.h"
#include "tensor/layout.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// How a parameter's dimension is cut over the ranks of an axis, each of which holds some of its indices.
///
/// The dimension is `blocks` equal parts, one behind the other, each of `units` units of equal size; every
/// part is cut by units, as Tensor::chunk would cut it. A plain matrix has one block and units of one row.
/// GPT-2's c_attn has three blocks (queries, keys, values) with a unit for each head: a rank gets its heads
/// of all three.
///
/// Example   12 rows, 3 blocks of 2 units of 2 rows, 2 ranks → rank 1 holds rows 2, 3, 6, 7, 10, 11
struct Cut {
  int dim = 0;
  std::int64_t blocks = 1;
  std::int64_t units = 0;  ///< of a block; 0: one for each index

  friend bool operator==(const Cut&, const Cut&) = default;
};

/// The indices of a dimension of `size` that a rank holds, as ranges in rising order.
/// Errors    ShapeError if blocks and units do not divide the size.
[[nodiscard]] std::vector<Range> own_indices(const Cut& cut, std::int64_t size, int num_ranks, int rank);

/// Where one parameter lies: its whole shape, and how it is cut on the tensor-parallel axis, if it is.
struct Placement {
  Shape whole_shape;
  bool is_cut = false;
  Cut cut;
  int num_ranks = 1, rank = 0;  ///< of the axis

  [[nodiscard]] Shape own_shape() const;
  /// Own part of a whole tensor: a copy.
  [[nodiscard]] Tensor own_part(const Tensor& whole) const;
  /// Writes rank `r`'s part into `whole`.
  void put_part(Tensor& whole, const Tensor& part, int r) const;
  /// Writes the initial values of the own part into `part`: those that the whole parameter would have there.
  void fill_initial(const nn::ParameterRecord& record, Tensor& part) const;
};

}  // namespace tessera::dist
