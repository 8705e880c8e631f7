#pragma once

// Arrays for the tests of kernels: any dtype and strides, read and written as double, one index vector at a
// time. Slow and plain, so that a reference written with them can be checked by eye.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/context.h"
#include "kernels/cpu/isa.h"
#include "kernels/view.h"

namespace tessera::kernels::test {

using Sizes = std::vector<std::int64_t>;

class HostArray {
 public:
  HostArray() = default;

  /// Row-major, zeros.
  HostArray(DType dtype, const Sizes& shape) : HostArray(dtype, shape, identity(shape.size()), 1) {}

  /// Dimensions lie in memory in `order` (outermost first), and neighbours along the last of them are `step`
  /// apart.
  HostArray(DType dtype, const Sizes& shape, const std::vector<int>& order, std::int64_t step) {
    view_.dtype = dtype;
    view_.dims = static_cast<int>(shape.size());
    std::int64_t stride = step;
    for (std::size_t d = 0; d < shape.size(); ++d) view_.shape[d] = shape[d];
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      view_.strides[*d] = stride;
      stride *= view_.shape[*d];
    }
    // Guard elements behind the data: a kernel that writes there is found by guards_intact().
    bytes_.assign((static_cast<std::size_t>(stride) + kGuard) * size_bytes(dtype), kGuardByte);
    std::memset(bytes_.data(), 0, static_cast<std::size_t>(stride) * size_bytes(dtype));
    data_bytes_ = static_cast<std::size_t>(stride) * size_bytes(dtype);
  }

  HostArray(const HostArray&) = default;
  HostArray(HostArray&&) = default;
  HostArray& operator=(const HostArray&) = default;
  HostArray& operator=(HostArray&&) = default;

  /// Normal numbers, rounded to the dtype.
  static HostArray random(DType dtype, const Sizes& shape, unsigned seed, double scale = 1.0) {
    HostArray x(dtype, shape);
    x.fill_random(seed, scale);
    return x;
  }

