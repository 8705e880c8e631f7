// Copies: contiguous, clone, and conversions of dtype and device. Their gradients are copies the other way.

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"
#include "tensor/tensor_impl.h"

namespace tessera {
namespace {

Tensor copied(const char* operation, const Tensor& x, DType dtype) {
  Tensor y = empty(x.shape(), {.dtype = dtype, .device = x.device()});
  y.set_layout(x.layout());
  kernels::of(x.device().type).elementwise.copy(x.view(), y.mutable_view());
  if (detail::must_record(x) && is_floating(dtype)) {
    x.autograd_meta()->record(operation, x, y, [from = x.dtype()](const Tensor& dy) { return dy.to(from); });
  }
  return y;
}

}  // namespace

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : copied("contiguous", *this, dtype()); }

Tensor Tensor::clone() const { return copied("clone", *this, dtype()); }

Tensor Tensor::to(DType dtype) const { return dtype == this->dtype() ? *this : copied("to", *this, dtype); }

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  if (this->device() == meta) {
    throw DeviceError(
        fmt::format("to: {} on meta has no data to copy to {}; materialise the module that owns it",
                    describe(*this), tessera::to_string(device)));
  }
  if (device != meta) {
    throw DeviceError(fmt::format("to: there is no way from {} to {} {}", tessera::to_string(this->device()),
                                  tessera::to_string(device), device.index));
  }
  return empty(shape(), {.dtype = dtype(), .device = device}).set_layout(layout());
}

}  // namespace tessera
