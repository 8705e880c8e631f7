#include "dist/collectives.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/checkpoint.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

// `dim` counted from the front.
int check(const char* operation, const Tensor& x, int dim, const Communicator& group) {
  check_device(operation, x, group);
  if (dim < -x.dims() || dim >= x.dims()) {
    throw IndexError(fmt::format("{}: {} has no dimension {}", operation, describe(x), dim));
  }
  return dim < 0 ? dim + x.dims() : dim;
}

// The size over all ranks of a dimension of which x holds a piece; -1: pieces are equal.
std::int64_t whole_size(const char* operation, const Tensor& x, int dim, std::int64_t size,
                        const Communicator& group) {
  if (size == -1) return x.dim(dim) * group.size();
  const std::int64_t expected = shard_size(size, group.size(), group.rank());
  if (x.dim(dim) != expected) {
    throw ShapeError(fmt::format("{}: rank {} of {} must hold {} of {} along dimension {}, but x is {}",
                                 operation, group.rank(), group.size(), expected, size, dim,
                                 to_string(x.shape())));
  }
  return size;
}

Shape with_size(Shape shape, int dim, std::int64_t size) {
  shape[dim] = size;
  return shape;
}

// Pieces in the order of the wire: [R, piece...], each padded with zeros to the shape `piece`.
Tensor wire_buffer(int num_ranks, const Shape& piece, const Tensor& like) {
  const CategoryScope category(MemoryCategory::kCommunication);
  Shape shape{num_ranks};
  for (int d = 0; d < piece.dims(); ++d) shape.push_back(piece[d]);
  return zeros(shape, {.dtype = like.dtype(), .device = like.device()});
}

std::int64_t padded_size(std::int64_t size, const Communicator& group) {
  return shard_size(size, group.size(), 0);  // the first piece is the longest
}

// Rank r's piece of a dimension that has `size` elements over all ranks.
Tensor piece(const Tensor& x, int dim, std::int64_t size, const Communicator& group, int rank) {
  const std::int64_t begin = shard_begin(size, group.size(), rank);
  return x.slice(dim, begin, begin + shard_size(size, group.size(), rank));
}

// What a wire buffer's slot holds of it: the rest is padding.
Tensor unpadded(const Tensor& slot, int dim, std::int64_t size) { return slot.slice(dim, 0, size); }

Tensor gather(const Tensor& x, int dim, std::int64_t size, Communicator& group) {
  const int ranks = group.size();
  Tensor y = empty(with_size(x.shape(), dim, size), {.dtype = x.dtype(), .device = x.device()});
  if (dim == 0 && size % ranks == 0) {
    group.all_gather(const_buffer_of(x.contiguous()), buffer_of(y));
    return y;
  }
  const Shape slot = with_size(x.shape(), dim, padded_size(size, group));
  Tensor mine = wire_buffer(1, slot, x), all = wire_buffer(ranks, slot, x);
  unpadded(mine.select(0, 0), dim, x.dim(dim)).copy_from(x);
  group.all_gather(const_buffer_of(mine), buffer_of(all));
  for (int r = 0; r < ranks; ++r) {
    piece(y, dim, size, group, r).copy_from(unpadded(all.select(0, r), dim, shard_size(size, ranks, r)));
  }
  return y;
}

Tensor scatter(const Tensor& x, int dim, Communicator& group) {
  const int ranks = group.size();
  const std::int64_t size = x.dim(dim), own = shard_size(size, ranks, group.rank());
  Tensor y = empty(with_size(x.shape(), dim, own), {.dtype = x.dtype(), .device = x.device()});
  if (dim == 0 && size % ranks == 0) {
    group.reduce_scatter(const_buffer_of(x.contiguous()), buffer_of(y));
    return y;
  }
  const Shape slot = with_size(x.shape(), dim, padded_size(size, group));
  Tensor all = wire_buffer(ranks, slot, x), mine = wire_buffer(1, slot, x);
  for (int r = 0; r < ranks; ++r) {
    unpadded(all.select(0, r), dim, shard_size(size, ranks, r)).copy_from(piece(x, dim, size, group, r));
  }
  group.reduce_scatter(const_buffer_of(all), buffer_of(mine));
  y.copy_from(unpadded(mine.select(0, 0), dim, own));
  return y;
}

Tensor sum(const Tensor& x, Communicator& group) {
  Tensor y = x.clone();
  group.all_reduce(buffer_of(y));
  return y;
}

