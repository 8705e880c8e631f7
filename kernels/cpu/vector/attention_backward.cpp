// Attention, backward (Dao et al., 2022). Probabilities are made again, tile by tile, from the log-sum-exp:
//
//   P = exp(scale · Q Kᵀ − lse),  P' = dropout(P)          dV = P'ᵀ dO
//   dP = dropout(dO Vᵀ),  dS = P ∘ (dP − δ),  δ = Σ dO ∘ O  dQ = scale · dS K,  dK = scale · dSᵀ Q
//
// A thread takes a key/value head with all the query heads that read it, so that nobody else adds to its dK
// and dV. Sums run over query heads, queries and keys in ascending order: results do not depend on threads.

#include "kernels/context.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/attention_tiles.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

constexpr std::int64_t kQueryBlock = 4 * kTile;  // queries packed at a time, for one walk over all keys

struct Operands {
  ConstView d_o, q, k, v, o, lse;
  View dq, dk, dv;
  double scale;
};

/// A thread's scratch memory. Columns: [K, kTile] tiles; rows: [kTile, padded K].
template <class T>
struct Scratch {
  std::int64_t padded = 0;
  T *q_columns, *q_rows, *do_columns, *do_rows, *delta, *lse, *dq;  // of a block of queries
  T *k_columns, *k_rows, *v_columns;                                // of a tile of keys
  T *probabilities, *scores, *factors;                              // of a pair of tiles
  T *dk, *dv;                                                       // of all keys

  /// Assigns the pointers from `data` on and returns the number of elements needed.
  TESSERA_INLINE std::int64_t place(const AttentionShape& shape, T* data) {
    padded = padded_width<T>(shape.width);
    std::int64_t used = 0;
    const auto take = [&](std::int64_t count) __attribute__((always_inline)) {
      T* const start = data == nullptr ? nullptr : data + used;
      used += round_up(count, kTile);
      return start;
    };
    q_columns = take(kQueryBlock * shape.width);
    q_rows = take(kQueryBlock * padded);
    do_columns = take(kQueryBlock * shape.width);
    do_rows = take(kQueryBlock * padded);
    delta = take(kQueryBlock);
    lse = take(kQueryBlock);
    dq = take(kQueryBlock * padded);
    k_columns = take(kTile * shape.width);
    k_rows = take(kTile * padded);
    v_columns = take(kTile * shape.width);
    probabilities = take(kTile * kTile);
    scores = take(kTile * kTile);
    factors = take(shape.has_dropout() ? kTile * kTile : 0);
    const std::int64_t all_keys = round_up(shape.keys, kTile);
    dk = take(all_keys * padded);
    dv = take(all_keys * padded);
    return used;
  }
};

template <class T>
__attribute__((noinline)) void exponentials(std::int64_t keys, const T* __restrict__ lse,
                                            T* __restrict__ scores) {
  for (std::int64_t s = 0; s < keys; ++s) {
    T* row = scores + s * kTile;
    for (int q = 0; q < kTile; ++q) row[q] = vexp(row[q] - lse[q]);
  }
}

/// scores ← P ∘ (dP − δ), all [keys, kTile].
template <class T>
__attribute__((noinline)) void score_gradients(std::int64_t keys, const T* __restrict__ probabilities,
                                               const T* __restrict__ delta, T* __restrict__ scores) {
  for (std::int64_t s = 0; s < keys; ++s) {
    const T* p = probabilities + s * kTile;
    T* row = scores + s * kTile;
    for (int q = 0; q < kTile; ++q) row[q] = p[q] * (row[q] - delta[q]);
  }
}

