#include "autograd/indexing.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/graph.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

const kernels::Indexing& indexing(const Tensor& x) { return kernels::of(x.device().type).indexing; }

void check_index(const char* operation, const Tensor& index) {
  if (index.dtype() != kI64) {
    throw DTypeError(fmt::format("{}: indices must be i64, but they are {}; convert them with to(kI64)",
                                 operation, describe(index)));
  }
}

// Each dimension of index but `dim` must fit into x.
void check_index_shape(const char* operation, const Tensor& x, int dim, const Tensor& index) {
  check_index(operation, index);
  bool fits = index.dims() == x.dims();
  for (int d = 0; fits && d < x.dims(); ++d) fits = d == dim || index.dim(d) <= x.dim(d);
  if (!fits) {
    throw ShapeError(fmt::format("{}: index {} does not fit x {} along dimension {}", operation,
                                 to_string(index.shape()), to_string(x.shape()), dim));
  }
}

// The part of x that index reaches outside `dim`: kernels want equal sizes there.
Tensor cut_to(const Tensor& x, int dim, const Shape& shape) {
  Tensor result = x.detach();
  for (int d = 0; d < x.dims(); ++d) {
    if (d != dim) result = result.slice(d, 0, shape[d]);
  }
  return result;
}

Tensor zeros_for(const Shape& shape, const Tensor& like) {
  return zeros(shape, {.dtype = like.dtype(), .device = like.device()});
}

}  // namespace

Tensor embedding(const Tensor& table, const Tensor& ids) {
  check_index("embedding", ids);
  if (table.dims() != 2)
    throw ShapeError(fmt::format("embedding: the table must be [V, D], but it is {}", describe(table)));
  const Layout layout = layout_rules::embedding(table, ids);
  const Tensor rows = ids.detach().set_layout({}).contiguous().reshape({ids.num_elements()});
  Tensor y = empty({rows.dim(0), table.dim(1)}, {.dtype = table.dtype(), .device = table.device()});
  indexing(table).embedding(table.view(), rows.view(), y.mutable_view());
  Shape y_shape = ids.shape();
  y_shape.push_back(table.dim(1));
  // dtable[id] = Σ dy over the positions of id. Of V rows at most N are not zero: where the table has a
  // gradient already, of the head that it is tied to or of an earlier pass, they go straight into it.
  return record("embedding", laid_out(y.reshape(y_shape), layout), {table},
                [rows = saved(rows), shape = table.shape(), dtype = gradient_dtype(table)](
                    const Tensor& dy, Needs needs) -> Grads {
                  Tensor sum = needs.sum_so_far(0);
                  const bool in_place = sum.defined() && sum.dtype() == dtype && sum.shape() == shape;
                  if (!in_place) sum = zeros(shape, {.dtype = dtype, .device = dy.device()});
                  const Tensor dy_rows = dy.contiguous().reshape({rows.get().dim(0), shape[1]});
                  indexing(dy).embedding_backward(dy_rows.view(), rows.get().view(), sum.mutable_view());
                  return {in_place ? Tensor() : sum};
                });
}

Tensor gather(const Tensor& x, int dim, const Tensor& index) {
  dim = x.shape().normalize(dim);
  check_index_shape("gather", x, dim, index);
  const Layout layout = layout_rules::gather(x, dim, index);
  Tensor y = empty(index.shape(), {.dtype = x.dtype(), .device = x.device()});
  indexing(x).gather(cut_to(x, dim, index.shape()).view(), dim, index.view(), y.mutable_view());
  return record("gather", laid_out(y, layout), {x},
                [index = saved(index), dim, shape = x.shape()](const Tensor& dy, Needs) -> Grads {
                  Tensor dx = zeros_for(shape, dy);
                  indexing(dy).scatter_add(cut_to(dx, dim, dy.shape()).mutable_view(), dim,
                                           index.get().view(), dy.view());
                  return {dx};
                });
}

Tensor scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src) {
  dim = x.shape().normalize(dim);
  check_index_shape("scatter_add", x, dim, index);
  if (src.shape() != index.shape() || src.dtype() != x.dtype()) {
    throw ShapeError(fmt::format("scatter_add: src must be {} {} as x and index are, but it is {}",
                                 name(x.dtype()), to_string(index.shape()), describe(src)));
  }
  const Layout layout = layout_rules::scatter_add(x, dim, index, src);
  Tensor y = x.detach().clone();
  indexing(x).scatter_add(cut_to(y, dim, index.shape()).mutable_view(), dim, index.view(), src.view());
  return record("scatter_add", laid_out(y, layout), {x, src},
                [index = saved(index), dim](const Tensor& dy, Needs needs) -> Grads {
                  return {dy, needs[1] ? gather(dy, dim, index.get()) : Tensor()};
                });
}

