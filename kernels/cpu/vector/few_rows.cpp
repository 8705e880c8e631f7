// Products of a few rows: what a language model computes for each new token. Every weight is used once or a
// few times, so the product takes as long as memory takes to bring the weights, and whatever packs or
// converts them first pays for them twice.
//
//   for j over N by kColumns         so many rows of the weight [N, K] pass by; the next ones are fetched
//     for i over M by kRows          the second time they come from the first-level cache
//       for k over K by one step     kRows × kColumns vectors of sums stay in registers
//
// Threads divide N. An element's products are added in one order, whatever the block it lies in: by lanes
// along K, then over the lanes. 16-bit floats are widened, so that each product is exact in f32.

#include "kernels/cpu/vector/few_rows.h"

#include "kernels/context.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

// With AVX-512 16 sums, 8 vectors of a and 2 of b fit the 32 registers; otherwise 8, 4 and 2 of 16.
constexpr int kRows = kVectorBytes == 64 ? 4 : 2;
constexpr int kColumns = 4;

/// What one step takes of a line of a or b, in two vectors.
constexpr std::int64_t kStep = 2 * kLanes<float>;
struct Step {
  Lanes<float> first, second;
};

TESSERA_INLINE Step load_step(const float* x) {
  return {load(x, AllLanes{}), load(x + kLanes<float>, AllLanes{})};
}
TESSERA_INLINE Step load_step(const Float16* x) {
  return {load(x, AllLanes{}), load(x + kLanes<float>, AllLanes{})};
}
/// The even elements and the odd ones: a sum may take them in any order, and so each costs one instruction.
TESSERA_INLINE Step load_step(const BFloat16* x) {
  typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
  const Words words = *reinterpret_cast<const Words*>(x);
  return {reinterpret_cast<Lanes<float>>(words << 16), reinterpret_cast<Lanes<float>>(words & 0xFFFF0000u)};
}

/// The last `count` < kStep elements of a line, and zeros.
template <class In>
TESSERA_INLINE Step load_rest(const In* x, std::int64_t count) {
  In padded[kStep] = {};
  for (std::int64_t i = 0; i < count; ++i) padded[i] = x[i];
  return load_step(padded);
}

template <class In, int Rows, int Columns, class Load>
TESSERA_INLINE void add_products(const In* a, std::int64_t a_row, const In* b, std::int64_t b_column,
                                 const Load& load_next, Lanes<float> (&sums)[Rows][Columns]) {
  Step x[Rows];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) x[i] = load_next(a + i * a_row);
#pragma GCC unroll 4
  for (int j = 0; j < Columns; ++j) {
    const Step w = load_next(b + j * b_column);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) sums[i][j] += x[i].first * w.first;
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) sums[i][j] += x[i].second * w.second;
  }
}

/// products [Rows, Columns] ← a [Rows, K] · b [Columns, K]ᵀ. Fetches b `distance` <= K elements ahead, and
/// towards its end what lies at `next` as b does here.
template <class In, int Rows, int Columns>
__attribute__((noinline)) void multiply_lines(std::int64_t depth, const In* a, std::int64_t a_row,
                                              const In* b, const In* next, std::int64_t b_column,
                                              std::int64_t distance, float (&products)[kRows][kColumns]) {
  constexpr int kCacheLine = 64 / static_cast<int>(sizeof(In));
  Lanes<float> sums[Rows][Columns] = {};
  std::int64_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
    const In* const ahead = (k + distance < depth ? b + distance : next + distance - depth) + k;
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      for (int line = 0; line < kStep; line += kCacheLine) __builtin_prefetch(ahead + j * b_column + line);
    }
    add_products<In>(
        a + k, a_row, b + k, b_column,
        [](const In* x) __attribute__((always_inline)) { return load_step(x); }, sums);
  }
  if (k < depth) {
    add_products<In>(
        a + k, a_row, b + k, b_column,
        [rest = depth - k](const In* x) __attribute__((always_inline)) { return load_rest(x, rest); }, sums);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) products[i][j] = sum_of_lanes<float>(sums[i][j]);
  }
}

