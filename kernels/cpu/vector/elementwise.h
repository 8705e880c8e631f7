#pragma once

// The parts of Elementwise (kernels/kernels.h has their contracts), one source each.

#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

// elementwise_copy.cpp
void copy_elements(const ConstView& x, const View& y);
void fill_elements(const View& y, double value);
void arange_elements(const View& y, double start, double step);
void select_elements(const ConstView& condition, const ConstView& a, const ConstView& b, const View& y);

// elementwise_unary.cpp
void unary_elements(UnaryOp op, const ConstView& x, const View& y);

// elementwise_unary_backward.cpp
void unary_backward_elements(UnaryOp op, const ConstView& x, const ConstView& dy, const View& dx);

// elementwise_binary.cpp
void binary_elements(BinaryOp op, const ConstView& a, const ConstView& b, const View& y);
void binary_scalar_elements(BinaryOp op, const ConstView& a, double scalar, bool scalar_first, const View& y);
void add_scaled_elements(const View& y, const ConstView& x, double alpha);

// elementwise_compare.cpp
void compare_elements(CompareOp op, const ConstView& a, const ConstView& b, const View& y);
void compare_scalar_elements(CompareOp op, const ConstView& a, double scalar, const View& y);

}  // namespace tessera::kernels::TESSERA_ISA
