// Matrix products: which loops compute them. Batch dimensions are merged as far as strides allow; a batch of
// a that meets one b becomes more rows of a single product.

#include "kernels/cpu/matmul.h"

#include <cassert>

#include "kernels/context.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/cpu/vector/few_rows.h"
#include "kernels/cpu/vector/gemm.h"

namespace tessera::kernels {
namespace {

/// The own loops of one instruction set.
struct Loops {
  void (*gemm)(const GemmProblem&);
  bool (*few_rows)(const GemmProblem&);
};

/// One dimension of the batch.
struct BatchDim {
  std::int64_t size, a, b, c;
};

GemmProblem describe(const ConstView& a, const ConstView& b, const View& c, const Matmul::Options& options) {
  const int rows = c.dims - 2, columns = c.dims - 1;
  GemmProblem p;
  p.m = c.shape[rows];
  p.n = c.shape[columns];
  p.k = a.shape[columns];
  p.input = a.dtype;
  p.output = c.dtype;
  p.a = a.data;
  p.a_row = a.strides[rows];
  p.a_column = a.strides[columns];
  p.b = b.data;
  p.b_row = b.strides[rows];
  p.b_column = b.strides[columns];
  p.c = c.data;
  p.c_row = c.strides[rows];
  p.c_column = c.strides[columns];
  p.accumulate = options.accumulate;
  if (options.bias != nullptr) {
    p.bias = options.bias->data;
    p.bias_stride = options.bias->strides[0];
  }

  // From the innermost dimension outwards: into the rows where b stays the same, else into the dimension
  // before.
  BatchDim dims[GemmProblem::kMaxBatchDims];
  int count = 0;
  for (int d = rows - 1; d >= 0; --d) {
    const BatchDim dim{c.shape[d], a.strides[d], b.strides[d], c.strides[d]};
    if (dim.size == 1) continue;
    if (count == 0 && dim.b == 0) {
      if (p.m == 1) {
        p.m = dim.size;
        p.a_row = dim.a;
        p.c_row = dim.c;
        continue;
      }
      if (dim.a == p.m * p.a_row && dim.c == p.m * p.c_row) {
        p.m *= dim.size;
        continue;
      }
    }
    if (count > 0) {
      BatchDim& inner = dims[count - 1];
      if (dim.a == inner.size * inner.a && dim.b == inner.size * inner.b && dim.c == inner.size * inner.c) {
        inner.size *= dim.size;
        continue;
      }
    }
    dims[count++] = dim;
  }
  p.batch_dims = count;
  for (int d = 0; d < count; ++d) {
    const BatchDim& dim = dims[count - 1 - d];
    p.batch_shape[d] = dim.size;
    p.a_batch[d] = dim.a;
    p.b_batch[d] = dim.b;
    p.c_batch[d] = dim.c;
  }
  return p;
}

/// True if oneDNN is expected to be faster: below about 32³ multiplications its call alone costs more than
/// the own loops gain or lose.
bool prefer_onednn(const GemmProblem& p) {
  return static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) >= 32.0 * 32 * 32 &&
         onednn_has_fast(p.input) && !kernel_context().invariant_products;
}

bool run_onednn(const GemmProblem& p, int dim, std::int64_t a, std::int64_t b, std::int64_t c) {
  if (dim < p.batch_dims) {
    for (std::int64_t i = 0; i < p.batch_shape[dim]; ++i) {
      if (!run_onednn(p, dim + 1, a + i * p.a_batch[dim], b + i * p.b_batch[dim], c + i * p.c_batch[dim])) {
        return false;
      }
    }
    return true;
  }
  const auto input_bytes = static_cast<std::int64_t>(size_bytes(p.input));
  GemmProblem one = p;
  one.a = static_cast<const char*>(p.a) + a * input_bytes;
  one.b = static_cast<const char*>(p.b) + b * input_bytes;
  one.c = static_cast<char*>(p.c) + c * static_cast<std::int64_t>(size_bytes(p.output));
  return onednn_matmul(one);
}

class CpuMatmul final : public Matmul {
 public:
  explicit CpuMatmul(const Loops& loops) : loops_(loops) {}

  void matmul(const ConstView& a, const ConstView& b, const View& c, const Options& options) const override {
    assert(a.dims == c.dims && b.dims == c.dims && c.dims >= 2 && a.dtype == b.dtype);
    if (c.num_elements() == 0) return;
    const GemmProblem p = describe(a, b, c, options);
    if (!kernel_context().invariant_products && loops_.few_rows(p)) return;
    // Whether oneDNN takes a product depends on strides, not on data: it refuses the first of a batch or
    // none.
    if (prefer_onednn(p) && run_onednn(p, 0, 0, 0, 0)) return;
    loops_.gemm(p);
  }

 private:
  Loops loops_;
};

}  // namespace

const Matmul& matmul(InstructionSet set) {
#ifdef TESSERA_HAS_AVX2
  static const CpuMatmul with_avx2({avx2::gemm, avx2::few_rows});
  if (set == InstructionSet::kAvx2) return with_avx2;
#endif
#ifdef TESSERA_HAS_AVX512
  static const CpuMatmul with_avx512({avx512::gemm, avx512::few_rows});
  if (set == InstructionSet::kAvx512) return with_avx512;
#endif
  (void)set;
  static const CpuMatmul with_baseline({baseline::gemm, baseline::few_rows});
  return with_baseline;
}

}  // namespace tessera::kernels
