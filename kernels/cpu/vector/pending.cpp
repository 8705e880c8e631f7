// Families that have no source yet: a line goes when its family comes.
#include "kernels/cpu/vector/families.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {
alignas(8) const char missing[8] = {};
}  // namespace
const Attention& attention() noexcept { return reinterpret_cast<const Attention&>(missing); }
}  // namespace tessera::kernels::TESSERA_ISA
