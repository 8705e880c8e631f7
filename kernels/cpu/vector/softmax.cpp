// Softmax and its logarithm over the last dimension, whose elements lie side by side.
//
//   forward    y = exp(x − max) / Σ exp(x − max)           log:  y = (x − max) − log Σ exp(x − max)
//   backward   dx = y · (dy − Σ dy · y)                     log:  dx = dy − exp(y) · Σ dy

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/exponentials.h"
#include "kernels/cpu/vector/norms.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Offset of row `row`, counted row-major over all dimensions but the last.
template <class Pointer>
TESSERA_INLINE std::int64_t row_offset(const BasicView<Pointer>& view, std::int64_t row) {
  std::int64_t offset = 0;
  for (int d = view.dims - 2; d >= 0; --d) {
    offset += row % view.shape[d] * view.strides[d];
    row /= view.shape[d];
  }
  return offset;
}

template <class In>
void softmax_row(const In* x, std::int64_t width, bool log, In* y) {
  using T = Compute<In>;
  alignas(64) T buffer[kExpChunk];
  const T largest = max_lanes(x, width);
  T sum = 0;
  for (std::int64_t i = 0; i < width; i += kExpChunk) {
    const std::int64_t n = smaller(kExpChunk, width - i);
    exp_chunk(x + i, n, largest, buffer);
    sum += sum_chunk(buffer, n);
    if (width <= kExpChunk) break;  // still there for the second pass
  }
  if (log) {
    const T log_sum = vlog(sum);
    for_lanes<T>(
        width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          store((load(x + i, lanes) - largest) - log_sum, y + i, lanes);
        });
    return;
  }
  const T inverse = T(1) / sum;
  for (std::int64_t i = 0; i < width; i += kExpChunk) {
    const std::int64_t n = smaller(kExpChunk, width - i);
    // Made again rather than kept in y: there it would be rounded twice.
    if (width > kExpChunk) exp_chunk(x + i, n, largest, buffer);
    for_lanes<T>(
        n, [&](std::int64_t j, auto lanes) __attribute__((always_inline)) {
          store(load(buffer + j, lanes) * inverse, y + i + j, lanes);
        });
  }
}

template <class In>
void softmax_backward_row(const In* y, const In* dy, std::int64_t width, bool log, In* dx) {
  using T = Compute<In>;
  const T total = sum_lanes<T>(
      width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const Lanes<T> d = load(dy + i, lanes);
        return log ? d : d * load(y + i, lanes);
      });
  if (!log) {
    for_lanes<T>(
        width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          store(load(y + i, lanes) * (load(dy + i, lanes) - total), dx + i, lanes);
        });
    return;
  }
  alignas(64) T buffer[kExpChunk];
  for (std::int64_t i = 0; i < width; i += kExpChunk) {
    const std::int64_t n = smaller(kExpChunk, width - i);
    exp_chunk(y + i, n, T(0), buffer);
    for_lanes<T>(
        n, [&](std::int64_t j, auto lanes) __attribute__((always_inline)) {
          store(load(dy + i + j, lanes) - load(buffer + j, lanes) * total, dx + i + j, lanes);
        });
  }
}

}  // namespace

void softmax(const ConstView& x, bool log, const View& y) {
  const std::int64_t width = x.dims == 0 ? 1 : x.shape[x.dims - 1];
  if (x.num_elements() == 0) return;
  with_float_type(x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    parallel_for(x.num_elements() / width, larger(1, 4096 / width),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     softmax_row<In>(static_cast<const In*>(x.data) + row_offset(x, row), width, log,
                                     static_cast<In*>(y.data) + row_offset(y, row));
                   }
                 });
  });
}

void softmax_backward(const ConstView& y, const ConstView& dy, bool log, const View& dx) {
  const std::int64_t width = y.dims == 0 ? 1 : y.shape[y.dims - 1];
  if (y.num_elements() == 0) return;
  with_float_type(y.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    parallel_for(y.num_elements() / width, larger(1, 8192 / width),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     softmax_backward_row<In>(static_cast<const In*>(y.data) + row_offset(y, row),
                                              static_cast<const In*>(dy.data) + row_offset(dy, row), width,
                                              log, static_cast<In*>(dx.data) + row_offset(dx, row));
                   }
                 });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
