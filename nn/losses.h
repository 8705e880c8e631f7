#pragma once

#include "autograd/losses.h"

// Losses are functions, not modules: they have no parameters. They are listed here for who looks for them
// beside the layers.

namespace tessera::nn {

using tessera::bce_with_logits_loss;
using tessera::cross_entropy;
using tessera::CrossEntropyConfig;
using tessera::kl_div_loss;
using tessera::mse_loss;
using tessera::Reduction;

}  // namespace tessera::nn
