#pragma once

#include <cstdint>
#include <span>

#include "kernels/dtype.h"

namespace tessera::dist {

/// How a reduction combines elements. The maximum (minimum) of anything and NaN is NaN.
enum class ReduceOp : std::uint8_t { kSum, kMax, kMin };

/// "sum", "max", "min".
[[nodiscard]] const char* name(ReduceOp op) noexcept;

/// True for the types that `reduce` takes: f64, f32, f16, bf16, i64, i32.
[[nodiscard]] bool is_reducible(DType dtype) noexcept;

/// Combines the i-th elements of all inputs, for i in [0, count), and writes the result to every output.
///
/// The order is a tree that depends on the number of inputs alone: inputs [0, R) are combined as ([0, h)) +
/// ([h, R)) with h the largest power of two below R, and so on down. That is the order in which a binary
/// counter adds up a row of summands, so R ranks that each accumulated an equal share of a batch get the bits
/// that one rank gets (Invariant numerics); and it is the same in every backend.
/// f16 and bf16 are combined in f32 and rounded once.
///
/// Aliasing  An output may be one of the inputs; other overlaps are not allowed.
/// Threads   The rank's kernel threads (kernel_context().num_threads) share the work.
/// Cost      Each input is read once, each output written once.
/// Errors    DTypeError if `dtype` is not reducible.
void reduce(std::span<const void* const> inputs, std::span<void* const> outputs, std::int64_t count,
            DType dtype, ReduceOp op);

}  // namespace tessera::dist
