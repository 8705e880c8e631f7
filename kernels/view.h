#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace tessera {

/// Largest number of dimensions of a tensor.
inline constexpr int kMaxDims = 8;

}  // namespace tessera

namespace tessera::kernels {

/// What a kernel sees of a tensor: where its first element lies, and how to step through it.
///
/// Strides count elements, not bytes; a stride of 0 repeats one element (broadcast). `data` is null on the
/// meta device and for empty tensors. A view borrows: it lives no longer than the tensor it was taken from.
template <class Pointer>
struct BasicView {
  Pointer data = nullptr;
  DType dtype = DType::kF32;
  int dims = 0;
  std::int64_t shape[kMaxDims] = {};
  std::int64_t strides[kMaxDims] = {};

  [[nodiscard]] TESSERA_INLINE std::int64_t num_elements() const {
    std::int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= shape[d];
    return n;
  }

  [[nodiscard]] TESSERA_INLINE std::int64_t size_bytes() const {
    return num_elements() * static_cast<std::int64_t>(tessera::size_bytes(dtype));
  }

  /// Row-major without gaps.
  [[nodiscard]] TESSERA_INLINE bool is_contiguous() const {
    std::int64_t expected = 1;
    for (int d = dims - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != expected) return false;
      expected *= shape[d];
    }
    return true;
  }
};

using View = BasicView<void*>;

/// A read-only view.
struct ConstView : BasicView<const void*> {
  ConstView() = default;
  // Implicit, so that an output of one kernel is an input of the next.
  TESSERA_INLINE ConstView(const View& view) {  // NOLINT(google-explicit-constructor)
    data = view.data;
    dtype = view.dtype;
    dims = view.dims;
    for (int d = 0; d < kMaxDims; ++d) {
      shape[d] = view.shape[d];
      strides[d] = view.strides[d];
    }
  }
};

}  // namespace tessera::kernels
