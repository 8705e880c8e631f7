#pragma once

#include <initializer_list>

#include "tensor/tensor.h"

namespace tessera {

/// Which dimensions a reduction goes over, and whether they stay with size 1. No dimensions means all.
struct Over {
  std::initializer_list<int> dims = {};
  bool keep_dims = false;
};

/// Sum (mean) over `over.dims`, accumulated in f32 (f64 for f64), rounded once.
/// Example   sum(x);  mean(x, {.dims = {-1}, .keep_dims = true});
[[nodiscard]] Tensor sum(const Tensor& x, const Over& over = {});
[[nodiscard]] Tensor mean(const Tensor& x, const Over& over = {});
/// Largest (smallest) element; equal ones share the gradient. ShapeError on an empty reduction.
[[nodiscard]] Tensor max(const Tensor& x, const Over& over = {});
[[nodiscard]] Tensor min(const Tensor& x, const Over& over = {});
/// Mean of squared deviations over n − `correction` (1: unbiased, as PyTorch; 0: population).
[[nodiscard]] Tensor variance(const Tensor& x, const Over& over = {}, int correction = 1);

/// Running sums along `dim`: y_i = Σ_{j ≤ i} x_j, accumulated in f32 (f64 for f64). Shape and dtype are
/// those of x.
/// Errors   DTypeError if x is not floating; IndexError for a dimension that x lacks.
/// Example  cumsum({1, 2, 3, 4})  →  {1, 3, 6, 10}
[[nodiscard]] Tensor cumsum(const Tensor& x, int dim = -1);

/// Index (i64) of the largest (smallest) element along `dim`, which disappears; the first of equals. No
/// gradient.
[[nodiscard]] Tensor argmax(const Tensor& x, int dim = -1);
[[nodiscard]] Tensor argmin(const Tensor& x, int dim = -1);
/// Bool tensors: whether any (every) element is true. No gradient.
[[nodiscard]] Tensor any(const Tensor& x, const Over& over = {});
[[nodiscard]] Tensor all(const Tensor& x, const Over& over = {});

}  // namespace tessera
