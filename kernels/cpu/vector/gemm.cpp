// Tessera's own matrix product: packed panels and a register-blocked micro-kernel (Goto & van de Geijn,
// "Anatomy of high-performance matrix multiplication", 2008; loop names as in BLIS).
//
//   for jc over N in blocks of kNC         a panel of b [kc, nc] is packed once, for all threads (L3)
//     for pc over K in passes of kc
//       for ic over M in blocks of mc      a block of a [mc, kc] is packed by the thread that uses it (L2)
//         for jr over nc by NR             a sliver of b [kc, NR] stays in L1
//           for ir over mc by MR           MR × NR sums stay in registers
//
// Packing reads any strides and converts 16-bit floats, so no product needs a copy of a whole matrix first.
//
// Threads divide M and N, never K, and an element of c is summed over k in the same order wherever it lies in
// the matrix. So it depends on its row of a, its column of b and K alone: not on the number of threads, and
// not on how the rows or columns are cut across ranks.

#include "kernels/cpu/vector/gemm.h"

#include "kernels/context.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/packing.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

// 28 of 32, 12 of 16, 8 of 16 vector registers hold sums; without FMA a product needs a register of its own.
inline constexpr int kRows = kVectorBytes == 64 ? 14 : kVectorBytes == 32 ? 6 : 4;

template <class T>
struct Blocking {
  static constexpr int kMR = kRows;
  static constexpr int kNR = 2 * kLanes<T>;
  static constexpr std::int64_t kKC = 256;  // 16 KiB of b per sliver with AVX2: half of L1
  static constexpr std::int64_t kMC = kMR * (120 / kMR) * (sizeof(T) == 4 ? 2 : 1);
  static constexpr std::int64_t kNC = 4096 / static_cast<std::int64_t>(sizeof(T)) * 3;
};

/// sums [MR, NR] ← Σ_k a[k, :]ᵀ · b[k, :] over packed slivers.
template <class T>
__attribute__((noinline)) void multiply_slivers(std::int64_t depth, const T* a, const T* b, T* sums) {
  using Block = Blocking<T>;
  using Vector = Lanes<T>;
  Vector acc[Block::kMR][2] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += Block::kMR, b += Block::kNR) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < Block::kMR; ++i) {
      acc[i][0] += a[i] * b0;
      acc[i][1] += a[i] * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Block::kMR; ++i) {
    *reinterpret_cast<Vector*>(sums + i * Block::kNR) = acc[i][0];
    *reinterpret_cast<Vector*>(sums + i * Block::kNR + kLanes<T>) = acc[i][1];
  }
}

/// What one pass over k does with its sums: where earlier passes are, and where these go.
template <class T, class In, class Out>
struct Destination {
  Out* c;
  std::int64_t c_row, c_column;
  T* partial;  ///< sums of earlier passes: c itself unless c is narrower than T
  std::int64_t partial_row, partial_column;
  const In* bias;
  std::int64_t bias_stride;
  bool first, last, accumulate;
};

template <class T, class In, class Out>
TESSERA_INLINE void store_tile(const T* sums, const Destination<T, In, Out>& to, std::int64_t row,
                               std::int64_t column, std::int64_t rows, std::int64_t columns) {
  constexpr int kNR = Blocking<T>::kNR;
  T line[kNR];
  for (std::int64_t i = 0; i < rows; ++i) {
    for (int j = 0; j < kNR; ++j) line[j] = sums[i * kNR + j];
    Out* c = to.c + (row + i) * to.c_row + column * to.c_column;
    T* partial = to.partial + (row + i) * to.partial_row + column * to.partial_column;
    if (!to.first) {
      if (columns == kNR && to.partial_column == 1) {
        for (int j = 0; j < kNR; ++j) line[j] += partial[j];
      } else {
        for (std::int64_t j = 0; j < columns; ++j) line[j] += partial[j * to.partial_column];
      }
    } else {
      if (to.accumulate) {
        for (std::int64_t j = 0; j < columns; ++j) line[j] += widen(c[j * to.c_column]);
      }
      if (to.bias != nullptr) {
        const In* bias = to.bias + column * to.bias_stride;
        for (std::int64_t j = 0; j < columns; ++j) line[j] += widen(bias[j * to.bias_stride]);
      }
    }
    if (to.last) {
      if (columns == kNR && to.c_column == 1) {
        for (int j = 0; j < kNR; ++j) narrow(line[j], c[j]);
      } else {
        for (std::int64_t j = 0; j < columns; ++j) narrow(line[j], c[j * to.c_column]);
      }
    } else {
      for (std::int64_t j = 0; j < columns; ++j) partial[j * to.partial_column] = line[j];
    }
  }
}

