// y[bool] = a op b.

#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class T>
using CompareTile = void (*)(const T* a, const T* b, std::uint8_t* y, std::int64_t n);

#define TESSERA_TILE(OP)                                        \
  [](const T* a, const T* b, std::uint8_t* y, std::int64_t n) { \
    _Pragma("omp simd") for (std::int64_t i = 0; i < n; ++i) {  \
      y[i] = static_cast<std::uint8_t>(a[i] OP b[i]);           \
    }                                                           \
  }

template <class T>
CompareTile<T> tile_of(CompareOp op) {
  switch (op) {
    case CompareOp::kEq:
      return TESSERA_TILE(==);
    case CompareOp::kNe:
      return TESSERA_TILE(!=);
    case CompareOp::kLt:
      return TESSERA_TILE(<);
    case CompareOp::kLe:
      return TESSERA_TILE(<=);
    case CompareOp::kGt:
      return TESSERA_TILE(>);
    case CompareOp::kGe:
      return TESSERA_TILE(>=);
  }
  return nullptr;
}

#undef TESSERA_TILE

template <class T>
void apply_tiles(CompareOp op, const Loop& loop) {
  const CompareTile<T> tile_op = tile_of<T>(op);
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<T> a_input(loop, 1), b_input(loop, 2);
    TileOutput<std::uint8_t> output(loop, 0);
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const T* a = a_input.load(tile);
      const T* b = b_input.load(tile);
      std::uint8_t* y = output.begin(tile);
      tile_op(a, b, y, tile.size);
      output.end(tile, y);
    });
  });
}

template <class T>
void apply_scalar(CompareOp op, const ConstView& a, T scalar, const View& y) {
  ConstView repeated = a;
  repeated.data = &scalar;
  repeated.dtype = dtype_of<T>;
  for (std::int64_t& stride : repeated.strides) stride = 0;
  apply_tiles<T>(op, make_loop(LoopOrder::kFastest, y, &a, &repeated));
}

}  // namespace

void compare_elements(CompareOp op, const ConstView& a, const ConstView& b, const View& y) {
  const Loop loop = make_loop(LoopOrder::kFastest, y, &a, &b);
  switch (compute_type(a.dtype)) {
    case ComputeType::kF32:
      return apply_tiles<float>(op, loop);
    case ComputeType::kF64:
      return apply_tiles<double>(op, loop);
    case ComputeType::kI64:
      return apply_tiles<std::int64_t>(op, loop);
  }
}

void compare_scalar_elements(CompareOp op, const ConstView& a, double scalar, const View& y) {
  if (compute_type(a.dtype) == ComputeType::kF32)
    return apply_scalar<float>(op, a, static_cast<float>(scalar), y);
  // Integers against a fraction (or something beyond their range) compare as doubles.
  const bool integral = scalar >= -9.2e18 && scalar <= 9.2e18 &&
                        static_cast<double>(static_cast<std::int64_t>(scalar)) == scalar;
  if (a.dtype == DType::kF64 || !integral) return apply_scalar<double>(op, a, scalar, y);
  apply_scalar<std::int64_t>(op, a, static_cast<std::int64_t>(scalar), y);
}

}  // namespace tessera::kernels::TESSERA_ISA
