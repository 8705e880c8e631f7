#include "kernels/kernels.h"

#include "kernels/cpu/isa.h"
#include "kernels/meta/meta.h"

namespace tessera::kernels {

const DeviceKernels& of(DeviceType type) {
  if (type == DeviceType::kMeta) return meta_kernels();
  static const DeviceKernels& cpu = cpu_kernels(instruction_set());
  return cpu;
}

const char* cpu_instruction_set() { return name(instruction_set()); }

}  // namespace tessera::kernels
