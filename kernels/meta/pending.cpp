// Replaced by the meta kernels' own source.
#include "kernels/cpu/isa.h"
#include "kernels/meta/meta.h"

namespace tessera::kernels {
const DeviceKernels& meta_kernels() { return cpu_kernels(instruction_set()); }
}  // namespace tessera::kernels
