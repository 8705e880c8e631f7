#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

#include "dist/communicator.h"
#include "tensor/layout.h"

namespace tessera::dist {

/// Sizes of the axes; 1 for one that is not there.
///
/// Example   MeshShape shape = MeshShape::parse("tp=2,dp=4");
///           shape.num_ranks();                      // 8
///           shape[MeshAxis::kTp];                   // 2
///           shape.coordinate(5)[MeshAxis::kDp];     // 2: positions count through tp first
class MeshShape {
 public:
  /// Where a position lies on each axis, and back.
  class Coordinate {
   public:
    [[nodiscard]] int& operator[](MeshAxis axis) noexcept { return index_[static_cast<std::size_t>(axis)]; }
    [[nodiscard]] int operator[](MeshAxis axis) const noexcept {
      return index_[static_cast<std::size_t>(axis)];
    }
    friend bool operator==(const Coordinate&, const Coordinate&) = default;

   private:
    std::array<int, kMeshAxes.size()> index_{};
  };

  MeshShape() noexcept { sizes_.fill(1); }
  /// Reads "pp=2,dp=2,tp=2": any subset, in any order; spelling it in another order means the same mesh.
  /// Errors   ConfigError for an unknown axis (the nearest is named), one named twice, a size below 1.
  /// `named`, if there is one, receives the axes that the text names, those of size 1 too.
  [[nodiscard]] static MeshShape parse(std::string_view text, std::set<MeshAxis>* named = nullptr);

  [[nodiscard]] int operator[](MeshAxis axis) const noexcept {
    return sizes_[static_cast<std::size_t>(axis)];
  }
  /// ConfigError for a size below 1.
  void set(MeshAxis axis, int size);
  [[nodiscard]] int num_ranks() const noexcept;
  /// "pp=2,dp=2,tp=2", without axes of size 1; "dp=1" if there is no other.
  [[nodiscard]] std::string to_string() const;

  /// Position = ((((pp · DP + dp) · CP + cp) · EP + ep) · TP + tp, in [0, num_ranks()).
  [[nodiscard]] Coordinate coordinate(int position) const noexcept;
  [[nodiscard]] int position(const Coordinate& coordinate) const noexcept;

  friend bool operator==(const MeshShape&, const MeshShape&) = default;

 private:
  std::array<int, kMeshAxes.size()> sizes_;
};

struct MeshOptions {
  /// The host of this rank; empty: what the system calls it. Ranks with equal names share memory and fast
  /// links.
  std::string host;
  /// Let a tp group reach over hosts: correct, and slow.
  bool allow_tp_across_hosts = false;
};

/// Who sits where: ranks as the points of a grid with named axes, and a communicator for each line through it
/// (the idea of a device mesh: Shazeer et al., "Mesh-TensorFlow", 2018).
///
/// Placement Ranks are sorted by host (hosts in order of their first rank), then by rank; the one at position
///           p of that row has coordinate(p). So innermost axes, tp first, stay inside of a host.
/// Hosts     The world and all groups that are made from it know on how many hosts they stand
///           (Communicator::num_hosts), and so does every line of the tape. If the world had a mesh before,
///           this one's word counts from now on.
/// Groups    One for each axis, and one for each pair of axes: those ranks that differ from this one along
///           these axes alone, in order of position. A group of one rank sends nothing.
/// Cost      At construction one all-gather of host names and at most 15 splits; nothing later.
///
/// Example   Mesh mesh(MeshShape::parse("dp=2,tp=2"), job.shared_world());
///           mesh.group(MeshAxis::kTp).all_reduce(partial_sums);
///           mesh.group(MeshAxis::kDp, MeshAxis::kCp).all_reduce(gradients);
///           job.log(mesh.picture());
///
///               mesh dp=2,tp=2: 4 ranks on 1 host
///                        tp 0  tp 1
///               dp 0        0     1   laptop
///               dp 1        2     3   laptop
class Mesh {
 public:
  /// A collective of the world; all ranks pass the same shape.
  /// Errors   ConfigError: the shape does not have as many ranks as the world (the equation is shown), or a
  ///          tp group would reach over hosts.
  Mesh(const MeshShape& shape, std::shared_ptr<Communicator> world, const MeshOptions& options = {},
       std::source_location where = std::source_location::current());

  [[nodiscard]] const MeshShape& shape() const noexcept { return shape_; }
  [[nodiscard]] int size(MeshAxis axis) const noexcept { return shape_[axis]; }
  /// This rank's place on an axis.
  [[nodiscard]] int index(MeshAxis axis) const noexcept { return coordinate_[axis]; }
  [[nodiscard]] const MeshShape::Coordinate& coordinate() const noexcept { return coordinate_; }
  /// The coordinate of any world rank, and back.
  [[nodiscard]] MeshShape::Coordinate coordinate_of(int world_rank) const;
  [[nodiscard]] int world_rank_at(const MeshShape::Coordinate& coordinate) const;

  /// Named "tp"; lives as long as the mesh.
  [[nodiscard]] Communicator& group(MeshAxis axis) const noexcept { return *groups_[slot(axis, axis)]; }
  /// Named "dp+cp", the outer axis first, whichever is given first here.
  [[nodiscard]] Communicator& group(MeshAxis a, MeshAxis b) const noexcept { return *groups_[slot(a, b)]; }
  [[nodiscard]] Communicator& world() const noexcept { return *world_; }

  /// A line for each combination of the outer axes, a column for each index on the innermost one, and the
  /// hosts.
  [[nodiscard]] std::string picture() const;

 private:
  static constexpr std::size_t kNumAxes = kMeshAxes.size();
  [[nodiscard]] static std::size_t slot(MeshAxis a, MeshAxis b) noexcept {
    return static_cast<std::size_t>(a < b ? a : b) * kNumAxes + static_cast<std::size_t>(a < b ? b : a);
  }
  void place(const std::string& host, std::source_location where);
  void keep_tp_inside_hosts() const;
  [[nodiscard]] std::shared_ptr<Communicator> make_group(MeshAxis a, MeshAxis b,
                                                         std::source_location where) const;

  MeshShape shape_;
  std::shared_ptr<Communicator> world_;
  std::vector<std::string> hosts_;  // of world ranks
  std::vector<int> rank_at_;        // world rank at a position
  std::vector<int> position_of_;    // of a world rank
  MeshShape::Coordinate coordinate_;
  std::array<std::shared_ptr<Communicator>, kNumAxes * kNumAxes> groups_;
};

}  // namespace tessera::dist
