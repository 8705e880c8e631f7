// LayerNorm (Ba et al., 2016) and RMSNorm (Zhang & Sennrich, 2019), which is the same without the mean.
//
//   forward    n = (x − mean) · inverse,  y = n · gain + bias
//   backward   with g = dy · gain:
//              dx = inverse · (g − mean(g) − n · mean(g · n)),  dgain = Σ dy · n,  dbias = Σ dy
//
// n is made again in the backward pass: two operations are cheaper than keeping [N, D].

#include "kernels/context.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/norms.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// Rows per range of a parallel loop: enough work to be worth a thread.
TESSERA_INLINE std::int64_t rows_per_range(std::int64_t width) { return larger(1, 16384 / larger(1, width)); }

template <class In, bool kCentered>
void norm_rows(const NormForward& norm, std::int64_t begin, std::int64_t end) {
  using T = Compute<In>;
  const std::int64_t width = norm.x.shape[1];
  const auto* gain = static_cast<const In*>(norm.gain.data);
  const auto* bias = static_cast<const In*>(norm.bias.data);
  for (std::int64_t row = begin; row < end; ++row) {
    const In* x = static_cast<const In*>(norm.x.data) + row * norm.x.strides[0];
    In* y = static_cast<In*>(norm.y.data) + row * norm.y.strides[0];
    if (norm.residual != nullptr) {
      const In* residual = static_cast<const In*>(norm.residual->data) + row * norm.residual->strides[0];
      In* sum = static_cast<In*>(norm.sum->data) + row * norm.sum->strides[0];
      for_lanes<T>(
          width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
            store(load(x + i, lanes) + load(residual + i, lanes), sum + i, lanes);
          });
      x = sum;  // rounded: what the backward pass will see
    }
    T mean = 0;
    if constexpr (kCentered) {
      mean = sum_lanes<T>(
                 width, [&](std::int64_t i, auto lanes)
                            __attribute__((always_inline)) { return load(x + i, lanes); }) /
             static_cast<T>(width);
      static_cast<T*>(norm.mean.data)[row] = mean;
    }
    // The second pass over the row, which lies in L1 by now, costs less than Σx² − (Σx)² loses in precision.
    const T squares = sum_lanes<T>(
        width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          const Lanes<T> centered = load_or(x + i, lanes, mean) - mean;
          return centered * centered;
        });
    const T inverse = T(1) / vsqrt(squares / static_cast<T>(width) + static_cast<T>(norm.epsilon));
    static_cast<T*>(norm.inverse.data)[row] = inverse;
    for_lanes<T>(
        width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          Lanes<T> result = (load(x + i, lanes) - mean) * inverse * load(gain + i, lanes);
          if (kCentered && bias != nullptr) result += load(bias + i, lanes);
          store(result, y + i, lanes);
        });
  }
}

template <bool kCentered>
void norm_forward(const NormForward& norm) {
  with_float_type(norm.x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    parallel_for(norm.x.shape[0], rows_per_range(norm.x.shape[1]),
                 [&](std::int64_t begin, std::int64_t end) { norm_rows<In, kCentered>(norm, begin, end); });
  });
}

