#pragma once

// The families of the meta device, one source each. Every kernel states its count in a comment, in operations
// per element or per row, by these rules:
//  - One operation per addition, product, quotient, maximum or comparison, and one per elementary function
//    (exp, log, sin, cos, tanh, erf, square root) of the formula as it is usually written. Integers and bools
//    count none.
//  - A fused multiply-add is two. What depends on data is counted as if no case were special (no ignored
//    target).
//  - Bytes are those of the operands, each element once, whatever a cache would save or a blocked loop read
//    again; an operand that is updated in place is both read and written. Workspace is not counted.

#include "kernels/kernels.h"

namespace tessera::kernels::meta_device {

[[nodiscard]] const Elementwise& elementwise() noexcept;
[[nodiscard]] const Reductions& reductions() noexcept;
[[nodiscard]] const Matmul& matmul() noexcept;
[[nodiscard]] const Normalization& normalization() noexcept;
[[nodiscard]] const Attention& attention() noexcept;
[[nodiscard]] const Losses& losses() noexcept;
[[nodiscard]] const Indexing& indexing() noexcept;
[[nodiscard]] const Random& random() noexcept;
[[nodiscard]] const Updates& updates() noexcept;

}  // namespace tessera::kernels::meta_device