Tensor exchange(const Tensor& x, int split_dim, int concat_dim, std::int64_t concat_size,
                Communicator& group) {
  const int ranks = group.size();
  const std::int64_t split_size = x.dim(split_dim), own = shard_size(split_size, ranks, group.rank());
  const Shape slot = with_size(with_size(x.shape(), split_dim, padded_size(split_size, group)), concat_dim,
                               padded_size(concat_size, group));
  Tensor out = wire_buffer(ranks, slot, x), in = wire_buffer(ranks, slot, x);
  for (int r = 0; r < ranks; ++r) {
    unpadded(unpadded(out.select(0, r), split_dim, shard_size(split_size, ranks, r)), concat_dim,
             x.dim(concat_dim))
        .copy_from(piece(x, split_dim, split_size, group, r));
  }
  group.all_to_all(const_buffer_of(out), buffer_of(in));
  Tensor y = empty(with_size(with_size(x.shape(), split_dim, own), concat_dim, concat_size),
                   {.dtype = x.dtype(), .device = x.device()});
  for (int r = 0; r < ranks; ++r) {
    piece(y, concat_dim, concat_size, group, r)
        .copy_from(unpadded(unpadded(in.select(0, r), split_dim, own), concat_dim,
                            shard_size(concat_size, ranks, r)));
  }
  return y;
}

// Runs a transfer on elements alone; what is recorded is the collective as a whole.
template <class F>
Tensor unrecorded(const Tensor& x, F&& transfer) {
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  return transfer(x.detach()).set_layout({});
}

// Whether `x` lies on `axis` as the collective wants it.
void require(const char* operation, const Tensor& x, const Mesh& mesh, MeshAxis axis, bool fits,
             const char* wanted) {
  if (fits || mesh.size(axis) == 1 || !RankContext::current().check_layouts) return;
  throw LayoutError(fmt::format("{}: on {}, x must be {}, but it is {} ({})", operation, tessera::name(axis),
                                wanted, to_string(x.layout()[axis]), describe(x)));
}

Tensor with_axis(Tensor y, const Tensor& x, const Mesh& mesh, MeshAxis axis, AxisLayout on_axis) {
  if (mesh.size(axis) == 1 || !RankContext::current().check_layouts) return y;
  return y.set_layout(x.layout().with(axis, on_axis));
}

int from_front(const Tensor& x, int dim) { return dim < 0 ? dim + x.dims() : dim; }

bool is_cut_along(const Tensor& x, MeshAxis axis, int dim) {
  const AxisLayout on_axis = x.layout()[axis];
  return on_axis.is_sharded() && on_axis.dim() == from_front(x, dim) && on_axis.in_order();
}

// --- The graph ---------------------------------------------------------------------------------------------

Tensor record_all_gather(const Tensor& x, int dim, Communicator& group, std::int64_t size) {
  const int d = check("all_gather", x, dim, group);
  const std::int64_t whole = whole_size("all_gather", x, d, size, group);
  if (group.size() == 1) return x;
  return record("all_gather", unrecorded(x, [&](const Tensor& own) { return gather(own, d, whole, group); }),
                {x}, [d, &group](const Tensor& dy, Needs) -> Grads { return {scatter(dy, d, group)}; });
}

Tensor record_reduce_scatter(const Tensor& x, int dim, Communicator& group) {
  const int d = check("reduce_scatter", x, dim, group);
  if (group.size() == 1) return x;
  return record("reduce_scatter", unrecorded(x, [&](const Tensor& part) { return scatter(part, d, group); }),
                {x}, [d, size = x.dim(d), &group](const Tensor& dy, Needs) -> Grads {
                  return {gather(dy, d, size, group)};
                });
}

Tensor record_all_reduce(const Tensor& x, Communicator& group) {
  check_device("all_reduce", x, group);
  if (group.size() == 1) return x;
  return record("all_reduce", unrecorded(x, [&](const Tensor& part) { return sum(part, group); }), {x},
                [](const Tensor& dy, Needs) -> Grads { return {dy}; });
}

Tensor record_copy_to_ranks(const Tensor& x, Communicator& group) {
  if (group.size() == 1) return x;
  const Tensor y = record("copy_to_ranks", x.detach(), {x},
                          [&group](const Tensor& dy, Needs) -> Grads { return {sum(dy, group)}; });
  keep_recomputable(x, y);
  return y;
}

Tensor record_all_to_all(const Tensor& x, int split_dim, int concat_dim, Communicator& group,
                         std::int64_t concat_size) {
  const int s = check("all_to_all", x, split_dim, group), c = check("all_to_all", x, concat_dim, group);
  if (s == c) {
    throw ShapeError(
        fmt::format("all_to_all: split_dim and concat_dim must differ, both are {} of {}", s, describe(x)));
  }
  const std::int64_t whole = whole_size("all_to_all", x, c, concat_size, group);
  if (group.size() == 1) return x;
  return record("all_to_all",
                unrecorded(x, [&](const Tensor& own) { return exchange(own, s, c, whole, group); }), {x},
                [s, c, split_size = x.dim(s), &group](const Tensor& dy, Needs) -> Grads {
                  return {exchange(dy, c, s, split_size, group)};
                });
}

}  // namespace

