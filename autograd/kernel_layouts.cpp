#include "autograd/kernel_layouts.h"

namespace tessera::detail {

std::int64_t num_rows(const Shape& shape) {
  std::int64_t rows = 1;
  for (int d = 0; d < shape.dims() - 1; ++d) rows *= shape[d];
  return rows;
}

Tensor with_unit_stride(const Tensor& x) {
  return x.strides()[-1] == 1 || x.dim(-1) == 1 ? x.detach() : x.detach().contiguous();
}

Tensor as_rows(const Tensor& x) {
  return x.detach().set_layout({}).contiguous().reshape({num_rows(x.shape()), x.dim(-1)});
}

}  // namespace tessera::detail
