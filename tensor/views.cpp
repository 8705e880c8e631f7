// Views: new tensors on the same storage. Each states, after its geometry, how a gradient goes back through
// it.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/error.h"
#include "tensor/broadcast.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tensor/tensor_impl.h"

namespace tessera {
namespace {

// A template, so that no std::function is made where nothing is recorded.
template <class F>
Tensor recorded(const char* operation, const Tensor& input, Tensor output, F&& backward) {
  if (detail::must_record(input))
    input.autograd_meta()->record(operation, input, output, std::forward<F>(backward));
  return output;
}

// --- Layouts over ranks: where a view puts a dimension that is cut -----------------------------------------

// The layout of a view in which dimension d has become `moved(d)`; what is not cut stays as it is.
template <class F>
Layout moved(const Tensor& x, F&& new_place) {
  Layout layout = x.layout();
  if (layout.is_invariant()) return layout;
  if (!RankContext::current().check_layouts) return {};
  for (const MeshAxis axis : kMeshAxes) {
    if (layout[axis].is_sharded()) layout = layout.with(axis, new_place(axis, layout[axis]));
  }
  return layout;
}

[[noreturn]] void refuse(const char* operation, const Tensor& x, MeshAxis axis, const char* why) {
  throw LayoutError(fmt::format("{}: {} ({}) is cut along dimension {} on {}: {}", operation, describe(x),
                                to_string(x.layout()), x.layout()[axis].dim(), name(axis), why));
}

std::int64_t product(const Shape& shape, int end) {
  std::int64_t elements = 1;
  for (int d = 0; d < end; ++d) elements *= shape[d];
  return elements;
}

// Where reshape puts the dimension along which x is cut. A rank sees the sizes of its own part alone, and
// from them it must find the dimension that is longer over all ranks: of [B, T, H·K] cut into heads, H of
// [B, T, H, K]. `unknown` is where the caller wrote −1, or −1.
class ReshapedCut {
 public:
  ReshapedCut(const Tensor& x, MeshAxis axis, const Shape& to, int unknown)
      : x_(x), axis_(axis), cut_(x.layout()[axis]), to_(to), unknown_(unknown) {}

  [[nodiscard]] AxisLayout place() const {
    const Shape& from = x_.shape();
    const int d = cut_.dim();
    // With 1 of several here, the shape may look as if nothing happened to it: the caller says what did.
    const bool is_told = unknown_ >= 0 && from[d] == 1 && product(to_, unknown_) == product(from, d);
    if (is_told && !cut_.is_merged()) return cut_.moved_to(unknown_);
    int same = 0;
    while (same < from.dims() && same < to_.dims() && from[same] == to_[same]) ++same;
    if (d < same) return cut_;
    const std::int64_t before = product(from, d), through = before * from[d];
    const int outermost = cut_.is_merged() ? -1 : outermost_factor(same, before);
    if (outermost >= 0) {
      if (cut_.order() == AxisLayout::Order::kBalanced && to_[outermost] < from[d])
        refuse("reshape", x_, axis_, "its two chunks would become one dimension; gather it first");
      return cut_.moved_to(outermost);
    }
    int holder = 0;
    while (holder + 1 < to_.dims() && product(to_, holder + 1) <= before) ++holder;
    if (product(to_, holder + 1) < through)
      refuse("reshape", x_, axis_, "the new dimensions divide it otherwise on each rank; gather it first");
    return cut_.merged_into(holder);
  }

 private:
  // The first dimension before which as many elements stand as before the cut one: what is merged behind it
  // does not change the order of its pieces. Where this rank has 1 of several, sizes don't tell which of the
  // dimensions that could be it is.
  [[nodiscard]] int outermost_factor(int same, std::int64_t before) const {
    int first = -1, count = 0;
    for (int d = same; d < to_.dims(); ++d) {
      if (product(to_, d) != before) continue;
      if (d == unknown_) return d;
      if (count++ == 0) first = d;
    }
    if (count > 1 || (count == 1 && x_.dim(cut_.dim()) == 1)) {
      refuse(
          "reshape", x_, axis_,
          "this rank's sizes do not tell which of the new dimensions is the cut one: write -1 for that which "
          "is longer over all ranks, or use flatten");
    }
    return first;
  }

