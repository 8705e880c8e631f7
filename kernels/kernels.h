#pragma once

// The interfaces between Tensor operations and devices: one abstract class per family of kernels, one
// implementation per device (kernels/cpu, kernels/meta), found through `kernels::of(device)`.
//
// Rules that hold for every kernel:
//  - Shapes and dtypes have been checked by the caller; a kernel asserts, it does not diagnose. What only the
//    data can tell (a token id out of range) is thrown as IndexError.
//  - Outputs are allocated by the caller. An output may be the same view as an input of equal dtype where it
//    says "in place"; otherwise outputs overlap nothing.
//  - 16-bit floats are converted to f32, computed, and rounded once. f64 is computed in f64 throughout. Sums,
//    norms, softmax and losses accumulate in `accumulation_dtype`.
//  - Any strides are accepted unless it says "contiguous". Empty tensors are legal everywhere.
//  - Results do not depend on the number of threads, except where a docstring says so.
//
// Letters: B batch, T time (queries), S time (keys), D width, H query heads, G key/value heads, K head width,
// V vocabulary, N rows.

#include <cstdint>
#include <span>

#include "kernels/device.h"
#include "kernels/random_key.h"
#include "kernels/view.h"

namespace tessera::kernels {

enum class UnaryOp : std::uint8_t {
  kNeg,
  kAbs,
  kSign,
  kSquare,
  kSqrt,
  kRsqrt,
  kReciprocal,
  kExp,
  kLog,
  kSin,
  kCos,
  kTanh,
  kSigmoid,
  kErf,
  kRelu,
  kGeluTanh,  // Hendrycks & Gimpel 2016, tanh approximation: GPT-2's
  kGeluErf,   // exact
  kSilu,      // x · sigmoid(x)
  kSoftplus,  // log(1 + e^x), stable for large |x|
  kNot,       // bool only
};

enum class BinaryOp : std::uint8_t { kAdd, kSub, kMul, kDiv, kPow, kMaximum, kMinimum, kAnd, kOr };

enum class CompareOp : std::uint8_t { kEq, kNe, kLt, kLe, kGt, kGe };

enum class ReduceOp : std::uint8_t { kSum, kMean, kMax, kMin, kAny, kAll };

/// Element by element.
class Elementwise {
 public:
  virtual ~Elementwise() = default;

  /// y ← x, converting the dtype. x has y's shape (broadcast by strides of 0). To integers: truncates; to
  /// bool: x ≠ 0. Any pair of dtypes.
  virtual void copy(const ConstView& x, const View& y) const = 0;
  virtual void fill(const View& y, double value) const = 0;
  /// y[i] = start + i · step, contiguous 1-D.
  virtual void arange(const View& y, double start, double step) const = 0;

  /// y ← op(x); same dtype and shape; in place allowed. Floats; kNeg, kAbs, kSign, kSquare also i64/i32.
  virtual void unary(UnaryOp op, const ConstView& x, const View& y) const = 0;
  /// dx ← dy · op'(x), where x is the *input* of op. Floats only.
  virtual void unary_backward(UnaryOp op, const ConstView& x, const ConstView& dy, const View& dx) const = 0;

  /// y ← a op b; same dtype; a and b have y's shape (broadcast by strides of 0); in place allowed.
  /// Floats and integers; kAnd, kOr bool only. Integer division truncates; by zero throws IndexError.
  virtual void binary(BinaryOp op, const ConstView& a, const ConstView& b, const View& y) const = 0;
  /// y ← a op scalar, or scalar op a if `scalar_first`.
  virtual void binary_scalar(BinaryOp op, const ConstView& a, double scalar, bool scalar_first,
                             const View& y) const = 0;
  /// y[bool] ← a op b; a and b of any equal dtype.
  virtual void compare(CompareOp op, const ConstView& a, const ConstView& b, const View& y) const = 0;
  virtual void compare_scalar(CompareOp op, const ConstView& a, double scalar, const View& y) const = 0;
  /// y ← condition[bool] ? a : b; all of y's shape by strides of 0.
  virtual void where(const ConstView& condition, const ConstView& a, const ConstView& b,
                     const View& y) const = 0;
  /// y ← y + alpha · x. x may have another float dtype than y (bf16 gradients into f32 sums).
  virtual void add_scaled(const View& y, const ConstView& x, double alpha) const = 0;
};

class Reductions {
 public:
  virtual ~Reductions() = default;

