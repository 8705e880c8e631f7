#include "dist/partitioned_activations.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

std::int64_t part_size(std::int64_t num_elements, const Communicator& group) {
  return (num_elements + group.size() - 1) / group.size();
}

// Whether the ranks of the group hold the same elements.
bool is_whole(const Layout& layout, const Communicator& group) {
  const AxisLayout on_tp = layout[MeshAxis::kTp];
  if (on_tp.is_partial()) {
    throw LayoutError(
        fmt::format("partitioned activations: the input of a recomputed function is {}, a partial sum over "
                    "the ranks of '{}', which each hold another part of: dist::all_reduce it before",
                    to_string(layout), group.name()));
  }
  return group.size() > 1 && !on_tp.is_sharded();
}

// A copy: a view would keep the whole input.
Tensor own_part(const Tensor& input, const Communicator& group) {
  if (input.device() == meta) {
    throw DeviceError(
        fmt::format("partitioned activations: {} has no data to gather again", describe(input)));
  }
  const std::int64_t n = input.num_elements(), size = part_size(n, group);
  const std::int64_t begin = std::min(n, size * group.rank()), end = std::min(n, begin + size);
  Tensor part = zeros({size}, {.dtype = input.dtype(), .device = input.device()});
  const Tensor elements = input.detach().set_layout({}).reshape({n});
  part.slice(0, 0, end - begin).copy_from(elements.slice(0, begin, end));
  return part;
}

Tensor gather(const Tensor& part, const PackedInput& input, Communicator& group) {
  const std::int64_t n = input.shape.num_elements();
  Tensor all = empty({part.num_elements() * group.size()}, {.dtype = part.dtype(), .device = part.device()});
  const kernels::View all_view = all.mutable_view();
  group.all_gather({part.view().data, part.num_elements(), part.dtype()},
                   {all_view.data, all.num_elements(), all.dtype()});
  return all.slice(0, 0, n).reshape(input.shape);
}

}  // namespace

CheckpointOptions partitioned_over(Communicator& group) {
  CheckpointOptions options;
  options.pack = [&group](const Tensor& input) {
    if (!RankContext::current().check_layouts) {
      throw LayoutError(
          "partitioned activations: layouts tell which inputs every rank has whole, and they are switched "
          "off "
          "(RankContext::check_layouts)");
    }
    return is_whole(input.layout(), group) ? own_part(input, group) : input;
  };
  options.unpack = [&group](const Tensor& kept, const PackedInput& input) {
    return is_whole(input.layout, group) ? gather(kept, input, group) : kept;
  };
  return options;
}

}  // namespace tessera::dist
