// Families that have no source yet: a line goes when its family comes.
#include "kernels/cpu/vector/families.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {
alignas(8) const char missing[8] = {};
}  // namespace
const Attention& attention() noexcept { return reinterpret_cast<const Attention&>(missing); }
const Indexing& indexing() noexcept { return reinterpret_cast<const Indexing&>(missing); }
const Random& random() noexcept { return reinterpret_cast<const Random&>(missing); }
const Updates& updates() noexcept { return reinterpret_cast<const Updates&>(missing); }
}  // namespace tessera::kernels::TESSERA_ISA