namespace {

Tensor concat_recorded(std::span<const Tensor> tensors, int dim, const Tensor& result) {
  std::vector<std::reference_wrapper<const Tensor>> inputs(tensors.begin(), tensors.end());
  if (!detail::must_record(inputs)) return result;
  std::vector<std::int64_t> sizes;
  for (const Tensor& x : tensors) sizes.push_back(x.dim(dim));
  Tensor y = result;
  detail::attach("concat", std::span(&y, 1), inputs,
                 [sizes, dim](std::span<const Tensor> dys, Needs needs) -> Grads {
                   Grads grads(sizes.size());
                   std::int64_t begin = 0;
                   for (std::size_t i = 0; i < sizes.size(); ++i) {
                     if (needs[i]) grads[i] = dys[0].slice(dim, begin, begin + sizes[i]);
                     begin += sizes[i];
                   }
                   return grads;
                 });
  return y;
}

}  // namespace

Tensor concat(std::span<const Tensor> tensors, int dim) {
  if (tensors.empty()) throw ShapeError("concat: needs at least one tensor");
  const Tensor& first = tensors[0];
  dim = first.shape().normalize(dim);
  Shape shape = first.shape();
  shape[dim] = 0;
  for (const Tensor& x : tensors) {
    Shape expected = x.shape();
    if (x.dims() == first.dims()) expected[dim] = first.dim(dim);
    if (expected != first.shape() || x.dtype() != first.dtype() || x.device() != first.device()) {
      throw ShapeError(
          fmt::format("concat: {} and {} differ outside dimension {}", describe(first), describe(x), dim));
    }
    shape[dim] += x.dim(dim);
  }
  const Layout layout = layout_rules::concat(tensors, dim);
  Tensor y = empty(shape, {.dtype = first.dtype(), .device = first.device()});
  std::int64_t begin = 0;
  for (const Tensor& x : tensors) {
    y.slice(dim, begin, begin + x.dim(dim)).copy_from(x);
    begin += x.dim(dim);
  }
  return concat_recorded(tensors, dim, laid_out(y, layout));
}

Tensor stack(std::span<const Tensor> tensors, int dim) {
  std::vector<Tensor> unsqueezed;
  for (const Tensor& x : tensors) unsqueezed.push_back(x.unsqueeze(dim));
  return concat(unsqueezed, dim);
}

namespace {

// Both run over the last dimension of rows; the gradient goes back to where each value came from.
template <class Kernel>
ValuesAndIndices selected(const Tensor& x, std::int64_t count, int dim, Kernel kernel) {
  dim = x.shape().normalize(dim);
  static_cast<void>(layout_rules::along("sort or top_k", x, dim, /*is_linear=*/false));
  const Tensor moved = x.detach().set_layout({}).transpose(dim, -1).contiguous();
  const std::int64_t width = moved.dim(-1);
  const std::int64_t rows = moved.num_elements() / std::max<std::int64_t>(width, 1);
  Tensor values = empty({rows, count}, {.dtype = x.dtype(), .device = x.device()});
  Tensor indices = empty({rows, count}, {.dtype = kI64, .device = x.device()});
  kernel(moved.reshape({rows, width}).view(), values.mutable_view(), indices.mutable_view());
  Shape shape = moved.shape();
  shape[-1] = count;
  return {{}, indices.reshape(shape).transpose(dim, -1).contiguous()};
}

}  // namespace

ValuesAndIndices top_k(const Tensor& x, std::int64_t k, int dim) {
  if (k < 0 || k > x.dim(dim)) {
    throw ShapeError(
        fmt::format("top_k: k = {} is outside [0, {}], the size of dimension {}", k, x.dim(dim), dim));
  }
  ValuesAndIndices result =
      selected(x, k, dim,
               [&](const kernels::ConstView& rows, const kernels::View& values,
                   const kernels::View& indices) { indexing(x).top_k(rows, k, values, indices); });
  result.values = gather(x, dim, result.indices);
  return result;
}

ValuesAndIndices sort(const Tensor& x, int dim, bool descending) {
  ValuesAndIndices result =
      selected(x, x.dim(dim), dim,
               [&](const kernels::ConstView& rows, const kernels::View& values,
                   const kernels::View& indices) { indexing(x).sort(rows, descending, values, indices); });
  result.values = gather(x, dim, result.indices);
  return result;
}

}  // namespace tessera
