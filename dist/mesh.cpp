#include "dist/mesh.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>

#include "dist/host_memory.h"
#include "kernels/error.h"
#include "kernels/suggest.h"

namespace tessera::dist {
namespace {

// Longer names are cut: what counts is whether two are equal.
constexpr std::size_t kHostNameBytes = 128;

std::optional<MeshAxis> axis_named(std::string_view word) {
  for (const MeshAxis axis : kMeshAxes) {
    if (word == name(axis)) return axis;
  }
  return std::nullopt;
}

std::string_view without_blanks_around(std::string_view text) {
  constexpr std::string_view kBlanks = " \t";
  const std::size_t begin = text.find_first_not_of(kBlanks);
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

MeshAxis parse_axis(std::string_view word, std::string_view text) {
  if (const auto axis = axis_named(word)) return *axis;
  std::vector<std::string> names;
  for (const MeshAxis axis : kMeshAxes) names.emplace_back(name(axis));
  throw ConfigError(
      fmt::format("mesh '{}': unknown axis '{}'; did you mean '{}'? Axes are pp (pipeline), dp (data), cp "
                  "(context), ep (expert), tp (tensor)",
                  text, word, nearest_name(word, names)));
}

}  // namespace

// --- Shape -------------------------------------------------------------------------------------------------

MeshShape MeshShape::parse(std::string_view text, std::set<MeshAxis>* named) {
  MeshShape shape;
  std::set<MeshAxis> seen;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    const std::size_t equals = part.find('=');
    int size = 0;
    const std::string_view digits =
        equals == std::string_view::npos ? "" : without_blanks_around(part.substr(equals + 1));
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      throw ConfigError(fmt::format("mesh '{}': expected axis=size, as in dp=2,tp=2, got '{}'", text, part));
    }
    const MeshAxis axis = parse_axis(without_blanks_around(part.substr(0, equals)), text);
    if (!seen.insert(axis).second)
      throw ConfigError(fmt::format("mesh '{}': axis {} is given twice", text, name(axis)));
    shape.set(axis, size);
  }
  if (named != nullptr) *named = std::move(seen);
  return shape;
}

void MeshShape::set(MeshAxis axis, int size) {
  if (size < 1)
    throw ConfigError(fmt::format("mesh: axis {} must have size 1 or more, got {}", name(axis), size));
  sizes_[static_cast<std::size_t>(axis)] = size;
}

int MeshShape::num_ranks() const noexcept {
  return std::accumulate(sizes_.begin(), sizes_.end(), 1, std::multiplies<>());
}

std::string MeshShape::to_string() const {
  std::string text;
  for (const MeshAxis axis : kMeshAxes) {
    if ((*this)[axis] > 1) text += fmt::format("{}{}={}", text.empty() ? "" : ",", name(axis), (*this)[axis]);
  }
  return text.empty() ? "dp=1" : text;
}

MeshShape::Coordinate MeshShape::coordinate(int position) const noexcept {
  Coordinate result;
  for (auto axis = kMeshAxes.rbegin(); axis != kMeshAxes.rend(); ++axis) {
    result[*axis] = position % (*this)[*axis];
    position /= (*this)[*axis];
  }
  return result;
}

int MeshShape::position(const Coordinate& coordinate) const noexcept {
  int position = 0;
  for (const MeshAxis axis : kMeshAxes) position = position * (*this)[axis] + coordinate[axis];
  return position;
}

// --- Mesh --------------------------------------------------------------------------------------------------

Mesh::Mesh(const MeshShape& shape, std::shared_ptr<Communicator> world, const MeshOptions& options,
           std::source_location where)
    : shape_(shape), world_(std::move(world)) {
  if (shape_.num_ranks() != world_->size()) {
    std::string product;
    for (const MeshAxis axis : kMeshAxes) {
      if (shape_[axis] > 1)
        product += fmt::format("{}{} {}", product.empty() ? "" : " x ", name(axis), shape_[axis]);
    }
    throw ConfigError(fmt::format("mesh {}: {} = {} ranks, but this job has {}", shape_.to_string(),
                                  product.empty() ? "dp 1" : product, shape_.num_ranks(), world_->size()));
  }
  place(options.host.empty() ? host_name() : options.host, where);
  if (!options.allow_tp_across_hosts) keep_tp_inside_hosts();
  coordinate_ = coordinate_of(world_->rank());

  for (const MeshAxis axis : kMeshAxes) groups_[slot(axis, axis)] = make_group(axis, axis, where);
  for (const MeshAxis a : kMeshAxes) {
    for (const MeshAxis b : kMeshAxes) {
      if (a < b) groups_[slot(a, b)] = make_group(a, b, where);
    }
  }
}

