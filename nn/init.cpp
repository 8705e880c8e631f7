#include "nn/init.h"

#include <fmt/format.h>

#include <cmath>

#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::nn {

Init Init::kaiming_uniform(std::int64_t fan_in) {
  if (fan_in < 1) {
    throw ConfigError(fmt::format("kaiming_uniform: a layer needs at least one input, but has {}", fan_in));
  }
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  return uniform(-bound, bound);
}

void Init::fill(Tensor& x, std::string_view stream, const kernels::GlobalIndex& index) const {
  if (x.device() == meta) return;
  if (kind_ == Kind::kConstant) {
    x.fill(a_);
    return;
  }
  if (x.dtype() != kF32) {
    const CategoryScope category(MemoryCategory::kWorkspace);
    Tensor values = empty(x.shape(), {.dtype = kF32, .device = x.device()});
    fill(values, stream, index);
    x.copy_from(values);
    return;
  }
  // Step 0 whatever the rank's step: a module built or materialised in the middle of a run is the same
  // module.
  const kernels::RandomKey key{RankContext::current().seed, kernels::stream_id(stream), 0};
  const kernels::Random& random = kernels::of(x.device().type).random;
  if (kind_ == Kind::kNormal) {
    random.normal(x.mutable_view(), a_, b_, key, index);
  } else {
    random.uniform(x.mutable_view(), a_, b_, key, index);
  }
}

void Init::fill(Tensor& x, std::string_view stream) const {
  fill(x, stream, kernels::GlobalIndex::row_major(x.view()));
}

}  // namespace tessera::nn
