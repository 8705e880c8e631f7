#pragma once

#include "kernels/kernels.h"

namespace tessera::kernels {

/// The builds of vector/ that this library may hold: x86-64-v2, -v3 (AVX2, FMA) and -v4 (AVX-512).
enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

/// "baseline", "avx2", "avx512".
[[nodiscard]] const char* name(InstructionSet set) noexcept;

/// True if it was compiled in and this machine has it.
[[nodiscard]] bool is_supported(InstructionSet set) noexcept;

/// The set that kernels::of(DeviceType::kCpu) uses: the best that is supported, or the one that the
/// environment variable TESSERA_ISA names (for tests and measurements). Chosen at the first call, then fixed.
///
/// Errors: ConfigError if TESSERA_ISA names no set or one that is not supported here.
[[nodiscard]] InstructionSet instruction_set();

/// The CPU kernels built for `set`, which must be supported. Tests compare the sets with each other.
[[nodiscard]] const DeviceKernels& cpu_kernels(InstructionSet set);

}  // namespace tessera::kernels
