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
  Layout layout;
  std::shared_ptr<AutogradMeta> autograd;
};

}  // namespace tessera
