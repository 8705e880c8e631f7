#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

/// Matrix products of the CPU: the own loops of vector/few_rows.cpp, built for `set`, for up to kMostFewRows
/// rows that meet a weight [N, K]; oneDNN for large f32 products of other kinds (and bf16 where the CPU
/// multiplies bf16); the own loops of vector/gemm.cpp for all others.
///
/// Threads  What the own loops compute does not depend on the number of threads. oneDNN's blocking does: it
///          was seen to give other last bits with 3 threads than with 1 (260×270 · 270×300, AVX2), and to cut
///          K between threads when M·N is small. So KernelContext::invariant_products leaves oneDNN out,
///          and the loops for few rows too: they add in another order than those for many, and a cut of a
///          batch may leave few rows.
[[nodiscard]] const Matmul& matmul(InstructionSet set);

}  // namespace tessera::kernels