/// One block of a times a range of slivers of the packed panel of b.
template <class T, class In, class Out>
void multiply_block(const T* packed_a, const T* packed_b, std::int64_t depth,
                    const Destination<T, In, Out>& to, std::int64_t row, std::int64_t rows,
                    std::int64_t column, std::int64_t columns) {
  constexpr int kMR = Blocking<T>::kMR, kNR = Blocking<T>::kNR;
  alignas(64) T sums[kMR * kNR];
  for (std::int64_t j = 0; j < columns; j += kNR) {
    for (std::int64_t i = 0; i < rows; i += kMR) {
      for (std::int64_t r = i; r < smaller(rows, i + kMR); ++r) {
        __builtin_prefetch(to.partial + (row + r) * to.partial_row + (column + j) * to.partial_column, 1);
      }
      multiply_slivers<T>(depth, packed_a + i * depth, packed_b + j * depth, sums);
      store_tile<T, In, Out>(sums, to, row + i, column + j, smaller(kMR, rows - i),
                             smaller(kNR, columns - j));
    }
  }
}

/// Sizes of the blocks of one product and of the scratch memory that it needs.
template <class T>
struct Plan {
  using Block = Blocking<T>;
  std::int64_t passes, kc, nc, mc, row_blocks, column_parts, threads;
  std::int64_t packed_b, packed_a, partial;  ///< elements

  TESSERA_INLINE Plan(std::int64_t m, std::int64_t n, std::int64_t k, bool narrow_output, int num_threads) {
    passes = larger(1, ceil_div(k, Block::kKC));
    kc = ceil_div(k, passes);  // depends on K alone, so that the order of summation does
    nc = smaller(Block::kNC, round_up(n, Block::kNR));
    threads = num_threads;
    row_blocks = ceil_div(m, Block::kMC);
    if (n >= m && ceil_div(n, Block::kNR) >= threads) {
      // Each thread reads only the part of the panel of b that it has packed itself.
      column_parts = threads;
    } else {
      if (m >= 2 * Block::kMR * threads) row_blocks = round_up(row_blocks, threads);
      column_parts = row_blocks >= threads ? 1 : ceil_div(threads, row_blocks);
    }
    mc = round_up(ceil_div(m, row_blocks), Block::kMR);
    row_blocks = ceil_div(m, mc);
    packed_b = round_up(kc * nc, 16);
    packed_a = round_up(kc * mc, 16);
    partial = narrow_output && passes > 1 ? m * nc : 0;
  }
  [[nodiscard]] TESSERA_INLINE std::int64_t size_bytes() const {
    return (packed_b + threads * packed_a + partial) * static_cast<std::int64_t>(sizeof(T));
  }
};

template <class Body>
TESSERA_INLINE void for_each_part(std::int64_t threads, const Body& body) {
  if (threads == 1) {
    body(0);
  } else {
    parallel_for(threads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t part = begin; part < end; ++part) body(part);
    });
  }
}

template <class T, class In, class Out>
void multiply(const GemmProblem& p, const Plan<T>& plan, const In* a, const In* b, Out* c, T* scratch) {
  constexpr int kMR = Blocking<T>::kMR, kNR = Blocking<T>::kNR;
  T* const packed_b = scratch;
  T* const packed_a = scratch + plan.packed_b;
  const std::int64_t threads = plan.threads;
  for (std::int64_t jc = 0; jc < p.n; jc += plan.nc) {
    const std::int64_t nc = smaller(plan.nc, p.n - jc);
    const std::int64_t slivers = ceil_div(nc, kNR);
    Destination<T, In, Out> to{};
    to.c = c + jc * p.c_column;
    to.c_row = p.c_row;
    to.c_column = p.c_column;
    if constexpr (sizeof(Out) == sizeof(T)) {
      to.partial = to.c;
      to.partial_row = p.c_row;
      to.partial_column = p.c_column;
    } else {
      to.partial = packed_a + threads * plan.packed_a;
      to.partial_row = plan.nc;
      to.partial_column = 1;
    }
    to.bias = p.bias == nullptr ? nullptr : static_cast<const In*>(p.bias) + jc * p.bias_stride;
    to.bias_stride = p.bias_stride;
    to.accumulate = p.accumulate;
    for (std::int64_t pass = 0; pass < plan.passes; ++pass) {
      const std::int64_t pc = pass * plan.kc;
      const std::int64_t kc = larger(0, smaller(plan.kc, p.k - pc));
      to.first = pass == 0;
      to.last = pass == plan.passes - 1;

      for_each_part(threads, [&](std::int64_t part) {
        for (std::int64_t s = slivers * part / threads; s < slivers * (part + 1) / threads; ++s) {
          const std::int64_t j = jc + s * kNR;
          pack_sliver<kNR, T, In>(b + pc * p.b_row + j * p.b_column, smaller(kNR, p.n - j), kc, p.b_column,
                                  p.b_row, packed_b + s * kNR * kc);
        }
      });
      const std::int64_t blocks = plan.row_blocks * plan.column_parts;
      for_each_part(threads, [&](std::int64_t part) {
        T* const block_a = packed_a + part * plan.packed_a;
        std::int64_t packed_row = -1;
        for (std::int64_t block = blocks * part / threads; block < blocks * (part + 1) / threads; ++block) {
          const std::int64_t row = block % plan.row_blocks * plan.mc;
          const std::int64_t column_part = block / plan.row_blocks;
          const std::int64_t rows = smaller(plan.mc, p.m - row);
          if (row != packed_row) {
            for (std::int64_t i = 0; i < rows; i += kMR) {
              pack_sliver<kMR, T, In>(a + (row + i) * p.a_row + pc * p.a_column, smaller(kMR, rows - i), kc,
                                      p.a_row, p.a_column, block_a + i * kc);
            }
            packed_row = row;
          }
          const std::int64_t begin = slivers * column_part / plan.column_parts * kNR;
          const std::int64_t end = smaller(nc, slivers * (column_part + 1) / plan.column_parts * kNR);
          multiply_block<T, In, Out>(block_a, packed_b + begin * kc, kc, to, row, rows, begin, end - begin);
        }
      });
    }
  }
}

