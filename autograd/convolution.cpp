#include "autograd/convolution.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

// Where windows lie on pictures of one size. Element (a, b) of all windows at once is a strided view of the
// padded picture, so copying, adding and comparing views is all that is needed; there are KH·KW of them.
struct Windows {
  Size2 size, stride, padding, dilation;
  std::int64_t height, width;  // of a picture
  std::int64_t rows, columns;  // of the result

  Windows(const char* operation, const Tensor& x, Size2 size, Size2 stride, Size2 padding, Size2 dilation)
      : size(size),
        stride(stride),
        padding(padding),
        dilation(dilation),
        height(x.dim(-2)),
        width(x.dim(-1)),
        rows(places(operation, x, "rows", height, size.rows, stride.rows, padding.rows, dilation.rows)),
        columns(places(operation, x, "columns", width, size.columns, stride.columns, padding.columns,
                       dilation.columns)) {}

  [[nodiscard]] std::int64_t count() const noexcept { return size.rows * size.columns; }

  // [..., H, W] within a border of `border`; a copy only if there is one.
  [[nodiscard]] Tensor pad(const Tensor& x, double border) const {
    const Tensor picture = x.detach().set_layout({});
    if (padding == Size2(0)) return picture;
    Tensor padded = full(padded_shape(x.shape()), border, {.dtype = x.dtype(), .device = x.device()});
    inner(padded).copy_from(picture);
    return padded;
  }
  [[nodiscard]] Shape padded_shape(Shape shape) const {
    shape[-2] = height + 2 * padding.rows;
    shape[-1] = width + 2 * padding.columns;
    return shape;
  }
  // The picture in the middle of a padded one.
  [[nodiscard]] Tensor inner(const Tensor& padded) const {
    return padded.slice(-2, padding.rows, padding.rows + height)
        .slice(-1, padding.columns, padding.columns + width);
  }
  [[nodiscard]] Shape result_shape(Shape shape) const {
    shape[-2] = rows;
    shape[-1] = columns;
    return shape;
  }
  // Element k (row by row) of every window: a view [..., rows, columns] of the padded picture.
  [[nodiscard]] Tensor element(const Tensor& padded, std::int64_t k) const {
    const std::int64_t row = k / size.columns * dilation.rows, column = k % size.columns * dilation.columns;
    return padded.slice(-2, row, row + (rows - 1) * stride.rows + 1, stride.rows)
        .slice(-1, column, column + (columns - 1) * stride.columns + 1, stride.columns);
  }

 private:
  static std::int64_t places(const char* operation, const Tensor& x, const char* side, std::int64_t length,
                             std::int64_t size, std::int64_t stride, std::int64_t padding,
                             std::int64_t dilation) {
    if (size < 1 || stride < 1 || padding < 0 || dilation < 1) {
      throw ShapeError(
          fmt::format("{}: needs a window, stride and dilation of at least 1 and a padding of at least 0, "
                      "but in {} they are "
                      "{}, {}, {} and {}",
                      operation, side, size, stride, dilation, padding));
    }
    const std::int64_t reach = dilation * (size - 1) + 1, padded = length + 2 * padding;
    if (padded < reach) {
      throw ShapeError(
          fmt::format("{}: a window that reaches over {} {} does not fit into {} of x {} with {} of "
                      "padding on either side",
                      operation, reach, side, length, describe(x), padding));
    }
    return (padded - reach) / stride + 1;
  }
};

void check_pictures(const char* operation, const Tensor& x, int least_dims) {
  if (!is_floating(x.dtype()))
    throw DTypeError(fmt::format("{}: needs a floating dtype, but came {}", operation, describe(x)));
  if (x.dims() < least_dims)
    throw ShapeError(fmt::format("{}: needs {} dimensions or more, the last of rows and columns; but x is {}",
                                 operation, least_dims, describe(x)));
}

// --- Convolution -------------------------------------------------------------------------------------------

// Sizes of a convolution in groups of channels, as products of matrices:
//
//   y [G, O/G, N·OH·OW] = weight [G, O/G, K] · windows [G, K, N·OH·OW]     K = C/G · KH·KW
struct Convolution {
  Windows windows;
  std::int64_t groups, pictures, channels, outputs;

  [[nodiscard]] std::int64_t num_places() const { return pictures * windows.rows * windows.columns; }
  [[nodiscard]] std::int64_t window_elements() const { return channels / groups * windows.count(); }

