#include "autograd/normalization.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/graph.h"
#include "autograd/kernel_layouts.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

using detail::as_rows;
using detail::with_unit_stride;

const kernels::Normalization& normalization(const Tensor& x) {
  return kernels::of(x.device().type).normalization;
}

Tensor row_statistic(const Tensor& rows) {
  return empty({rows.dim(0)}, {.dtype = accumulation_dtype(rows.dtype()), .device = rows.device()});
}

void check_floating(const char* operation, const Tensor& x) {
  if (!is_floating(x.dtype()) || x.dims() == 0) {
    throw DTypeError(
        fmt::format("{}: needs a floating tensor with dimensions, but came {}", operation, describe(x)));
  }
}

void check_row_parameter(const char* operation, const char* parameter, const Tensor& value, const Tensor& x) {
  if (value.shape() != Shape{x.dim(-1)} || value.dtype() != x.dtype()) {
    throw ShapeError(fmt::format("{}: {} must be {} {} for x {}, but it is {}", operation, parameter,
                                 name(x.dtype()), to_string(Shape{x.dim(-1)}), to_string(x.shape()),
                                 describe(value)));
  }
}

// A gradient [D] in the dtype in which the parameter accumulates.
Tensor parameter_gradient(const Tensor& parameter) {
  return empty(parameter.shape(), {.dtype = gradient_dtype(parameter), .device = parameter.device()});
}

Tensor softmax_along(const char* operation, const Tensor& x, int dim, bool log) {
  check_floating(operation, x);
  dim = x.shape().normalize(dim);
  if (dim != x.dims() - 1) return softmax_along(operation, x.transpose(dim, -1), -1, log).transpose(dim, -1);
  const Layout layout = layout_rules::along(operation, x, dim, /*is_linear=*/false);
  Tensor y = empty_like(x);
  normalization(x).softmax(with_unit_stride(x).view(), log, y.mutable_view());
  //   softmax: dx = y·(dy − Σ dy·y),   log: dx = dy − eʸ·Σ dy
  return record(operation, laid_out(y, layout), {x},
                [y = saved_output(y), log](const Tensor& dy, Needs) -> Grads {
                  Tensor dx = empty_like(dy);
                  normalization(dy).softmax_backward(y.get().view(), with_unit_stride(dy).view(), log,
                                                     dx.mutable_view());
                  return {dx};
                });
}

}  // namespace

Tensor softmax(const Tensor& x, int dim) { return softmax_along("softmax", x, dim, false); }
Tensor log_softmax(const Tensor& x, int dim) { return softmax_along("log_softmax", x, dim, true); }

