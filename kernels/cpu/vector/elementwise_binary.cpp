// y = a op b, with a tensor or a scalar on either side, and y += alpha · x.

#include "kernels/cpu/index_errors.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/math.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class T>
using BinaryTile = void (*)(const T* a, const T* b, T* y, std::int64_t n);

// The body of a tile: y[i] = an expression of a and b. y may be either of them.
#define TESSERA_TILE(...)                                      \
  [](const T* as, const T* bs, T* ys, std::int64_t n) {        \
    _Pragma("omp simd") for (std::int64_t i = 0; i < n; ++i) { \
      const T a = as[i], b = bs[i];                            \
      ys[i] = __VA_ARGS__;                                     \
    }                                                          \
  }

template <class T>
BinaryTile<T> float_tile(BinaryOp op) {
  switch (op) {
    case BinaryOp::kAdd:
      return TESSERA_TILE(a + b);
    case BinaryOp::kSub:
      return TESSERA_TILE(a - b);
    case BinaryOp::kMul:
      return TESSERA_TILE(a * b);
    case BinaryOp::kDiv:
      return TESSERA_TILE(a / b);
    case BinaryOp::kPow:
      return TESSERA_TILE(vpow(a, b));
    // A NaN on either side comes through.
    case BinaryOp::kMaximum:
      return TESSERA_TILE(((a > b) | (a != a)) ? a : b);
    case BinaryOp::kMinimum:
      return TESSERA_TILE(((a < b) | (a != a)) ? a : b);
    case BinaryOp::kAnd:
      return TESSERA_TILE(static_cast<T>((a != T(0)) & (b != T(0))));
    case BinaryOp::kOr:
      return TESSERA_TILE(static_cast<T>((a != T(0)) | (b != T(0))));
  }
  return nullptr;
}

// Integers wrap around: unsigned arithmetic does that by definition.
TESSERA_INLINE std::uint64_t wide(std::int64_t x) { return static_cast<std::uint64_t>(x); }

TESSERA_INLINE std::int64_t divide(std::int64_t a, std::int64_t b) {
  if (b == 0) throw_division_by_zero();
  // −1 apart: the machine's division traps on the smallest integer.
  return b == -1 ? static_cast<std::int64_t>(0 - wide(a)) : a / b;
}

TESSERA_INLINE std::int64_t integer_power(std::int64_t base, std::int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) throw_division_by_zero();
    if (base == 1) return 1;
    if (base == -1) return (exponent & 1) != 0 ? -1 : 1;
    return 0;
  }
  std::uint64_t power = 1, square = wide(base);
  for (; exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) power *= square;
    square *= square;
  }
  return static_cast<std::int64_t>(power);
}

BinaryTile<std::int64_t> integer_tile(BinaryOp op) {
  using T = std::int64_t;
  switch (op) {
    case BinaryOp::kAdd:
      return TESSERA_TILE(static_cast<T>(wide(a) + wide(b)));
    case BinaryOp::kSub:
      return TESSERA_TILE(static_cast<T>(wide(a) - wide(b)));
    case BinaryOp::kMul:
      return TESSERA_TILE(static_cast<T>(wide(a) * wide(b)));
    case BinaryOp::kDiv:
      return [](const T* as, const T* bs, T* ys, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) ys[i] = divide(as[i], bs[i]);
      };
    case BinaryOp::kPow:
      return [](const T* as, const T* bs, T* ys, std::int64_t n) {
        for (std::int64_t i = 0; i < n; ++i) ys[i] = integer_power(as[i], bs[i]);
      };
    case BinaryOp::kMaximum:
      return TESSERA_TILE(a > b ? a : b);
    case BinaryOp::kMinimum:
      return TESSERA_TILE(a < b ? a : b);
    case BinaryOp::kAnd:
      return TESSERA_TILE(T{(a != 0) & (b != 0)});
    case BinaryOp::kOr:
      return TESSERA_TILE(T{(a != 0) | (b != 0)});
  }
  return nullptr;
}

