#include "dist/placement.h"

#include <fmt/format.h>

#include <algorithm>

#include "dist/collectives.h"
#include "kernels/error.h"
#include "kernels/random_key.h"
#include "tensor/create.h"

namespace tessera::dist {

std::vector<Range> own_indices(const Cut& cut, std::int64_t size, int num_ranks, int rank) {
  const std::int64_t units = cut.units == 0 ? size / std::max<std::int64_t>(cut.blocks, 1) : cut.units;
  if (cut.blocks < 1 || (units == 0 ? size != 0 : size % (cut.blocks * units) != 0)) {
    throw ShapeError(
        fmt::format("placement: a dimension of {} is not {} blocks of {} units", size, cut.blocks, units));
  }
  const std::int64_t unit = units == 0 ? 0 : size / (cut.blocks * units);
  const std::int64_t begin = shard_begin(units, num_ranks, rank), count = shard_size(units, num_ranks, rank);
  std::vector<Range> ranges;
  for (std::int64_t block = 0; block < cut.blocks; ++block) {
    const std::int64_t first = (block * units + begin) * unit;
    ranges.push_back({first, first + count * unit});
  }
  return ranges;
}

Shape Placement::own_shape() const {
  Shape shape = whole_shape;
  if (!is_cut) return shape;
  shape[cut.dim] = 0;
  for (const Range& range : own_indices(cut, whole_shape[cut.dim], num_ranks, rank))
    shape[cut.dim] += range.size();
  return shape;
}

namespace {

// Calls f(slice of the whole along the cut, slice of the part) for each range of rank `rank`.
template <class F>
void for_each_range(const Placement& place, int rank, F&& f) {
  std::int64_t at = 0;
  for (const Range& range : own_indices(place.cut, place.whole_shape[place.cut.dim], place.num_ranks, rank)) {
    f(range, Range{at, at + range.size()});
    at += range.size();
  }
}

Tensor slice(const Tensor& x, int dim, Range range) { return x.slice(dim, range.begin, range.end); }

void check_whole(const Placement& place, const Tensor& whole) {
  if (whole.shape() == place.whole_shape) return;
  throw ShapeError(fmt::format("placement: the whole tensor is {}, but came {}", to_string(place.whole_shape),
                               describe(whole)));
}

}  // namespace

Tensor Placement::own_part(const Tensor& whole) const {
  check_whole(*this, whole);
  if (!is_cut) return whole.detach().clone();
  Tensor part = empty(own_shape(), {.dtype = whole.dtype(), .device = whole.device()});
  for_each_range(*this, rank, [&](Range in_whole, Range in_part) {
    slice(part, cut.dim, in_part).copy_from(slice(whole.detach(), cut.dim, in_whole));
  });
  return part;
}

void Placement::put_part(Tensor& whole, const Tensor& part, int r) const {
  check_whole(*this, whole);
  if (!is_cut) {
    whole.copy_from(part);
    return;
  }
  for_each_range(*this, r, [&](Range in_whole, Range in_part) {
    slice(whole, cut.dim, in_whole).copy_from(slice(part.detach(), cut.dim, in_part));
  });
}

void Placement::fill_initial(const nn::ParameterRecord& record, Tensor& part) const {
  if (!is_cut) {
    record.init.fill(part, record.stream);
    return;
  }
  for_each_range(*this, rank, [&](Range in_whole, Range in_part) {
    Tensor target = slice(part, cut.dim, in_part);
    if (target.num_elements() == 0) return;
    // Element (i0, i1, ...) of the slice is element (i0, ..., i_dim + begin, ...) of the whole.
    kernels::GlobalIndex index;
    std::int64_t stride = 1;
    for (int d = whole_shape.dims() - 1; d >= 0; --d) {
      index.strides[d] = stride;
      stride *= whole_shape[d];
    }
    index.base = in_whole.begin * index.strides[cut.dim];
    record.init.fill(target, record.stream, index);
  });
}

}  // namespace tessera::dist