  HostArray& fill_random(unsigned seed, double scale = 1.0) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(0.0, scale);
    for_each([&](const Sizes& i) { set(i, normal(generator)); });
    return *this;
  }

  /// The same storage seen with a stride of 0 along a new leading dimension.
  [[nodiscard]] static ConstView broadcast(const ConstView& view, std::int64_t size) {
    ConstView wide = view;
    wide.dims = view.dims + 1;
    wide.shape[0] = size;
    wide.strides[0] = 0;
    for (int d = 0; d < view.dims; ++d) {
      wide.shape[d + 1] = view.shape[d];
      wide.strides[d + 1] = view.strides[d];
    }
    return wide;
  }

  [[nodiscard]] View view() {
    View view = view_;
    view.data = bytes_.data();
    return view;
  }
  [[nodiscard]] ConstView view() const {
    View view = view_;
    view.data = const_cast<unsigned char*>(bytes_.data());
    return view;
  }
  [[nodiscard]] DType dtype() const { return view_.dtype; }
  [[nodiscard]] Sizes shape() const { return {view_.shape, view_.shape + view_.dims}; }
  [[nodiscard]] std::int64_t num_elements() const { return view_.num_elements(); }

  [[nodiscard]] double get(const Sizes& index) const { return get_at(view(), index); }
  [[nodiscard]] double operator()(const Sizes& index) const { return get(index); }

  [[nodiscard]] static double get_at(const ConstView& view, const Sizes& index) {
    const char* p = static_cast<const char*>(view.data) +
                    offset(view, index) * static_cast<std::int64_t>(size_bytes(view.dtype));
    switch (view.dtype) {
      case DType::kF64:
        return read<double>(p);
      case DType::kF32:
        return static_cast<double>(read<float>(p));
      case DType::kF16:
        return static_cast<double>(f32_from_f16_bits(read<std::uint16_t>(p)));
      case DType::kBF16:
        return static_cast<double>(f32_from_bf16_bits(read<std::uint16_t>(p)));
      case DType::kI64:
        return static_cast<double>(read<std::int64_t>(p));
      case DType::kI32:
        return static_cast<double>(read<std::int32_t>(p));
      default:
        return static_cast<double>(read<std::uint8_t>(p));
    }
  }

  void set(const Sizes& index, double value) {
    unsigned char* p =
        bytes_.data() + offset(view_, index) * static_cast<std::int64_t>(size_bytes(view_.dtype));
    switch (view_.dtype) {
      case DType::kF64:
        return write(p, value);
      case DType::kF32:
        return write(p, static_cast<float>(value));
      case DType::kF16:
        return write(p, f16_bits_from_f32(static_cast<float>(rounded(value, 11, -24))));
      case DType::kBF16:
        return write(p, bf16_bits_from_f32(static_cast<float>(rounded(value, 8, -133))));
      case DType::kI64:
        return write(p, static_cast<std::int64_t>(value));
      case DType::kI32:
        return write(p, static_cast<std::int32_t>(value));
      case DType::kU8:
        return write(p, static_cast<std::uint8_t>(static_cast<std::int64_t>(value)));
      case DType::kBool:
        return write(p, static_cast<std::uint8_t>(value != 0.0));
    }
  }

  template <class F>
  void for_each(const F& f) const {
    for_each_index(shape(), f);
  }

  template <class F>
  static void for_each_index(const Sizes& shape, const F& f) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) count *= size;
    Sizes index(shape.size());
    for (std::int64_t n = 0; n < count; ++n) {
      std::int64_t rest = n;
      for (std::size_t d = shape.size(); d-- > 0;) {
        index[d] = rest % shape[d];
        rest /= shape[d];
      }
      f(static_cast<const Sizes&>(index));
    }
  }

  [[nodiscard]] bool bitwise_equal(const HostArray& other) const { return bytes_ == other.bytes_; }
  [[nodiscard]] bool guards_intact() const {
    for (std::size_t i = data_bytes_; i < bytes_.size(); ++i) {
      if (bytes_[i] != kGuardByte) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr unsigned char kGuardByte = 0x5A;

  static std::vector<int> identity(std::size_t dims) {
    std::vector<int> order(dims);
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  template <class Pointer>
  static std::int64_t offset(const BasicView<Pointer>& view, const Sizes& index) {
    std::int64_t sum = 0;
    for (std::size_t d = 0; d < index.size(); ++d) sum += index[d] * view.strides[d];
    return sum;
  }
  /// The nearest number of so many binary digits, halfway cases to even, and none of them below 2^lowest.
  static double rounded(double value, int digits, int lowest) {
    if (value == 0.0 || !std::isfinite(value)) return value;
    const int last = std::max(std::ilogb(value) + 1 - digits, lowest);
    return std::ldexp(std::nearbyint(std::ldexp(value, -last)), last);
  }
  template <class T>
  static T read(const char* p) {
    T value;
    std::memcpy(&value, p, sizeof(T));
    return value;
  }
  template <class T>
  static void write(unsigned char* p, T value) {
    std::memcpy(p, &value, sizeof(T));
  }

  std::vector<unsigned char> bytes_;
  std::size_t data_bytes_ = 0;
  View view_;
};

/// Half the distance between neighbours at 1: the relative error of one rounding.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 0x1p-53;
    case DType::kF32:
      return 0x1p-24;
    case DType::kF16:
      return 0x1p-11;
    default:
      return 0x1p-8;
  }
}

/// The calling thread computes with `num_threads` while this lives.
class WithThreads {
 public:
  explicit WithThreads(int num_threads) {
    context_.num_threads = num_threads;
    previous_ = exchange_kernel_context(&context_);
  }
  ~WithThreads() { exchange_kernel_context(previous_); }
  WithThreads(const WithThreads&) = delete;
  WithThreads& operator=(const WithThreads&) = delete;

 private:
  KernelContext context_;
  KernelContext* previous_ = nullptr;
};

/// Every instruction set that this build and machine support.
inline std::vector<InstructionSet> supported_sets() {
  std::vector<InstructionSet> sets;
  for (const InstructionSet set :
       {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    if (is_supported(set)) sets.push_back(set);
  }
  return sets;
}

}  // namespace tessera::kernels::test