ConstBuffer const_buffer_of(const Tensor& x) { return {x.view().data, x.num_elements(), x.dtype()}; }

Buffer buffer_of(Tensor& x) {
  const kernels::View view = x.mutable_view();
  return {view.data, view.num_elements(), view.dtype};
}

void check_device(const char* operation, const Tensor& x, const Communicator& group) {
  if (x.device() == cpu || (x.device() == meta && !group.moves_data())) return;
  throw DeviceError(fmt::format("{}: {} is on {}; only tensors with data can be sent", operation, describe(x),
                                to_string(x.device())));
}

void refuse_laid_out(const char* operation, const Tensor& x) {
  if (x.layout().is_invariant() || !RankContext::current().check_layouts) return;
  throw LayoutError(fmt::format(
      "{}: {} is laid out on a mesh ({}), and a bare group does not say along which axis it is to move: call "
      "the form with the mesh and the axis",
      operation, describe(x), to_string(x.layout())));
}

// --- Over a group ------------------------------------------------------------------------------------------

Tensor all_gather(const Tensor& x, int dim, Communicator& group, std::int64_t size) {
  refuse_laid_out("all_gather", x);
  return record_all_gather(x, dim, group, size);
}

Tensor reduce_scatter(const Tensor& x, int dim, Communicator& group) {
  refuse_laid_out("reduce_scatter", x);
  return record_reduce_scatter(x, dim, group);
}

Tensor all_reduce(const Tensor& x, Communicator& group) {
  refuse_laid_out("all_reduce", x);
  return record_all_reduce(x, group);
}

Tensor copy_to_ranks(const Tensor& x, Communicator& group) {
  refuse_laid_out("copy_to_ranks", x);
  return record_copy_to_ranks(x, group);
}

Tensor all_to_all(const Tensor& x, int split_dim, int concat_dim, Communicator& group,
                  std::int64_t concat_size) {
  refuse_laid_out("all_to_all", x);
  return record_all_to_all(x, split_dim, concat_dim, group, concat_size);
}

// --- Along an axis of a mesh -------------------------------------------------------------------------------

Tensor all_gather(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis, std::int64_t size) {
  require("all_gather", x, mesh, axis, is_cut_along(x, axis, dim),
          "cut along the dimension that is gathered, in order: S(dim)");
  return with_axis(record_all_gather(x, dim, mesh.group(axis), size), x, mesh, axis,
                   AxisLayout::replicated());
}

Tensor reduce_scatter(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis) {
  require("reduce_scatter", x, mesh, axis, x.layout()[axis].is_partial(), "a partial sum: P");
  return with_axis(record_reduce_scatter(x, dim, mesh.group(axis)), x, mesh, axis,
                   AxisLayout::sharded(from_front(x, dim)));
}

Tensor all_reduce(const Tensor& x, const Mesh& mesh, MeshAxis axis) {
  require("all_reduce", x, mesh, axis, x.layout()[axis].is_partial(), "a partial sum: P");
  return with_axis(record_all_reduce(x, mesh.group(axis)), x, mesh, axis, AxisLayout::invariant());
}

Tensor copy_to_ranks(const Tensor& x, const Mesh& mesh, MeshAxis axis) {
  require("copy_to_ranks", x, mesh, axis, x.layout()[axis].is_invariant(), "invariant: I");
  return with_axis(record_copy_to_ranks(x, mesh.group(axis)), x, mesh, axis, AxisLayout::replicated());
}

Tensor all_to_all(const Tensor& x, int split_dim, int concat_dim, const Mesh& mesh, MeshAxis axis,
                  std::int64_t concat_size) {
  require("all_to_all", x, mesh, axis, is_cut_along(x, axis, concat_dim),
          "cut along the dimension that is joined, in order: S(concat_dim)");
  return with_axis(record_all_to_all(x, split_dim, concat_dim, mesh.group(axis), concat_size), x, mesh, axis,
                   AxisLayout::sharded(from_front(x, split_dim)));
}

Tensor own_piece(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis) {
  const AxisLayout on_axis = x.layout()[axis];
  const bool is_constant =
      on_axis.is_invariant() && !(RankContext::current().grad_enabled && x.requires_grad());
  require("own_piece", x, mesh, axis, on_axis.is_replicated() || is_constant, "replicated: R");
  const int ranks = mesh.size(axis), rank = mesh.index(axis);
  if (ranks == 1) return x;
  const std::int64_t size = x.dim(dim), begin = shard_begin(size, ranks, rank);
  return with_axis(x.slice(dim, begin, begin + shard_size(size, ranks, rank)), x, mesh, axis,
                   AxisLayout::sharded(from_front(x, dim)));
}

}  // namespace tessera::dist
