#pragma once

#include "kernels/kernels.h"

namespace tessera::kernels {

/// Matrix products of the CPU. One for all instruction sets: oneDNN chooses at run time by itself.
[[nodiscard]] const Matmul& matmul();

}  // namespace tessera::kernels
