// Dropout (Srivastava et al., 2014): y = keep · x / (1 − p). The mask is a function of the key and of each
// element's global index, so it is the same under every layout, and made again in the backward pass.

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/norms.h"
#include "kernels/cpu/vector/philox.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// The loop over all elements after merging dimensions that lie side by side in x, y and the global index.
struct DropoutLoop {
  int dims = 0;
  std::int64_t size[kMaxDims] = {};
  std::int64_t x[kMaxDims] = {}, y[kMaxDims] = {}, index[kMaxDims] = {};

  TESSERA_INLINE DropoutLoop(const ConstView& from, const View& to, const GlobalIndex& global) {
    for (int d = 0; d < from.dims; ++d) {
      if (from.shape[d] == 1) continue;
      const int last = dims - 1;
      const std::int64_t n = from.shape[d];
      if (dims > 0 && x[last] == n * from.strides[d] && y[last] == n * to.strides[d] &&
          index[last] == n * global.strides[d]) {
        size[last] *= n;
        x[last] = from.strides[d];
        y[last] = to.strides[d];
        index[last] = global.strides[d];
        continue;
      }
      size[dims] = n;
      x[dims] = from.strides[d];
      y[dims] = to.strides[d];
      index[dims] = global.strides[d];
      ++dims;
    }
    if (dims == 0) {  // one element
      dims = size[0] = x[0] = y[0] = index[0] = 1;
    }
  }
};

constexpr std::int64_t kChunk = 1024;

template <class In>
void drop_chunk(const In* x, std::int64_t x_stride, std::int64_t n, const RandomKey& key, std::int64_t first,
                std::int64_t index_stride, std::uint32_t threshold, Compute<In> scale, In* y,
                std::int64_t y_stride) {
  using T = Compute<In>;
  alignas(64) std::uint32_t words[kChunk];
  if (index_stride == 1) {
    random_words(key, static_cast<std::uint64_t>(first), n, words);
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      words[i] = random_word(key, static_cast<std::uint64_t>(first + i * index_stride));
    }
  }
  if (x_stride == 1 && y_stride == 1) {
    alignas(64) T kept[kChunk];  // of our own: x may be y, which a vectorised loop could not know to be safe
    for (std::int64_t i = 0; i < n; ++i)
      kept[i] = dropout_keeps(words[i], threshold) ? widen(x[i]) * scale : T(0);
    for (std::int64_t i = 0; i < n; ++i) narrow(kept[i], y[i]);
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      narrow(dropout_keeps(words[i], threshold) ? widen(x[i * x_stride]) * scale : T(0), y[i * y_stride]);
    }
  }
}

}  // namespace

void dropout(const ConstView& x, double p, const RandomKey& key, const GlobalIndex& index, const View& y) {
  if (x.num_elements() == 0) return;
  const DropoutLoop loop(x, y, index);
  const int inner = loop.dims - 1;
  const std::int64_t chunks = ceil_div(loop.size[inner], kChunk);
  std::int64_t rows = 1;
  for (int d = 0; d < inner; ++d) rows *= loop.size[d];
  const std::uint32_t threshold = dropout_threshold(p);
  // p = 1 keeps nothing, except that one word in 2^32 passes the threshold: a scale of 0 drops it too.
  const double scale = p < 1.0 ? 1.0 / (1.0 - p) : 0.0;
  with_float_type(x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    parallel_for(rows * chunks, larger(1, 8192 / smaller(kChunk, loop.size[inner])),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t task = begin; task < end; ++task) {
                     const std::int64_t first = task % chunks * kChunk;
                     std::int64_t row = task / chunks;
                     std::int64_t at_x = first * loop.x[inner], at_y = first * loop.y[inner];
                     std::int64_t at_index = index.base + first * loop.index[inner];
                     for (int d = inner - 1; d >= 0; --d) {
                       const std::int64_t i = row % loop.size[d];
                       row /= loop.size[d];
                       at_x += i * loop.x[d];
                       at_y += i * loop.y[d];
                       at_index += i * loop.index[d];
                     }
                     drop_chunk<In>(static_cast<const In*>(x.data) + at_x, loop.x[inner],
                                    smaller(kChunk, loop.size[inner] - first), key, at_index,
                                    loop.index[inner], threshold, static_cast<Compute<In>>(scale),
                                    static_cast<In*>(y.data) + at_y, loop.y[inner]);
                   }
                 });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
