#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace tessera::dist {

/// One pass of a step, as this rank sees it.
struct MicroBatch {
  Tensor ids;                     ///< [b, T/cp]: dp S(0), cp S(1)
  Tensor targets;                 ///< the same
  std::int64_t first_sample = 0;  ///< of the step's global batch
  /// 0: this rank has no more of them while others have; no target counts.
  std::int64_t num_samples = 1;
};

}  // namespace tessera::dist
