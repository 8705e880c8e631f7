#pragma once

// What both passes of attention are made of: tiles of at most 64 queries × 64 keys, products of tiles, masks.
//
// B batch, T time (queries), S time (keys), H query heads, G key/value heads, K head width

#include <cstdint>

#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/packing.h"
#include "kernels/cpu/vector/philox.h"
#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

/// Side of a tile. Four tiles of f32 fit into L1 and L2 with room to spare.
inline constexpr int kTile = 64;

/// Registers of one step of a product: kTileRows × two vectors of sums, as in gemm.cpp.
inline constexpr int kTileRows = kVectorBytes == 64 ? 14 : kVectorBytes == 32 ? 6 : 4;

/// How the left factor of a product lies in its tile [.., kTile]: a(i, k) at a[k·kTile + i] or at a[i·kTile +
/// k].
enum class LeftFactor { kDepthByRow, kRowByDepth };

template <class T, int kRows, LeftFactor kLeft, bool kAdd>
TESSERA_INLINE void multiply_rows(std::int64_t depth, const T* a, const T* b, std::int64_t b_step, T* c,
                                  std::int64_t c_step) {
  constexpr int kRowStep = kLeft == LeftFactor::kDepthByRow ? 1 : kTile;
  constexpr int kDepthStep = kLeft == LeftFactor::kDepthByRow ? kTile : 1;
  Lanes<T> sums[kRows][2] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += kDepthStep, b += b_step) {
    const Lanes<T> b0 = load(b, AllLanes{}), b1 = load(b + kLanes<T>, AllLanes{});
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sums[i][0] += a[i * kRowStep] * b0;
      sums[i][1] += a[i * kRowStep] * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i, c += c_step) {
    if constexpr (kAdd) {
      sums[i][0] += load(c, AllLanes{});
      sums[i][1] += load(c + kLanes<T>, AllLanes{});
    }
    store(sums[i][0], c, AllLanes{});
    store(sums[i][1], c + kLanes<T>, AllLanes{});
  }
}

/// c [rows, columns] ← (or +=) a · b with `depth` inner elements. b is [depth, columns]. Rows and columns are
/// rounded up to what the registers hold: a's tile, b's rows and c's have room for that (kTile rows, two
/// vectors of columns), and what is computed there means nothing.
template <class T, LeftFactor kLeft, bool kAdd>
__attribute__((noinline)) void multiply_tile(std::int64_t rows, std::int64_t columns, std::int64_t depth,
                                             const T* a, const T* b, std::int64_t b_step, T* c,
                                             std::int64_t c_step) {
  constexpr int kRest = kTile % kTileRows;
  constexpr int kRowStep = kLeft == LeftFactor::kDepthByRow ? 1 : kTile;
  for (std::int64_t j = 0; j < columns; j += 2 * kLanes<T>) {
    std::int64_t i = 0;
    for (; i < rows && i + kTileRows <= kTile; i += kTileRows) {
      multiply_rows<T, kTileRows, kLeft, kAdd>(depth, a + i * kRowStep, b + j, b_step, c + i * c_step + j,
                                               c_step);
    }
    if constexpr (kRest > 0) {
      if (i < rows) {
        multiply_rows<T, kRest, kLeft, kAdd>(depth, a + i * kRowStep, b + j, b_step, c + i * c_step + j,
                                             c_step);
      }
    }
  }
}

/// Columns of [.., K] matrices in memory: a multiple of what a product writes at a time.
template <class T>
TESSERA_INLINE std::int64_t padded_width(std::int64_t width) {
  return round_up(width, 2 * kLanes<T>);
}

/// tile[d·kTile + i] ← scale · x[i·stride + d] for `count` <= kTile rows of `width` elements, zeros behind
/// them.
template <class T, class In>
TESSERA_INLINE void pack_columns(const In* x, std::int64_t stride, std::int64_t count, std::int64_t width,
                                 T scale, T* tile) {
  pack_sliver<kTile, T, In>(x, count, width, stride, 1, tile);
  if (scale != T(1)) {
    for (std::int64_t i = 0; i < width * kTile; ++i) tile[i] *= scale;
  }
}

