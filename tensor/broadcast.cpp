#include "tensor/broadcast.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {

Shape broadcast_shapes(const char* operation, const Shape& a, const Shape& b) {
  const Shape& longer = a.dims() >= b.dims() ? a : b;
  const Shape& shorter = a.dims() >= b.dims() ? b : a;
  Shape result = longer;
  for (int d = 1; d <= shorter.dims(); ++d) {
    if (longer[-d] == shorter[-d] || shorter[-d] == 1) continue;
    if (longer[-d] != 1) {
      throw ShapeError(
          fmt::format("{}: shapes {} and {} do not broadcast: dimension {} has sizes {} and {}; they must be "
                      "equal, or one of them 1",
                      operation, to_string(a), to_string(b), -d, a[-d], b[-d]));
    }
    result[-d] = shorter[-d];
  }
  return result;
}

void check_same_device(const char* operation, const Tensor& a, const Tensor& b) {
  if (a.device() == b.device()) return;
  throw DeviceError(fmt::format("{}: {} is on {}, but {} is on {}", operation, describe(a),
                                to_string(a.device()), describe(b), to_string(b.device())));
}

DType promote(DType a, DType b) {
  if (a == b) return a;
  if (is_floating(a) != is_floating(b)) return is_floating(a) ? a : b;
  if (is_floating(a)) {
    // f16 and bf16 have no common 16-bit type: neither holds the other's values.
    if (size_bytes(a) == size_bytes(b)) return kF32;
    return size_bytes(a) > size_bytes(b) ? a : b;
  }
  if (a == kBool || b == kBool) return a == kBool ? b : a;
  return size_bytes(a) > size_bytes(b) ? a : b;
}

Tensor sum_to_shape(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  // Dimensions that `shape` lacks lead; give it size 1 there, sum, and drop them again.
  Shape aligned = Shape::filled(x.dims() - shape.dims(), 1);
  for (const std::int64_t size : shape) aligned.push_back(size);
  Tensor sum = empty(aligned, {.dtype = x.dtype(), .device = x.device()});
  kernels::of(x.device().type).reductions.reduce(kernels::ReduceOp::kSum, x.view(), sum.mutable_view());
  return sum.reshape(shape);
}

}  // namespace tessera
