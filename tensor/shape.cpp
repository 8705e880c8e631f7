#include "tensor/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "kernels/error.h"

namespace tessera {

Shape::Shape(std::initializer_list<std::int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const std::int64_t> sizes) {
  for (const std::int64_t size : sizes) push_back(size);
}

Shape Shape::filled(int dims, std::int64_t value) {
  Shape shape;
  for (int d = 0; d < dims; ++d) shape.push_back(value);
  return shape;
}

std::int64_t Shape::num_elements() const noexcept {
  std::int64_t n = 1;
  bool fits = true;
  for (const std::int64_t size : *this) {
    if (size == 0) return 0;
    fits = fits && !__builtin_mul_overflow(n, size, &n);
  }
  return fits ? n : std::numeric_limits<std::int64_t>::max();
}

void Shape::push_back(std::int64_t size) {
  if (dims_ == kMaxDims)
    throw ShapeError(fmt::format("shape: at most {} dimensions are supported", kMaxDims));
  sizes_[static_cast<std::size_t>(dims_++)] = size;
}

void Shape::insert(int position, std::int64_t size) {
  push_back(size);
  std::rotate(sizes_.begin() + position, sizes_.begin() + dims_ - 1, sizes_.begin() + dims_);
}

void Shape::erase(int position) {
  std::copy(sizes_.begin() + position + 1, sizes_.begin() + dims_, sizes_.begin() + position);
  sizes_[static_cast<std::size_t>(--dims_)] = 0;
}

void Shape::throw_outside(int d, int limit) const {
  throw IndexError(
      fmt::format("shape {}: dimension {} is outside [{}, {})", to_string(*this), d, -limit, limit));
}

bool operator==(const Shape& a, const Shape& b) noexcept {
  return a.dims_ == b.dims_ && std::equal(a.begin(), a.end(), b.begin());
}

std::string to_string(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

Strides contiguous_strides(const Shape& shape) {
  Strides strides = Shape::filled(shape.dims(), 1);
  for (int d = shape.dims() - 2; d >= 0; --d)
    strides[d] = strides[d + 1] * std::max<std::int64_t>(shape[d + 1], 1);
  return strides;
}

std::int64_t shard_size(std::int64_t size, int num_ranks, int rank) noexcept {
  return size / num_ranks + (rank < size % num_ranks ? 1 : 0);
}

std::int64_t shard_begin(std::int64_t size, int num_ranks, int rank) noexcept {
  return size / num_ranks * rank + std::min<std::int64_t>(rank, size % num_ranks);
}

}  // namespace tessera
