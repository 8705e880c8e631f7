// y = op(x).

#include "kernels/cpu/vector/activations.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class T>
using UnaryTile = void (*)(const T* x, T* y, std::int64_t n);

template <class T>
void apply_tiles(const Loop& loop, std::int64_t grain, UnaryTile<T> op) {
  parallel_for(loop.size, grain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> input(loop, 1);
    TileOutput<T> output(loop, 0);
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const T* x = input.load(tile);
      T* y = output.begin(tile);
      op(x, y, tile.size);
      output.end(tile, y);
    });
  });
}

// The body of a tile: y[i] = an expression of x, which is x[i]. x and y may be the same.
#define TESSERA_TILE(...)                                      \
  [](const T* xs, T* ys, std::int64_t n) {                     \
    _Pragma("omp simd") for (std::int64_t i = 0; i < n; ++i) { \
      const T x = xs[i];                                       \
      ys[i] = __VA_ARGS__;                                     \
    }                                                          \
  }

template <class T>
UnaryTile<T> float_tile(UnaryOp op) {
  switch (op) {
    case UnaryOp::kNeg:
      return TESSERA_TILE(-x);
    case UnaryOp::kAbs:
      return TESSERA_TILE(vabs(x));
    case UnaryOp::kSign:
      return TESSERA_TILE(sign(x));
    case UnaryOp::kSquare:
      return TESSERA_TILE(x * x);
    case UnaryOp::kSqrt:
      return TESSERA_TILE(vsqrt(x));
    case UnaryOp::kRsqrt:
      return TESSERA_TILE(T(1) / vsqrt(x));
    case UnaryOp::kReciprocal:
      return TESSERA_TILE(T(1) / x);
    case UnaryOp::kExp:
      return TESSERA_TILE(vexp(x));
    case UnaryOp::kLog:
      return TESSERA_TILE(vlog(x));
    case UnaryOp::kSin:
      return TESSERA_TILE(vsin(x));
    case UnaryOp::kCos:
      return TESSERA_TILE(vcos(x));
    case UnaryOp::kTanh:
      return TESSERA_TILE(vtanh(x));
    case UnaryOp::kSigmoid:
      return TESSERA_TILE(vsigmoid(x));
    case UnaryOp::kErf:
      return TESSERA_TILE(verf(x));
    case UnaryOp::kRelu:
      return TESSERA_TILE(x < T(0) ? T(0) : x);  // NaN stays NaN
    case UnaryOp::kGeluTanh:
      return TESSERA_TILE(gelu_tanh(x));
    case UnaryOp::kGeluErf:
      return TESSERA_TILE(gelu_erf(x));
    case UnaryOp::kSilu:
      return TESSERA_TILE(silu(x));
    case UnaryOp::kSoftplus:
      return TESSERA_TILE(softplus(x));
    case UnaryOp::kNot:
      break;
  }
  return TESSERA_TILE(x);
}

// Unsigned, since a sum or product that leaves the range wraps around.
using Wide = std::uint64_t;

UnaryTile<std::int64_t> integer_tile(UnaryOp op) {
  using T = std::int64_t;
  switch (op) {
    case UnaryOp::kNeg:
      return TESSERA_TILE(static_cast<T>(Wide{0} - static_cast<Wide>(x)));
    case UnaryOp::kAbs:
      return TESSERA_TILE(x < 0 ? static_cast<T>(Wide{0} - static_cast<Wide>(x)) : x);
    case UnaryOp::kSign:
      return TESSERA_TILE(T{x > 0} - T{x < 0});
    case UnaryOp::kSquare:
      return TESSERA_TILE(static_cast<T>(static_cast<Wide>(x) * static_cast<Wide>(x)));
    case UnaryOp::kRelu:
      return TESSERA_TILE(x < 0 ? T{0} : x);
    case UnaryOp::kNot:
      return TESSERA_TILE(T{x == 0});
    default:
      return TESSERA_TILE(x);
  }
}

#undef TESSERA_TILE

std::int64_t grain_of(UnaryOp op) {
  switch (op) {
    case UnaryOp::kNeg:
    case UnaryOp::kAbs:
    case UnaryOp::kSign:
    case UnaryOp::kSquare:
    case UnaryOp::kRelu:
    case UnaryOp::kNot:
      return kGrain;
    default:
      return kCostlyGrain;
  }
}

}  // namespace

void unary_elements(UnaryOp op, const ConstView& x, const View& y) {
  const Loop loop = make_loop(LoopOrder::kFastest, y, &x);
  switch (compute_type(y.dtype)) {
    case ComputeType::kF32:
      return apply_tiles<float>(loop, grain_of(op), float_tile<float>(op));
    case ComputeType::kF64:
      return apply_tiles<double>(loop, grain_of(op), float_tile<double>(op));
    case ComputeType::kI64:
      return apply_tiles<std::int64_t>(loop, grain_of(op), integer_tile(op));
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
