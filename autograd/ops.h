#pragma once

// Every differentiable operation. One pair of files for each family.

#include "autograd/arithmetic.h"
#include "autograd/attention.h"
#include "autograd/convolution.h"
#include "autograd/indexing.h"
#include "autograd/linear_algebra.h"
#include "autograd/losses.h"
#include "autograd/math.h"
#include "autograd/normalization.h"
#include "autograd/reductions.h"
