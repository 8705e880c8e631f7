#pragma once

// Small parameters with gradients for the tests of optim.

#include <string>
#include <vector>

#include "autograd/grad_mode.h"
#include "optim/parameter_groups.h"
#include "tensor/create.h"

namespace tessera::optim {

/// A parameter with these values.
inline Tensor parameter(const std::vector<double>& values, DType dtype = kF64) {
  Tensor p = from_vector<double>(values).to(dtype);
  p.set_requires_grad();
  return p;
}

/// Its gradient, in the dtype in which backward() would accumulate it.
inline void give_grad(Tensor& p, const std::vector<double>& values) {
  p.set_grad(from_vector<double>(values, p.shape()).to(accumulation_dtype(p.dtype())));
}

/// Dyadic fractions, exact in f32, that tests/references/optim_pytorch.py makes too.
inline std::vector<double> start_values(int n) {
  std::vector<double> values;
  for (int i = 0; i < n; ++i) values.push_back(((37 * i) % 19 - 9) / 8.0);
  return values;
}
inline std::vector<double> grad_values(int n, int t) {
  std::vector<double> values;
  for (int i = 0; i < n; ++i) values.push_back(((31 * i + 17 * t) % 23 - 11) / 16.0);
  return values;
}

}  // namespace tessera::optim