/// The offsets of matrix `index` of the batch.
struct BatchOffsets {
  std::int64_t a = 0, b = 0, c = 0;
  TESSERA_INLINE BatchOffsets(const GemmProblem& p, std::int64_t index) {
    for (int d = p.batch_dims - 1; d >= 0; --d) {
      const std::int64_t i = index % p.batch_shape[d];
      index /= p.batch_shape[d];
      a += i * p.a_batch[d];
      b += i * p.b_batch[d];
      c += i * p.c_batch[d];
    }
  }
};

template <class T, class In, class Out>
void multiply_batch(const GemmProblem& p) {
  std::int64_t batch = 1;
  for (int d = 0; d < p.batch_dims; ++d) batch *= p.batch_shape[d];
  if (batch == 0 || p.m == 0 || p.n == 0) return;

  const std::int64_t threads = kernel_context().num_threads;
  const double work =
      static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(larger(p.k, 1));
  // Below this many multiplications a fork and a join cost more than the second thread brings.
  constexpr double kSerialWork = 64.0 * 64 * 64;
  const bool over_batch = threads > 1 && batch >= threads &&
                          work * static_cast<double>(batch) > kSerialWork &&
                          (work < 16 * kSerialWork || batch % threads == 0 || batch >= 4 * threads);
  const Plan<T> plan(p.m, p.n, p.k, sizeof(Out) < sizeof(T),
                     over_batch || work <= kSerialWork ? 1 : static_cast<int>(threads));
  const std::int64_t lanes = over_batch ? threads : 1;

  constexpr std::int64_t kStackBytes = 32 * 1024;
  alignas(64) unsigned char stack[kStackBytes];
  const bool small = lanes * plan.size_bytes() <= kStackBytes;
  const Workspace workspace(small ? 0 : static_cast<std::size_t>(lanes * plan.size_bytes()));
  T* const scratch = small ? reinterpret_cast<T*>(stack) : static_cast<T*>(workspace.data());

  for_each_part(lanes, [&](std::int64_t lane) {
    T* const own = scratch + lane * (plan.size_bytes() / static_cast<std::int64_t>(sizeof(T)));
    for (std::int64_t i = batch * lane / lanes; i < batch * (lane + 1) / lanes; ++i) {
      const BatchOffsets at(p, i);
      multiply<T, In, Out>(p, plan, static_cast<const In*>(p.a) + at.a, static_cast<const In*>(p.b) + at.b,
                           static_cast<Out*>(p.c) + at.c, own);
    }
  });
}

}  // namespace

void gemm(const GemmProblem& p) {
  switch (p.input) {
    case DType::kF64:
      return multiply_batch<double, double, double>(p);
    case DType::kF32:
      return multiply_batch<float, float, float>(p);
    case DType::kF16:
      return p.output == DType::kF32 ? multiply_batch<float, Float16, float>(p)
                                     : multiply_batch<float, Float16, Float16>(p);
    case DType::kBF16:
      return p.output == DType::kF32 ? multiply_batch<float, BFloat16, float>(p)
                                     : multiply_batch<float, BFloat16, BFloat16>(p);
    default:
      return;  // the caller has checked
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