namespace {

// A parameter as the kernel wants it; an undefined one stays undefined.
Tensor side_by_side(const Tensor& x) { return x.defined() ? with_unit_stride(x) : x; }
kernels::ConstView view_or_null(const Tensor& x) { return x.defined() ? x.view() : kernels::ConstView(); }
// A statistic of the rows [B·t] of x, of the tokens of all ranks.
Tensor gathered_statistic(const TokenRanks& ranks, const Tensor& statistic, const Tensor& x) {
  const Tensor all = ranks.gather(statistic.reshape({x.dim(0), x.dim(1), 1}));
  return all.reshape({all.num_elements()});
}

// What the backward pass of both forms of LayerNorm does. With n = (x − mean)·inv_std and g = dy·gain:
//   dx = inv_std·(g − mean(g) − n·mean(g·n)),   dgain = Σ dy·n,   dbias = Σ dy
// n is made again from x and the two statistics of each row, not saved. Only dx needs the values of gain:
// where weights have a pass of their own, they may be gone by then.
struct LayerNormGrads {
  Tensor dx, dgain, dbias;
  LayerNormGrads(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& bias,
                 const Tensor& mean, const Tensor& inv_std, const TokenRanks* ranks, bool need_x,
                 bool need_gain, bool need_bias) {
    if (ranks != nullptr && (need_gain || need_bias)) {
      if (need_x) dx = LayerNormGrads(dy, x, gain, bias, mean, inv_std, nullptr, true, false, false).dx;
      const LayerNormGrads all(ranks->gather(dy), ranks->gather(x), gain, bias,
                               gathered_statistic(*ranks, mean, x), gathered_statistic(*ranks, inv_std, x),
                               nullptr, false, need_gain, need_bias);
      dgain = all.dgain, dbias = all.dbias;
      if (!ranks->counts && need_gain) dgain.zero();
      if (!ranks->counts && need_bias) dbias.zero();
      return;
    }
    const Tensor dy_rows = as_rows(dy);
    const Tensor x_rows = as_rows(x);
    kernels::View dx_view, dgain_view, dbias_view;
    if (need_x) {
      dx = empty_like(dy);
      dx_view = dx.reshape(dy_rows.shape()).mutable_view();
    }
    if (need_gain) dgain = parameter_gradient(gain), dgain_view = dgain.mutable_view();
    if (need_bias) dbias = parameter_gradient(bias), dbias_view = dbias.mutable_view();
    const Tensor gain_values = need_x ? with_unit_stride(gain) : Tensor();
    normalization(dy).layer_norm_backward(
        dy_rows.view(), x_rows.view(), view_or_null(gain_values), mean.view(), inv_std.view(),
        need_x ? &dx_view : nullptr, need_gain ? &dgain_view : nullptr, need_bias ? &dbias_view : nullptr);
  }
};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& gain, const Tensor& bias, double epsilon,
                  const TokenRanksPtr& ranks) {
  check_floating("layer_norm", x);
  check_row_parameter("layer_norm", "gain", gain, x);
  if (bias.defined()) check_row_parameter("layer_norm", "bias", bias, x);
  const Layout layout = layout_rules::rows("layer_norm", {{"x", x}, {"gain", gain}, {"bias", bias}});
  const Tensor rows = as_rows(x);
  Tensor y = empty(rows.shape(), {.dtype = x.dtype(), .device = x.device()});
  Tensor mean = row_statistic(rows);
  Tensor inv_std = row_statistic(rows);
  normalization(x).layer_norm(rows.view(), nullptr, nullptr, with_unit_stride(gain).view(),
                              view_or_null(side_by_side(bias)), epsilon, y.mutable_view(),
                              mean.mutable_view(), inv_std.mutable_view());
  return record(
      "layer_norm", laid_out(y.reshape(x.shape()), layout), {x, gain, bias},
      [x = saved(x), gain = saved(gain), bias, mean, inv_std, ranks](const Tensor& dy, Needs needs) -> Grads {
        LayerNormGrads g(dy, x.get(), gain.get(), bias, mean, inv_std, ranks.get(), needs[0], needs[1],
                         needs[2]);
        return {g.dx, g.dgain, g.dbias};
      });
}

ResidualNorm add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& gain, const Tensor& bias,
                            double epsilon, const TokenRanksPtr& ranks) {
  check_floating("add_layer_norm", x);
  if (x.shape() != residual.shape() || x.dtype() != residual.dtype()) {
    throw ShapeError(fmt::format("add_layer_norm: x is {} and the residual {}; they must be alike",
                                 describe(x), describe(residual)));
  }
  check_row_parameter("add_layer_norm", "gain", gain, x);
  if (bias.defined()) check_row_parameter("add_layer_norm", "bias", bias, x);
  const Layout sum_layout = layout_rules::sum("add_layer_norm", {{"x", x}, {"residual", residual}});
  const Layout layout = layout_rules::rows(
      "add_layer_norm", {{"x", x}, {"residual", residual}, {"gain", gain}, {"bias", bias}});
  const Tensor rows = as_rows(x);
  Tensor sum_rows = empty(rows.shape(), {.dtype = x.dtype(), .device = x.device()});
  Tensor y_rows = empty_like(sum_rows);
  Tensor mean = row_statistic(rows);
  Tensor inv_std = row_statistic(rows);
  const Tensor residual_rows = as_rows(residual);
  const kernels::ConstView residual_view = residual_rows.view();
  const kernels::View sum_view = sum_rows.mutable_view();
  normalization(x).layer_norm(rows.view(), &residual_view, &sum_view, with_unit_stride(gain).view(),
                              view_or_null(side_by_side(bias)), epsilon, y_rows.mutable_view(),
                              mean.mutable_view(), inv_std.mutable_view());

  // The sum goes on along the residual stream and into the norm: d(x) = d(residual) = dsum + dx of the norm.
  Tensor outputs[] = {laid_out(sum_rows.reshape(x.shape()), sum_layout),
                      laid_out(y_rows.reshape(x.shape()), layout)};
  record_many("add_layer_norm", outputs, {x, residual, gain, bias},
              [sum = saved_output(outputs[0]), gain = saved(gain), bias, mean, inv_std, ranks](
                  std::span<const Tensor> dys, Needs needs) -> Grads {
                if (!dys[1].defined()) return {dys[0], dys[0]};
                LayerNormGrads g(dys[1], sum.get(), gain.get(), bias, mean, inv_std, ranks.get(),
                                 needs[0] || needs[1], needs[2], needs[3]);
                if (g.dx.defined() && dys[0].defined()) g.dx.add_scaled(dys[0]);
                return {g.dx, g.dx, g.dgain, g.dbias};
              });
  return {outputs[0], outputs[1]};
}

