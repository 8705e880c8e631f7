#include "tensor/create.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"

namespace tessera {
namespace {

const kernels::DeviceKernels& kernels_of(const Tensor& x) { return kernels::of(x.device().type); }

TensorOptions options_of(const Tensor& x) { return {.dtype = x.dtype(), .device = x.device()}; }

// The bytes of a contiguous tensor; neither a negative size nor a product beyond 2^63 passes.
std::size_t checked_bytes(const char* operation, const Shape& shape, DType dtype) {
  auto bytes = static_cast<std::int64_t>(size_bytes(dtype));
  bool fits = true;
  for (const std::int64_t size : shape) {
    if (size < 0)
      throw ShapeError(fmt::format("{}: shape {} has a negative size", operation, to_string(shape)));
    if (size == 0) return 0;
    fits = fits && !__builtin_mul_overflow(bytes, size, &bytes);
  }
  if (!fits) {
    throw ShapeError(
        fmt::format("{}: shape {} of {} has more than 2^63 bytes", operation, to_string(shape), name(dtype)));
  }
  return static_cast<std::size_t>(bytes);
}

void check_floating(const char* operation, DType dtype) {
  if (!is_floating(dtype)) {
    throw DTypeError(fmt::format("{}: makes floating numbers, but {} was asked for; convert them with to()",
                                 operation, name(dtype)));
  }
}

}  // namespace

Tensor empty(const Shape& shape, const TensorOptions& options) {
  const RankContext& context = RankContext::current();
  const std::size_t bytes = checked_bytes("empty", shape, options.dtype);
  Storage storage(context.pool(options.device.value_or(context.default_device)), bytes, context.category);
  return Tensor(std::move(storage), shape, contiguous_strides(shape), 0, options.dtype);
}

Tensor empty_like(const Tensor& x) { return empty(x.shape(), options_of(x)); }

Tensor full(const Shape& shape, double value, const TensorOptions& options) {
  Tensor x = empty(shape, options);
  x.fill(value);
  return x;
}

Tensor zeros(const Shape& shape, const TensorOptions& options) { return full(shape, 0.0, options); }
Tensor ones(const Shape& shape, const TensorOptions& options) { return full(shape, 1.0, options); }
Tensor zeros_like(const Tensor& x) { return zeros(x.shape(), options_of(x)); }
Tensor ones_like(const Tensor& x) { return ones(x.shape(), options_of(x)); }
Tensor scalar(double value, const TensorOptions& options) { return full({}, value, options); }

Tensor arange(double start, double end, double step, const TensorOptions& options) {
  const double steps = std::ceil((end - start) / step);
  if (!(std::fabs(steps) < 0x1p62)) {
    throw ShapeError(
        fmt::format("arange: from {} to {} in steps of {} is no finite number of steps", start, end, step));
  }
  Tensor x = empty({steps > 0 ? static_cast<std::int64_t>(steps) : 0}, options);
  kernels_of(x).elementwise.arange(x.mutable_view(), start, step);
  return x;
}

Tensor eye(std::int64_t n, const TensorOptions& options) {
  Tensor x = zeros({n, n}, options);
  x.as_strided({n}, {n + 1}, 0).fill(1.0);
  return x;
}

Tensor from_memory(const void* data, const Shape& shape, DType dtype) {
  Tensor x = empty(shape, {.dtype = dtype, .device = cpu});
  if (x.size_bytes() > 0) std::memcpy(x.mutable_view().data, data, static_cast<std::size_t>(x.size_bytes()));
  return x;
}

Tensor borrow_memory(void* data, const Shape& shape, DType dtype) {
  const std::size_t bytes = checked_bytes("borrow_memory", shape, dtype);
  return Tensor(Storage::borrow(data, bytes, cpu), shape, contiguous_strides(shape), 0, dtype);
}

template <class T>
Tensor from_span(std::span<const T> values, std::optional<Shape> shape) {
  const Shape target = shape.value_or(Shape{static_cast<std::int64_t>(values.size())});
  if (target.num_elements() != static_cast<std::int64_t>(values.size())) {
    throw ShapeError(fmt::format("from_span: {} values for shape {}", values.size(), to_string(target)));
  }
  return from_memory(values.data(), target, dtype_of<T>);
}

template <class T>
Tensor from_vector(const std::vector<T>& values, std::optional<Shape> shape) {
  return from_span(std::span<const T>(values), shape);
}

// std::vector<bool> has no contiguous elements to copy.
template <>
Tensor from_vector(const std::vector<bool>& values, std::optional<Shape> shape) {
  const auto elements = std::make_unique<bool[]>(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) elements[i] = values[i];
  return from_span(std::span<const bool>(elements.get(), values.size()), shape);
}

#define TESSERA_INSTANTIATE(T)                                                      \
  template Tensor from_span(std::span<const T> values, std::optional<Shape> shape); \
  template Tensor from_vector(const std::vector<T>& values, std::optional<Shape> shape);
TESSERA_INSTANTIATE(double)
TESSERA_INSTANTIATE(float)
TESSERA_INSTANTIATE(Float16)
TESSERA_INSTANTIATE(BFloat16)
TESSERA_INSTANTIATE(std::int64_t)
TESSERA_INSTANTIATE(std::int32_t)
TESSERA_INSTANTIATE(std::uint8_t)
#undef TESSERA_INSTANTIATE
template Tensor from_span(std::span<const bool> values, std::optional<Shape> shape);

Tensor uniform(const Shape& shape, double low, double high, std::string_view stream,
               const TensorOptions& options) {
  check_floating("uniform", options.dtype);
  Tensor x = empty(shape, options);
  const kernels::View view = x.mutable_view();
  kernels_of(x).random.uniform(view, low, high, RankContext::current().random_key(stream),
                               kernels::GlobalIndex::row_major(view));
  return x;
}

Tensor normal(const Shape& shape, double mean, double stddev, std::string_view stream,
              const TensorOptions& options) {
  check_floating("normal", options.dtype);
  Tensor x = empty(shape, options);
  const kernels::View view = x.mutable_view();
  kernels_of(x).random.normal(view, mean, stddev, RankContext::current().random_key(stream),
                              kernels::GlobalIndex::row_major(view));
  return x;
}

}  // namespace tessera
