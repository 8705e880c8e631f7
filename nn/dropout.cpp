#include "nn/dropout.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/normalization.h"
#include "kernels/error.h"

namespace tessera::nn {

double check_dropout(const std::string& module, double p) {
  if (p >= 0.0 && p <= 1.0) return p;
  throw ConfigError(
      fmt::format("dropout: the probability of '{}' must lie in [0, 1], but it is {}", module, p));
}

Dropout::Dropout(double p) : p_(check_dropout(name(), p)), stream_(stream_name("dropout")) {}

Tensor Dropout::forward(const Tensor& x) {
  if (!training() || p_ == 0.0) return x;
  const RankContext& context = RankContext::current();
  const std::int64_t samples = x.dims() == 0 ? 1 : std::max<std::int64_t>(x.dim(0), 1);
  return dropout(x, p_, context.random_key(stream_), context.sample_offset * (x.num_elements() / samples));
}

}  // namespace tessera::nn
