#pragma once

#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

/// Rows of a table: y[..., :] = table[ids[...], :], and zeros where an id is −1: of a table whose rows are
/// cut over ranks, what another rank holds.
/// Shapes    table [V, D], ids [...] in i64 → [..., D]
/// Gradient  dy scattered into the rows, rows of equal id summed in order; f32 for 16-bit tables; none of
///           id −1.
/// Errors    IndexError that names an id outside [−1, V).
[[nodiscard]] Tensor embedding(const Tensor& table, const Tensor& ids);

/// y[..., i, ...] = x[..., index[..., i, ...], ...] along `dim`; index (i64) has the shape of y and at most
/// x's sizes elsewhere.
[[nodiscard]] Tensor gather(const Tensor& x, int dim, const Tensor& index);

/// x with src[..., i, ...] added at [..., index[..., i, ...], ...]; index (i64) has src's shape. A new
/// tensor.
[[nodiscard]] Tensor scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src);

/// Tensors one after the other along an existing dimension (`concat`), or along a new one (`stack`).
[[nodiscard]] Tensor concat(std::span<const Tensor> tensors, int dim);
[[nodiscard]] Tensor stack(std::span<const Tensor> tensors, int dim);

struct ValuesAndIndices {
  Tensor values;   ///< differentiable
  Tensor indices;  ///< i64
};

/// The k largest along `dim`, in descending order; the lower index first among equals.
[[nodiscard]] ValuesAndIndices top_k(const Tensor& x, std::int64_t k, int dim = -1);
/// Sorted along `dim`; stable.
[[nodiscard]] ValuesAndIndices sort(const Tensor& x, int dim = -1, bool descending = false);

}  // namespace tessera
