#pragma once

// All of Tessera. A program includes it as <tessera/tessera.h>, from the source tree and from an installed copy alike.
// It needs no other library's headers.

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/grad_check.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "data/prepare.h"
#include "data/safetensors.h"
#include "data/sampler.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "dist/checkpoint.h"
#include "dist/config.h"
#include "dist/data_parallel.h"
#include "dist/job.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/loss_scale.h"
#include "optim/parameter_groups.h"
#include "optim/schedule.h"
#include "optim/sgd.h"
#include "tensor/context.h"
#include "tensor/create.h"
#include "tensor/tensor.h"
