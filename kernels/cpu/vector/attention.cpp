// Attention, forward (Dao et al., "FlashAttention", 2022). For a tile of queries the tiles of keys pass by;
// each query carries its largest score so far, the sum of exponentials relative to it, and its output,
// rescaled when a larger score comes. Scores are held transposed, [key, query], so that the softmax runs in
// vector lanes, one query each.
//
// A thread takes a group of queries of one head. It packs a block of keys and values once for all of them. A
// query's numbers are added in the order of the keys, tile by tile, whatever the group: results do not depend
// on threads.

#include "kernels/context.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/attention_tiles.h"
#include "kernels/cpu/vector/families.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

constexpr std::int64_t kKeyBlock = 4 * kTile;  // keys packed at a time: with values 128 KiB of f32 at K = 64

/// A thread's scratch memory; sizes in elements of T.
template <class T>
struct Scratch {
  std::int64_t group, padded;
  T *queries, *outputs, *largest, *sums, *keys, *values, *scores, *factors;

  TESSERA_INLINE Scratch(const AttentionShape& shape, std::int64_t group_size)
      : group(group_size), padded(padded_width<T>(shape.width)) {
    place(shape, nullptr);
  }
  /// Assigns the pointers from `data` on and returns the number of elements needed.
  TESSERA_INLINE std::int64_t place(const AttentionShape& shape, T* data) {
    std::int64_t used = 0;
    const auto take = [&](std::int64_t count) __attribute__((always_inline)) {
      T* const start = data == nullptr ? nullptr : data + used;
      used += round_up(count, kTile);
      return start;
    };
    queries = take(group * shape.width);
    outputs = take(group * padded);
    largest = take(group);
    sums = take(group);
    keys = take(kKeyBlock * shape.width);
    values = take(kKeyBlock * padded);
    scores = take(kTile * kTile);
    factors = take(shape.has_dropout() ? kTile * kTile : 0);
    return used;
  }
};

/// scores [keys, kTile] ← probabilities relative to the largest score so far, which is brought up to date
/// with the sums. rescale[q] ← what earlier outputs of query q are worth now.
template <class T>
__attribute__((noinline)) void soften(std::int64_t keys, T* __restrict__ scores, T* __restrict__ largest,
                                      T* __restrict__ sums, T* __restrict__ rescale) {
  constexpr T kMinusInfinity = -FloatFormat<T>::kInfinity;
  alignas(64) T shift[kTile], total[kTile];
  for (int q = 0; q < kTile; ++q) shift[q] = largest[q];
  for (std::int64_t s = 0; s < keys; ++s) {
    const T* row = scores + s * kTile;
    for (int q = 0; q < kTile; ++q) shift[q] = row[q] > shift[q] ? row[q] : shift[q];
  }
  for (int q = 0; q < kTile; ++q) {
    const T before = largest[q];
    largest[q] = shift[q];
    // While a query has seen no key: −∞ − (−∞) would be NaN.
    shift[q] = shift[q] == kMinusInfinity ? T(0) : shift[q];
    rescale[q] = vexp(before - shift[q]);
    total[q] = 0;
  }
  for (std::int64_t s = 0; s < keys; ++s) {
    T* row = scores + s * kTile;
    for (int q = 0; q < kTile; ++q) {
      const T p = vexp(row[q] - shift[q]);
      row[q] = p;
      total[q] += p;
    }
  }
  for (int q = 0; q < kTile; ++q) sums[q] = sums[q] * rescale[q] + total[q];
}

/// A tile of queries meets a tile of keys.
template <class T>
void meet(const AttentionShape& shape, std::int64_t b, std::int64_t h, std::int64_t first_query,
          std::int64_t queries, std::int64_t first_key, std::int64_t keys, const T* packed_queries,
          const T* packed_keys, const T* packed_values, T* largest, T* sums, T* outputs,
          const Scratch<T>& scratch) {
  T* const scores = scratch.scores;
  multiply_tile<T, LeftFactor::kDepthByRow, false>(keys, queries, shape.width, packed_keys, packed_queries,
                                                   kTile, scores, kTile);
  if (queries < kTile) {  // columns that the product has not written
    for (std::int64_t s = 0; s < keys; ++s) {
      for (std::int64_t q = queries; q < kTile; ++q) scores[s * kTile + q] = 0;
    }
  }
  for (std::int64_t s = 0; s < keys; ++s) {
    const std::int64_t blind = shape.blind_queries(first_key + s, first_query);
    for (std::int64_t q = 0; q < blind; ++q) scores[s * kTile + q] = -FloatFormat<T>::kInfinity;
  }
  alignas(64) T rescale[kTile];
  soften(keys, scores, largest, sums, rescale);
  if (shape.has_dropout()) {
    // After the sums: dropout is on the normalised probabilities.
    dropout_factors(shape, b, h, first_query, queries, first_key, keys, scratch.factors);
    for (std::int64_t i = 0; i < keys * kTile; ++i) scores[i] *= scratch.factors[i];
  }
  for (std::int64_t q = 0; q < queries; ++q) {
    if (rescale[q] == T(1)) continue;
    T* const output = outputs + q * scratch.padded;
    for (std::int64_t d = 0; d < scratch.padded; ++d) output[d] *= rescale[q];
  }
  multiply_tile<T, LeftFactor::kDepthByRow, true>(queries, shape.width, keys, scores, packed_values,
                                                  scratch.padded, outputs, scratch.padded);
}

