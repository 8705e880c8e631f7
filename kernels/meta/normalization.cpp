#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

std::int64_t last_size(const ConstView& x) { return x.dims > 0 ? x.shape[x.dims - 1] : 1; }

/// Rows over the last dimension. An empty dimension has rows too, but nothing to do in them.
std::int64_t num_rows(const ConstView& x) { return last_size(x) == 0 ? 0 : x.num_elements() / last_size(x); }

class MetaNormalization final : public Normalization {
 public:
  // Per element 1 (sum for the mean) + 1 (x − mean) + 2 (square, sum) + 1 (· inv_std) + 1 (· gain) [+ 1 bias]
  // [+ 1 residual]. Per row 5: two quotients, + epsilon, square root, reciprocal.
  void layer_norm(const ConstView& x, const ConstView* residual, const View* sum, const ConstView& gain,
                  const ConstView& bias, double /*epsilon*/, const View& y, const View& mean,
                  const View& inv_std) const override {
    const std::int64_t per_element = 6 + (is_given(bias) ? 1 : 0) + (residual != nullptr ? 1 : 0);
    Count count;
    count.flops(per_element * x.num_elements() + 5 * num_rows(x));
    count.reads(x).reads(gain).reads_if_given(bias).writes(y).writes(mean).writes(inv_std);
    if (residual != nullptr) count.reads(*residual);
    if (sum != nullptr) count.writes(*sum);
  }

  // With n = (x − mean) · inv_std (2 per element, unless only dbias is asked for) and g = dy · gain:
  //   dx = inv_std · (g − mean(g) − n · mean(g · n)): 1 + 1 + 2 + 4 per element, 2 per row;
  //   dgain = Σ dy · n: 2 per element;  dbias = Σ dy: 1 per element.
  void layer_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                           const ConstView& mean, const ConstView& inv_std, const View* dx, const View* dgain,
                           const View* dbias) const override {
    const bool needs_x = dx != nullptr || dgain != nullptr;
    const std::int64_t per_element =
        (needs_x ? 2 : 0) + (dx != nullptr ? 8 : 0) + (dgain != nullptr ? 2 : 0) + (dbias != nullptr ? 1 : 0);
    Count count;
    count.flops(per_element * dy.num_elements() + (dx != nullptr ? 2 * num_rows(dy) : 0)).reads(dy);
    if (needs_x) count.reads(x).reads(mean).reads(inv_std);
    if (dx != nullptr) count.reads(gain).writes(*dx);
    if (dgain != nullptr) count.writes(*dgain);
    if (dbias != nullptr) count.writes(*dbias);
  }

  // Per element 2 (square, sum) + 1 (· inv_rms) + 1 (· gain). Per row 4: quotient, + epsilon, square root,
  // reciprocal.
  void rms_norm(const ConstView& x, const ConstView& gain, double /*epsilon*/, const View& y,
                const View& inv_rms) const override {
    Count().flops(4 * x.num_elements() + 4 * num_rows(x)).reads(x).reads(gain).writes(y).writes(inv_rms);
  }

  // With n = x · inv_rms (1 per element) and g = dy · gain:
  //   dx = inv_rms · (g − n · mean(g · n)): 1 + 2 + 3 per element, 1 per row;  dgain = Σ dy · n: 2 per
  //   element.
  void rms_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                         const ConstView& inv_rms, const View* dx, const View* dgain) const override {
    const std::int64_t per_element = 1 + (dx != nullptr ? 6 : 0) + (dgain != nullptr ? 2 : 0);
    Count count;
    count.flops(per_element * dy.num_elements() + (dx != nullptr ? num_rows(dy) : 0));
    count.reads(dy).reads(x).reads(inv_rms);
    if (dx != nullptr) count.reads(gain).writes(*dx);
    if (dgain != nullptr) count.writes(*dgain);
  }

  // Per element maximum, − maximum, exp, sum, · 1/sum; 1 per row. The logarithm subtracts instead; 2 per row
  // (log, sum).
  void softmax(const ConstView& x, bool log, const View& y) const override {
    Count().flops(5 * x.num_elements() + (log ? 2 : 1) * num_rows(x)).reads(x).writes(y);
  }

  // y · (dy − Σ dy · y), or dy − eʸ · Σ dy: 4 per element.
  void softmax_backward(const ConstView& y, const ConstView& dy, bool /*log*/,
                        const View& dx) const override {
    Count().flops(4 * dx.num_elements()).reads(y).reads(dy).writes(dx);
  }

  // 1 per element, the scale: the mask is integer arithmetic.
  void dropout(const ConstView& x, double /*p*/, const RandomKey& /*key*/, const GlobalIndex& /*index*/,
               const View& y) const override {
    Count().flops(x.num_elements()).reads(x).writes(y);
  }

  // A pair takes four products and two sums: 3 per element.
  void rotary(const ConstView& x, const ConstView& cosine, const ConstView& sine, bool /*inverse*/,
              const View& y) const override {
    Count().flops(3 * x.num_elements()).reads(x).reads(cosine).reads(sine).writes(y);
  }
};

}  // namespace

const Normalization& normalization() noexcept {
  static const MetaNormalization family;
  return family;
}

}  // namespace tessera::kernels::meta_device
