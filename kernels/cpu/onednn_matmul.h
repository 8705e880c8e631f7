#pragma once

#include "kernels/cpu/vector/gemm.h"

namespace tessera::kernels {

/// True if oneDNN multiplies `dtype` on this machine faster than the own loops would: f32 always, bf16 where
/// the CPU has instructions for it (oneDNN 2.6 has no bf16 product for AVX2, and emulates it on the first
/// AVX-512 CPUs).
[[nodiscard]] bool onednn_has_fast(DType dtype);

/// c ← a·b (+ bias) (+ c) through oneDNN for one matrix (the batch of `p` is ignored): false, with nothing
/// done, if oneDNN has no kernel for the strides or dtypes. Primitives are kept in
/// kernel_context().cpu_cache.
///
/// Errors: tessera::Error with oneDNN's message for any other failure.
[[nodiscard]] bool onednn_matmul(const GemmProblem& p);

}  // namespace tessera::kernels