  const Tensor& x_;
  MeshAxis axis_;
  AxisLayout cut_;
  const Shape& to_;
  int unknown_;
};

int index_of(const Shape& shape, std::int64_t size) {
  for (int d = 0; d < shape.dims(); ++d) {
    if (shape[d] == size) return d;
  }
  return -1;
}

// Strides under which `shape` reads the elements of (from, strides) in the same order, if there are any.
// The old dimensions are merged into runs of elements at one common step; each new dimension must fit inside
// one run.
std::optional<Strides> reshaped_strides(const Shape& from, const Strides& strides, const Shape& shape) {
  if (from.num_elements() == 0) return contiguous_strides(shape);
  Shape run_sizes;
  Strides run_steps;
  for (int d = 0; d < from.dims(); ++d) {
    if (from[d] == 1) continue;
    if (run_sizes.dims() > 0 && run_steps[-1] == from[d] * strides[d]) {
      run_sizes[-1] *= from[d];
      run_steps[-1] = strides[d];
    } else {
      run_sizes.push_back(from[d]);
      run_steps.push_back(strides[d]);
    }
  }
  Strides result = Shape::filled(shape.dims(), 1);
  int run = run_sizes.dims() - 1;
  for (int d = shape.dims() - 1; d >= 0; --d) {
    if (shape[d] == 1) continue;
    if (run_sizes[run] == 1) --run;
    if (run_sizes[run] % shape[d] != 0) return std::nullopt;
    result[d] = run_steps[run];
    run_steps[run] *= shape[d];
    run_sizes[run] /= shape[d];
  }
  return result;
}

Shape resolve_minus_one(const Tensor& x, const Shape& shape) {
  Shape result = shape;
  int unknown = -1;
  for (int d = 0; d < shape.dims(); ++d) {
    if (shape[d] == -1 && unknown < 0) {
      unknown = d;
      result[d] = 1;
    } else if (shape[d] < 0) {
      throw ShapeError(
          fmt::format("reshape: {} has more than one unknown (-1) or a negative size", to_string(shape)));
    }
  }
  const std::int64_t known = result.num_elements();
  if (unknown >= 0 && known > 0) result[unknown] = x.num_elements() / known;
  if (result.num_elements() != x.num_elements() || (unknown >= 0 && known == 0)) {
    throw ShapeError(fmt::format("reshape: {} has {} elements and does not fit {}", describe(x),
                                 x.num_elements(), to_string(shape)));
  }
  return result;
}

// The sizes that dimension `dim` is taken apart into, without -1.
Shape unflattened(const Tensor& x, int dim, const Shape& sizes) {
  Shape result = sizes;
  const int unknown = index_of(sizes, -1);
  if (unknown >= 0) result[unknown] = 1;
  const std::int64_t known = result.num_elements();
  if (unknown >= 0 && known > 0) result[unknown] = x.dim(dim) / known;
  const bool is_negative = std::ranges::any_of(result, [](std::int64_t size) { return size < 0; });
  if (sizes.dims() == 0 || is_negative || result.num_elements() != x.dim(dim)) {
    throw ShapeError(fmt::format("unflatten: dimension {} of {} has {} elements and does not fit {}", dim,
                                 describe(x), x.dim(dim), to_string(sizes)));
  }
  return result;
}

}  // namespace

namespace {

// A view of the same elements in the same order, or of a copy of them, with cut dimensions where
// `new_place(axis, cut)` says.
template <class F>
Tensor reshaped(const Tensor& x, const Shape& target, F&& new_place) {
  const auto strides = reshaped_strides(x.shape(), x.strides(), target);
  if (!strides) return reshaped(x.contiguous(), target, new_place);
  if (target.dims() == 0) {
    static_cast<void>(moved(x, [&](MeshAxis axis, const AxisLayout&) -> AxisLayout {
      refuse("reshape", x, axis, "no dimension is left for it");
    }));
  }
  Tensor view = x.as_strided(target, *strides, x.offset());
  view.set_layout(moved(x, new_place));
  return recorded("reshape", x, view, [from = x.shape()](const Tensor& dy) { return dy.reshape(from); });
}

}  // namespace

Tensor Tensor::reshape(const Shape& requested) const {
  const Shape target = resolve_minus_one(*this, requested);
  const bool is_told = index_of(requested, -1) >= 0 && !layout().is_invariant();  // which dimension is cut
  if (target == shape() && !is_told) return *this;
  return reshaped(*this, target, [&](MeshAxis axis, const AxisLayout&) {
    return ReshapedCut(*this, axis, target, index_of(requested, -1)).place();
  });
}

Tensor Tensor::flatten(int first, int last) const {
  if (dims() == 0) return reshape({1});
  first = shape().normalize(first);
  last = shape().normalize(last);
  if (first > last)
    throw IndexError(fmt::format("flatten: first dimension {} lies after the last, {}", first, last));
  if (first == last) return *this;
  Shape target;
  for (int d = 0; d < dims(); ++d) {
    if (d > first && d <= last) {
      target[first] *= dim(d);
    } else {
      target.push_back(dim(d));
    }
  }
  return reshaped(*this, target, [&](MeshAxis, const AxisLayout& cut) {
    if (cut.dim() <= first) return cut;
    return cut.dim() <= last ? cut.merged_into(first) : cut.moved_to(cut.dim() - (last - first));
  });
}

Tensor Tensor::unflatten(int dim, const Shape& sizes) const {
  dim = shape().normalize(dim);
  const Shape parts = unflattened(*this, dim, sizes);
  Shape target;
  for (int d = 0; d < dims(); ++d) {
    if (d != dim) target.push_back(this->dim(d));
    if (d == dim) std::ranges::for_each(parts, [&target](std::int64_t size) { target.push_back(size); });
  }
  const int more = parts.dims() - 1;
  Tensor view = as_strided(target, *reshaped_strides(shape(), strides(), target), offset());
  view.set_layout(moved(*this, [&](MeshAxis axis, const AxisLayout& cut) {
    if (cut.dim() != dim) return cut.dim() < dim ? cut : cut.moved_to(cut.dim() + more);
    if (cut.is_merged() && more > 0)
      refuse("unflatten", *this, axis, "its elements are no neighbours on a rank; gather it first");
    if (cut.order() == AxisLayout::Order::kBalanced && more > 0)
      refuse("unflatten", *this, axis, "its two chunks would become one dimension; gather it first");
    return cut;
  }));
  return recorded("unflatten", *this, view,
                  [dim, last = dim + more](const Tensor& dy) { return dy.flatten(dim, last); });
}

Tensor Tensor::permute(std::span<const int> order) const {
  if (static_cast<int>(order.size()) != dims()) {
    throw ShapeError(fmt::format("permute: {} dimensions given for {}", order.size(), describe(*this)));
  }
  Shape target;
  Strides target_strides;
  std::array<int, kMaxDims> inverse;
  inverse.fill(-1);
  for (int i = 0; i < dims(); ++i) {
    const int d = shape().normalize(order[static_cast<std::size_t>(i)]);
    if (inverse[static_cast<std::size_t>(d)] >= 0) {
      throw ShapeError(fmt::format("permute: dimension {} of {} is given twice", d, describe(*this)));
    }
    inverse[static_cast<std::size_t>(d)] = i;
    target.push_back(dim(d));
    target_strides.push_back(strides()[d]);
  }
  Tensor view = as_strided(target, target_strides, offset());
  view.set_layout(moved(*this, [&](MeshAxis, const AxisLayout& cut) {
    return cut.moved_to(inverse[static_cast<std::size_t>(cut.dim())]);
  }));
  return recorded("permute", *this, view, [inverse, n = dims()](const Tensor& dy) {
    return dy.permute(std::span(inverse.data(), static_cast<std::size_t>(n)));
  });
}

Tensor Tensor::transpose(int a, int b) const {
  std::array<int, kMaxDims> order;
  for (int d = 0; d < kMaxDims; ++d) order[static_cast<std::size_t>(d)] = d;
  std::swap(order[static_cast<std::size_t>(shape().normalize(a))],
            order[static_cast<std::size_t>(shape().normalize(b))]);
  return permute(std::span(order.data(), static_cast<std::size_t>(dims())));
}

Tensor Tensor::slice(int d, std::int64_t begin, std::int64_t end, std::int64_t step) const {
  d = shape().normalize(d);
  if (step <= 0) throw IndexError(fmt::format("slice: the step must be positive, but it is {}", step));
  const std::int64_t size = dim(d);
  begin = std::clamp<std::int64_t>(begin < 0 ? begin + size : begin, 0, size);
  end = std::clamp<std::int64_t>(end < 0 ? end + size : end, begin, size);
  Shape target = shape();
  Strides target_strides = strides();
  target[d] = begin == end ? 0 : (end - begin - 1) / step + 1;
  target_strides[d] *= step;
  Tensor view = as_strided(target, target_strides, offset() + begin * strides()[d]);
  const bool is_whole = target[d] == size;
  view.set_layout(moved(*this, [&](MeshAxis axis, const AxisLayout& cut) {
    // Of packed parts (heads of queries, keys and values) each rank takes its share of one.
    const bool takes_a_part = cut.order() == AxisLayout::Order::kPacked && !cut.is_merged();
    if (cut.dim() == d && !is_whole && !takes_a_part)
      refuse("slice", *this, axis, "each rank would take these elements of its own piece; gather it first");
    return cut;
  }));
  // The gradient of what was cut away is 0.
  return recorded("slice", *this, view, [from = shape(), d, begin, end, step](const Tensor& dy) {
    Tensor dx = zeros(from, {.dtype = dy.dtype(), .device = dy.device()});
    dx.slice(d, begin, end, step).copy_from(dy);
    return dx;
  });
}

Tensor Tensor::select(int d, std::int64_t index) const {
  d = shape().normalize(d);
  const std::int64_t size = dim(d);
  if (index < -size || index >= size) {
    throw IndexError(
        fmt::format("select: index {} is outside dimension {} of {}", index, d, describe(*this)));
  }
  if (index < 0) index += size;
  return slice(d, index, index + 1).squeeze(d);
}

Tensor Tensor::expand(const Shape& requested) const {
  if (requested == shape()) return *this;
  const int added = requested.dims() - dims();
  if (added < 0) {
    throw ShapeError(
        fmt::format("expand: {} has more dimensions than {}", describe(*this), to_string(requested)));
  }
  Shape target = requested;
  Strides target_strides = Shape::filled(requested.dims(), 0);
  for (int d = 0; d < dims(); ++d) {
    std::int64_t& size = target[added + d];
    if (size == -1) size = dim(d);  // keeps its size
    if (size == dim(d)) {
      target_strides[added + d] = strides()[d];
    } else if (dim(d) != 1) {
      throw ShapeError(
          fmt::format("expand: {} does not expand to {}: its dimension {} has size {}, not 1 or {}",
                      describe(*this), to_string(requested), d, dim(d), size));
    }
  }
  for (const std::int64_t size : target) {
    if (size < 0)
      throw ShapeError(
          fmt::format("expand: {} has a negative size, or -1 for a new dimension; {} is to expand",
                      to_string(requested), describe(*this)));
  }
  // Each element was used many times: its gradient is the sum over the uses.
  Tensor view = as_strided(target, target_strides, offset());
  view.set_layout(moved(*this, [&](MeshAxis axis, const AxisLayout& cut) {
    if (target[cut.dim() + added] != dim(cut.dim()))
      refuse("expand", *this, axis, "this rank has one element of several; gather it first");
    return cut.moved_to(cut.dim() + added);
  }));
  return recorded("expand", *this, view,
                  [from = shape()](const Tensor& dy) { return sum_to_shape(dy, from); });
}

Tensor Tensor::squeeze(int d) const {
  d = shape().normalize(d);
  if (dim(d) != 1) throw ShapeError(fmt::format("squeeze: dimension {} of {} is not 1", d, describe(*this)));
  Shape target = shape();
  Strides target_strides = strides();
  target.erase(d);
  target_strides.erase(d);
  Tensor view = as_strided(target, target_strides, offset());
  view.set_layout(moved(*this, [&](MeshAxis axis, const AxisLayout& cut) {
    if (cut.dim() == d) refuse("squeeze", *this, axis, "other ranks have further elements of it");
    return cut.moved_to(cut.dim() - (cut.dim() > d ? 1 : 0));
  }));
  return recorded("squeeze", *this, view, [d](const Tensor& dy) { return dy.unsqueeze(d); });
}

Tensor Tensor::unsqueeze(int d) const {
  d = shape().normalize(d, /*extra=*/1);
  Shape target = shape();
  Strides target_strides = strides();
  target.insert(d, 1);
  target_strides.insert(d, d < dims() ? strides()[d] * dim(d) : 1);
  Tensor view = as_strided(target, target_strides, offset());
  view.set_layout(moved(*this, [&](MeshAxis, const AxisLayout& cut) {
    return cut.moved_to(cut.dim() + (cut.dim() >= d ? 1 : 0));
  }));
  return recorded("unsqueeze", *this, view, [d](const Tensor& dy) { return dy.squeeze(d); });
}

std::vector<Tensor> Tensor::chunk(int n, int d) const {
  if (n < 1) throw ShapeError(fmt::format("chunk: the number of chunks must be positive, but it is {}", n));
  const std::int64_t size = dim(d);
  std::vector<Tensor> chunks;
  for (int i = 0; i < n; ++i) {
    const std::int64_t begin = shard_begin(size, n, i);
    chunks.push_back(slice(d, begin, begin + shard_size(size, n, i)));
  }
  return chunks;
}

}  // namespace tessera
