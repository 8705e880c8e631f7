#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

class MetaReductions final : public Reductions {
 public:
  // 1 per element of x; a mean has 1 more per element of y.
  void reduce(ReduceOp op, const ConstView& x, const View& y) const override {
    const std::int64_t quotients = op == ReduceOp::kMean ? y.num_elements() : 0;
    Count().flops(float_operations(x.dtype, x.num_elements() + quotients)).reads(x).writes(y);
  }

  // 1 per element of x.
  void arg_reduce(bool /*largest*/, const ConstView& x, int /*dim*/, const View& y) const override {
    Count().flops(float_operations(x.dtype, x.num_elements())).reads(x).writes(y);
  }

  // 1 per element.
  void cumulative_sum(const ConstView& x, bool /*reverse*/, const View& y) const override {
    Count().flops(x.num_elements()).reads(x).writes(y);
  }

  // 2 per element. The sum of no data is 0.
  double sum_of_squares(std::span<const ConstView> xs) const override {
    Count count;
    for (const ConstView& x : xs) count.flops(2 * x.num_elements()).reads(x);
    return 0.0;
  }

  // 1 per element. No data has no element that is not finite.
  std::int64_t first_non_finite(const ConstView& x) const override {
    Count().flops(x.num_elements()).reads(x);
    return -1;
  }
};

}  // namespace

const Reductions& reductions() noexcept {
  static const MetaReductions family;
  return family;
}

}  // namespace tessera::kernels::meta_device