  // [C, KH·KW, N, OH, OW]: elements (a, b) of the windows of one channel stand one after the other, as in the
  // weight.
  [[nodiscard]] Shape windows_shape() const {
    return {channels, windows.count(), pictures, windows.rows, windows.columns};
  }
  [[nodiscard]] Tensor side_by_side(const Tensor& x) const {
    const Tensor padded = windows.pad(x, 0.0);
    const Tensor all = empty(windows_shape(), {.dtype = x.dtype(), .device = x.device()});
    for (std::int64_t k = 0; k < windows.count(); ++k)
      all.select(1, k).copy_from(windows.element(padded, k).transpose(0, 1));
    return all.reshape({groups, window_elements(), num_places()});
  }
  // Its adjoint: each element of a picture gets the sum over the windows that it is in.
  [[nodiscard]] Tensor added_up(const Tensor& of_windows, const Shape& x_shape, DType dtype) const {
    const Tensor all = of_windows.reshape(windows_shape());
    const Tensor padded =
        zeros(windows.padded_shape(x_shape), {.dtype = of_windows.dtype(), .device = of_windows.device()});
    for (std::int64_t k = 0; k < windows.count(); ++k)
      windows.element(padded, k).add_scaled(all.select(1, k).transpose(0, 1));
    return windows.inner(padded).to(dtype).contiguous();
  }
  [[nodiscard]] Tensor weight_matrices(const Tensor& weight) const {
    return weight.detach().set_layout({}).reshape({groups, outputs / groups, window_elements()});
  }
  // [N, O, OH, OW] → [G, O/G, N·OH·OW]
  [[nodiscard]] Tensor place_rows(const Tensor& dy) const {
    return dy.transpose(0, 1).contiguous().reshape({groups, outputs / groups, num_places()});
  }
};

// a [G, M, K] · b [G, K, N], not recorded.
Tensor product(const Tensor& a, const Tensor& b, DType dtype) {
  Tensor y = empty({a.dim(0), a.dim(1), b.dim(2)}, {.dtype = dtype, .device = a.device()});
  kernels::of(y.device().type).matmul.matmul(a.view(), b.view(), y.mutable_view(), {});
  return y;
}

Convolution check_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const Conv2dConfig& config) {
  check_pictures("conv2d", x, 4);
  const std::int64_t groups = config.groups;
  if (x.dims() != 4 || weight.dims() != 4 || groups < 1 || x.dim(1) != weight.dim(1) * groups ||
      weight.dim(0) % groups != 0) {
    throw ShapeError(fmt::format(
        "conv2d: needs x [N, C, H, W] and weight [O, C/groups, KH, KW], and groups that divide O and C; "
        "but came x {}, weight {} and groups = {}",
        to_string(x.shape()), to_string(weight.shape()), groups));
  }
  if (weight.dtype() != x.dtype() || weight.device() != x.device()) {
    throw DTypeError(
        fmt::format("conv2d: x and weight must have one dtype and device, but they are {} on {} and {} "
                    "on {}",
                    describe(x), to_string(x.device()), describe(weight), to_string(weight.device())));
  }
  if (bias.defined() && (bias.shape() != Shape{weight.dim(0)} || bias.dtype() != weight.dtype())) {
    throw ShapeError(fmt::format("conv2d: bias must be {} {}, but it is {}", name(weight.dtype()),
                                 to_string(Shape{weight.dim(0)}), describe(bias)));
  }
  const Windows windows("conv2d", x, {weight.dim(2), weight.dim(3)}, config.stride, config.padding,
                        config.dilation);
  return {windows, groups, x.dim(0), x.dim(1), weight.dim(0)};
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const Conv2dConfig& config) {
  const Convolution c = check_conv2d(x, weight, bias, config);
  const Layout layout =
      layout_rules::pictures("conv2d", {{"x", x}, {"weight", weight}, {"bias", bias}}, /*whole_from=*/1);
  Tensor y;
  {
    const NoGrad no_grad;
    const LayoutChecks no_layout_checks(false);
    // The bias is added before the result is rounded to 16 bits.
    const DType wide = accumulation_dtype(x.dtype());
    y = product(c.weight_matrices(weight), c.side_by_side(x), wide)
            .reshape({c.outputs, c.pictures, c.windows.rows, c.windows.columns});
    if (bias.defined()) y = y + bias.detach().set_layout({}).to(wide).reshape({c.outputs, 1, 1, 1});
    y = y.transpose(0, 1).to(x.dtype()).contiguous();
  }
  // With y = weight · windows, all as matrices:  dwindows = weightᵀ · dy,  dweight = dy · windowsᵀ,  dbias =
  // Σ dy. dx is the sum of dwindows over the windows that an element is in.
  return record(
      "conv2d", laid_out(y, layout), {x, weight, bias},
      [c, x = saved_if(weight.requires_grad(), x), weight = saved_if(x.requires_grad(), weight),
       x_shape = x.shape(), weight_shape = weight.shape(), weight_dtype = gradient_dtype(weight),
       bias_dtype = bias.defined() ? gradient_dtype(bias) : kF32](const Tensor& dy, Needs needs) -> Grads {
        const Tensor rows = c.place_rows(dy);
        Grads grads(3);
        if (needs[0]) {
          const Tensor turned = c.weight_matrices(weight.get()).transpose(1, 2);
          grads[0] = c.added_up(product(turned, rows, accumulation_dtype(dy.dtype())), x_shape, dy.dtype());
        }
        if (needs[1]) {
          const Tensor windows = c.side_by_side(x.get());
          grads[1] = product(rows, windows.transpose(1, 2), weight_dtype).reshape(weight_shape);
        }
        if (needs[2]) {
          Tensor sums = empty({c.outputs, 1}, {.dtype = bias_dtype, .device = dy.device()});
          const Tensor of_outputs = rows.reshape({c.outputs, c.num_places()});
          kernels::of(dy.device().type)
              .reductions.reduce(kernels::ReduceOp::kSum, of_outputs.view(), sums.mutable_view());
          grads[2] = sums.reshape({c.outputs});
        }
        return grads;
      });
}

