#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/norms.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

class CpuNormalization final : public Normalization {
 public:
  void layer_norm(const ConstView& x, const ConstView* residual, const View* sum, const ConstView& gain,
                  const ConstView& bias, double epsilon, const View& y, const View& mean,
                  const View& inv_std) const override {
    NormForward norm;
    norm.x = x;
    norm.gain = gain;
    norm.bias = bias;
    norm.residual = residual;
    norm.sum = sum;
    norm.epsilon = epsilon;
    norm.y = y;
    norm.mean = mean;
    norm.inverse = inv_std;
    TESSERA_ISA::layer_norm(norm);
  }
  void layer_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                           const ConstView& mean, const ConstView& inv_std, const View* dx, const View* dgain,
                           const View* dbias) const override {
    NormBackward norm;
    norm.dy = dy;
    norm.x = x;
    norm.gain = gain;
    norm.mean = mean;
    norm.inverse = inv_std;
    norm.dx = dx;
    norm.dgain = dgain;
    norm.dbias = dbias;
    TESSERA_ISA::layer_norm_backward(norm);
  }
  void rms_norm(const ConstView& x, const ConstView& gain, double epsilon, const View& y,
                const View& inv_rms) const override {
    NormForward norm;
    norm.x = x;
    norm.gain = gain;
    norm.epsilon = epsilon;
    norm.y = y;
    norm.inverse = inv_rms;
    TESSERA_ISA::rms_norm(norm);
  }
  void rms_norm_backward(const ConstView& dy, const ConstView& x, const ConstView& gain,
                         const ConstView& inv_rms, const View* dx, const View* dgain) const override {
    NormBackward norm;
    norm.dy = dy;
    norm.x = x;
    norm.gain = gain;
    norm.inverse = inv_rms;
    norm.dx = dx;
    norm.dgain = dgain;
    TESSERA_ISA::rms_norm_backward(norm);
  }
  void softmax(const ConstView& x, bool log, const View& y) const override {
    TESSERA_ISA::softmax(x, log, y);
  }
  void softmax_backward(const ConstView& y, const ConstView& dy, bool log, const View& dx) const override {
    TESSERA_ISA::softmax_backward(y, dy, log, dx);
  }
  void dropout(const ConstView& x, double p, const RandomKey& key, const GlobalIndex& index,
               const View& y) const override {
    TESSERA_ISA::dropout(x, p, key, index, y);
  }
  void rotary(const ConstView& x, const ConstView& cosine, const ConstView& sine, bool inverse,
              const View& y) const override {
    TESSERA_ISA::rotary(x, cosine, sine, inverse, y);
  }
};

}  // namespace

const Normalization& normalization() noexcept {
  static const CpuNormalization instance;
  return instance;
}

}  // namespace tessera::kernels::TESSERA_ISA
