#pragma once

#include "kernels/kernels.h"

namespace tessera::kernels {

/// The kernels of the meta device: they count calls, flops and bytes in the kernel context and touch no data.
[[nodiscard]] const DeviceKernels& meta_kernels();

}  // namespace tessera::kernels
