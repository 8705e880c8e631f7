#include "kernels/meta/meta.h"

#include "kernels/meta/families.h"

namespace tessera::kernels {

const DeviceKernels& meta_kernels() {
  static const DeviceKernels table{
      .elementwise = meta_device::elementwise(),
      .reductions = meta_device::reductions(),
      .matmul = meta_device::matmul(),
      .normalization = meta_device::normalization(),
      .attention = meta_device::attention(),
      .losses = meta_device::losses(),
      .indexing = meta_device::indexing(),
      .random = meta_device::random(),
      .updates = meta_device::updates(),
  };
  return table;
}

}  // namespace tessera::kernels
