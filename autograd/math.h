#pragma once

#include "tensor/tensor.h"

// Functions of one tensor, element by element, all differentiable. Floating dtypes; the result has the dtype
// of x.

namespace tessera {

[[nodiscard]] Tensor abs(const Tensor& x);
[[nodiscard]] Tensor square(const Tensor& x);
[[nodiscard]] Tensor sqrt(const Tensor& x);
[[nodiscard]] Tensor rsqrt(const Tensor& x);  ///< 1/√x
[[nodiscard]] Tensor reciprocal(const Tensor& x);
[[nodiscard]] Tensor exp(const Tensor& x);
[[nodiscard]] Tensor log(const Tensor& x);
[[nodiscard]] Tensor sin(const Tensor& x);
[[nodiscard]] Tensor cos(const Tensor& x);
[[nodiscard]] Tensor tanh(const Tensor& x);
[[nodiscard]] Tensor erf(const Tensor& x);
[[nodiscard]] Tensor sigmoid(const Tensor& x);
[[nodiscard]] Tensor relu(const Tensor& x);
[[nodiscard]] Tensor silu(const Tensor& x);      ///< x · sigmoid(x) (Elfwing et al., 2018)
[[nodiscard]] Tensor softplus(const Tensor& x);  ///< log(1 + eˣ)

/// Gaussian error linear unit (Hendrycks & Gimpel, 2016): x·Φ(x).
enum class Gelu { kTanh, kErf };  ///< GPT-2's approximation by tanh, or exact
[[nodiscard]] Tensor gelu(const Tensor& x, Gelu form = Gelu::kTanh);

}  // namespace tessera