/// Queries [begin, begin + count) of head h of sample b.
template <class In>
void attend(const AttentionShape& shape, const ConstView& q, const ConstView& k, const ConstView& v,
            double scale, const View& o, const View& lse, std::int64_t b, std::int64_t h, std::int64_t begin,
            std::int64_t count, const Scratch<Compute<In>>& scratch) {
  using T = Compute<In>;
  const std::int64_t kv_head = h / (shape.heads / shape.groups);
  const std::int64_t width = shape.width, padded = scratch.padded;
  for (std::int64_t i = 0; i < count; i += kTile) {
    pack_columns<T, In>(head_of<In>(q, b, begin + i, h), q.strides[1], smaller(kTile, count - i), width,
                        static_cast<T>(scale), scratch.queries + i * width);
  }
  const std::int64_t rounded = round_up(count, kTile);
  for (std::int64_t i = 0; i < rounded * padded; ++i) scratch.outputs[i] = 0;
  for (std::int64_t i = 0; i < rounded; ++i) {
    scratch.largest[i] = -FloatFormat<T>::kInfinity;
    scratch.sums[i] = 0;
  }

  const std::int64_t last_key = shape.visible_keys(begin + count - 1);
  for (std::int64_t block = 0; block < last_key; block += kKeyBlock) {
    const std::int64_t block_keys = smaller(kKeyBlock, last_key - block);
    for (std::int64_t s = 0; s < block_keys; s += kTile) {
      const std::int64_t keys = smaller(kTile, block_keys - s);
      pack_columns<T, In>(head_of<In>(k, b, block + s, kv_head), k.strides[1], keys, width, T(1),
                          scratch.keys + s * width);
      pack_rows<T, In>(head_of<In>(v, b, block + s, kv_head), v.strides[1], keys, width, T(1),
                       scratch.values + s * padded);
    }
    for (std::int64_t i = 0; i < count; i += kTile) {
      const std::int64_t queries = smaller(kTile, count - i);
      const std::int64_t visible = smaller(block_keys, shape.visible_keys(begin + i + queries - 1) - block);
      for (std::int64_t s = 0; s < visible; s += kTile) {
        meet<T>(shape, b, h, begin + i, queries, block + s, smaller(kTile, visible - s),
                scratch.queries + i * width, scratch.keys + s * width, scratch.values + s * padded,
                scratch.largest + i, scratch.sums + i, scratch.outputs + i * padded, scratch);
      }
    }
  }

  T* const lse_row = static_cast<T*>(lse.data) + (b * shape.heads + h) * shape.queries + begin;
  for (std::int64_t i = 0; i < count; ++i) {
    // A query that sees no key: o = 0, lse = −∞.
    const T sum = scratch.sums[i];
    const T inverse = sum == T(0) ? T(0) : T(1) / sum;
    lse_row[i] = sum == T(0) ? -FloatFormat<T>::kInfinity : scratch.largest[i] + vlog(sum);
    In* const output = head_of<In>(o, b, begin + i, h);
    const T* const source = scratch.outputs + i * padded;
    for_lanes<T>(
        width, [&](std::int64_t d, auto lanes) __attribute__((always_inline)) {
          store(load(source + d, lanes) * inverse, output + d, lanes);
        });
  }
}

class CpuAttention final : public Attention {
 public:
  void attention(const ConstView& q, const ConstView& k, const ConstView& v, const AttentionOptions& options,
                 const View& o, const View& lse) const override {
    attention_forward(q, k, v, options, o, lse);
  }
  void attention_backward(const ConstView& d_o, const ConstView& q, const ConstView& k, const ConstView& v,
                          const ConstView& o, const ConstView& lse, const AttentionOptions& options,
                          const View& dq, const View& dk, const View& dv) const override {
    TESSERA_ISA::attention_backward(d_o, q, k, v, o, lse, options, dq, dk, dv);
  }
};

}  // namespace

void attention_forward(const ConstView& q, const ConstView& k, const ConstView& v,
                       const AttentionOptions& options, const View& o, const View& lse) {
  const AttentionShape shape(q, k, options);
  const std::int64_t heads = shape.batch * shape.heads;
  if (heads * shape.queries == 0) return;
  const std::int64_t threads = kernel_context().num_threads;
  // Large groups pack keys less often, small ones keep all threads busy.
  std::int64_t group = smaller(8 * kTile, round_up(shape.queries, kTile));
  while (group > kTile && heads * ceil_div(shape.queries, group) < 4 * threads)
    group = round_up(group / 2, kTile);
  const std::int64_t groups = ceil_div(shape.queries, group), tasks = heads * groups;
  with_float_type(q.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    using T = Compute<In>;
    Scratch<T> sizes(shape, group);
    const std::int64_t elements = sizes.place(shape, nullptr);
    const std::int64_t lanes = smaller(threads, tasks);
    const Workspace workspace(static_cast<std::size_t>(lanes * elements) * sizeof(T));
    std::int64_t next = 0;
    parallel_for(lanes, 1, [&](std::int64_t begin, std::int64_t end) {
      (void)end;
      Scratch<T> scratch(shape, group);
      scratch.place(shape, static_cast<T*>(workspace.data()) + begin * elements);
      // Under a causal mask late queries have more to do: threads take the next task when they are free,
      // longest first.
      for (;;) {
        const std::int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (task >= tasks) break;
        const std::int64_t first = (groups - 1 - task / heads) * group, head = task % heads;
        attend<In>(shape, q, k, v, options.scale, o, lse, head / shape.heads, head % shape.heads, first,
                   smaller(group, shape.queries - first), scratch);
      }
    });
  });
}

const Attention& attention() noexcept {
  static const CpuAttention instance;
  return instance;
}

}  // namespace tessera::kernels::TESSERA_ISA