// --- Pooling -----------------------------------------------------------------------------------------------

namespace {

Windows pool_windows(const char* operation, const Tensor& x, const Pool2dConfig& config) {
  check_pictures(operation, x, 2);
  const Size2 stride(config.stride.rows == 0 ? config.window.rows : config.stride.rows,
                     config.stride.columns == 0 ? config.window.columns : config.stride.columns);
  if (2 * config.padding.rows > config.window.rows || 2 * config.padding.columns > config.window.columns) {
    throw ShapeError(fmt::format(
        "{}: padding may be half of the window at most, or a window would lie in it; but they are "
        "[{}, {}] and [{}, {}]",
        operation, config.padding.rows, config.padding.columns, config.window.rows, config.window.columns));
  }
  return {operation, x, config.window, stride, config.padding, config.dilation};
}

}  // namespace

Tensor max_pool2d(const Tensor& x, const Pool2dConfig& config) {
  const Windows windows = pool_windows("max_pool2d", x, config);
  const Layout layout = layout_rules::pictures("max_pool2d", {{"x", x}}, /*whole_from=*/x.dims() - 2);
  Tensor largest, which;  // which[...]: the element of its window that is the largest
  {
    const NoGrad no_grad;
    const Tensor padded = windows.pad(x, -std::numeric_limits<double>::infinity());
    const TensorOptions integers{.dtype = kI32, .device = x.device()};
    largest = windows.element(padded, 0).clone();
    which = zeros(largest.shape(), integers);
    for (std::int64_t k = 1; k < windows.count(); ++k) {
      const Tensor candidate = windows.element(padded, k);
      const Tensor is_number = equal(largest, largest);
      const Tensor wins = logical_and(is_number, logical_not(less_equal(candidate, largest)));
      largest = where(wins, candidate, largest);
      which = where(wins, full({1}, static_cast<double>(k), integers), which);
    }
  }
  //   dx[i] = Σ dy over the windows whose largest element is x[i]
  return record(
      "max_pool2d", laid_out(largest, layout), {x},
      [windows, which, x_shape = x.shape()](const Tensor& dy, Needs) -> Grads {
        const DType wide = accumulation_dtype(dy.dtype());
        const Tensor padded = zeros(windows.padded_shape(x_shape), {.dtype = wide, .device = dy.device()});
        const Tensor nothing = zeros({1}, {.dtype = dy.dtype(), .device = dy.device()});
        for (std::int64_t k = 0; k < windows.count(); ++k) {
          windows.element(padded, k).add_scaled(where(equal(which, static_cast<double>(k)), dy, nothing));
        }
        return {windows.inner(padded).to(dy.dtype()).contiguous()};
      });
}

Tensor avg_pool2d(const Tensor& x, const Pool2dConfig& config) {
  if (config.dilation != Size2(1)) throw ShapeError("avg_pool2d: has no dilation; leave it at 1");
  const Windows windows = pool_windows("avg_pool2d", x, config);
  const Layout layout = layout_rules::pictures("avg_pool2d", {{"x", x}}, /*whole_from=*/x.dims() - 2);
  const double share = 1.0 / static_cast<double>(windows.count());
  const Tensor padded = windows.pad(x, 0.0);
  Tensor sums =
      zeros(windows.result_shape(x.shape()), {.dtype = accumulation_dtype(x.dtype()), .device = x.device()});
  for (std::int64_t k = 0; k < windows.count(); ++k) sums.add_scaled(windows.element(padded, k), share);
  //   dx[i] = Σ dy / (KH·KW) over the windows that x[i] is in
  return record("avg_pool2d", laid_out(sums.to(x.dtype()), layout), {x},
                [windows, share, x_shape = x.shape()](const Tensor& dy, Needs) -> Grads {
                  const Tensor padded =
                      zeros(windows.padded_shape(x_shape),
                            {.dtype = accumulation_dtype(dy.dtype()), .device = dy.device()});
                  for (std::int64_t k = 0; k < windows.count(); ++k)
                    windows.element(padded, k).add_scaled(dy, share);
                  return {windows.inner(padded).to(dy.dtype()).contiguous()};
                });
}

}  // namespace tessera
