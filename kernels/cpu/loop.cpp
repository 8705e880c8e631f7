#include "kernels/cpu/loop.h"

#include <utility>

namespace tessera::kernels {

Loop make_loop(LoopOrder order, const ConstView& first, const ConstView* second, const ConstView* third,
               const ConstView* fourth) noexcept {
  const ConstView* views[Loop::kMaxOperands] = {&first, second, third, fourth};
  Loop loop;
  loop.num_operands = 0;
  for (const ConstView* view : views) {
    if (view == nullptr) break;
    loop.operands[loop.num_operands].data = static_cast<char*>(const_cast<void*>(view->data));
    loop.operands[loop.num_operands].dtype = view->dtype;
    ++loop.num_operands;
  }

  int order_of_dims[kMaxDims];
  int dims = 0;
  loop.size = 1;
  for (int d = 0; d < first.dims; ++d) {
    loop.size *= first.shape[d];
    if (first.shape[d] != 1) order_of_dims[dims++] = d;
  }
  if (order == LoopOrder::kFastest) {
    // Insertion sort by falling stride; stable, so that a contiguous view stays as it is.
    for (int i = 1; i < dims; ++i) {
      for (int j = i; j > 0 && first.strides[order_of_dims[j - 1]] < first.strides[order_of_dims[j]]; --j) {
        std::swap(order_of_dims[j - 1], order_of_dims[j]);
      }
    }
  }

  loop.dims = 0;
  for (int i = 0; i < dims; ++i) {
    const int d = order_of_dims[i];
    const std::int64_t size = first.shape[d];
    // One dimension with the one before it, if a step of that one is `size` steps of this one for every
    // operand.
    bool merges = loop.dims > 0;
    for (int k = 0; k < loop.num_operands && merges; ++k) {
      merges = loop.operands[k].strides[loop.dims - 1] == views[k]->strides[d] * size;
    }
    if (!merges) loop.shape[loop.dims++] = 1;
    loop.shape[loop.dims - 1] *= size;
    for (int k = 0; k < loop.num_operands; ++k)
      loop.operands[k].strides[loop.dims - 1] = views[k]->strides[d];
  }
  if (loop.dims == 0 || loop.size == 0) {
    loop.dims = 1;
    loop.shape[0] = loop.size;
    for (int k = 0; k < loop.num_operands; ++k) loop.operands[k].strides[0] = 1;
  }
  return loop;
}

}  // namespace tessera::kernels
