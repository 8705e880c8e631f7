#include "dist/partitioned_activations.h"

#include <fmt/format.h>

#include <algorithm>

#include "dist/collectives.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

std::int64_t part_size(std::int64_t num_elements, const Communicator& group) {
  return (num_elements + group.size() - 1) / group.size();
}

// Whether the ranks along the axis hold the same elements.
bool is_whole(const Layout& layout, const Mesh& mesh, MeshAxis axis) {
  const AxisLayout on_axis = layout[axis];
  if (on_axis.is_partial()) {
    throw LayoutError(
        fmt::format("partitioned activations: the input of a recomputed function is {}, a partial sum over "
                    "the ranks of '{}', which each hold another part of: dist::all_reduce it before",
                    to_string(layout), name(axis)));
  }
  return mesh.size(axis) > 1 && !on_axis.is_sharded();
}

// A copy: a view would keep the whole input.
Tensor own_part(const Tensor& input, const Communicator& group) {
  check_device("partitioned activations", input, group);
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
  group.all_gather(const_buffer_of(part), buffer_of(all));
  return all.slice(0, 0, n).reshape(input.shape);
}

}  // namespace

CheckpointOptions partitioned_over(const Mesh& mesh, MeshAxis axis) {
  CheckpointOptions options;
  options.pack = [&mesh, axis](const Tensor& input) {
    if (!RankContext::current().check_layouts) {
      throw LayoutError(
          "partitioned activations: layouts tell which inputs every rank has whole, and they are switched "
          "off "
          "(RankContext::check_layouts)");
    }
    return is_whole(input.layout(), mesh, axis) ? own_part(input, mesh.group(axis)) : input;
  };
  options.unpack = [&mesh, axis](const Tensor& kept, const PackedInput& input) {
    return is_whole(input.layout, mesh, axis) ? gather(kept, input, mesh.group(axis)) : kept;
  };
  return options;
}

}  // namespace tessera::dist
