// Cross-entropy fused with softmax: the probabilities [N, V] never exist.
//
//   forward    lse = log Σ_v exp(x_v),  loss = lse − (1 − ε) · x_target − ε/V · Σ_v x_v
//   backward   dx_v = dloss · (exp(x_v − lse) − ε/V − (1 − ε) · [v = target])
//
// The forward pass reads a row once: the largest element so far and the sum relative to it are carried along,
// and rescaled when a larger one comes (Milakov & Gimelshein, "Online normalizer calculation for softmax",
// 2018).

#include "kernels/cpu/index_errors.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/exponentials.h"
#include "kernels/cpu/vector/families.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

TESSERA_INLINE std::int64_t target_of(const ConstView& targets, std::int64_t row) {
  return static_cast<const std::int64_t*>(targets.data)[row * targets.strides[0]];
}

// In columns of another rank: see CrossEntropyOptions::partial_vocabulary.
constexpr std::int64_t kElsewhere = -1;

void check_targets(const ConstView& targets, std::int64_t vocabulary, const CrossEntropyOptions& options) {
  for (std::int64_t row = 0; row < targets.shape[0]; ++row) {
    const std::int64_t target = target_of(targets, row);
    if (target == options.ignore_index || (options.partial_vocabulary && target == kElsewhere)) continue;
    if (target < 0 || target >= vocabulary) {
      throw_index_error("cross_entropy", "target", target, row, vocabulary);
    }
  }
}

/// log Σ exp(x), and Σ x into `total` if it is not null.
template <class In>
Compute<In> log_sum_exp(const In* x, std::int64_t n, Compute<In>* total) {
  using T = Compute<In>;
  constexpr T kMinusInfinity = -FloatFormat<T>::kInfinity;
  alignas(64) T buffer[kExpChunk];
  T largest = kMinusInfinity, sum = 0, plain_sum = 0;
  for (std::int64_t i = 0; i < n; i += kExpChunk) {
    const std::int64_t count = smaller(kExpChunk, n - i);
    const T chunk_largest = max_lanes(x + i, count);
    if (!(chunk_largest <= largest)) {
      // While all elements are −∞ (masked), relative to 0: their difference from the largest would be NaN.
      const T before = largest;
      largest = chunk_largest;
      sum *= before == kMinusInfinity ? T(0) : vexp(before - largest);
    }
    exp_chunk(x + i, count, largest == kMinusInfinity ? T(0) : largest, buffer);
    sum += sum_chunk(buffer, count);
    if (total != nullptr) {
      plain_sum += sum_lanes<T>(
          count, [&](std::int64_t j, auto lanes)
                     __attribute__((always_inline)) { return load(x + i + j, lanes); });
    }
  }
  if (total != nullptr) *total = plain_sum;
  return largest == kMinusInfinity ? vlog(sum) : largest + vlog(sum);
}

template <class In>
void cross_entropy_row(const In* x, std::int64_t vocabulary, std::int64_t target,
                       const CrossEntropyOptions& options, Compute<In>* loss, Compute<In>* lse) {
  using T = Compute<In>;
  const auto smoothing = static_cast<T>(options.label_smoothing);
  T total = 0;
  *lse = log_sum_exp(x, vocabulary, smoothing != T(0) ? &total : nullptr);
  if (target == options.ignore_index) {
    *loss = 0;
    return;
  }
  if (options.partial_vocabulary) {
    *loss = target == kElsewhere ? T(0) : -widen(x[target]);
    return;
  }
  *loss = *lse - (T(1) - smoothing) * widen(x[target]);
  if (smoothing != T(0)) *loss -= smoothing * (total / static_cast<T>(vocabulary));
}

/// dx may be x.
template <class In>
void cross_entropy_backward_row(Compute<In> dloss, const In* x, std::int64_t vocabulary, std::int64_t target,
                                Compute<In> lse, const CrossEntropyOptions& options, In* dx) {
  using T = Compute<In>;
  if (target == options.ignore_index) {
    for_lanes<T>(
        vocabulary, [&](std::int64_t i, auto lanes)
                        __attribute__((always_inline)) { store(Lanes<T>{}, dx + i, lanes); });
    return;
  }
  alignas(64) T buffer[kExpChunk];
  const auto smoothing = static_cast<T>(options.label_smoothing);
  const T everywhere = smoothing / static_cast<T>(vocabulary);
  // Before the loop overwrites it, and rounded once.
  const bool is_here = !(options.partial_vocabulary && target == kElsewhere);
  const T at_target =
      is_here ? dloss * (vexp(widen(x[target]) - lse) - everywhere - (T(1) - smoothing)) : T(0);
  for (std::int64_t i = 0; i < vocabulary; i += kExpChunk) {
    const std::int64_t count = smaller(kExpChunk, vocabulary - i);
    exp_chunk(x + i, count, lse, buffer);
    for_lanes<T>(
        count, [&](std::int64_t j, auto lanes) __attribute__((always_inline)) {
          store((load(buffer + j, lanes) - everywhere) * dloss, dx + i + j, lanes);
        });
  }
  if (is_here) narrow(at_target, dx[target]);
}

class CpuLosses final : public Losses {
 public:
  void cross_entropy(const ConstView& logits, const ConstView& targets, const CrossEntropyOptions& options,
                     const View& losses, const View& lse) const override {
    const std::int64_t vocabulary = logits.shape[1];
    check_targets(targets, vocabulary, options);
    with_float_type(logits.dtype, [&](auto tag) {
      using In = typename decltype(tag)::Type;
      using T = Compute<In>;
      parallel_for(logits.shape[0], larger(1, 2048 / larger(1, vocabulary)),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t row = begin; row < end; ++row) {
                       cross_entropy_row<In>(static_cast<const In*>(logits.data) + row * logits.strides[0],
                                             vocabulary, target_of(targets, row), options,
                                             static_cast<T*>(losses.data) + row * losses.strides[0],
                                             static_cast<T*>(lse.data) + row * lse.strides[0]);
                     }
                   });
    });
  }

  void cross_entropy_backward(const ConstView& dlosses, const ConstView& logits, const ConstView& targets,
                              const ConstView& lse, const CrossEntropyOptions& options,
                              const View& dlogits) const override {
    const std::int64_t vocabulary = logits.shape[1];
    check_targets(targets, vocabulary, options);
    with_float_type(logits.dtype, [&](auto tag) {
      using In = typename decltype(tag)::Type;
      using T = Compute<In>;
      parallel_for(logits.shape[0], larger(1, 2048 / larger(1, vocabulary)),
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t row = begin; row < end; ++row) {
                       cross_entropy_backward_row<In>(
                           static_cast<const T*>(dlosses.data)[row * dlosses.strides[0]],
                           static_cast<const In*>(logits.data) + row * logits.strides[0], vocabulary,
                           target_of(targets, row), static_cast<const T*>(lse.data)[row * lse.strides[0]],
                           options, static_cast<In*>(dlogits.data) + row * dlogits.strides[0]);
                     }
                   });
    });
  }
};

}  // namespace

const Losses& losses() noexcept {
  static const CpuLosses instance;
  return instance;
}

}  // namespace tessera::kernels::TESSERA_ISA