/// rows[i·padded + d] ← scale · x[i·stride + d], zeros behind each row.
template <class T, class In>
TESSERA_INLINE void pack_rows(const In* x, std::int64_t stride, std::int64_t count, std::int64_t width,
                              T scale, T* rows) {
  const std::int64_t padded = padded_width<T>(width);
  for (std::int64_t i = 0; i < count; ++i, x += stride, rows += padded) {
    for (std::int64_t d = width; d < padded; ++d) rows[d] = 0;
    for_lanes<T>(
        width, [&](std::int64_t d, auto lanes)
                   __attribute__((always_inline)) { store(load(x + d, lanes) * scale, rows + d, lanes); });
  }
}

/// Sizes and options that every tile of one call shares.
struct AttentionShape {
  std::int64_t batch, queries, keys, heads, groups, width;
  bool causal;
  std::int64_t key_offset;  ///< query t sees keys s <= t + key_offset
  std::uint32_t threshold = 0;
  double keep_scale = 1.0;
  RandomKey key;
  GlobalIndex index;

  TESSERA_INLINE AttentionShape(const ConstView& q, const ConstView& k, const AttentionOptions& options)
      : batch(q.shape[0]),
        queries(q.shape[1]),
        keys(k.shape[1]),
        heads(q.shape[2]),
        groups(k.shape[2]),
        width(q.shape[3]),
        causal(options.causal),
        key_offset(k.shape[1] - q.shape[1]),
        key(options.key),
        index(options.index) {
    if (options.dropout_p > 0.0) {
      threshold = dropout_threshold(options.dropout_p);
      keep_scale = options.dropout_p < 1.0 ? 1.0 / (1.0 - options.dropout_p) : 0.0;
    }
  }
  [[nodiscard]] TESSERA_INLINE bool has_dropout() const { return threshold > 0; }

  /// One past the last key that query t sees.
  [[nodiscard]] TESSERA_INLINE std::int64_t visible_keys(std::int64_t t) const {
    return causal ? larger(0, smaller(keys, t + key_offset + 1)) : keys;
  }
  /// Of the queries first_query .. first_query + kTile − 1, how many come before the first that sees key s.
  [[nodiscard]] TESSERA_INLINE std::int64_t blind_queries(std::int64_t s, std::int64_t first_query) const {
    return causal ? larger(0, smaller(kTile, s - key_offset - first_query)) : 0;
  }
};

/// factors[s·kTile + q] ← 1/(1 − p) where the probability of query first_query + q and key first_key + s is
/// kept, else 0.
template <class T>
TESSERA_INLINE void dropout_factors(const AttentionShape& shape, std::int64_t b, std::int64_t h,
                                    std::int64_t first_query, std::int64_t queries, std::int64_t first_key,
                                    std::int64_t keys, T* factors) {
  std::uint32_t words[kTile];
  const T scale = static_cast<T>(shape.keep_scale);
  for (std::int64_t q = 0; q < queries; ++q) {
    const std::int64_t* const strides = shape.index.strides;
    const std::int64_t first = shape.index.base + b * strides[0] + h * strides[1] +
                               (first_query + q) * strides[2] + first_key * strides[3];
    if (strides[3] == 1) {
      random_words(shape.key, static_cast<std::uint64_t>(first), keys, words);
    } else {
      for (std::int64_t s = 0; s < keys; ++s) {
        words[s] = random_word(shape.key, static_cast<std::uint64_t>(first + s * strides[3]));
      }
    }
    for (std::int64_t s = 0; s < keys; ++s) {
      factors[s * kTile + q] = dropout_keeps(words[s], shape.threshold) ? scale : T(0);
    }
  }
  for (std::int64_t q = queries; q < kTile; ++q) {
    for (std::int64_t s = 0; s < keys; ++s) factors[s * kTile + q] = 0;
  }
}

/// Elements of one head of [B, time, heads, K].
template <class In, class Pointer>
TESSERA_INLINE auto* head_of(const BasicView<Pointer>& x, std::int64_t b, std::int64_t t, std::int64_t h) {
  const std::int64_t offset = b * x.strides[0] + t * x.strides[1] + h * x.strides[2];
  if constexpr (__is_same(Pointer, void*)) {
    return static_cast<In*>(x.data) + offset;
  } else {
    return static_cast<const In*>(x.data) + offset;
  }
}

void attention_forward(const ConstView& q, const ConstView& k, const ConstView& v,
                       const AttentionOptions& options, const View& o, const View& lse);
void attention_backward(const ConstView& d_o, const ConstView& q, const ConstView& k, const ConstView& v,
                        const ConstView& o, const ConstView& lse, const AttentionOptions& options,
                        const View& dq, const View& dk, const View& dv);

}  // namespace tessera::kernels::TESSERA_ISA
