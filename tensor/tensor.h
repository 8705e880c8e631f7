#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/view.h"
#include "tensor/autograd_meta.h"
#include "tensor/device.h"
#include "tensor/layout.h"
#include "tensor/shape.h"
#include "tensor/storage.h"

namespace tessera {

/// An n-dimensional array: a cheap handle on a storage, with a shape, strides, an offset and a dtype.
///
/// Copying a Tensor copies the handle: both see the same elements. `clone()` copies the elements. Views
/// (reshape, slice, permute, ...) are new tensors on the same storage. Operations with arithmetic stand in
/// `autograd/ops.h`; this class has geometry, element access, views, copies and the members through which
/// autograd is used.
///
/// Threads   One tensor is used by one rank at a time; handles may be destroyed on any thread.
/// Example   Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, {2, 3});
///           x.transpose(0, 1).slice(0, 1, 3).to_vector<float>();        // {2, 5, 3, 6}
class Tensor {
 public:
  /// An undefined tensor: no shape, no data. `defined()` tells.
  Tensor() = default;
  /// A view of `storage`; strides and offset in elements. Checks that it lies inside.
  Tensor(Storage storage, const Shape& shape, const Strides& strides, std::int64_t offset, DType dtype);

  [[nodiscard]] bool defined() const noexcept { return impl_ != nullptr; }

  // --- Geometry --------------------------------------------------------------------------------------------
  [[nodiscard]] const Shape& shape() const;
  [[nodiscard]] const Strides& strides() const;
  [[nodiscard]] std::int64_t offset() const;
  [[nodiscard]] DType dtype() const;
  [[nodiscard]] Device device() const;
  [[nodiscard]] int dims() const { return shape().dims(); }
  /// Size of dimension `d`; negative ones count from the end.
  [[nodiscard]] std::int64_t dim(int d) const { return shape()[d]; }
  [[nodiscard]] std::int64_t num_elements() const { return shape().num_elements(); }
  [[nodiscard]] std::int64_t size_bytes() const;
  [[nodiscard]] bool is_contiguous() const;
  [[nodiscard]] const Storage& storage() const;

  // --- Ranks -----------------------------------------------------------------------------------------------
  /// How this tensor lies on the ranks of a mesh: I everywhere unless somebody says otherwise.
  [[nodiscard]] const Layout& layout() const;
  /// Says what this handle (and its copies) is a part of; moves nothing. IndexError for S(d) of a dimension
  /// that is not there. Returns itself.
  Tensor& set_layout(const Layout& layout);

  // --- Elements --------------------------------------------------------------------------------------------
  /// First element, for reading. Errors: DTypeError if T is not the dtype, StorageError if dropped,
  /// DeviceError on meta.
  template <class T>
  [[nodiscard]] const T* data() const {
    return static_cast<const T*>(checked_data(dtype_of<T>));
  }
  /// First element, for writing: counts as a change in place.
  template <class T>
  [[nodiscard]] T* mutable_data() {
    storage_for_writing().bump_version();
    return static_cast<T*>(checked_data(dtype_of<T>));
  }
  /// The value of a tensor with one element, converted; integers to integers exactly. ShapeError if it has
  /// more or fewer.
  template <class T = double>
  [[nodiscard]] T item() const {
    if constexpr (std::is_integral_v<T>) {
      if (!is_floating(dtype())) return static_cast<T>(item_as_integer());
    }
    return static_cast<T>(item_as_double());
  }
  /// One element, converted: x.at({0, -1}). IndexError outside.
  [[nodiscard]] double at(std::initializer_list<std::int64_t> index) const;
  void set(std::initializer_list<std::int64_t> index, double value);
  /// All elements in row-major order, converted to T.
  template <class T>
  [[nodiscard]] std::vector<T> to_vector() const;

  // --- Views: no copy, differentiable ----------------------------------------------------------------------
  /// The same elements in row-major order under another shape; one size may be -1. Copies only if strides
  /// force it.
  [[nodiscard]] Tensor reshape(const Shape& shape) const;
  [[nodiscard]] Tensor flatten(int first = 0, int last = -1) const;
  /// Dimension `dim` taken apart, the others as they are; one size may be -1. Where ranks have cut `dim`, the
  /// first of its sizes is cut: each has whole rows of the others.
  [[nodiscard]] Tensor unflatten(int dim, const Shape& sizes) const;
  /// Dimension i of the result is dimension order[i].
  [[nodiscard]] Tensor permute(std::initializer_list<int> order) const {
    return permute(std::span(order.begin(), order.size()));
  }
  [[nodiscard]] Tensor permute(std::span<const int> order) const;
  [[nodiscard]] Tensor transpose(int a, int b) const;
  /// Elements [begin, end) of dimension `d`, every `step`-th (step > 0). Negative bounds count from the end;
  /// bounds outside are cut to the dimension, as in Python.
  [[nodiscard]] Tensor slice(int d, std::int64_t begin, std::int64_t end, std::int64_t step = 1) const;
  /// Element `index` of dimension `d`, which disappears.
  [[nodiscard]] Tensor select(int d, std::int64_t index) const;
  /// Repeats dimensions of size 1 without copying; new leading dimensions may appear; -1 keeps a size.
  [[nodiscard]] Tensor expand(const Shape& shape) const;
  [[nodiscard]] Tensor squeeze(int d) const;
  [[nodiscard]] Tensor unsqueeze(int d) const;
  /// `n` tensors of (nearly) equal size along `d`; the first ones are longer by one where n does not divide.
  [[nodiscard]] std::vector<Tensor> chunk(int n, int d) const;