  /// y ← op over the dimensions in which y's size is 1 and x's is not (y has x's number of dims). Sum, mean,
  /// max, min: y has x's dtype (a 16-bit x may have an f32 y); any, all: bool. An empty sum is 0, any false,
  /// all true; an empty mean is NaN; empty max and min are refused by the caller.
  virtual void reduce(ReduceOp op, const ConstView& x, const View& y) const = 0;
  /// y[i64] ← index of the largest (`largest`) or smallest element along `dim`, where y's size is 1. First of
  /// equals.
  virtual void arg_reduce(bool largest, const ConstView& x, int dim, const View& y) const = 0;
  /// y[n, i] = Σ x[n, j] over j ≤ i, or over j ≥ i if `reverse`: running sums along rows. x, y [N, D], stride
  /// 1 in D, one float dtype. Each row is added in order, in accumulation_dtype; in place allowed.
  virtual void cumulative_sum(const ConstView& x, bool reverse, const View& y) const = 0;
  /// Σ x² over all elements of all views, in f64, in a fixed order.
  virtual double sum_of_squares(std::span<const ConstView> xs) const = 0;
  /// Row-major index of the first element that is NaN or infinite, or -1. Float dtypes.
  virtual std::int64_t first_non_finite(const ConstView& x) const = 0;
};

class Matmul {
 public:
  virtual ~Matmul() = default;

  struct Options {
    const ConstView* bias = nullptr;  ///< [N], added to every row of c; dtype of a
    bool accumulate = false;          ///< c ← c + a·b instead of c ← a·b
  };

  /// c [batch..., M, N] ← a [batch..., M, K] · b [batch..., K, N]. Batch dimensions equal c's (broadcast by
  /// strides of 0 in a and b). a and b have the same float dtype; c has it too, or is f32 with 16-bit a and
  /// b. Any strides; fast when in each of a, b one of the last two strides is 1. K = 0 gives zeros (or the
  /// bias).
  virtual void matmul(const ConstView& a, const ConstView& b, const View& c,
                      const Options& options) const = 0;
};

/// Layers that would take several passes if written with elementwise kernels. x is [N, D] with contiguous
/// rows (stride 1 in D) unless it says otherwise; statistics are in `accumulation_dtype(x)`, contiguous.
class Normalization {
 public:
  virtual ~Normalization() = default;

  /// y = (x − mean) · inv_std · gain + bias (Ba et al., 2016). mean, inv_std [N]. gain, bias [D], dtype of x;
  /// `bias` may have null data (no bias). If `residual` is given: x is first replaced by x + residual,
  /// written to `sum` (fused residual + LayerNorm; sum may be x or residual itself).
  virtual void layer_norm(const ConstView& x, const ConstView* residual, const View* sum,
                          const ConstView& gain, const ConstView& bias, double epsilon, const View& y,
                          const View& mean, const View& inv_std) const = 0;
  /// dx [N, D]; dgain, dbias [D] in dtype of gain or f32; each is skipped if null. dx may be dy. Without
  /// dx, `gain` may have null data.
  virtual void layer_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                                   const ConstView& mean, const ConstView& inv_std, const View* dx,
                                   const View* dgain, const View* dbias) const = 0;

  /// y = x · inv_rms · gain (Zhang & Sennrich, 2019). inv_rms [N].
  virtual void rms_norm(const ConstView& x, const ConstView& gain, double epsilon, const View& y,
                        const View& inv_rms) const = 0;
  virtual void rms_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                                 const ConstView& inv_rms, const View* dx, const View* dgain) const = 0;

  /// y = softmax(x) (or its logarithm) over the last dimension; in place allowed.
  virtual void softmax(const ConstView& x, bool log, const View& y) const = 0;
  /// dx from y = softmax(x) (or its logarithm); dx may be dy.
  virtual void softmax_backward(const ConstView& y, const ConstView& dy, bool log, const View& dx) const = 0;

  /// y = keep · x / (1 − p), keep from the key and the global index of each element; any shape; in place
  /// allowed. The backward pass is the same call on dy: the mask is made again, never stored.
  virtual void dropout(const ConstView& x, double p, const RandomKey& key, const GlobalIndex& index,
                       const View& y) const = 0;

  /// Rotary embedding (Su et al., 2021), pairs (k, k + K/2) as Llama stores them. x, y [B, T, H, K]; cosine,
  /// sine [T, K/2] in accumulation_dtype(x). `inverse` rotates back: it is the backward pass. In place
  /// allowed.
  virtual void rotary(const ConstView& x, const ConstView& cosine, const ConstView& sine, bool inverse,
                      const View& y) const = 0;
};