/// A tile of queries (at `at` of the packed block) meets the packed tile of keys.
template <class T>
void meet(const AttentionShape& shape, std::int64_t b, std::int64_t h, std::int64_t first_query,
          std::int64_t at, std::int64_t queries, std::int64_t first_key, std::int64_t keys,
          const Scratch<T>& scratch) {
  const std::int64_t width = shape.width, padded = scratch.padded;
  T* const p = scratch.probabilities;
  multiply_tile<T, LeftFactor::kDepthByRow, false>(keys, kTile, width, scratch.k_columns,
                                                   scratch.q_columns + at * width, kTile, p, kTile);
  exponentials(keys, scratch.lse + at, p);
  for (std::int64_t s = 0; s < keys; ++s) {
    const std::int64_t blind = shape.blind_queries(first_key + s, first_query);
    for (std::int64_t q = 0; q < blind; ++q) p[s * kTile + q] = 0;
  }
  T* const ds = scratch.scores;
  multiply_tile<T, LeftFactor::kDepthByRow, false>(keys, kTile, width, scratch.v_columns,
                                                   scratch.do_columns + at * width, kTile, ds, kTile);
  T* const dv = scratch.dv + first_key * padded;
  if (shape.has_dropout()) {
    dropout_factors(shape, b, h, first_query, queries, first_key, keys, scratch.factors);
    for (std::int64_t i = 0; i < keys * kTile; ++i) ds[i] *= scratch.factors[i];
    for (std::int64_t i = 0; i < keys * kTile; ++i) scratch.factors[i] *= p[i];
    multiply_tile<T, LeftFactor::kRowByDepth, true>(keys, width, queries, scratch.factors,
                                                    scratch.do_rows + at * padded, padded, dv, padded);
  } else {
    multiply_tile<T, LeftFactor::kRowByDepth, true>(keys, width, queries, p, scratch.do_rows + at * padded,
                                                    padded, dv, padded);
  }
  score_gradients(keys, p, scratch.delta + at, ds);
  multiply_tile<T, LeftFactor::kRowByDepth, true>(keys, width, queries, ds, scratch.q_rows + at * padded,
                                                  padded, scratch.dk + first_key * padded, padded);
  multiply_tile<T, LeftFactor::kDepthByRow, true>(queries, width, keys, ds, scratch.k_rows, padded,
                                                  scratch.dq + at * padded, padded);
}

/// Packs queries [begin, begin + count) of head h, and makes δ.
template <class In>
void pack_queries(const AttentionShape& shape, const Operands& operands, std::int64_t b, std::int64_t h,
                  std::int64_t begin, std::int64_t count, const Scratch<Compute<In>>& scratch) {
  using T = Compute<In>;
  const std::int64_t width = shape.width, padded = scratch.padded;
  const auto scale = static_cast<T>(operands.scale);
  const T* const lse =
      static_cast<const T*>(operands.lse.data) + (b * shape.heads + h) * shape.queries + begin;
  for (std::int64_t i = 0; i < count; i += kTile) {
    const std::int64_t n = smaller(kTile, count - i);
    const In* const q = head_of<In>(operands.q, b, begin + i, h);
    const In* const d_o = head_of<In>(operands.d_o, b, begin + i, h);
    // Scaled as in the forward pass, so that the scores are the same; the scale of dK comes with it.
    pack_columns<T, In>(q, operands.q.strides[1], n, width, scale, scratch.q_columns + i * width);
    pack_rows<T, In>(q, operands.q.strides[1], n, width, scale, scratch.q_rows + i * padded);
    pack_columns<T, In>(d_o, operands.d_o.strides[1], n, width, T(1), scratch.do_columns + i * width);
    pack_rows<T, In>(d_o, operands.d_o.strides[1], n, width, T(1), scratch.do_rows + i * padded);
    for (std::int64_t j = 0; j < kTile; ++j) {
      T delta = 0;
      if (j < n) {
        const In* const o = head_of<In>(operands.o, b, begin + i + j, h);
        const T* const gradient = scratch.do_rows + (i + j) * padded;
        delta = sum_lanes<T>(
            width, [&](std::int64_t d, auto lanes) __attribute__((always_inline)) {
              return load(o + d, lanes) * load(gradient + d, lanes);
            });
      }
      scratch.delta[i + j] = delta;
      scratch.lse[i + j] = j < n ? lse[i + j] : T(0);
    }
  }
}

template <class In>
void write_rows(const Compute<In>* rows, std::int64_t padded, Compute<In> scale, std::int64_t count,
                std::int64_t width, In* y, std::int64_t stride) {
  using T = Compute<In>;
  for (std::int64_t i = 0; i < count; ++i, rows += padded, y += stride) {
    for_lanes<T>(
        width, [&](std::int64_t d, auto lanes)
                   __attribute__((always_inline)) { store(load(rows + d, lanes) * scale, y + d, lanes); });
  }
}

