#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

class MetaRandom final : public Random {
 public:
  // low + (high − low) · u: 2 per element; the generator itself is integer arithmetic.
  void uniform(const View& y, double /*low*/, double /*high*/, const RandomKey& /*key*/,
               const GlobalIndex& /*index*/) const override {
    Count().flops(2 * y.num_elements()).writes(y);
  }

  // mean + stddev · √(−2 · log u) · cos(2π · v): 8 per element.
  void normal(const View& y, double /*mean*/, double /*stddev*/, const RandomKey& /*key*/,
              const GlobalIndex& /*index*/) const override {
    Count().flops(8 * y.num_elements()).writes(y);
  }
};

}  // namespace

const Random& random() noexcept {
  static const MetaRandom family;
  return family;
}

}  // namespace tessera::kernels::meta_device
