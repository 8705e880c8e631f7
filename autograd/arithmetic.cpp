#include "autograd/arithmetic.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/broadcast.h"
#include "tensor/create.h"

namespace tessera {
namespace {

using kernels::BinaryOp;
using kernels::CompareOp;

const kernels::Elementwise& elementwise(const Tensor& x) { return kernels::of(x.device().type).elementwise; }

void check_devices(const char* operation, const Tensor& a, const Tensor& b) {
  if (a.device() != b.device()) {
    throw DeviceError(fmt::format("{}: one operand is on {}, the other on {}", operation,
                                  to_string(a.device()), to_string(b.device())));
  }
}

// The strides under which `x` is read as `shape`; not recorded, the operation sums its gradient itself.
Tensor broadcast_to(const Tensor& x, const Shape& shape) {
  return x.shape() == shape ? x : x.detach().expand(shape);
}

Tensor binary(BinaryOp op, const char* name, const Tensor& a, const Tensor& b) {
  check_devices(name, a, b);
  const Shape shape = broadcast_shapes(name, a.shape(), b.shape());
  Tensor y = empty(shape, {.dtype = a.dtype(), .device = a.device()});
  elementwise(y).binary(op, broadcast_to(a, shape).view(), broadcast_to(b, shape).view(), y.mutable_view());
  return y;
}

Tensor binary_scalar(BinaryOp op, const Tensor& a, double b, bool scalar_first) {
  Tensor y = empty(a.shape(), {.dtype = a.dtype(), .device = a.device()});
  elementwise(y).binary_scalar(op, a.view(), b, scalar_first, y.mutable_view());
  return y;
}

// An integer tensor meets a number with a fraction, or one beyond all integers, as f32.
Tensor promoted_for(const Tensor& x, double scalar) {
  const bool is_whole = scalar == std::trunc(scalar) && std::abs(scalar) < 0x1p63;
  return is_floating(x.dtype()) || is_whole ? x : x.to(kF32);
}

// Both operands in their common dtype; conversions are recorded, so their gradients come back in the
// operands' own.
struct Promoted {
  Tensor a, b;
  Promoted(const Tensor& left, const Tensor& right) {
    const DType dtype = promote(left.dtype(), right.dtype());
    a = left.to(dtype);
    b = right.to(dtype);
  }
};

Tensor compare(CompareOp op, const char* name, const Tensor& left, const Tensor& right) {
  check_devices(name, left, right);
  const Layout layout = layout_rules::nonlinear(name, {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left.detach(), right.detach());
  const Shape shape = broadcast_shapes(name, a.shape(), b.shape());
  Tensor y = empty(shape, {.dtype = kBool, .device = a.device()});
  elementwise(y).compare(op, broadcast_to(a, shape).view(), broadcast_to(b, shape).view(), y.mutable_view());
  return laid_out(y, layout);
}

Tensor compare(CompareOp op, const char* name, const Tensor& a, double b) {
  const Layout layout = layout_rules::nonlinear(name, {{"x", a}});
  Tensor y = empty(a.shape(), {.dtype = kBool, .device = a.device()});
  elementwise(y).compare_scalar(op, a.view(), b, y.mutable_view());
  return laid_out(y, layout);
}

}  // namespace

Tensor add(const Tensor& left, const Tensor& right) {
  const Layout layout = layout_rules::sum("add", {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left, right);
  return record("add", laid_out(binary(BinaryOp::kAdd, "add", a, b), layout), {a, b},
                [a_shape = a.shape(), b_shape = b.shape()](const Tensor& dy, Needs needs) -> Grads {
                  return {needs[0] ? sum_to_shape(dy, a_shape) : Tensor(),
                          needs[1] ? sum_to_shape(dy, b_shape) : Tensor()};
                });
}

Tensor subtract(const Tensor& left, const Tensor& right) {
  const Layout layout = layout_rules::sum("subtract", {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left, right);
  return record("subtract", laid_out(binary(BinaryOp::kSub, "subtract", a, b), layout), {a, b},
                [a_shape = a.shape(), b_shape = b.shape()](const Tensor& dy, Needs needs) -> Grads {
                  return {needs[0] ? sum_to_shape(dy, a_shape) : Tensor(),
                          needs[1] ? -sum_to_shape(dy, b_shape) : Tensor()};
                });
}

// y = a·b:  da = dy·b,  db = dy·a
Tensor multiply(const Tensor& left, const Tensor& right) {
  const Layout layout = layout_rules::product("multiply", {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left, right);
  return record("multiply", laid_out(binary(BinaryOp::kMul, "multiply", a, b), layout), {a, b},
                [a = saved_if(b.requires_grad(), a), b = saved_if(a.requires_grad(), b), a_shape = a.shape(),
                 b_shape = b.shape()](const Tensor& dy, Needs needs) -> Grads {
                  return {needs[0] ? sum_to_shape(dy * b.get(), a_shape) : Tensor(),
                          needs[1] ? sum_to_shape(dy * a.get(), b_shape) : Tensor()};
                });
}

// y = a/b:  da = dy/b,  db = −dy·a/b²
Tensor divide(const Tensor& left, const Tensor& right) {
  const Layout layout = layout_rules::quotient("divide", {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left, right);
  return record("divide", laid_out(binary(BinaryOp::kDiv, "divide", a, b), layout), {a, b},
                [a = saved_if(b.requires_grad(), a), b = saved(b), a_shape = a.shape(), b_shape = b.shape()](
                    const Tensor& dy, Needs needs) -> Grads {
                  const Tensor da = dy / b.get();
                  return {needs[0] ? sum_to_shape(da, a_shape) : Tensor(),
                          needs[1] ? sum_to_shape(-(da * a.get() / b.get()), b_shape) : Tensor()};
                });
}

// A number is added once, so not to the parts of a sum.
Tensor add(const Tensor& x, double b) {
  const Layout layout = layout_rules::nonlinear("add", {{"x", x}});
  const Tensor a = promoted_for(x, b);
  return record("add", laid_out(binary_scalar(BinaryOp::kAdd, a, b, false), layout), {a},
                [](const Tensor& dy, Needs) -> Grads { return {dy}; });
}

Tensor multiply(const Tensor& x, double b) {
  const Tensor a = promoted_for(x, b);
  return record("multiply", laid_out(binary_scalar(BinaryOp::kMul, a, b, false), layout_rules::linear(x)),
                {a}, [b](const Tensor& dy, Needs) -> Grads { return {dy * b}; });
}

// Not a · (1/b): that rounds twice, and 49/49 would not be 1.
Tensor divide(const Tensor& x, double b) {
  const Tensor a = promoted_for(x, b);
  return record("divide", laid_out(binary_scalar(BinaryOp::kDiv, a, b, false), layout_rules::linear(x)), {a},
                [b](const Tensor& dy, Needs) -> Grads { return {dy / b}; });
}

// y = a/b:  db = −dy·a/b²
Tensor divide(double a, const Tensor& divisor) {
  const Layout layout = layout_rules::nonlinear("divide", {{"divisor", divisor}});
  const Tensor b = promoted_for(divisor, a);
  return record(
      "divide", laid_out(binary_scalar(BinaryOp::kDiv, b, a, true), layout), {b},
      [a, b = saved(b)](const Tensor& dy, Needs) -> Grads { return {-(a * dy / (b.get() * b.get()))}; });
}

// dx = dy · n · xⁿ⁻¹
Tensor pow(const Tensor& base, double exponent) {
  const Layout layout = layout_rules::nonlinear("pow", {{"x", base}});
  const Tensor x = promoted_for(base, exponent);
  return record("pow", laid_out(binary_scalar(BinaryOp::kPow, x, exponent, false), layout), {x},
                [x = saved(x), exponent](const Tensor& dy, Needs) -> Grads {
                  if (exponent == 0.0) return {zeros_like(dy)};
                  return {dy * (exponent * pow(x.get(), exponent - 1.0))};
                });
}

namespace {

// The gradient goes to the chosen operand, half to each of equals.
Tensor extremum(BinaryOp op, const char* name, bool larger, const Tensor& left, const Tensor& right) {
  const Layout layout = layout_rules::nonlinear(name, {{"a", left}, {"b", right}});
  const auto [a, b] = Promoted(left, right);
  return record(name, laid_out(binary(op, name, a, b), layout), {a, b},
                [a = saved(a), b = saved(b), larger](const Tensor& dy, Needs needs) -> Grads {
                  const Tensor ties = equal(a.get(), b.get()).to(dy.dtype()) * 0.5;
                  const Tensor a_wins =
                      (larger ? less(b.get(), a.get()) : less(a.get(), b.get())).to(dy.dtype()) + ties;
                  return {needs[0] ? sum_to_shape(dy * a_wins, a.get().shape()) : Tensor(),
                          needs[1] ? sum_to_shape(dy * (1.0 - a_wins), b.get().shape()) : Tensor()};
                });
}

}  // namespace

Tensor maximum(const Tensor& a, const Tensor& b) {
  return extremum(BinaryOp::kMaximum, "maximum", true, a, b);
}
Tensor minimum(const Tensor& a, const Tensor& b) {
  return extremum(BinaryOp::kMinimum, "minimum", false, a, b);
}

Tensor clamp(const Tensor& values, double low, double high) {
  const Layout layout = layout_rules::nonlinear("clamp", {{"x", values}});
  // An infinite bound bounds nothing: integers stay what they are.
  const bool has_low = low != -std::numeric_limits<double>::infinity();
  const bool has_high = high != std::numeric_limits<double>::infinity();
  const Tensor x = promoted_for(promoted_for(values, has_low ? low : 0.0), has_high ? high : 0.0);
  Tensor y = has_low ? binary_scalar(BinaryOp::kMaximum, x, low, false) : x.detach().clone();
  if (has_high) elementwise(y).binary_scalar(BinaryOp::kMinimum, y.view(), high, false, y.mutable_view());
  return record(
      "clamp", laid_out(y, layout), {x}, [x = saved(x), low, high](const Tensor& dy, Needs) -> Grads {
        return {dy * logical_and(greater_equal(x.get(), low), less_equal(x.get(), high)).to(dy.dtype())};
      });
}

Tensor equal(const Tensor& a, const Tensor& b) { return compare(CompareOp::kEq, "equal", a, b); }
Tensor less(const Tensor& a, const Tensor& b) { return compare(CompareOp::kLt, "less", a, b); }
Tensor less_equal(const Tensor& a, const Tensor& b) { return compare(CompareOp::kLe, "less_equal", a, b); }
Tensor equal(const Tensor& a, double b) { return compare(CompareOp::kEq, "equal", a, b); }
Tensor less(const Tensor& a, double b) { return compare(CompareOp::kLt, "less", a, b); }
Tensor less_equal(const Tensor& a, double b) { return compare(CompareOp::kLe, "less_equal", a, b); }
Tensor greater(const Tensor& a, double b) { return compare(CompareOp::kGt, "greater", a, b); }
Tensor greater_equal(const Tensor& a, double b) { return compare(CompareOp::kGe, "greater_equal", a, b); }

Tensor logical_not(const Tensor& x) {
  const Tensor condition = x.detach().to(kBool);
  Tensor y = empty_like(condition);
  elementwise(y).unary(kernels::UnaryOp::kNot, condition.view(), y.mutable_view());
  return laid_out(y, layout_rules::nonlinear("logical_not", {{"x", x}}));
}

Tensor logical_and(const Tensor& a, const Tensor& b) {
  const Layout layout = layout_rules::nonlinear("logical_and", {{"a", a}, {"b", b}});
  return laid_out(binary(BinaryOp::kAnd, "logical_and", a.detach().to(kBool), b.detach().to(kBool)), layout);
}

Tensor logical_or(const Tensor& a, const Tensor& b) {
  const Layout layout = layout_rules::nonlinear("logical_or", {{"a", a}, {"b", b}});
  return laid_out(binary(BinaryOp::kOr, "logical_or", a.detach().to(kBool), b.detach().to(kBool)), layout);
}

Tensor where(const Tensor& condition, const Tensor& left, const Tensor& right) {
  if (condition.dtype() != kBool) {
    throw DTypeError(fmt::format("where: the condition must be bool, but it is {}", describe(condition)));
  }
  const Layout layout =
      layout_rules::nonlinear("where", {{"condition", condition}, {"a", left}, {"b", right}});
  check_devices("where", left, right);
  check_devices("where", condition, left);
  const auto [a, b] = Promoted(left, right);
  const Shape shape =
      broadcast_shapes("where", condition.shape(), broadcast_shapes("where", a.shape(), b.shape()));
  Tensor y = empty(shape, {.dtype = a.dtype(), .device = a.device()});
  elementwise(y).where(broadcast_to(condition, shape).view(), broadcast_to(a, shape).view(),
                       broadcast_to(b, shape).view(), y.mutable_view());
  return record("where", laid_out(y, layout), {a, b},
                [condition = saved(condition), a_shape = a.shape(), b_shape = b.shape()](
                    const Tensor& dy, Needs needs) -> Grads {
                  const Tensor zero = zeros({}, {.dtype = dy.dtype(), .device = dy.device()});
                  return {needs[0] ? sum_to_shape(where(condition.get(), dy, zero), a_shape) : Tensor(),
                          needs[1] ? sum_to_shape(where(condition.get(), zero, dy), b_shape) : Tensor()};
                });
}

}  // namespace tessera
