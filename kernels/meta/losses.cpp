#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

class MetaLosses final : public Losses {
 public:
  // Per logit maximum, − maximum, exp, sum [+ 1 smoothing: the sum of the logits]; per row 3: log, + maximum,
  // − target's logit [+ 3: two weights, one sum].
  void cross_entropy(const ConstView& logits, const ConstView& targets, const CrossEntropyOptions& options,
                     const View& losses, const View& lse) const override {
    const bool smooth = options.label_smoothing > 0.0;
    Count()
        .flops((smooth ? 5 : 4) * logits.num_elements() + (smooth ? 6 : 3) * losses.num_elements())
        .reads(logits)
        .reads(targets)
        .writes(losses)
        .writes(lse);
  }

  // Per logit − lse, exp, · dloss [+ 1 smoothing: − ε/V]; per row 1: − target.
  void cross_entropy_backward(const ConstView& dlosses, const ConstView& logits, const ConstView& targets,
                              const ConstView& lse, const CrossEntropyOptions& options,
                              const View& dlogits) const override {
    const bool smooth = options.label_smoothing > 0.0;
    Count()
        .flops((smooth ? 4 : 3) * logits.num_elements() + lse.num_elements())
        .reads(dlosses)
        .reads(logits)
        .reads(targets)
        .reads(lse)
        .writes(dlogits);
  }
};

}  // namespace

const Losses& losses() noexcept {
  static const MetaLosses family;
  return family;
}

}  // namespace tessera::kernels::meta_device