void Mesh::place(const std::string& host, std::source_location where) {
  const auto num_ranks = static_cast<std::size_t>(world_->size());
  std::vector<std::uint8_t> mine(kHostNameBytes), all(num_ranks * kHostNameBytes);
  std::copy_n(host.begin(), std::min(host.size(), kHostNameBytes - 1), mine.begin());
  world_->all_gather(buffer_of(std::as_const(mine)), buffer_of(all), where);
  for (std::size_t r = 0; r < num_ranks; ++r) {
    hosts_.emplace_back(reinterpret_cast<const char*>(all.data() + r * kHostNameBytes));
  }
  // Stable: ranks of a host stay in order, hosts stand in the order of their first rank.
  const auto first_of_host = [this](int rank) {
    return std::find(hosts_.begin(), hosts_.end(), hosts_[static_cast<std::size_t>(rank)]) - hosts_.begin();
  };
  std::vector<int> host_of_rank;
  for (std::size_t r = 0; r < num_ranks; ++r)
    host_of_rank.push_back(static_cast<int>(first_of_host(static_cast<int>(r))));
  world_->stand_on(std::move(host_of_rank));
  rank_at_.resize(num_ranks);
  std::iota(rank_at_.begin(), rank_at_.end(), 0);
  std::ranges::stable_sort(rank_at_, {}, first_of_host);
  position_of_.resize(num_ranks);
  for (std::size_t p = 0; p < num_ranks; ++p)
    position_of_[static_cast<std::size_t>(rank_at_[p])] = static_cast<int>(p);
}

void Mesh::keep_tp_inside_hosts() const {
  const int tp = shape_[MeshAxis::kTp];
  const auto host_at = [this](int position) {
    return hosts_[static_cast<std::size_t>(rank_at_[static_cast<std::size_t>(position)])];
  };
  for (int first = 0; first < shape_.num_ranks(); first += tp) {
    for (int p = first + 1; p < first + tp; ++p) {
      if (host_at(p) == host_at(first)) continue;
      throw ConfigError(fmt::format(
          "mesh {}: the tp group of ranks from {} on would reach from host {} to {}, whose links are slow; "
          "choose a tp "
          "that divides the number of ranks on each host",
          shape_.to_string(), rank_at_[static_cast<std::size_t>(first)], host_at(first), host_at(p)));
    }
  }
}

std::shared_ptr<Communicator> Mesh::make_group(MeshAxis a, MeshAxis b, std::source_location where) const {
  if (a != b && size(a) == 1) return groups_[slot(b, b)];
  if (a != b && size(b) == 1) return groups_[slot(a, a)];
  if (size(a) == 1) return world_->alone(name(a));
  // Ranks that agree on all other axes, in order of position: the outer axis first.
  std::vector<int> members;
  MeshShape::Coordinate other = coordinate_;
  for (int i = 0; i < size(a < b ? a : b); ++i) {
    for (int j = 0; j < (a == b ? 1 : size(a < b ? b : a)); ++j) {
      other[a < b ? a : b] = i;
      if (a != b) other[a < b ? b : a] = j;
      members.push_back(rank_at_[static_cast<std::size_t>(shape_.position(other))]);
    }
  }
  return world_->group_of(members, a == b ? name(a) : fmt::format("{}+{}", name(a), name(b)), where);
}

MeshShape::Coordinate Mesh::coordinate_of(int world_rank) const {
  if (world_rank < 0 || world_rank >= world_->size()) {
    throw IndexError(
        fmt::format("mesh {}: there is no rank {} among {}", shape_.to_string(), world_rank, world_->size()));
  }
  return shape_.coordinate(position_of_[static_cast<std::size_t>(world_rank)]);
}

int Mesh::world_rank_at(const MeshShape::Coordinate& coordinate) const {
  for (const MeshAxis axis : kMeshAxes) {
    if (coordinate[axis] < 0 || coordinate[axis] >= size(axis)) {
      throw IndexError(fmt::format("mesh {}: {} {} is outside of [0, {})", shape_.to_string(), name(axis),
                                   coordinate[axis], size(axis)));
    }
  }
  return rank_at_[static_cast<std::size_t>(shape_.position(coordinate))];
}

// --- Picture -----------------------------------------------------------------------------------------------

std::string Mesh::picture() const {
  std::vector<std::string> hosts = hosts_;
  std::ranges::sort(hosts);
  hosts.erase(std::unique(hosts.begin(), hosts.end()), hosts.end());
  const int num_ranks = shape_.num_ranks();
  std::string text = fmt::format("mesh {}: {} rank{} on {} host{}\n", shape_.to_string(), num_ranks,
                                 num_ranks == 1 ? "" : "s", hosts.size(), hosts.size() == 1 ? "" : "s");
  std::vector<MeshAxis> axes;
  for (const MeshAxis axis : kMeshAxes) {
    if (size(axis) > 1) axes.push_back(axis);
  }
  if (axes.empty()) axes.push_back(MeshAxis::kDp);
  const MeshAxis inner = axes.back();
  axes.pop_back();

  const auto label = [this](MeshAxis axis, int i) {
    return fmt::format("{} {:<{}}  ", name(axis), i, std::to_string(size(axis) - 1).size());
  };
  std::string indent;
  for (const MeshAxis axis : axes) indent += std::string(label(axis, 0).size(), ' ');
  text += indent;
  for (int i = 0; i < size(inner); ++i) text += fmt::format("{:>6}", fmt::format("{} {}", name(inner), i));
  text += '\n';
  for (int first = 0; first < num_ranks; first += size(inner)) {
    const MeshShape::Coordinate row = shape_.coordinate(first);
    for (const MeshAxis axis : axes) text += label(axis, row[axis]);
    std::string row_hosts, previous;
    for (int p = first; p < first + size(inner); ++p) {
      const int rank = rank_at_[static_cast<std::size_t>(p)];
      text += fmt::format("{:>6}", rank);
      const std::string& host = hosts_[static_cast<std::size_t>(rank)];
      if (host != previous) row_hosts += (row_hosts.empty() ? "" : ", ") + host;
      previous = host;
    }
    text += "   " + row_hosts + '\n';
  }
  return text;
}

}  // namespace tessera::dist
