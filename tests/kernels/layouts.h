#pragma once

// Shapes and memory layouts that every elementwise or reducing kernel must take.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {

inline const std::vector<DType> kFloatDTypes = {kF64, kF32, kF16, kBF16};
inline const std::vector<DType> kIntegerDTypes = {kI64, kI32, kU8};
inline const std::vector<DType> kAllDTypes = {kF64, kF32, kF16, kBF16, kI64, kI32, kU8, kBool};

/// No dimensions, none of its elements, sizes of 1, rows shorter than a vector, rows longer than a tile, many
/// rows.
inline const std::vector<Sizes> kShapes = {{},        {0},        {1},         {7},
                                           {3, 0, 2}, {1, 5, 1},  {2500},      {300, 3},
                                           {17, 33},  {3, 1100},  {40, 70},    {2, 3, 4, 5},
                                           {9, 1},    {2, 1, 40}, {3, 40, 50}, {2, 2, 2, 2, 2, 2, 2, 2}};

enum class Layout { kContiguous, kReversed, kStepped, kRowBroadcast, kColumnBroadcast, kScalarBroadcast };

inline const std::vector<Layout> kStoredLayouts = {Layout::kContiguous, Layout::kReversed, Layout::kStepped};
inline const std::vector<Layout> kInputLayouts = {Layout::kContiguous,      Layout::kReversed,
                                                  Layout::kStepped,         Layout::kRowBroadcast,
                                                  Layout::kColumnBroadcast, Layout::kScalarBroadcast};

inline const char* name(Layout layout) {
  switch (layout) {
    case Layout::kContiguous:
      return "contiguous";
    case Layout::kReversed:
      return "transposed";
    case Layout::kStepped:
      return "stepped";
    case Layout::kRowBroadcast:
      return "one row repeated";
    case Layout::kColumnBroadcast:
      return "one column repeated";
    case Layout::kScalarBroadcast:
      return "one element repeated";
  }
  return "?";
}

inline std::string text(const Sizes& shape) {
  std::string out = "[";
  for (const std::int64_t size : shape) out += std::to_string(size) + " ";
  return out + "]";
}

/// An array of a shape and layout. A broadcast is stored once and seen through a view with strides of 0.
class LaidOut {
 public:
  LaidOut(DType dtype, const Sizes& shape, Layout layout) {
    Sizes stored = shape;
    const std::size_t dims = shape.size();
    for (std::size_t d = 0; d < dims; ++d) {
      const bool last = d + 1 == dims;
      if (layout == Layout::kScalarBroadcast || (layout == Layout::kRowBroadcast && !last) ||
          (layout == Layout::kColumnBroadcast && last)) {
        stored[d] = shape[d] == 0 ? 0 : 1;
      }
    }
    std::vector<int> order(dims);
    for (std::size_t d = 0; d < dims; ++d) {
      order[d] = static_cast<int>(layout == Layout::kReversed ? dims - 1 - d : d);
    }
    array_ = HostArray(dtype, stored, order, layout == Layout::kStepped ? 3 : 1);
    shape_ = shape;
  }

  /// `make` gives the value of an element of the stored array.
  LaidOut& fill(const std::function<double()>& make) {
    array_.for_each([&](const Sizes& i) { array_.set(i, make()); });
    return *this;
  }

  [[nodiscard]] View view() {
    View view = array_.view();
    for (std::size_t d = 0; d < shape_.size(); ++d) {
      if (view.shape[d] != shape_[d]) view.strides[d] = 0;
      view.shape[d] = shape_[d];
    }
    return view;
  }
  [[nodiscard]] double operator()(const Sizes& index) { return HostArray::get_at(view(), index); }
  [[nodiscard]] HostArray& array() { return array_; }
  [[nodiscard]] const Sizes& shape() const { return shape_; }
  [[nodiscard]] DType dtype() const { return array_.dtype(); }

 private:
  HostArray array_;
  Sizes shape_;
};

/// What may differ: `roundings` of the compute type on numbers of size `magnitude`, and the rounding to
/// `dtype`.
inline double tolerance(DType dtype, double expected, double roundings, double magnitude) {
  if (!is_floating(dtype)) return 0;
  const double storage =
      dtype == accumulation_dtype(dtype) ? 0 : 1.01 * unit_roundoff(dtype) * std::abs(expected);
  const double smallest = dtype == kF16 ? 0x1p-24 : dtype == kF64 ? 0x1p-1000 : 0x1p-126;
  return roundings * unit_roundoff(accumulation_dtype(dtype)) * magnitude + storage + smallest;
}

/// Every element of `actual` against expected(index); `roundings` relative to magnitude(index, expected
/// value).
inline void expect_elements(LaidOut& actual, const std::function<double(const Sizes&)>& expected,
                            double roundings,
                            const std::function<double(const Sizes&, double)>& magnitude = nullptr) {
  int wrong = 0;
  std::string first;
  HostArray::for_each_index(actual.shape(), [&](const Sizes& i) {
    const double a = actual(i), e = expected(i);
    const double size = magnitude ? magnitude(i, e) : std::abs(e);
    const bool same = (std::isnan(a) && std::isnan(e)) || a == e ||
                      std::abs(a - e) <= tolerance(actual.dtype(), e, roundings, size);
    if (!same && wrong++ == 0) first = text(i) + ": " + std::to_string(a) + ", expected " + std::to_string(e);
  });
  EXPECT_EQ(wrong, 0) << "first at " << first;
  EXPECT_TRUE(actual.array().guards_intact());
}

}  // namespace tessera::kernels::test
