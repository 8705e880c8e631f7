#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

class MetaMatmul final : public Matmul {
 public:
  // 2·M·N·K per batch entry: K products and K sums for each element of c. The bias and the accumulation into
  // c have one more addition per element each.
  void matmul(const ConstView& a, const ConstView& b, const View& c, const Options& options) const override {
    const std::int64_t k = a.shape[a.dims - 1];
    const std::int64_t additions = (options.bias != nullptr ? 1 : 0) + (options.accumulate ? 1 : 0);
    Count count(KernelKind::kProduct);
    count.flops((2 * k + additions) * c.num_elements()).reads(a).reads(b).writes(c);
    if (options.bias != nullptr) count.reads(*options.bias);
    if (options.accumulate) count.reads(c);
  }
};

}  // namespace

const Matmul& matmul() noexcept {
  static const MetaMatmul family;
  return family;
}

}  // namespace tessera::kernels::meta_device
