#pragma once

// The families that vector/ implements once per instruction set, each set in a namespace of its own:
// tessera::kernels::baseline, ::avx2, ::avx512. A source in vector/ is compiled with TESSERA_ISA defined as
// one of the three and writes `namespace tessera::kernels::TESSERA_ISA { ... }`.
//
// Rule for those sources: no inline function or template from outside the namespace may be emitted, since the
// linker keeps one copy for all and could give AVX-512 code to a machine without it. So: no STL containers or
// algorithms, helpers are TESSERA_INLINE, errors are thrown by functions of kernels/cpu/*.cpp. A CTest test
// reads the symbols of the objects and checks the rule.

#include "kernels/kernels.h"

#define TESSERA_DECLARE_FAMILIES(isa)                          \
  namespace isa {                                              \
  [[nodiscard]] const Elementwise& elementwise() noexcept;     \
  [[nodiscard]] const Reductions& reductions() noexcept;       \
  [[nodiscard]] const Normalization& normalization() noexcept; \
  [[nodiscard]] const Attention& attention() noexcept;         \
  [[nodiscard]] const Losses& losses() noexcept;               \
  [[nodiscard]] const Indexing& indexing() noexcept;           \
  [[nodiscard]] const Random& random() noexcept;               \
  [[nodiscard]] const Updates& updates() noexcept;             \
  }

namespace tessera::kernels {
TESSERA_DECLARE_FAMILIES(baseline)
TESSERA_DECLARE_FAMILIES(avx2)
TESSERA_DECLARE_FAMILIES(avx512)
}  // namespace tessera::kernels

#undef TESSERA_DECLARE_FAMILIES
