#pragma once

// The parts of Reductions (kernels/kernels.h has their contracts), one source each.

#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

// reduce.cpp
void reduce_elements(ReduceOp op, const ConstView& x, const View& y);

// arg_reduce.cpp
void arg_reduce_elements(bool largest, const ConstView& x, int dim, const View& y);

// cumulative_sum.cpp
void cumulative_sum_rows(const ConstView& x, bool reverse, const View& y);

}  // namespace tessera::kernels::TESSERA_ISA