  // --- Copies: differentiable ------------------------------------------------------------------------------
  /// Itself if contiguous, else a contiguous copy.
  [[nodiscard]] Tensor contiguous() const;
  [[nodiscard]] Tensor clone() const;
  /// Itself if it already has this dtype (device). Data goes from cpu to meta (it is forgotten), never back.
  [[nodiscard]] Tensor to(DType dtype) const;
  [[nodiscard]] Tensor to(Device device) const;

  // --- In place: not differentiable ------------------------------------------------------------------------
  // AutogradError on a tensor that requires gradients, unless under NoGrad (autograd/grad_mode.h).
  /// Copies elements, converting and broadcasting. The source may overlap this tensor. ShapeError if two
  /// elements of this tensor are one in memory (expand).
  void copy_from(const Tensor& source);
  void fill(double value);
  void zero() { fill(0.0); }
  /// this ← this + alpha · x, with x converted and broadcast. Errors as for copy_from.
  void add_scaled(const Tensor& x, double alpha = 1.0);

  // --- Autograd: defined in autograd/tensor_members.cpp ----------------------------------------------------
  [[nodiscard]] bool requires_grad() const noexcept;
  /// Makes a leaf whose gradient backward() accumulates into grad(). Floating dtypes only. Returns itself.
  Tensor& set_requires_grad(bool requires_grad = true);
  /// The accumulated gradient of a leaf (of this handle's tensor); undefined if there is none yet.
  [[nodiscard]] Tensor grad() const;
  void set_grad(Tensor grad);
  /// Computes the gradients of this scalar with respect to every leaf it depends on; see autograd/backward.h.
  void backward() const;
  /// The same elements, cut off from the graph.
  [[nodiscard]] Tensor detach() const;

  // --- For operations --------------------------------------------------------------------------------------
  /// What kernels see. Null data on meta; StorageError if dropped.
  [[nodiscard]] kernels::ConstView view() const;
  /// The same, for writing: counts as a change in place.
  [[nodiscard]] kernels::View mutable_view();
  /// A view with other strides on the same storage; not recorded.
  [[nodiscard]] Tensor as_strided(const Shape& shape, const Strides& strides, std::int64_t offset) const;
  [[nodiscard]] const std::shared_ptr<AutogradMeta>& autograd_meta() const;
  void set_autograd_meta(std::shared_ptr<AutogradMeta> meta);
  /// True if this handle is the only way to reach the elements: no other handle of this tensor or of its
  /// storage exists, so that an operation may take the memory over.
  [[nodiscard]] bool is_unshared() const noexcept;
  /// Makes this handle and every copy of it denote the elements of `contents`: its storage, shape, strides
  /// and dtype. The place in autograd and the layout stay, but for the gradient, which must be dropped first
  /// if shape, dtype or device change. Views made earlier keep the old elements. How a parameter moves from
  /// meta to memory, or changes its dtype, while everything that refers to it goes on doing so. ShapeError if
  /// `contents` is undefined.
  void rebind(const Tensor& contents);
  /// True if both are handles of one tensor (not merely of one storage).
  [[nodiscard]] bool is_same(const Tensor& other) const noexcept { return impl_ == other.impl_; }

 private:
  struct Impl;
  [[nodiscard]] const Impl& impl() const;
  [[nodiscard]] void* checked_data(DType dtype) const;
  [[nodiscard]] double item_as_double() const;
  [[nodiscard]] std::int64_t item_as_integer() const;
  [[nodiscard]] Storage& storage_for_writing();
  void check_in_place(const char* operation) const;

  std::shared_ptr<Impl> impl_;
};

namespace detail {
/// True if `x` takes part in a graph and gradients are enabled: an operation on it must be recorded.
[[nodiscard]] bool must_record(const Tensor& x);
}  // namespace detail

/// Handles under their names, in a fixed order: the parameters of a module by dotted name, what an optimizer
/// or a checkpoint keeps.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// "f32 [2, 3]": for messages.
[[nodiscard]] std::string describe(const Tensor& x);

/// As people expect it: nested brackets, aligned columns, "..." in the middle of long dimensions, then shape
/// and dtype.
[[nodiscard]] std::string to_string(const Tensor& x);
std::ostream& operator<<(std::ostream& out, const Tensor& x);

}  // namespace tessera