#undef TESSERA_TILE

template <class T>
BinaryTile<T> tile_of(BinaryOp op) {
  if constexpr (dtype_of<T> == DType::kI64) {
    return integer_tile(op);
  } else {
    return float_tile<T>(op);
  }
}

template <class T>
void apply_tiles(BinaryOp op, const Loop& loop) {
  const BinaryTile<T> tile_op = tile_of<T>(op);
  parallel_for(loop.size, op == BinaryOp::kPow ? kCostlyGrain : kGrain,
               [&](std::int64_t begin, std::int64_t end) {
                 TileInput<T> a_input(loop, 1), b_input(loop, 2);
                 TileOutput<T> output(loop, 0);
                 for_each_tile(loop, begin, end, [&](const Tile& tile) {
                   const T* a = a_input.load(tile);
                   const T* b = b_input.load(tile);
                   T* y = output.begin(tile);
                   tile_op(a, b, y, tile.size);
                   output.end(tile, y);
                 });
               });
}

/// A scalar is an operand whose every stride is 0.
template <class T>
void apply_scalar(BinaryOp op, const ConstView& a, T scalar, bool scalar_first, const View& y) {
  ConstView repeated = a;
  repeated.data = &scalar;
  repeated.dtype = dtype_of<T>;
  for (std::int64_t& stride : repeated.strides) stride = 0;
  apply_tiles<T>(op, scalar_first ? make_loop(LoopOrder::kFastest, y, &repeated, &a)
                                  : make_loop(LoopOrder::kFastest, y, &a, &repeated));
}

template <class T>
void add_scaled(const View& y, const ConstView& x, T alpha) {
  const ConstView y_before = y;
  const Loop loop = make_loop(LoopOrder::kFastest, y, &y_before, &x);
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> y_input(loop, 1), x_input(loop, 2);
    TileOutput<T> output(loop, 0);
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const T* before = y_input.load(tile);
      const T* add = x_input.load(tile);
      T* sum = output.begin(tile);
#pragma omp simd
      for (std::int64_t i = 0; i < tile.size; ++i) sum[i] = before[i] + alpha * add[i];
      output.end(tile, sum);
    });
  });
}

}  // namespace

void binary_elements(BinaryOp op, const ConstView& a, const ConstView& b, const View& y) {
  const Loop loop = make_loop(LoopOrder::kFastest, y, &a, &b);
  switch (compute_type(y.dtype)) {
    case ComputeType::kF32:
      return apply_tiles<float>(op, loop);
    case ComputeType::kF64:
      return apply_tiles<double>(op, loop);
    case ComputeType::kI64:
      return apply_tiles<std::int64_t>(op, loop);
  }
}

void binary_scalar_elements(BinaryOp op, const ConstView& a, double scalar, bool scalar_first,
                            const View& y) {
  if (op == BinaryOp::kPow && !scalar_first && scalar == 2.0) return binary_elements(BinaryOp::kMul, a, a, y);
  switch (compute_type(y.dtype)) {
    case ComputeType::kF32:
      return apply_scalar<float>(op, a, static_cast<float>(scalar), scalar_first, y);
    case ComputeType::kF64:
      return apply_scalar<double>(op, a, scalar, scalar_first, y);
    case ComputeType::kI64:
      return apply_scalar<std::int64_t>(op, a, static_cast<std::int64_t>(scalar), scalar_first, y);
  }
}

void add_scaled_elements(const View& y, const ConstView& x, double alpha) {
  if (y.dtype == DType::kF64 || x.dtype == DType::kF64) return add_scaled<double>(y, x, alpha);
  if (is_floating(y.dtype)) return add_scaled<float>(y, x, static_cast<float>(alpha));
  add_scaled<std::int64_t>(y, x, static_cast<std::int64_t>(alpha));
}

}  // namespace tessera::kernels::TESSERA_ISA