struct AttentionOptions {
  double scale = 1.0;      ///< usually 1/√K
  bool causal = true;      ///< query t sees keys s ≤ t + S − T (queries are the last T of S positions)
  double dropout_p = 0.0;  ///< on the probabilities
  RandomKey key = {};      ///< of the mask of the probabilities
  /// Where probability (b, h, t, s) of this call lies among those of all ranks. With H heads, T queries and S
  /// keys over all of them: base ((sample·H + head)·T + query)·S + key of the first, strides {H·T·S, T·S, S,
  /// 1}.
  GlobalIndex index = {};
};

/// Exact attention in tiles (Dao et al., "FlashAttention", 2022): never a T×S buffer.
class Attention {
 public:
  virtual ~Attention() = default;

  /// q [B, T, H, K], k, v [B, S, G, K], stride 1 in K, G divides H (query head h reads key head h / (H/G));
  /// o [B, T, H, K]; lse [B, H, T] = log Σ exp(scores), accumulation dtype, contiguous, for the backward
  /// pass.
  virtual void attention(const ConstView& q, const ConstView& k, const ConstView& v,
                         const AttentionOptions& options, const View& o, const View& lse) const = 0;
  /// dq, dk, dv have the shapes of q, k, v. All three are written.
  virtual void attention_backward(const ConstView& d_o, const ConstView& q, const ConstView& k,
                                  const ConstView& v, const ConstView& o, const ConstView& lse,
                                  const AttentionOptions& options, const View& dq, const View& dk,
                                  const View& dv) const = 0;
};

struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;  ///< rows with this target have loss 0 and gradient 0
  double label_smoothing = 0.0;      ///< Szegedy et al., 2016: target = (1 − ε)·onehot + ε/V
  /// The logits are some columns of a wider matrix. A target of −1 stands in other columns. Forward: the loss
  /// is −logits[n][target], 0 if that is elsewhere, and lse is that of these columns. Backward: lse is that
  /// of all columns. Without label smoothing.
  bool partial_vocabulary = false;
};

class Losses {
 public:
  virtual ~Losses() = default;

  /// losses[n] = −Σ_v target · log softmax(logits[n])_v; lse[n] = log Σ exp(logits[n]). logits [N, V] (stride
  /// 1 in V), targets [N] i64; losses, lse [N] in accumulation dtype. Throws IndexError for a target outside
  /// [0, V).
  virtual void cross_entropy(const ConstView& logits, const ConstView& targets,
                             const CrossEntropyOptions& options, const View& losses,
                             const View& lse) const = 0;
  /// dlogits[n] = dlosses[n] · (softmax(logits[n]) − target). dlogits may be logits itself: no second buffer.
  virtual void cross_entropy_backward(const ConstView& dlosses, const ConstView& logits,
                                      const ConstView& targets, const ConstView& lse,
                                      const CrossEntropyOptions& options, const View& dlogits) const = 0;
};

class Indexing {
 public:
  virtual ~Indexing() = default;

  /// y [N, D] ← table [V, D] rows ids [N] (i64); zeros for id −1. Throws IndexError naming the id.
  virtual void embedding(const ConstView& table, const ConstView& ids, const View& y) const = 0;
  /// dtable [V, D] ← dtable + scatter of dy [N, D]; dtable in dtype of dy, or f32. Deterministic: rows of
  /// equal id are summed in the order of n, and the sum is added. Rows of id −1 go nowhere.
  virtual void embedding_backward(const ConstView& dy, const ConstView& ids, const View& dtable) const = 0;

  /// y[..., i, ...] ← x[..., index[..., i, ...], ...] along `dim`; y has index's (i64) shape.
  virtual void gather(const ConstView& x, int dim, const ConstView& index, const View& y) const = 0;
  /// y[..., index[..., i, ...], ...] += src[..., i, ...] along `dim`, in row-major order of src.
  virtual void scatter_add(const View& y, int dim, const ConstView& index, const ConstView& src) const = 0;

  /// The k largest of each row of x [N, D], in descending order (lower index first among equals; NaN
  /// largest); values, indices (i64) [N, k].
  virtual void top_k(const ConstView& x, std::int64_t k, const View& values, const View& indices) const = 0;
  /// Sorts each row of x [N, D]; stable; NaN largest. values, indices (i64) [N, D].
  virtual void sort(const ConstView& x, bool descending, const View& values, const View& indices) const = 0;
};

class Random {
 public:
  virtual ~Random() = default;

  /// Uniform in [low, high).
  virtual void uniform(const View& y, double low, double high, const RandomKey& key,
                       const GlobalIndex& index) const = 0;
  /// Normal by Box–Muller in f64 from words 2i and 2i+1 of global index i: equal on every device up to
  /// rounding.
  virtual void normal(const View& y, double mean, double stddev, const RandomKey& key,
                      const GlobalIndex& index) const = 0;
};

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0.0;
  /// AdamW (Loshchilov & Hutter, 2019); false: L2 added to the gradient (Kingma & Ba, 2015).
  bool decoupled = true;
  std::int64_t step = 1;  ///< 1 for the first update: bias correction 1 − β^step
  /// Gradients are multiplied by this first: clipping and loss unscaling cost no extra pass.
  double grad_scale = 1.0;
};

