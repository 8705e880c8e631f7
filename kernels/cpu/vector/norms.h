#pragma once

// The parts of the Normalization family, one source each. Shapes and rules: kernels/kernels.h.

#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

/// A norm over rows of x [N, D]. LayerNorm has all members; RMSNorm has no residual, bias or mean.
struct NormForward {
  ConstView x, gain, bias;
  const ConstView* residual = nullptr;
  const View* sum = nullptr;
  double epsilon = 0.0;
  View y, mean, inverse;  ///< inverse: 1/std or 1/rms
};
struct NormBackward {
  ConstView dy, x, gain, mean, inverse;
  const View* dx = nullptr;
  const View* dgain = nullptr;
  const View* dbias = nullptr;
};

void layer_norm(const NormForward& norm);
void layer_norm_backward(const NormBackward& norm);
void rms_norm(const NormForward& norm);
void rms_norm_backward(const NormBackward& norm);

void softmax(const ConstView& x, bool log, const View& y);
void softmax_backward(const ConstView& y, const ConstView& dy, bool log, const View& dx);

void dropout(const ConstView& x, double p, const RandomKey& key, const GlobalIndex& index, const View& y);

void rotary(const ConstView& x, const ConstView& cosine, const ConstView& sine, bool inverse, const View& y);

}  // namespace tessera::kernels::TESSERA_ISA
