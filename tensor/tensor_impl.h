#pragma once

// Private to tensor/: what a Tensor handle points to.

#include "tensor/tensor.h"

namespace tessera {

struct Tensor::Impl {
  Storage storage;
  Shape shape;
  Strides strides;
  std::int64_t offset = 0;
  DType dtype = kF32;
  std::shared_ptr<AutogradMeta> autograd;
};

namespace detail {

/// True if `x` takes part in a graph and gradients are enabled: an operation on it must be recorded.
[[nodiscard]] bool must_record(const Tensor& x);

}  // namespace detail
}  // namespace tessera
