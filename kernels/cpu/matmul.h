#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

/// Matrix products of the CPU: oneDNN for large f32 products (and bf16 where the CPU multiplies bf16), the
/// own loops of vector/gemm.cpp, built for `set`, for all others.
///
/// Threads  What the own loops compute does not depend on the number of threads. oneDNN's blocking does: it
///          was seen to give other last bits with 3 threads than with 1 (260×270 · 270×300, AVX2), and to cut
///          K between threads when M·N is small. So KernelContext::invariant_products leaves oneDNN out.
[[nodiscard]] const Matmul& matmul(InstructionSet set);

}  // namespace tessera::kernels
