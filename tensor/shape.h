#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "kernels/view.h"

namespace tessera {

/// Sizes (or strides) of up to kMaxDims dimensions. A value; never allocates.
///
/// Example   Shape s{8, 64};  s[-1] == 64;  s.num_elements() == 512;  to_string(s) == "[8, 64]"
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes);  // NOLINT(google-explicit-constructor): reshape({2, 3})
  explicit Shape(std::span<const std::int64_t> sizes);

  /// `dims` dimensions of size `value`.
  [[nodiscard]] static Shape filled(int dims, std::int64_t value);

  [[nodiscard]] int dims() const noexcept { return dims_; }
  /// Size of dimension `d`; negative ones count from the end. Throws IndexError outside [-dims, dims).
  [[nodiscard]] std::int64_t operator[](int d) const {
    return sizes_[static_cast<std::size_t>(normalize(d))];
  }
  [[nodiscard]] std::int64_t& operator[](int d) { return sizes_[static_cast<std::size_t>(normalize(d))]; }
  /// Product of all sizes, at most 2^63 − 1; 1 without dimensions.
  [[nodiscard]] std::int64_t num_elements() const noexcept;

  void push_back(std::int64_t size);
  void insert(int position, std::int64_t size);
  void erase(int position);

  /// `d` as a non-negative dimension. `extra` more dimensions are allowed (1 for the place of a new one).
  [[nodiscard]] int normalize(int d, int extra = 0) const {
    const int limit = dims_ + extra;
    if (d < -limit || d >= limit) throw_outside(d, limit);
    return d < 0 ? d + limit : d;
  }

  [[nodiscard]] const std::int64_t* begin() const noexcept { return sizes_.data(); }
  [[nodiscard]] const std::int64_t* end() const noexcept { return sizes_.data() + dims_; }

  friend bool operator==(const Shape& a, const Shape& b) noexcept;

 private:
  [[noreturn]] void throw_outside(int d, int limit) const;

  std::array<std::int64_t, kMaxDims> sizes_{};
  int dims_ = 0;
};

/// Elements of piece `rank` when `size` of them are cut into `num_ranks`: ⌊size/R⌋, one more for the first
/// size mod R. What Tensor::chunk cuts, and every S(d) on a mesh.
[[nodiscard]] std::int64_t shard_size(std::int64_t size, int num_ranks, int rank) noexcept;
/// The first of them.
[[nodiscard]] std::int64_t shard_begin(std::int64_t size, int num_ranks, int rank) noexcept;

/// Steps, in elements, from one index of a dimension to the next.
using Strides = Shape;

/// "[8, 64]"; "[]" for a scalar.
[[nodiscard]] std::string to_string(const Shape& shape);

/// Row-major strides without gaps.
[[nodiscard]] Strides contiguous_strides(const Shape& shape);

}  // namespace tessera
