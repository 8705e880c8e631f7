#include "nn/dropout.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/normalization.h"
#include "kernels/error.h"
#include "nn/token_positions.h"

namespace tessera::nn {

double check_dropout(const std::string& module, double p) {
  if (p >= 0.0 && p <= 1.0) return p;
  throw ConfigError(
      fmt::format("dropout: the probability of '{}' must lie in [0, 1], but it is {}", module, p));
}

namespace {

// A cut along tokens is known from positions, one along samples from the sample offset.
void refuse_unknown_channels(const std::string& module, const Tensor& x) {
  for (const MeshAxis axis : kMeshAxes) {
    const AxisLayout on_axis = x.layout()[axis];
    if (!on_axis.is_sharded() || on_axis.dim() < (x.dims() < 3 ? 1 : 2)) continue;
    throw LayoutError(fmt::format(
        "dropout: x {} of '{}' is {} on {}, along its channels, and its mask depends on the global "
        "channel: drop before the cut, or after dist::all_gather or dist::all_to_all",
        to_string(x.shape()), module, to_string(on_axis), tessera::name(axis)));
  }
}

}  // namespace

Dropout::Dropout(double p) : p_(check_dropout(name(), p)), stream_(stream_name("dropout")) {}

Tensor Dropout::forward(const Tensor& x) {
  if (!training() || p_ == 0.0) return x;
  refuse_unknown_channels(name(), x);
  const RankContext& context = RankContext::current();
  const kernels::RandomKey key = context.random_key(stream_);
  if (x.dims() >= 3 && holds_part_of_tokens(x)) return dropout(x, p_, key, token_indices(x));
  const std::int64_t samples = x.dims() == 0 ? 1 : std::max<std::int64_t>(x.dim(0), 1);
  return dropout(x, p_, key, context.sample_offset * (x.num_elements() / samples));
}

}  // namespace tessera::nn
