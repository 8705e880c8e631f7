#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/view.h"

namespace tessera::kernels::meta_device {

/// Bytes of the elements that `view` can reach: a broadcast dimension (stride 0) counts once.
template <class Pointer>
[[nodiscard]] std::int64_t touched_bytes(const BasicView<Pointer>& view) {
  std::int64_t elements = 1;
  for (int d = 0; d < view.dims; ++d) {
    if (view.strides[d] != 0 || view.shape[d] == 0) elements *= view.shape[d];
  }
  return elements * static_cast<std::int64_t>(size_bytes(view.dtype));
}

/// An optional operand is given by its shape, since on meta no view has data: an absent one is `ConstView()`,
/// which has no dimensions.
template <class Pointer>
[[nodiscard]] bool is_given(const BasicView<Pointer>& view) {
  return view.data != nullptr || view.dims > 0;
}

/// `operations` if they are done on floats of `dtype`, none otherwise.
[[nodiscard]] inline std::int64_t float_operations(DType dtype, std::int64_t operations) {
  return is_floating(dtype) ? operations : 0;
}

/// Adds one call to the rank's counts, those of all kernels and those of its kind:
///
///     Count().flops(2 * m * n * k).reads(a).reads(b).writes(c);
class Count {
 public:
  explicit Count(KernelKind kind = KernelKind::kOther)
      : all_(kernel_context().counts),
        of_kind_(kernel_context().counts_by_kind[static_cast<std::size_t>(kind)]) {
    add(&OpCounts::calls, 1);
  }

  Count& flops(std::int64_t operations) { return add(&OpCounts::flops, operations); }
  Count& reads_bytes(std::int64_t bytes) { return add(&OpCounts::bytes_read, bytes); }
  Count& writes_bytes(std::int64_t bytes) { return add(&OpCounts::bytes_written, bytes); }

  template <class Pointer>
  Count& reads(const BasicView<Pointer>& view) {
    return reads_bytes(touched_bytes(view));
  }
  template <class Pointer>
  Count& writes(const BasicView<Pointer>& view) {
    return writes_bytes(touched_bytes(view));
  }
  template <class Pointer>
  Count& updates(const BasicView<Pointer>& view) {
    return reads(view).writes(view);
  }

  /// The same for operands that the caller may leave out.
  template <class Pointer>
  Count& reads_if_given(const BasicView<Pointer>& view) {
    return is_given(view) ? reads(view) : *this;
  }
  template <class Pointer>
  Count& writes_if_given(const BasicView<Pointer>& view) {
    return is_given(view) ? writes(view) : *this;
  }

 private:
  Count& add(std::uint64_t OpCounts::*sum, std::int64_t amount) {
    all_.*sum += static_cast<std::uint64_t>(amount);
    of_kind_.*sum += static_cast<std::uint64_t>(amount);
    return *this;
  }

  OpCounts& all_;
  OpCounts& of_kind_;
};

}  // namespace tessera::kernels::meta_device
