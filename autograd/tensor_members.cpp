// The members of Tensor through which autograd is used. They are declared in tensor/tensor.h, which knows
// nothing of the graph.

#include <fmt/format.h>

#include "autograd/backward.h"
#include "kernels/error.h"

namespace tessera {

Tensor& Tensor::set_requires_grad(bool requires_grad) {
  if (requires_grad && !is_floating(dtype())) {
    throw DTypeError(
        fmt::format("set_requires_grad: {} has no gradients: only floating dtypes do", describe(*this)));
  }
  if (GradInfo* info = grad_info(*this); info != nullptr && !info->is_leaf()) {
    throw AutogradError("set_requires_grad: the tensor is the result of an operation; detach() it first");
  }
  if (grad_info(*this) == nullptr) {
    auto info = std::make_shared<GradInfo>();
    info->grad_dtype = accumulation_dtype(dtype());
    set_autograd_meta(std::move(info));
  }
  grad_info(*this)->wanted = requires_grad;
  return *this;
}

Tensor Tensor::grad() const {
  const GradInfo* info = grad_info(*this);
  return info == nullptr ? Tensor() : info->grad;
}

void Tensor::set_grad(Tensor grad) {
  if (!requires_grad())
    throw AutogradError(fmt::format("set_grad: {} does not require gradients", describe(*this)));
  if (grad.defined() && grad.shape() != shape()) {
    throw ShapeError(fmt::format("set_grad: a gradient {} for a tensor {}", describe(grad), describe(*this)));
  }
  grad_info(*this)->grad = std::move(grad);
}

void Tensor::backward() const { tessera::backward(*this); }

}  // namespace tessera
