#include "dist/reduce.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

// Elements that are carried through the whole tree at a time: partial sums stay in the first-level cache. No
// more: from 2 KiB on glibc copies by `rep movsb`, which writes to memory at half the speed (Zen 4).
constexpr std::int64_t kBlock = 256;
// What is worth a second thread.
constexpr std::int64_t kGrain = 64 * 1024;
// Depth of the tree over 2^20 ranks.
constexpr int kMaxDepth = 20;

struct Sum {
  template <class A>
  static A combine(A a, A b) {
    return a + b;
  }
};
struct Max {
  template <class A>
  static A combine(A a, A b) {
    return (a > b || a != a) ? a : b;  // a != a: NaN
  }
};
struct Min {
  template <class A>
  static A combine(A a, A b) {
    return (a < b || a != a) ? a : b;
  }
};

/// Combines elements [0, n) of inputs[0, num_inputs) into `result`. `scratch` has a block for every further
/// level.
template <class T, class A, class Op>
void reduce_tree(const T* const* inputs, int num_inputs, std::int64_t offset, std::int64_t n,
                 A* __restrict result, A* __restrict scratch) {
  const T* __restrict first = inputs[0] + offset;
  if (num_inputs == 1) {
    for (std::int64_t i = 0; i < n; ++i) result[i] = static_cast<A>(first[i]);
    return;
  }
  if (num_inputs == 2) {
    const T* __restrict second = inputs[1] + offset;
    for (std::int64_t i = 0; i < n; ++i) {
      result[i] = Op::combine(static_cast<A>(first[i]), static_cast<A>(second[i]));
    }
    return;
  }
  const int half = static_cast<int>(std::bit_floor(static_cast<unsigned>(num_inputs - 1)));
  reduce_tree<T, A, Op>(inputs, half, offset, n, result, scratch);
  reduce_tree<T, A, Op>(inputs + half, num_inputs - half, offset, n, scratch, scratch + kBlock);
  for (std::int64_t i = 0; i < n; ++i) result[i] = Op::combine(result[i], scratch[i]);
}

template <class T, class A, class Op>
void reduce_as(std::span<const void* const> inputs, std::span<void* const> outputs, std::int64_t count) {
  const auto* typed_inputs = reinterpret_cast<const T* const*>(inputs.data());
  kernels::parallel_for(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    // The result of a block is complete before an output is written: outputs may be inputs.
    alignas(64) A partial[(kMaxDepth + 1) * kBlock];
    alignas(64) T rounded[kBlock];
    for (std::int64_t offset = begin; offset < end; offset += kBlock) {
      const std::int64_t n = std::min(kBlock, end - offset);
      reduce_tree<T, A, Op>(typed_inputs, static_cast<int>(inputs.size()), offset, n, partial,
                            partial + kBlock);
      for (std::int64_t i = 0; i < n; ++i) rounded[i] = static_cast<T>(partial[i]);
      for (void* output : outputs) {
        std::memcpy(static_cast<T*>(output) + offset, rounded, static_cast<std::size_t>(n) * sizeof(T));
      }
    }
  });
}

template <class T, class A>
void reduce_by(std::span<const void* const> inputs, std::span<void* const> outputs, std::int64_t count,
               ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return reduce_as<T, A, Sum>(inputs, outputs, count);
    case ReduceOp::kMax:
      return reduce_as<T, A, Max>(inputs, outputs, count);
    case ReduceOp::kMin:
      return reduce_as<T, A, Min>(inputs, outputs, count);
  }
}

}  // namespace

const char* name(ReduceOp op) noexcept {
  return op == ReduceOp::kSum ? "sum" : op == ReduceOp::kMax ? "max" : "min";
}

bool is_reducible(DType dtype) noexcept { return dtype != DType::kU8 && dtype != DType::kBool; }

void reduce(std::span<const void* const> inputs, std::span<void* const> outputs, std::int64_t count,
            DType dtype, ReduceOp op) {
  switch (dtype) {
    case DType::kF64:
      return reduce_by<double, double>(inputs, outputs, count, op);
    case DType::kF32:
      return reduce_by<float, float>(inputs, outputs, count, op);
    case DType::kF16:
      return reduce_by<Float16, float>(inputs, outputs, count, op);
    case DType::kBF16:
      return reduce_by<BFloat16, float>(inputs, outputs, count, op);
    case DType::kI64:
      return reduce_by<std::int64_t, std::int64_t>(inputs, outputs, count, op);
    case DType::kI32:
      return reduce_by<std::int32_t, std::int32_t>(inputs, outputs, count, op);
    case DType::kU8:
    case DType::kBool:
      break;
  }
  throw DTypeError(
      fmt::format("reduce: {} of {} is not defined; convert to i32 or f32 first", name(op), name(dtype)));
}

}  // namespace tessera::dist