namespace {

struct RmsNormGrads {
  Tensor dx, dgain;
  RmsNormGrads(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& inv_rms,
               const TokenRanks* ranks, bool need_x, bool need_gain) {
    if (ranks != nullptr && need_gain) {
      if (need_x) dx = RmsNormGrads(dy, x, gain, inv_rms, nullptr, true, false).dx;
      dgain = RmsNormGrads(ranks->gather(dy), ranks->gather(x), gain, gathered_statistic(*ranks, inv_rms, x),
                           nullptr, false, true)
                  .dgain;
      if (!ranks->counts) dgain.zero();
      return;
    }
    const Tensor dy_rows = as_rows(dy);
    kernels::View dx_view, dgain_view;
    if (need_x) {
      dx = empty_like(dy);
      dx_view = dx.reshape(dy_rows.shape()).mutable_view();
    }
    if (need_gain) dgain = parameter_gradient(gain), dgain_view = dgain.mutable_view();
    const Tensor gain_values = need_x ? with_unit_stride(gain) : Tensor();
    normalization(dy).rms_norm_backward(dy_rows.view(), as_rows(x).view(), view_or_null(gain_values),
                                        inv_rms.view(), need_x ? &dx_view : nullptr,
                                        need_gain ? &dgain_view : nullptr);
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& gain, double epsilon, const TokenRanksPtr& ranks) {
  check_floating("rms_norm", x);
  check_row_parameter("rms_norm", "gain", gain, x);
  const Layout layout = layout_rules::rows("rms_norm", {{"x", x}, {"gain", gain}});
  const Tensor rows = as_rows(x);
  Tensor y = empty(rows.shape(), {.dtype = x.dtype(), .device = x.device()});
  Tensor inv_rms = row_statistic(rows);
  normalization(x).rms_norm(rows.view(), with_unit_stride(gain).view(), epsilon, y.mutable_view(),
                            inv_rms.mutable_view());

  // With g = dy·gain and n = x·inv_rms:  dx = inv_rms·(g − n·mean(g·n)),  dgain = Σ dy·n
  return record("rms_norm", laid_out(y.reshape(x.shape()), layout), {x, gain},
                [x = saved(x), gain = saved(gain), inv_rms, ranks](const Tensor& dy, Needs needs) -> Grads {
                  RmsNormGrads g(dy, x.get(), gain.get(), inv_rms, ranks.get(), needs[0], needs[1]);
                  return {g.dx, g.dgain};
                });
}

namespace {

void check_probability(double p) {
  if (!(p >= 0.0 && p <= 1.0))
    throw ShapeError(fmt::format("dropout: p must lie in [0, 1], but it is {}", p));
}

// What both passes do: dx is dy under the mask that y had.
template <class Apply>
Tensor record_dropout(const Tensor& x, const Apply& apply) {
  return record("dropout", laid_out(apply(x), layout_rules::linear(x)), {x},
                [apply](const Tensor& dy, Needs) -> Grads { return {apply(dy)}; });
}

void check_tokens(const Tensor& x, const TokenIndices& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.positions.size());
  if (x.dims() < 2 || x.dim(1) != count) {
    throw ShapeError(fmt::format("dropout: x must be [B, {}, ...], as there are {} positions, but it is {}",
                                 count, count, describe(x)));
  }
  for (const std::int64_t position : tokens.positions) {
    if (position >= 0 && position < tokens.sequence_length) continue;
    throw ShapeError(fmt::format("dropout: position {} is outside of a sequence of {} tokens", position,
                                 tokens.sequence_length));
  }
}

// One past the last of the positions from `begin` on that lie at equal distances.
std::size_t end_of_run(const std::vector<std::int64_t>& positions, std::size_t begin) {
  std::size_t end = begin + 1;
  while (end < positions.size() &&
         positions[end] - positions[end - 1] == positions[begin + 1] - positions[begin]) {
    ++end;
  }
  return end;
}

Tensor drop_tokens(const Tensor& x, double p, const kernels::RandomKey& key, const TokenIndices& tokens) {
  Tensor y = empty(x.shape(), {.dtype = x.dtype(), .device = x.device()});
  const Tensor values = x.detach().set_layout({});  // parts of a rank's own elements: a slice of no layout
  const std::int64_t inner = x.num_elements() / std::max<std::int64_t>(1, x.dim(0) * x.dim(1));
  for (std::size_t begin = 0; begin < tokens.positions.size();) {
    const std::size_t end = end_of_run(tokens.positions, begin);
    const auto first = static_cast<std::int64_t>(begin), last = static_cast<std::int64_t>(end);
    const std::int64_t step = last - first > 1 ? tokens.positions[begin + 1] - tokens.positions[begin] : 1;
    Tensor part = y.slice(1, first, last);
    const kernels::View view = part.mutable_view();
    kernels::GlobalIndex index = kernels::GlobalIndex::row_major(view);
    index.strides[0] = tokens.sequence_length * inner;
    index.strides[1] = step * inner;
    index.base = (tokens.first_sample * tokens.sequence_length + tokens.positions[begin]) * inner;
    normalization(x).dropout(values.slice(1, first, last).view(), p, key, index, view);
    begin = end;
  }
  return y;
}

}  // namespace

Tensor dropout(const Tensor& x, double p, const kernels::RandomKey& key, std::int64_t first_index) {
  check_floating("dropout", x);
  check_probability(p);
  if (p == 0.0) return x;
  return record_dropout(x, [p, key, first_index](const Tensor& values) {
    Tensor result = empty_like(values);
    const kernels::View view = result.mutable_view();
    normalization(values).dropout(values.view(), p, key, kernels::GlobalIndex::row_major(view, first_index),
                                  view);
    return result;
  });
}

Tensor dropout(const Tensor& x, double p, const kernels::RandomKey& key, const TokenIndices& tokens) {
  check_floating("dropout", x);
  check_probability(p);
  check_tokens(x, tokens);
  if (p == 0.0) return x;
  return record_dropout(
      x, [p, key, tokens](const Tensor& values) { return drop_tokens(values, p, key, tokens); });
}

Tensor rotary(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  check_floating("rotary", x);
  if (x.dims() != 4 || x.dim(3) % 2 != 0 || cosine.shape() != Shape{x.dim(1), x.dim(3) / 2} ||
      sine.shape() != cosine.shape() || cosine.dtype() != accumulation_dtype(x.dtype()) ||
      sine.dtype() != cosine.dtype()) {
    throw ShapeError(
        fmt::format("rotary: x [B, T, H, K] needs cosine and sine [T, K/2] in {}, but they are {}, {} and {}",
                    name(accumulation_dtype(x.dtype())), describe(x), describe(cosine), describe(sine)));
  }
  const Layout layout = layout_rules::along("rotary", x, 3, /*is_linear=*/true);
  Tensor y = empty_like(x);
  normalization(x).rotary(with_unit_stride(x).view(), with_unit_stride(cosine).view(),
                          with_unit_stride(sine).view(), /*inverse=*/false, y.mutable_view());
  // A rotation's adjoint is the rotation back.
  return record("rotary", laid_out(y, layout), {x},
                [cosine = saved(cosine), sine = saved(sine)](const Tensor& dy, Needs) -> Grads {
                  Tensor dx = empty_like(dy);
                  normalization(dy).rotary(with_unit_stride(dy).view(), with_unit_stride(cosine.get()).view(),
                                           with_unit_stride(sine.get()).view(),
                                           /*inverse=*/true, dx.mutable_view());
                  return {dx};
                });
}

}  // namespace tessera
