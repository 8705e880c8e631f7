#pragma once

#include "kernels/cpu/loop.h"

namespace tessera::kernels {

/// How a reduction goes through its input: a nest over the outputs, and for each of them a nest over what it
/// reduces.
struct ReductionPlan {
  Loop kept;     ///< operands: output, input
  Loop reduced;  ///< operand: input, at the first output's elements

  /// Whether the elements of one output lie closer together than neighbouring outputs do, and are enough to
  /// fill a vector: then each output is reduced by itself ("rows"), else many outputs at once ("columns").
  bool by_rows;

  /// The reduced elements are cut into `num_chunks` pieces of `chunk_size`, which may be reduced by different
  /// threads: a function of the shapes alone, so that results are too. Above 1 only where there are few
  /// outputs.
  std::int64_t num_chunks;
  std::int64_t chunk_size;
};

/// Reduces the dimensions in which y's size is 1 and x's is not.
[[nodiscard]] ReductionPlan make_reduction_plan(const ConstView& x, const View& y) noexcept;

/// Reduces `dim`, in one piece and in its own order.
[[nodiscard]] ReductionPlan make_reduction_plan(const ConstView& x, const View& y, int dim) noexcept;

}  // namespace tessera::kernels
