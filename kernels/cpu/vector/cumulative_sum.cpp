// Running sums along rows. A sum of rounded numbers depends on its order, so a row is added from one end to
// the other by one thread; rows are shared among threads.

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/reduce.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class In>
void sum_along(const In* x, std::int64_t width, bool reverse, In* y) {
  Compute<In> sum = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    const std::int64_t at = reverse ? width - 1 - i : i;
    sum += widen(x[at]);
    narrow(sum, y[at]);
  }
}

}  // namespace

void cumulative_sum_rows(const ConstView& x, bool reverse, const View& y) {
  if (x.num_elements() == 0) return;
  const std::int64_t rows = x.shape[0], width = x.shape[1];
  with_float_type(x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    parallel_for(rows, ceil_div(kGrain, width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        sum_along(static_cast<const In*>(x.data) + row * x.strides[0], width, reverse,
                  static_cast<In*>(y.data) + row * y.strides[0]);
      }
    });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA
