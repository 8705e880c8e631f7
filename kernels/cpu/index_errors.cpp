#include "kernels/cpu/index_errors.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::kernels {

void throw_index_error(const char* operation, const char* what, std::int64_t index, std::int64_t position,
                       std::int64_t limit) {
  throw IndexError(
      fmt::format("{}: {} {} at position {} is outside [0, {}); check the data that it came from", operation,
                  what, index, position, limit));
}

void throw_division_by_zero() {
  throw IndexError("div: integer division by zero; divide in a floating-point dtype or mask the zeros first");
}

}  // namespace tessera::kernels
