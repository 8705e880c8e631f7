#include "autograd/linear_algebra.h"

#include <fmt/format.h>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/kernel_layouts.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/broadcast.h"
#include "tensor/create.h"

namespace tessera {
namespace {

void check_matrix_dtypes(const char* operation, const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || !is_floating(a.dtype())) {
    throw DTypeError(fmt::format(
        "{}: both operands must have one floating dtype, but they are {} and {}; convert one with "
        "to()",
        operation, describe(a), describe(b)));
  }
  if (a.device() != b.device()) {
    throw DeviceError(fmt::format("{}: one operand is on {}, the other on {}", operation,
                                  to_string(a.device()), to_string(b.device())));
  }
}

Shape leading_dims(const Tensor& x) {
  Shape shape;
  for (int d = 0; d < x.dims() - 2; ++d) shape.push_back(x.dim(d));
  return shape;
}

Shape with_matrix(Shape batch, std::int64_t rows, std::int64_t columns) {
  batch.push_back(rows);
  batch.push_back(columns);
  return batch;
}

// a [..., M, K] · b [..., K, N], already of at least two dimensions and of fitting inner sizes; not recorded.
Tensor product(const Tensor& a, const Tensor& b, DType dtype, const Tensor& bias = {}) {
  const Shape batch = broadcast_shapes("matmul", leading_dims(a), leading_dims(b));
  Tensor y = empty(with_matrix(batch, a.dim(-2), b.dim(-1)), {.dtype = dtype, .device = a.device()});
  const Tensor wide_a = a.detach().expand(with_matrix(batch, a.dim(-2), a.dim(-1)));
  const Tensor wide_b = b.detach().expand(with_matrix(batch, b.dim(-2), b.dim(-1)));
  kernels::Matmul::Options options;
  kernels::ConstView bias_view;
  if (bias.defined()) {
    bias_view = bias.view();
    options.bias = &bias_view;
  }
  kernels::of(y.device().type).matmul.matmul(wide_a.view(), wide_b.view(), y.mutable_view(), options);
  return y;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  check_matrix_dtypes("matmul", a, b);
  if (a.dims() == 0 || b.dims() == 0) {
    throw ShapeError(
        fmt::format("matmul: operands need dimensions, but they are {} and {}", describe(a), describe(b)));
  }
  if (a.dims() == 1) return matmul(a.unsqueeze(0), b).squeeze(b.dims() == 1 ? 0 : -2);
  if (b.dims() == 1) return matmul(a, b.unsqueeze(1)).squeeze(-1);
  if (a.dim(-1) != b.dim(-2)) {
    // Where one factor is cut over ranks and the other is whole, what is missing is a collective.
    static_cast<void>(layout_rules::contraction("matmul", {"a", a}, {"b", b}, /*b_transposed=*/false));
    const bool transposed_fits = a.dim(-1) == b.dim(-1);
    throw ShapeError(
        fmt::format("matmul: inner sizes differ: a {} and b {} (a.dim(-1) = {}, b.dim(-2) = {}){}",
                    to_string(a.shape()), to_string(b.shape()), a.dim(-1), b.dim(-2),
                    transposed_fits ? "; did you mean b.transpose(-2, -1)?" : ""));
  }
  const Layout layout = layout_rules::contraction("matmul", {"a", a}, {"b", b}, /*b_transposed=*/false);
  if (b.dims() == 2 && a.dims() > 2) {
    // One tall product: db is then one product too, instead of one for each batch and a sum.
    Shape y_shape = a.shape();
    y_shape[-1] = b.dim(1);
    const LayoutChecks no_layout_checks(false);  // rows are merged and taken apart again
    return matmul(a.reshape({detail::num_rows(a.shape()), a.dim(-1)}), b).reshape(y_shape).set_layout(layout);
  }
  // y = a·b:  da = dy·bᵀ,  db = aᵀ·dy
  return record(
      "matmul", laid_out(product(a, b, a.dtype()), layout), {a, b},
      [a = saved_if(b.requires_grad(), a), b = saved_if(a.requires_grad(), b), a_shape = a.shape(),
       b_shape = b.shape()](const Tensor& dy, Needs needs) -> Grads {
        Grads grads(2);
        if (needs[0])
          grads[0] = sum_to_shape(product(dy, b.get().detach().transpose(-2, -1), dy.dtype()), a_shape);
        if (needs[1])
          grads[1] = sum_to_shape(product(a.get().detach().transpose(-2, -1), dy, dy.dtype()), b_shape);
        return grads;
      });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_matrix_dtypes("linear", x, weight);
  const bool have_inner_dims = weight.dims() == 2 && x.dims() > 0;
  if (!have_inner_dims || x.dim(-1) != weight.dim(1)) {
    if (have_inner_dims)  // as for matmul
      static_cast<void>(
          layout_rules::contraction("linear", {"x", x}, {"weight", weight}, /*b_transposed=*/true));
    throw ShapeError(
        fmt::format("linear: x [..., I] and weight [O, I] must agree in I, but they are {} and {}",
                    to_string(x.shape()), to_string(weight.shape())));
  }
  if (bias.defined() && (bias.shape() != Shape{weight.dim(0)} || bias.dtype() != weight.dtype())) {
    throw ShapeError(fmt::format("linear: bias must be {} {}, but it is {}", name(weight.dtype()),
                                 to_string(Shape{weight.dim(0)}), describe(bias)));
  }
  const Layout layout = layout_rules::linear_layer("linear", {"x", x}, {"weight", weight}, bias);
  const std::int64_t inputs = weight.dim(1);
  const std::int64_t outputs = weight.dim(0);
  const Tensor rows = x.detach().set_layout({}).reshape({detail::num_rows(x.shape()), inputs});
  Shape y_shape = x.shape();
  y_shape[-1] = outputs;
  const Tensor y = product(rows, weight.detach().transpose(0, 1), x.dtype(), bias).reshape(y_shape);

  // With dy and x as rows [N, O] and [N, I]:  dx = dy·W,  dW = dyᵀ·x,  db = Σ_N dy
  return record(
      "linear", laid_out(y, layout), {x, weight, bias},
      [x = saved_if(weight.requires_grad(), x), weight = saved_if(x.requires_grad(), weight),
       x_shape = x.shape(), inputs, outputs, weight_dtype = gradient_dtype(weight),
       bias_dtype = bias.defined() ? gradient_dtype(bias) : kF32](const Tensor& dy, Needs needs) -> Grads {
        const Tensor dy_rows = dy.reshape({detail::num_rows(dy.shape()), outputs});
        Grads grads(3);
        if (needs[0]) grads[0] = product(dy_rows, weight.get().detach(), dy.dtype()).reshape(x_shape);
        if (needs[1]) {
          const Tensor x_rows = x.get().detach().reshape({dy_rows.dim(0), inputs});
          grads[1] = product(dy_rows.transpose(0, 1), x_rows, weight_dtype);
        }
        if (needs[2]) {
          grads[2] = empty({1, outputs}, {.dtype = bias_dtype, .device = dy.device()});
          kernels::of(dy.device().type)
              .reductions.reduce(kernels::ReduceOp::kSum, dy_rows.view(), grads[2].mutable_view());
          grads[2] = grads[2].reshape({outputs});
        }
        return grads;
      });
}

}  // namespace tessera
