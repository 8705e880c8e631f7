#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

struct TensorOptions {
  DType dtype = kF32;
  std::optional<Device> device = std::nullopt;  ///< default: the rank's, usually cpu
};

/// Contents are not initialised.
/// Errors   ShapeError for a negative size or more than 2^63 bytes; StorageError if there is no memory left.
[[nodiscard]] Tensor empty(const Shape& shape, const TensorOptions& options = {});
/// Dtype and device of `x`, contiguous.
[[nodiscard]] Tensor empty_like(const Tensor& x);
[[nodiscard]] Tensor full(const Shape& shape, double value, const TensorOptions& options = {});
[[nodiscard]] Tensor zeros(const Shape& shape, const TensorOptions& options = {});
[[nodiscard]] Tensor ones(const Shape& shape, const TensorOptions& options = {});
[[nodiscard]] Tensor zeros_like(const Tensor& x);
[[nodiscard]] Tensor ones_like(const Tensor& x);
/// start, start + step, ... below (for negative steps: above) `end`.
[[nodiscard]] Tensor arange(double start, double end, double step = 1.0,
                            const TensorOptions& options = {.dtype = kI64});
/// Identity matrix [n, n].
[[nodiscard]] Tensor eye(std::int64_t n, const TensorOptions& options = {});
/// A tensor without dimensions.
[[nodiscard]] Tensor scalar(double value, const TensorOptions& options = {});

/// Copies `values` (row-major); dtype from T. `shape` defaults to one dimension.
/// Errors   ShapeError if the sizes do not match.
template <class T>
[[nodiscard]] Tensor from_vector(const std::vector<T>& values, std::optional<Shape> shape = std::nullopt);
template <class T>
[[nodiscard]] Tensor from_span(std::span<const T> values, std::optional<Shape> shape = std::nullopt);
/// Copies size_bytes(shape, dtype) bytes from `data`.
[[nodiscard]] Tensor from_memory(const void* data, const Shape& shape, DType dtype);
/// A tensor on memory that the caller keeps alive and unmoved longer than every handle and view of it.
[[nodiscard]] Tensor borrow_memory(void* data, const Shape& shape, DType dtype);

/// Random tensors. The value of an element is f(seed, stream, step, its row-major index): equal on every rank
/// and on every run, different for each stream name, and different in each step of a training loop that sets
/// RankContext::step. Floating dtypes only.
[[nodiscard]] Tensor uniform(const Shape& shape, double low, double high, std::string_view stream,
                             const TensorOptions& options = {});
[[nodiscard]] Tensor normal(const Shape& shape, double mean, double stddev, std::string_view stream,
                            const TensorOptions& options = {});

}  // namespace tessera
