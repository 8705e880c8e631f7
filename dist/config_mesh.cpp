// The mesh for a number of ranks.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "dist/config.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

std::vector<int> divisors(int n) {
  std::vector<int> result;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) result.push_back(d);
  }
  return result;
}

// Every mesh of `num_ranks` over dp and the axes that `wish` has, those first whose axes (dp if it was wished
// for) are nearest to it in ratio.
std::vector<MeshShape> meshes_near(const MeshShape& wish, bool dp_given, int num_ranks) {
  std::vector<MeshAxis> axes;  // dp last: it takes what is left
  for (const MeshAxis axis : kMeshAxes) {
    if (axis != MeshAxis::kDp && wish[axis] > 1) axes.push_back(axis);
  }
  std::vector<MeshShape> meshes;
  MeshShape mesh;
  const std::function<void(std::size_t, int)> extend = [&](std::size_t i, int left) {
    if (i == axes.size()) {
      mesh.set(MeshAxis::kDp, left);
      meshes.push_back(mesh);
      return;
    }
    for (const int size : divisors(left)) {
      mesh.set(axes[i], size);
      extend(i + 1, left / size);
    }
  };
  extend(0, num_ranks);
  const auto distance = [&wish, dp_given](const MeshShape& shape) {
    double sum = 0.0;
    for (const MeshAxis axis : kMeshAxes) {
      if (axis == MeshAxis::kDp && !dp_given) continue;
      sum += std::fabs(std::log(static_cast<double>(shape[axis]) / wish[axis]));
    }
    return sum;
  };
  std::ranges::stable_sort(meshes, {}, distance);
  return meshes;
}

[[noreturn]] void refuse_product(const MeshShape& wish, bool dp_given, int num_ranks) {
  std::string names, product;
  std::int64_t total = 1;
  for (const MeshAxis axis : kMeshAxes) {
    if (wish[axis] == 1 && !(axis == MeshAxis::kDp && dp_given)) continue;
    names += fmt::format("{}{}", names.empty() ? "" : " x ", name(axis));
    product += fmt::format("{}{}", product.empty() ? "" : " x ", wish[axis]);
    total *= wish[axis];
  }
  if (product.find('x') != std::string::npos) product += fmt::format(" = {}", total);
  const std::vector<MeshShape> near = meshes_near(wish, dp_given, num_ranks);
  const std::string works = near[0].to_string() + (near.size() > 1 ? " or " + near[1].to_string() : "");
  if (!dp_given) {
    const std::int64_t enough = (num_ranks + total - 1) / total * total;
    throw ConfigError(fmt::format(
        "config: ranks = dp x {} does not hold for any dp: {} is not a multiple of {}; mesh {} works, or {} "
        "ranks",
        names, num_ranks, product, works, enough));
  }
  throw ConfigError(fmt::format("config: ranks = {} does not hold: {} != {}; mesh {} works, or {} rank{}",
                                names, num_ranks, product, works, total, total == 1 ? "" : "s"));
}

void check_shard_group(const char* key, std::int64_t size, const MeshShape& mesh) {
  const int data_ranks = mesh[MeshAxis::kDp] * mesh[MeshAxis::kCp];
  if (size < 1 || data_ranks % size == 0) return;
  const auto works = divisors(data_ranks);
  throw ConfigError(fmt::format(
      "config: zero_optimization.{} must divide the data ranks dp x cp = {} x {} = {}, but it is {}; "
      "{} work{}",
      key, mesh[MeshAxis::kDp], mesh[MeshAxis::kCp], data_ranks, size, fmt::join(works, ", "),
      works.size() == 1 ? "s" : ""));
}

}  // namespace

MeshShape resolve_mesh(const Config& config, int num_ranks) {
  if (num_ranks < 1) throw ConfigError(fmt::format("config: a job has 1 rank or more, got {}", num_ranks));
  check(config);
  MeshShape mesh = config.mesh;
  const bool dp_given = config.dp_given || mesh[MeshAxis::kDp] > 1;
  std::int64_t product = 1;
  for (const MeshAxis axis : kMeshAxes) product *= mesh[axis];
  if (dp_given ? product != num_ranks : num_ranks % product != 0) refuse_product(mesh, dp_given, num_ranks);
  if (!dp_given) mesh.set(MeshAxis::kDp, static_cast<int>(num_ranks / product));
  check_shard_group("zero_hpz_partition_size", config.zero.hpz_partition_size, mesh);
  check_shard_group("mics_shard_size", config.zero.mics_shard_size, mesh);
  return mesh;
}

}  // namespace tessera::dist
