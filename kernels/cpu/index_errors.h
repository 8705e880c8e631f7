#pragma once

#include <cstdint>

namespace tessera::kernels {

/// Throws IndexError: "embedding: id 50300 at position 7 is outside [0, 50257)". Out of line, so that the
/// sources of vector/ can throw without instantiating anything.
[[noreturn]] void throw_index_error(const char* operation, const char* what, std::int64_t index,
                                    std::int64_t position, std::int64_t limit);

/// Throws IndexError for an integer division by zero.
[[noreturn]] void throw_division_by_zero();

}  // namespace tessera::kernels
