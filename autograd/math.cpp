#include "autograd/math.h"

#include <fmt/format.h>

#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

using kernels::UnaryOp;

// y = f(x), dx = dy · f'(x). The input is saved, not the output: most inputs are kept by another operation
// anyway.
Tensor unary(UnaryOp op, const char* name, const Tensor& x) {
  if (!is_floating(x.dtype())) {
    throw DTypeError(
        fmt::format("{}: needs a floating dtype, but came {}; convert it with to()", name, describe(x)));
  }
  const Layout layout = layout_rules::nonlinear(name, {{"x", x}});
  Tensor y = empty_like(x);
  kernels::of(x.device().type).elementwise.unary(op, x.view(), y.mutable_view());
  return record(name, laid_out(y, layout), {x}, [op, x = saved(x)](const Tensor& dy, Needs) -> Grads {
    Tensor dx = empty_like(dy);
    kernels::of(dy.device().type)
        .elementwise.unary_backward(op, x.get().view(), dy.view(), dx.mutable_view());
    return {dx};
  });
}

}  // namespace

Tensor abs(const Tensor& x) { return unary(UnaryOp::kAbs, "abs", x); }
Tensor square(const Tensor& x) { return unary(UnaryOp::kSquare, "square", x); }
Tensor sqrt(const Tensor& x) { return unary(UnaryOp::kSqrt, "sqrt", x); }
Tensor rsqrt(const Tensor& x) { return unary(UnaryOp::kRsqrt, "rsqrt", x); }
Tensor reciprocal(const Tensor& x) { return unary(UnaryOp::kReciprocal, "reciprocal", x); }
Tensor exp(const Tensor& x) { return unary(UnaryOp::kExp, "exp", x); }
Tensor log(const Tensor& x) { return unary(UnaryOp::kLog, "log", x); }
Tensor sin(const Tensor& x) { return unary(UnaryOp::kSin, "sin", x); }
Tensor cos(const Tensor& x) { return unary(UnaryOp::kCos, "cos", x); }
Tensor tanh(const Tensor& x) { return unary(UnaryOp::kTanh, "tanh", x); }
Tensor erf(const Tensor& x) { return unary(UnaryOp::kErf, "erf", x); }
Tensor sigmoid(const Tensor& x) { return unary(UnaryOp::kSigmoid, "sigmoid", x); }
Tensor relu(const Tensor& x) { return unary(UnaryOp::kRelu, "relu", x); }
Tensor silu(const Tensor& x) { return unary(UnaryOp::kSilu, "silu", x); }
Tensor softplus(const Tensor& x) { return unary(UnaryOp::kSoftplus, "softplus", x); }

Tensor gelu(const Tensor& x, Gelu form) {
  return form == Gelu::kTanh ? unary(UnaryOp::kGeluTanh, "gelu", x) : unary(UnaryOp::kGeluErf, "gelu", x);
}

}  // namespace tessera
