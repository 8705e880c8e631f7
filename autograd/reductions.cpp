#include "autograd/reductions.h"

#include <fmt/format.h>

#include "autograd/arithmetic.h"
#include "autograd/graph.h"
#include "autograd/kernel_layouts.h"
#include "autograd/layout_rules.h"
#include "autograd/math.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/broadcast.h"
#include "tensor/create.h"

namespace tessera {
namespace {

using kernels::ReduceOp;
using layout_rules::Reduced;

// `kept` has size 1 in the reduced dimensions, `squeezed` lacks them.
struct ReducedShapes {
  Shape kept, squeezed;
  std::int64_t count = 1;  // elements that make one result

  ReducedShapes(const Shape& shape, const Over& over) : kept(shape) {
    bool reduced[kMaxDims] = {};
    for (const int d : over.dims) reduced[shape.normalize(d)] = true;
    for (int d = 0; d < shape.dims(); ++d) {
      if (over.dims.size() == 0 || reduced[d]) {
        count *= shape[d];
        kept[d] = 1;
      } else {
        squeezed.push_back(shape[d]);
      }
    }
    if (over.keep_dims) squeezed = kept;
  }
};

Tensor reduce(ReduceOp op, const Tensor& x, const Shape& kept, DType dtype) {
  Tensor y = empty(kept, {.dtype = dtype, .device = x.device()});
  kernels::of(x.device().type).reductions.reduce(op, x.view(), y.mutable_view());
  return y;
}

Tensor extremum(ReduceOp op, const char* name, const Tensor& x, const Over& over) {
  const ReducedShapes shapes(x.shape(), over);
  if (shapes.count == 0) {
    throw ShapeError(fmt::format("{}: {} has no elements to choose from", name, describe(x)));
  }
  const Layout layout = layout_rules::reduction(name, x, over, Reduced::kOther);
  const Tensor kept = reduce(op, x, shapes.kept, x.dtype());
  const Tensor y = kept.reshape(shapes.squeezed);
  return record(name, laid_out(y, layout), {x},
                [x = saved(x), kept = saved_output(kept)](const Tensor& dy, Needs) -> Grads {
                  const Tensor chosen = equal(x.get(), kept.get()).to(dy.dtype());
                  const Tensor ties = sum_to_shape(chosen, kept.get().shape());
                  return {chosen * (dy.reshape(kept.get().shape()) / ties)};
                });
}

Tensor arg_reduce(bool largest, const char* name, const Tensor& x, int dim) {
  dim = x.shape().normalize(dim);
  if (x.dim(dim) == 0)
    throw ShapeError(fmt::format("{}: dimension {} of {} is empty", name, dim, describe(x)));
  Shape kept = x.shape();
  kept[dim] = 1;
  const Layout layout = layout_rules::reduction(name, x, {.dims = {dim}}, Reduced::kOther);
  Tensor y = empty(kept, {.dtype = kI64, .device = x.device()});
  kernels::of(x.device().type).reductions.arg_reduce(largest, x.view(), dim, y.mutable_view());
  return laid_out(y.squeeze(dim), layout);
}

}  // namespace

// dx = dy, repeated over the reduced dimensions. Booleans and small integers are counted in i64.
Tensor sum(const Tensor& x, const Over& over) {
  if (!is_floating(x.dtype()) && x.dtype() != kI64) return sum(x.to(kI64), over);
  const ReducedShapes shapes(x.shape(), over);
  const Layout layout = layout_rules::reduction("sum", x, over, Reduced::kSum);
  const Tensor y = reduce(ReduceOp::kSum, x, shapes.kept, x.dtype()).reshape(shapes.squeezed);
  return record("sum", laid_out(y, layout), {x},
                [kept = shapes.kept, shape = x.shape()](const Tensor& dy, Needs) -> Grads {
                  return {dy.reshape(kept).expand(shape)};
                });
}

// dx = dy / n, repeated
Tensor mean(const Tensor& x, const Over& over) {
  if (!is_floating(x.dtype())) {
    throw DTypeError(
        fmt::format("mean: needs a floating dtype, but came {}; convert it with to()", describe(x)));
  }
  const ReducedShapes shapes(x.shape(), over);
  const Layout layout = layout_rules::reduction("mean", x, over, Reduced::kMean);
  const Tensor y = reduce(ReduceOp::kMean, x, shapes.kept, x.dtype()).reshape(shapes.squeezed);
  return record(
      "mean", laid_out(y, layout), {x},
      [kept = shapes.kept, shape = x.shape(), count = shapes.count](const Tensor& dy, Needs) -> Grads {
        return {(dy * (1.0 / static_cast<double>(count))).reshape(kept).expand(shape)};
      });
}

Tensor max(const Tensor& x, const Over& over) { return extremum(ReduceOp::kMax, "max", x, over); }
Tensor min(const Tensor& x, const Over& over) { return extremum(ReduceOp::kMin, "min", x, over); }

Tensor variance(const Tensor& x, const Over& over, int correction) {
  const ReducedShapes shapes(x.shape(), over);
  const Tensor deviation = x - mean(x, {.dims = over.dims, .keep_dims = true});
  return sum(square(deviation), over) / static_cast<double>(shapes.count - correction);
}

namespace {

Tensor running_sum(const Tensor& x, bool reverse) {
  const Tensor rows = detail::as_rows(x);
  Tensor y = empty_like(rows);
  kernels::of(x.device().type).reductions.cumulative_sum(rows.view(), reverse, y.mutable_view());
  return y.reshape(x.shape());
}

}  // namespace

// y_i = Σ_{j ≤ i} x_j, so x_j is in every y_i with i ≥ j:  dx_j = Σ_{i ≥ j} dy_i,
// the running sum from the other end.
Tensor cumsum(const Tensor& x, int dim) {
  if (!is_floating(x.dtype())) {
    throw DTypeError(
        fmt::format("cumsum: needs a floating dtype, but came {}; convert it with to()", describe(x)));
  }
  dim = x.shape().normalize(dim);
  if (dim != x.dims() - 1) return cumsum(x.transpose(dim, -1), -1).transpose(dim, -1);
  const Layout layout = layout_rules::along("cumsum", x, dim, /*is_linear=*/true);
  return record("cumsum", laid_out(running_sum(x, /*reverse=*/false), layout), {x},
                [](const Tensor& dy, Needs) -> Grads { return {running_sum(dy, /*reverse=*/true)}; });
}

Tensor argmax(const Tensor& x, int dim) { return arg_reduce(true, "argmax", x, dim); }
Tensor argmin(const Tensor& x, int dim) { return arg_reduce(false, "argmin", x, dim); }

Tensor any(const Tensor& x, const Over& over) {
  const ReducedShapes shapes(x.shape(), over);
  const Layout layout = layout_rules::reduction("any", x, over, Reduced::kOther);
  return laid_out(reduce(ReduceOp::kAny, x.detach().to(kBool), shapes.kept, kBool).reshape(shapes.squeezed),
                  layout);
}

Tensor all(const Tensor& x, const Over& over) {
  const ReducedShapes shapes(x.shape(), over);
  const Layout layout = layout_rules::reduction("all", x, over, Reduced::kOther);
  return laid_out(reduce(ReduceOp::kAll, x.detach().to(kBool), shapes.kept, kBool).reshape(shapes.squeezed),
                  layout);
}

}  // namespace tessera