/// All gradients of key/value head g of sample b and of the query heads that read it.
template <class In>
void differentiate_head(const AttentionShape& shape, const Operands& operands, std::int64_t b, std::int64_t g,
                        const Scratch<Compute<In>>& scratch) {
  using T = Compute<In>;
  const std::int64_t width = shape.width, padded = scratch.padded, shared = shape.heads / shape.groups;
  const std::int64_t all_keys = round_up(shape.keys, kTile);
  for (std::int64_t i = 0; i < all_keys * padded; ++i) scratch.dk[i] = scratch.dv[i] = 0;
  for (std::int64_t h = g * shared; h < (g + 1) * shared; ++h) {
    for (std::int64_t begin = 0; begin < shape.queries; begin += kQueryBlock) {
      const std::int64_t count = smaller(kQueryBlock, shape.queries - begin);
      pack_queries<In>(shape, operands, b, h, begin, count, scratch);
      for (std::int64_t i = 0; i < kQueryBlock * padded; ++i) scratch.dq[i] = 0;
      const std::int64_t visible = shape.visible_keys(begin + count - 1);
      for (std::int64_t s = 0; s < visible; s += kTile) {
        // Whole tiles, also where no query of the block sees the last keys: what a product computes beyond
        // its rows must not fall on keys that exist.
        const std::int64_t keys = smaller(kTile, shape.keys - s);
        const In* const k = head_of<In>(operands.k, b, s, g);
        pack_columns<T, In>(k, operands.k.strides[1], keys, width, T(1), scratch.k_columns);
        pack_rows<T, In>(k, operands.k.strides[1], keys, width, T(1), scratch.k_rows);
        pack_columns<T, In>(head_of<In>(operands.v, b, s, g), operands.v.strides[1], keys, width, T(1),
                            scratch.v_columns);
        for (std::int64_t i = 0; i < count; i += kTile) {
          const std::int64_t queries = smaller(kTile, count - i);
          if (shape.visible_keys(begin + i + queries - 1) <= s) continue;
          meet<T>(shape, b, h, begin + i, i, queries, s, keys, scratch);
        }
      }
      write_rows<In>(scratch.dq, padded, static_cast<T>(operands.scale), count, width,
                     head_of<In>(operands.dq, b, begin, h), operands.dq.strides[1]);
    }
  }
  write_rows<In>(scratch.dk, padded, T(1), shape.keys, width, head_of<In>(operands.dk, b, 0, g),
                 operands.dk.strides[1]);
  write_rows<In>(scratch.dv, padded, T(1), shape.keys, width, head_of<In>(operands.dv, b, 0, g),
                 operands.dv.strides[1]);
}

}  // namespace

void attention_backward(const ConstView& d_o, const ConstView& q, const ConstView& k, const ConstView& v,
                        const ConstView& o, const ConstView& lse, const AttentionOptions& options,
                        const View& dq, const View& dk, const View& dv) {
  const AttentionShape shape(q, k, options);
  Operands operands;
  operands.d_o = d_o;
  operands.q = q;
  operands.k = k;
  operands.v = v;
  operands.o = o;
  operands.lse = lse;
  operands.dq = dq;
  operands.dk = dk;
  operands.dv = dv;
  operands.scale = options.scale;
  const std::int64_t tasks = shape.batch * shape.groups;
  if (tasks == 0) return;
  with_float_type(q.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    using T = Compute<In>;
    Scratch<T> sizes;
    const std::int64_t elements = sizes.place(shape, nullptr);
    const std::int64_t lanes = smaller(kernel_context().num_threads, tasks);
    const Workspace workspace(static_cast<std::size_t>(lanes * elements) * sizeof(T));
    std::int64_t next = 0;
    parallel_for(lanes, 1, [&](std::int64_t begin, std::int64_t end) {
      (void)end;
      Scratch<T> scratch;
      scratch.place(shape, static_cast<T*>(workspace.data()) + begin * elements);
      for (;;) {
        const std::int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (task >= tasks) break;
        differentiate_head<In>(shape, operands, task / shape.groups, task % shape.groups, scratch);
      }
    });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