/// Rows [begin, end) of the backward pass; their sums for gain and bias are added to `dgain`, `dbias` unless
/// null.
template <class In, bool kCentered>
void norm_backward_rows(const NormBackward& norm, std::int64_t begin, std::int64_t end, Compute<In>* dgain,
                        Compute<In>* dbias) {
  using T = Compute<In>;
  const std::int64_t width = norm.x.shape[1];
  const auto* gain = static_cast<const In*>(norm.gain.data);
  for (std::int64_t row = begin; row < end; ++row) {
    const In* x = static_cast<const In*>(norm.x.data) + row * norm.x.strides[0];
    const In* dy = static_cast<const In*>(norm.dy.data) + row * norm.dy.strides[0];
    const T mean = kCentered ? static_cast<const T*>(norm.mean.data)[row] : T(0);
    const T inverse = static_cast<const T*>(norm.inverse.data)[row];
    T mean_g = 0, mean_gn = 0;
    if (norm.dx != nullptr) {
      Lanes<T> sum_g = {}, sum_gn = {};
      for_lanes<T>(
          width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
            const Lanes<T> g = load(dy + i, lanes) * load(gain + i, lanes);
            sum_g += g;
            sum_gn += g * ((load(x + i, lanes) - mean) * inverse);
          });
      mean_g = kCentered ? sum_of_lanes<T>(sum_g) / static_cast<T>(width) : T(0);
      mean_gn = sum_of_lanes<T>(sum_gn) / static_cast<T>(width);
    }
    In* dx = norm.dx == nullptr ? nullptr : static_cast<In*>(norm.dx->data) + row * norm.dx->strides[0];
    for_lanes<T>(
        width, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          // dx may be dy: what is read here is read before it is written.
          const Lanes<T> d = load(dy + i, lanes);
          const Lanes<T> n = (load(x + i, lanes) - mean) * inverse;
          if (dgain != nullptr) store(load(dgain + i, lanes) + d * n, dgain + i, lanes);
          if (dbias != nullptr) store(load(dbias + i, lanes) + d, dbias + i, lanes);
          if (dx != nullptr)
            store(inverse * (d * load(gain + i, lanes) - mean_g - n * mean_gn), dx + i, lanes);
        });
  }
}

/// y[i] ← Σ over chunks of partial[chunk][i].
template <class T, class Out>
void add_chunks(const T* partial, std::int64_t chunks, std::int64_t chunk_stride, std::int64_t width,
                const View& y) {
  parallel_for(width, 2048, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T sum = 0;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * chunk_stride + i];
      narrow(sum, static_cast<Out*>(y.data)[i * y.strides[0]]);
    }
  });
}

template <class In>
void write_sums(const Compute<In>* partial, std::int64_t chunks, std::int64_t chunk_stride,
                std::int64_t width, const View& y) {
  if (y.dtype == DType::kF32) {
    add_chunks<Compute<In>, float>(partial, chunks, chunk_stride, width, y);
  } else {
    add_chunks<Compute<In>, In>(partial, chunks, chunk_stride, width, y);
  }
}

template <bool kCentered>
void norm_backward(const NormBackward& norm) {
  with_float_type(norm.x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    using T = Compute<In>;
    const std::int64_t rows = norm.x.shape[0], width = norm.x.shape[1];
    // Sums over rows are kept per chunk of rows. How many chunks there are depends on the rows alone, so the
    // order of addition does not depend on the number of threads.
    const std::int64_t chunks = rows == 0 ? 0 : larger(1, smaller(64, rows / 16));
    const std::int64_t stride = round_up(width, kLanes<T>);
    const bool wants_gain = norm.dgain != nullptr, wants_bias = norm.dbias != nullptr;
    const std::int64_t buffers = (wants_gain ? 1 : 0) + (wants_bias ? 1 : 0);
    const Workspace workspace(static_cast<std::size_t>(buffers * chunks * stride) * sizeof(T));
    T* const partial = static_cast<T*>(workspace.data());
    parallel_for(chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t chunk = begin; chunk < end; ++chunk) {
        T* const own = partial + chunk * buffers * stride;
        for (std::int64_t i = 0; i < buffers * stride; ++i) own[i] = 0;
        norm_backward_rows<In, kCentered>(norm, rows * chunk / chunks, rows * (chunk + 1) / chunks,
                                          wants_gain ? own : nullptr,
                                          wants_bias ? own + (buffers - 1) * stride : nullptr);
      }
    });
    if (wants_gain) write_sums<In>(partial, chunks, buffers * stride, width, *norm.dgain);
    if (wants_bias)
      write_sums<In>(partial + (buffers - 1) * stride, chunks, buffers * stride, width, *norm.dbias);
  });
}

}  // namespace

void layer_norm(const NormForward& norm) { norm_forward<true>(norm); }
void layer_norm_backward(const NormBackward& norm) { norm_backward<true>(norm); }
void rms_norm(const NormForward& norm) { norm_forward<false>(norm); }
void rms_norm_backward(const NormBackward& norm) { norm_backward<false>(norm); }

}  // namespace tessera::kernels::TESSERA_ISA