struct SgdOptions {
  double lr = 1e-2, momentum = 0.0, dampening = 0.0, weight_decay = 0.0;
  bool nesterov = false;
  bool first_step = false;  ///< velocity ← gradient
  double grad_scale = 1.0;
};

struct AdagradOptions {
  double lr = 1e-2, epsilon = 1e-10;
  double weight_decay = 0.0;  ///< L2, added to the gradient
  double grad_scale = 1.0;
};

struct LionOptions {
  double lr = 1e-4, beta1 = 0.9, beta2 = 0.99;
  double weight_decay = 0.0;  ///< decoupled: shrinks the parameter
  double grad_scale = 1.0;
};

/// Sums over one parameter, for LAMB's trust ratio.
struct LambSquares {
  double parameter = 0.0;  ///< Σ p²
  double direction = 0.0;  ///< Σ u²
};

/// One parameter of a fused update. All views contiguous, of equal size. `parameter` (f32 or f64 master) is
/// updated in place; `grad` may be f32, f64, bf16 or f16; `moment1`, `moment2` have the parameter's dtype
/// (SGD and Lion use moment1 alone, SGD none if its momentum is 0, and Adagrad has its sum of squares there);
/// `low_precision` gets the rounded copy, or has null data.
///
/// Adam also takes state in 16-bit numbers (kernels/bf16_state.h): then `parameter`, `moment1` and `moment2`
/// are bf16, `master_low` has the low halves of the f32 masters, two bytes an element
/// (u8, [2 · elements]), and there is no `low_precision`: the parameter itself is the rounded copy.
struct UpdateItem {
  View parameter;
  ConstView grad;
  View moment1;
  View moment2;
  View low_precision;
  View master_low{};
};

/// Updates of many tensors in one pass over memory.
class Updates {
 public:
  virtual ~Updates() = default;
  /// An update of 16-bit state is that of f32 state, with the new moments rounded at random (UpdateNoise of
  /// options.step). The step itself uses them as they are before.
  virtual void adam(std::span<const UpdateItem> items, const AdamOptions& options) const = 0;
  virtual void sgd(std::span<const UpdateItem> items, const SgdOptions& options) const = 0;
  /// With g = grad_scale · grad + weight_decay · p:  s ← s + g²,  p ← p − lr g / (√s + ε).
  virtual void adagrad(std::span<const UpdateItem> items, const AdagradOptions& options) const = 0;
  /// p ← (1 − lr · weight_decay) p − lr · sign(β₁ m + (1 − β₁) g),  then  m ← β₂ m + (1 − β₂) g.
  virtual void lion(std::span<const UpdateItem> items, const LionOptions& options) const = 0;

  /// LAMB's first half: Adam's moments, and the sums of squares of p and of the direction
  /// u = m̂ / (√v̂ + ε) + weight_decay · p, squares[i] of items[i]. The sums do not depend on the number of
  /// threads. Neither p nor `low_precision` is changed.
  virtual void lamb_moments(std::span<const UpdateItem> items, const AdamOptions& options,
                            std::span<LambSquares> squares) const = 0;
  /// The second half: p ← p − lr · trust[i] · u, with u made again from the moments: a third of a pass that
  /// costs no memory.
  virtual void lamb(std::span<const UpdateItem> items, const AdamOptions& options,
                    std::span<const double> trust) const = 0;

  /// f32 masters into the halves of kernels/bf16_state.h, and back. Views contiguous: f32 `master` and bf16
  /// `high` of equal size, u8 `low` of twice as many.
  virtual void split_masters(const ConstView& master, const View& high, const View& low) const = 0;
  virtual void join_masters(const ConstView& high, const ConstView& low, const View& master) const = 0;
};

/// All families of one device.
struct DeviceKernels {
  const Elementwise& elementwise;
  const Reductions& reductions;
  const Matmul& matmul;
  const Normalization& normalization;
  const Attention& attention;
  const Losses& losses;
  const Indexing& indexing;
  const Random& random;
  const Updates& updates;
};

/// The kernels of a device type. They are stateless and may be called from any thread.
[[nodiscard]] const DeviceKernels& of(DeviceType type);

/// The instruction set that kernels/cpu chose on this machine: "baseline", "avx2", "avx512". For reports.
[[nodiscard]] const char* cpu_instruction_set();

}  // namespace tessera::kernels
