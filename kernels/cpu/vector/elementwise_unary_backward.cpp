// dx = dy · op'(x), where x is the input of op.

#include "kernels/cpu/vector/activations.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class T>
using BackwardTile = void (*)(const T* x, const T* dy, T* dx, std::int64_t n);

template <class T>
void apply_tiles(const Loop& loop, BackwardTile<T> op) {
  parallel_for(loop.size, kCostlyGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> x_input(loop, 1), dy_input(loop, 2);
    TileOutput<T> output(loop, 0);
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const T* x = x_input.load(tile);
      const T* dy = dy_input.load(tile);
      T* dx = output.begin(tile);
      op(x, dy, dx, tile.size);
      output.end(tile, dx);
    });
  });
}

// The body of a tile: dx[i] = an expression of x and dy.
#define TESSERA_TILE(...)                                      \
  [](const T* xs, const T* dys, T* dxs, std::int64_t n) {      \
    _Pragma("omp simd") for (std::int64_t i = 0; i < n; ++i) { \
      [[maybe_unused]] const T x = xs[i];                      \
      [[maybe_unused]] const T dy = dys[i];                    \
      dxs[i] = __VA_ARGS__;                                    \
    }                                                          \
  }

template <class T>
BackwardTile<T> tile_of(UnaryOp op) {
  switch (op) {
    case UnaryOp::kNeg:
      return TESSERA_TILE(-dy);
    case UnaryOp::kAbs:
      return TESSERA_TILE(dy * sign(x));
    case UnaryOp::kSign:
      return TESSERA_TILE(T(0));
    case UnaryOp::kSquare:
      return TESSERA_TILE(dy * (T(2) * x));
    case UnaryOp::kSqrt:
      return TESSERA_TILE(dy * (T(0.5) / vsqrt(x)));
    case UnaryOp::kRsqrt:
      return TESSERA_TILE(dy * (T(-0.5) / (x * vsqrt(x))));
    case UnaryOp::kReciprocal:
      return TESSERA_TILE(-dy / (x * x));
    case UnaryOp::kExp:
      return TESSERA_TILE(dy * vexp(x));
    case UnaryOp::kLog:
      return TESSERA_TILE(dy / x);
    case UnaryOp::kSin:
      return TESSERA_TILE(dy * vcos(x));
    case UnaryOp::kCos:
      return TESSERA_TILE(-dy * vsin(x));
    case UnaryOp::kTanh:
      return TESSERA_TILE(dy * tanh_slope(x));
    case UnaryOp::kSigmoid:
      return TESSERA_TILE(dy * sigmoid_slope(x));
    case UnaryOp::kErf:
      return TESSERA_TILE(dy * (static_cast<T>(1.1283791670955126) * vexp(-x * x)));
    case UnaryOp::kRelu:
      return TESSERA_TILE(x > T(0) ? dy : T(0));
    case UnaryOp::kGeluTanh:
      return TESSERA_TILE(dy * gelu_tanh_slope(x));
    case UnaryOp::kGeluErf:
      return TESSERA_TILE(dy * gelu_erf_slope(x));
    case UnaryOp::kSilu:
      return TESSERA_TILE(dy * silu_slope(x));
    case UnaryOp::kSoftplus:
      return TESSERA_TILE(dy * vsigmoid(x));
    case UnaryOp::kNot:
      break;
  }
  return TESSERA_TILE(T(0));
}

#undef TESSERA_TILE

}  // namespace

void unary_backward_elements(UnaryOp op, const ConstView& x, const ConstView& dy, const View& dx) {
  const Loop loop = make_loop(LoopOrder::kFastest, dx, &x, &dy);
  if (compute_type(dx.dtype) == ComputeType::kF64) return apply_tiles<double>(loop, tile_of<double>(op));
  apply_tiles<float>(loop, tile_of<float>(op));
}

}  // namespace tessera::kernels::TESSERA_ISA