/// Columns [begin, end) of c.
template <class In, class Out>
struct Product {
  const GemmProblem& p;
  std::int64_t distance;

  // One turn over the rows of a: 32 cache lines are far enough ahead for memory to answer, and near enough
  // for the first-level cache to hold. Where the rows take two turns, the second finds b in the cache, and
  // the memory would have nothing to do meanwhile: so all of the next rows of b are asked for.
  TESSERA_INLINE explicit Product(const GemmProblem& problem)
      : p(problem), distance(p.m <= kRows ? smaller(p.k, 32 * 64 / static_cast<int>(sizeof(In))) : p.k) {}

  template <int Rows, int Columns>
  TESSERA_INLINE void multiply_block(std::int64_t row, std::int64_t column, std::int64_t next) const {
    const In* const b = static_cast<const In*>(p.b);
    float products[kRows][kColumns];
    multiply_lines<In, Rows, Columns>(p.k, static_cast<const In*>(p.a) + row * p.a_row, p.a_row,
                                      b + column * p.b_column, b + next * p.b_column, p.b_column, distance,
                                      products);
    for (int i = 0; i < Rows; ++i) {
      for (int j = 0; j < Columns; ++j) {
        Out& c = static_cast<Out*>(p.c)[(row + i) * p.c_row + (column + j) * p.c_column];
        float sum = products[i][j];
        if (p.accumulate) sum += widen(c);
        if (p.bias != nullptr) sum += widen(static_cast<const In*>(p.bias)[(column + j) * p.bias_stride]);
        narrow(sum, c);
      }
    }
  }

  template <int Columns>
  TESSERA_INLINE void multiply_columns(std::int64_t column, std::int64_t next) const {
    std::int64_t row = 0;
    for (; row + kRows <= p.m; row += kRows) multiply_block<kRows, Columns>(row, column, next);
    if (p.m - row == 3) {
      if constexpr (kRows > 3) multiply_block<3, Columns>(row, column, next);
    } else if (p.m - row == 2) {
      if constexpr (kRows > 2) multiply_block<2, Columns>(row, column, next);
    } else if (p.m - row == 1) {
      multiply_block<1, Columns>(row, column, next);
    }
  }

  TESSERA_INLINE void operator()(std::int64_t begin, std::int64_t end) const {
    std::int64_t column = begin;
    for (; column + kColumns <= end; column += kColumns) {
      const std::int64_t next = column + kColumns;
      multiply_columns<kColumns>(column, next + kColumns <= end ? next : column);
    }
    for (; column < end; ++column) multiply_columns<1>(column, column);
  }
};

template <class In, class Out>
void multiply(const GemmProblem& p) {
  const double work = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  // Below this many multiplications a fork and a join cost more than the second thread brings.
  constexpr double kSerialWork = 64.0 * 64 * 64;
  const Product<In, Out> product(p);
  parallel_for(p.n, work <= kSerialWork ? p.n : 4 * kColumns, product);
}

}  // namespace

bool few_rows(const GemmProblem& p) {
  if (p.m > kMostFewRows || p.batch_dims > 0) return false;
  if (p.k > 1 && (p.a_column != 1 || p.b_row != 1)) return false;
  switch (p.input) {
    case DType::kF32:
      multiply<float, float>(p);
      return true;
    case DType::kF16:
      p.output == DType::kF32 ? multiply<Float16, float>(p) : multiply<Float16, Float16>(p);
      return true;
    case DType::kBF16:
      p.output == DType::kF32 ? multiply<BFloat16, float>(p) : multiply<BFloat16, BFloat16>(p);
      return true;
    default:
      return false;
  }
}

}  // namespace tessera::kernels::TESSERA_ISA
