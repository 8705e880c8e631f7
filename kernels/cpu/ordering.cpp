#include "kernels/cpu/ordering.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/parallel.h"

namespace tessera::kernels {
namespace {

/// An element as an unsigned integer of the same order, and where it was. Ordered by both, any sort is
/// stable.
struct Entry {
  std::uint64_t key;
  std::int64_t index;
  friend bool operator<(const Entry& a, const Entry& b) {
    return a.key != b.key ? a.key < b.key : a.index < b.index;
  }
};

constexpr std::uint64_t kSign = std::uint64_t{1} << 63;

std::uint64_t key_of(double x) {
  if (std::isnan(x)) return ~std::uint64_t{0};
  const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, x + 0.0);  // −0 equals 0
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

std::uint64_t key_of(std::int64_t x) { return static_cast<std::uint64_t>(x) ^ kSign; }

/// Calls f with an element of the dtype's C++ type.
template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kF64:
      return f(double{});
    case DType::kF32:
      return f(float{});
    case DType::kF16:
      return f(Float16{});
    case DType::kBF16:
      return f(BFloat16{});
    case DType::kI64:
      return f(std::int64_t{});
    case DType::kI32:
      return f(std::int32_t{});
    case DType::kU8:
      return f(std::uint8_t{});
    case DType::kBool:
      return f(bool{});
  }
}

template <class T>
std::uint64_t key_of_element(T x) {
  if constexpr (is_floating(dtype_of<T>)) {
    return key_of(static_cast<double>(static_cast<float>(x)));
  } else {
    return key_of(static_cast<std::int64_t>(x));
  }
}
template <>
std::uint64_t key_of_element(double x) {
  return key_of(x);
}

/// Orders each row with `sort(entries)` and writes the first `count` of it.
template <class Sort>
void order_rows(const ConstView& x, bool descending, std::int64_t count, const View& values,
                const View& indices, const Sort& sort) {
  const std::int64_t rows = x.shape[0], columns = x.shape[1];
  if (count == 0) return;
  with_type(x.dtype, [&]<class T>(T) {
    const T* from = static_cast<const T*>(x.data);
    T* to = static_cast<T*>(values.data);
    std::int64_t* to_index = static_cast<std::int64_t*>(indices.data);
    parallel_for(rows, 4096 / columns + 1, [&](std::int64_t begin, std::int64_t end) {
      std::vector<Entry> entries(static_cast<std::size_t>(columns));
      for (std::int64_t row = begin; row < end; ++row) {
        const T* x_row = from + row * x.strides[0];
        for (std::int64_t i = 0; i < columns; ++i) {
          const std::uint64_t key = key_of_element(x_row[i * x.strides[1]]);
          entries[static_cast<std::size_t>(i)] = {descending ? ~key : key, i};
        }
        sort(entries);
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t index = entries[static_cast<std::size_t>(i)].index;
          to[row * values.strides[0] + i * values.strides[1]] = x_row[index * x.strides[1]];
          to_index[row * indices.strides[0] + i * indices.strides[1]] = index;
        }
      }
    });
  });
}

}  // namespace

void sort_rows(const ConstView& x, bool descending, const View& values, const View& indices) {
  order_rows(x, descending, x.shape[1], values, indices,
             [](std::vector<Entry>& entries) { std::sort(entries.begin(), entries.end()); });
}

void top_k_rows(const ConstView& x, std::int64_t k, const View& values, const View& indices) {
  order_rows(x, true, k, values, indices, [k](std::vector<Entry>& entries) {
    const auto last = entries.begin() + k;
    if (k > static_cast<std::int64_t>(entries.size()) / 16) {
      std::nth_element(entries.begin(), last - 1, entries.end());
      std::sort(entries.begin(), last);
    } else {
      std::partial_sort(entries.begin(), last, entries.end());  // one comparison for most elements
    }
  });
}

void stable_order(const std::int64_t* ids, std::int64_t stride, std::int64_t n, std::int64_t limit,
                  std::int64_t* order) {
  if (limit > 16 * n) {
    for (std::int64_t i = 0; i < n; ++i) order[i] = i;
    std::sort(order, order + n, [=](std::int64_t a, std::int64_t b) {
      const std::int64_t id_a = ids[a * stride], id_b = ids[b * stride];
      return id_a != id_b ? id_a < id_b : a < b;
    });
    return;
  }
  // Counting sort: where each id begins, then every position to its place.
  std::vector<std::int64_t> next(static_cast<std::size_t>(limit + 1), 0);
  const auto slot = [=](std::int64_t i) { return static_cast<std::size_t>(ids[i * stride] + 1); };
  for (std::int64_t i = 0; i < n; ++i) ++next[slot(i)];
  std::int64_t begin = 0;
  for (std::int64_t& count : next) {
    const std::int64_t size = count;
    count = begin;
    begin += size;
  }
  for (std::int64_t i = 0; i < n; ++i) order[next[slot(i)]++] = i;
}

}  // namespace tessera::kernels
