#include "tensor/tensor.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/broadcast.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tensor/tensor_impl.h"

namespace tessera {

Tensor::Tensor(Storage storage, const Shape& shape, const Strides& strides, std::int64_t offset, DType dtype)
    : impl_(std::make_shared<Impl>()) {
  if (strides.dims() != shape.dims()) {
    throw ShapeError(fmt::format("tensor: shape {} with strides {}", to_string(shape), to_string(strides)));
  }
  if (shape.num_elements() > 0) {
    std::int64_t first = offset, last = offset;
    for (int d = 0; d < shape.dims(); ++d) {
      const std::int64_t reach = (shape.begin()[d] - 1) * strides.begin()[d];
      (reach < 0 ? first : last) += reach;
    }
    const auto available = static_cast<std::int64_t>(storage.size_bytes() / tessera::size_bytes(dtype));
    if (first < 0 || last >= available) {
      throw ShapeError(fmt::format(
          "tensor: shape {} with strides {} and offset {} reaches elements {} to {} of a storage of {}",
          to_string(shape), to_string(strides), offset, first, last, available));
    }
  }
  impl_->storage = std::move(storage);
  impl_->shape = shape;
  impl_->strides = strides;
  impl_->offset = offset;
  impl_->dtype = dtype;
}

const Tensor::Impl& Tensor::impl() const {
  if (impl_ == nullptr) throw Error("tensor: an undefined tensor was used; assign one first");
  return *impl_;
}

const Shape& Tensor::shape() const { return impl().shape; }
const Strides& Tensor::strides() const { return impl().strides; }
std::int64_t Tensor::offset() const { return impl().offset; }
DType Tensor::dtype() const { return impl().dtype; }
Device Tensor::device() const { return impl().storage.device(); }
const Storage& Tensor::storage() const { return impl().storage; }
const Layout& Tensor::layout() const { return impl().layout; }
const std::shared_ptr<AutogradMeta>& Tensor::autograd_meta() const { return impl().autograd; }

void Tensor::set_autograd_meta(std::shared_ptr<AutogradMeta> meta) {
  static_cast<void>(impl());  // checks
  impl_->autograd = std::move(meta);
}

Tensor& Tensor::set_layout(const Layout& layout) {
  static_cast<void>(impl());  // checks
  if (layout.is_invariant()) {
    impl_->layout = layout;
    return *this;
  }
  for (const MeshAxis axis : kMeshAxes) {
    if (layout[axis].is_sharded() && layout[axis].dim() >= dims()) {
      throw IndexError(fmt::format("set_layout: {} has no dimension {} that could be cut on {}",
                                   describe(*this), layout[axis].dim(), name(axis)));
    }
  }
  impl_->layout = layout;
  return *this;
}

void Tensor::rebind(const Tensor& contents) {
  static_cast<void>(impl());  // checks
  if (!contents.defined()) throw ShapeError("rebind: the contents are an undefined tensor");
  if (contents.impl_ == impl_) return;
  std::shared_ptr<AutogradMeta> autograd = std::move(impl_->autograd);
  const Layout layout = impl_->layout;
  *impl_ = *contents.impl_;
  impl_->autograd = std::move(autograd);
  impl_->layout = layout;
}

std::int64_t Tensor::size_bytes() const {
  return num_elements() * static_cast<std::int64_t>(tessera::size_bytes(dtype()));
}

bool Tensor::is_contiguous() const {
  const Impl& self = impl();
  const std::int64_t* sizes = self.shape.begin();
  std::int64_t expected = 1;
  for (int d = self.shape.dims() - 1; d >= 0; --d) {
    if (sizes[d] != 1 && self.strides.begin()[d] != expected) return num_elements() == 0;
    expected *= sizes[d];
  }
  return true;
}

bool Tensor::requires_grad() const noexcept {
  return impl_ != nullptr && impl_->autograd != nullptr && impl_->autograd->requires_grad();
}

// --- Elements ----------------------------------------------------------------------------------------------

void* Tensor::checked_data(DType expected) const {
  const Impl& self = impl();
  if (self.dtype != expected) {
    throw DTypeError(fmt::format("data: the tensor is {} and was read as {}; convert it with to()",
                                 describe(*this), tessera::name(expected)));
  }
  auto* bytes = static_cast<std::byte*>(self.storage.data());
  return bytes == nullptr ? nullptr
                          : bytes + self.offset * static_cast<std::int64_t>(tessera::size_bytes(self.dtype));
}

Storage& Tensor::storage_for_writing() {
  static_cast<void>(impl());  // checks
  return impl_->storage;
}

kernels::ConstView Tensor::view() const {
  const Impl& self = impl();
  kernels::ConstView view;
  const auto* bytes = static_cast<const std::byte*>(self.storage.data_or_null());
  if (bytes != nullptr) {
    view.data = bytes + self.offset * static_cast<std::int64_t>(tessera::size_bytes(self.dtype));
  }
  view.dtype = self.dtype;
  view.dims = self.shape.dims();
  for (int d = 0; d < view.dims; ++d) {
    view.shape[d] = self.shape.begin()[d];
    view.strides[d] = self.strides.begin()[d];
  }
  return view;
}

kernels::View Tensor::mutable_view() {
  const kernels::ConstView source = view();
  impl_->storage.bump_version();
  kernels::View target;
  target.data = const_cast<void*>(source.data);
  target.dtype = source.dtype;
  target.dims = source.dims;
  for (int d = 0; d < source.dims; ++d) {
    target.shape[d] = source.shape[d];
    target.strides[d] = source.strides[d];
  }
  return target;
}

namespace {

void check_single(const Tensor& x) {
  if (x.num_elements() != 1)
    throw ShapeError(fmt::format("item: the tensor must have one element, but it is {}", describe(x)));
}

}  // namespace

double Tensor::item_as_double() const {
  check_single(*this);
  return to_vector<double>()[0];
}

std::int64_t Tensor::item_as_integer() const {
  check_single(*this);
  return to_vector<std::int64_t>()[0];
}

namespace {

Tensor element(const Tensor& x, std::initializer_list<std::int64_t> index) {
  if (static_cast<int>(index.size()) != x.dims()) {
    throw IndexError(fmt::format("at: {} indices for a tensor {}", index.size(), describe(x)));
  }
  Tensor result = x.detach();
  for (const std::int64_t i : index) result = result.select(0, i);
  return result;
}

}  // namespace

double Tensor::at(std::initializer_list<std::int64_t> index) const { return element(*this, index).item(); }

void Tensor::set(std::initializer_list<std::int64_t> index, double value) {
  check_in_place("set");
  element(*this, index).fill(value);
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const Tensor values = detach().to(dtype_of<T>).contiguous();
  const T* begin = values.data<T>();
  return std::vector<T>(begin, begin + values.num_elements());
}

template std::vector<double> Tensor::to_vector() const;
template std::vector<float> Tensor::to_vector() const;
template std::vector<Float16> Tensor::to_vector() const;
template std::vector<BFloat16> Tensor::to_vector() const;
template std::vector<std::int64_t> Tensor::to_vector() const;
template std::vector<std::int32_t> Tensor::to_vector() const;
template std::vector<std::uint8_t> Tensor::to_vector() const;
template std::vector<bool> Tensor::to_vector() const;

// --- In place ----------------------------------------------------------------------------------------------

void Tensor::check_in_place(const char* operation) const {
  if (requires_grad() && RankContext::current().grad_enabled) {
    throw AutogradError(
        fmt::format("{}: a tensor {} that requires gradients was to be changed in place; do it under "
                    "NoGrad, or make a new tensor",
                    operation, describe(*this)));
  }
}

namespace {

// What an in-place operation reads: `source` in the shape of `target`, and copied if a write to the target
// could change it before it is read.
Tensor readable(const Tensor& source, const Tensor& target) {
  const Tensor expanded = source.detach().expand(target.shape());
  const bool overlaps = expanded.storage() == target.storage() &&
                        !(expanded.offset() == target.offset() && expanded.strides() == target.strides());
  return overlaps ? expanded.clone() : expanded;
}

void check_distinct(const char* operation, const Tensor& target) {
  for (int d = 0; d < target.dims(); ++d) {
    if (target.dim(d) > 1 && target.strides()[d] == 0) {
      throw ShapeError(
          fmt::format("{}: dimension {} of {} repeats one element in memory; make it contiguous() first",
                      operation, d, describe(target)));
    }
  }
}

}  // namespace

void Tensor::copy_from(const Tensor& source) {
  check_in_place("copy_from");
  check_distinct("copy_from", *this);
  if (device() != meta) check_same_device("copy_from", *this, source);  // meta takes anything: it forgets it
  const Tensor expanded = readable(source, *this);
  kernels::of(device().type).elementwise.copy(expanded.view(), mutable_view());
}

void Tensor::fill(double value) {
  check_in_place("fill");
  kernels::of(device().type).elementwise.fill(mutable_view(), value);
}

void Tensor::add_scaled(const Tensor& x, double alpha) {
  check_in_place("add_scaled");
  check_same_device("add_scaled", *this, x);
  check_distinct("add_scaled", *this);
  const Tensor expanded = readable(x, *this);
  kernels::of(device().type).elementwise.add_scaled(mutable_view(), expanded.view(), alpha);
}

Tensor Tensor::detach() const {
  Tensor result;
  result.impl_ = std::make_shared<Impl>(impl());
  result.impl_->autograd = nullptr;
  return result;
}

bool Tensor::is_unshared() const noexcept {
  return impl_.use_count() == 1 && impl_->storage.use_count() == 1;
}

Tensor Tensor::as_strided(const Shape& shape, const Strides& strides, std::int64_t offset) const {
  return Tensor(impl().storage, shape, strides, offset, impl().dtype);
}

std::string describe(const Tensor& x) {
  if (!x.defined()) return "undefined";
  return fmt::format("{} {}", name(x.dtype()), to_string(x.shape()));
}

namespace detail {
bool must_record(const Tensor& x) {
  if (!x.requires_grad()) return false;
  const RankContext& context = RankContext::current();
  if (!context.grad_enabled && context.leaf_tracker != nullptr)
    context.leaf_tracker->touch(x.autograd_meta());
  return context.grad_enabled;
}
}  // namespace detail

}  // namespace tessera
