#include "kernels/cpu/isa.h"

#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/error.h"

namespace tessera::kernels {
namespace {

constexpr InstructionSet kAllSets[] = {InstructionSet::kBaseline, InstructionSet::kAvx2,
                                       InstructionSet::kAvx512};

InstructionSet choose() {
  if (const char* wanted = std::getenv("TESSERA_ISA"); wanted != nullptr && *wanted != '\0') {
    for (const InstructionSet set : kAllSets) {
      if (std::string_view(wanted) == name(set) && is_supported(set)) return set;
    }
    throw ConfigError(
        fmt::format("TESSERA_ISA: expected an instruction set of this machine and build (baseline, avx2 or "
                    "avx512), got \"{}\"; "
                    "unset it to use the best one",
                    wanted));
  }
  InstructionSet best = InstructionSet::kBaseline;
  for (const InstructionSet set : kAllSets) {
    if (is_supported(set)) best = set;
  }
  return best;
}

}  // namespace

const char* name(InstructionSet set) noexcept {
  switch (set) {
    case InstructionSet::kBaseline:
      return "baseline";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
  }
  return "?";
}

bool is_supported(InstructionSet set) noexcept {
#ifdef TESSERA_HAS_AVX2
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (set == InstructionSet::kAvx2) return avx2;
#endif
#ifdef TESSERA_HAS_AVX512
  if (set == InstructionSet::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == InstructionSet::kBaseline;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

// clang-format off
#define TESSERA_CPU_KERNELS(isa, set)                                                               \
  {                                                                                                 \
    isa::elementwise(), isa::reductions(), matmul(set), isa::normalization(), isa::attention(),     \
    isa::losses(), isa::indexing(), isa::random(), isa::updates()                                   \
  }
// clang-format on

const DeviceKernels& cpu_kernels([[maybe_unused]] InstructionSet set) {
#ifdef TESSERA_HAS_AVX2
  static const DeviceKernels avx2_kernels = TESSERA_CPU_KERNELS(avx2, InstructionSet::kAvx2);
  if (set == InstructionSet::kAvx2) return avx2_kernels;
#endif
#ifdef TESSERA_HAS_AVX512
  static const DeviceKernels avx512_kernels = TESSERA_CPU_KERNELS(avx512, InstructionSet::kAvx512);
  if (set == InstructionSet::kAvx512) return avx512_kernels;
#endif
  static const DeviceKernels baseline_kernels = TESSERA_CPU_KERNELS(baseline, InstructionSet::kBaseline);
  return baseline_kernels;
}

}  // namespace tessera::kernels
