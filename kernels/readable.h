#pragma once

#include <cstdint>
#include <string>

namespace tessera {

// Numbers as people read them.

/// 4404412 → "4,404,412".
[[nodiscard]] std::string with_commas(std::int64_t n);
/// 74500000 → "74.5 MB": three digits, powers of ten.
[[nodiscard]] std::string with_byte_unit(std::int64_t bytes);

}  // namespace tessera
