#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/context.h"
#include "kernels/random_key.h"
#include "tensor/autograd_meta.h"
#include "tensor/device.h"
#include "tensor/layout.h"
#include "tensor/memory.h"

namespace tessera {

/// Where a rank stands on one axis of the mesh.
struct MeshPlace {
  int index = 0;
  int size = 1;
};

/// Everything that belongs to one rank. Ranks may be threads of one process, so none of this is global: each
/// thread works under the context that it installed, and a thread that installed none has a default of its
/// own (a program without ranks never notices).
///
/// Example   RankContext context({.rank = 3, .world_size = 8, .num_threads = 1, .seed = 42});
///           RankContext::Scope scope(context);          // this thread is rank 3 until the scope ends
class RankContext {
 public:
  struct Options {
    int rank = 0;
    int world_size = 1;
    int num_threads = 1;  ///< of one kernel; usually cores ÷ ranks of the host
    std::uint64_t seed = 0;
  };

  RankContext() : RankContext(Options{}) {}
  explicit RankContext(const Options& options);
  RankContext(const RankContext&) = delete;
  RankContext& operator=(const RankContext&) = delete;

  /// The calling thread's context.
  [[nodiscard]] static RankContext& current() noexcept;

  /// Installs a context on the calling thread for the length of a scope.
  class Scope {
   public:
    explicit Scope(RankContext& context) noexcept;
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    RankContext* previous_;
    kernels::KernelContext* previous_kernels_;
  };

  int rank = 0;
  int world_size = 1;

  // Random numbers are f(seed, stream name, step, global index); these are the rank-independent parts. A
  // training loop sets `step` before each step and `sample_offset` before each micro-batch.
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  /// Global index, within the step's batch, of the first sample computed now.
  std::int64_t sample_offset = 0;
  /// Where the tokens computed now stand in their sequences, in the order in which they lie along T; null: at
  /// 0, 1, 2, ... A sequence that is cut over ranks sets it, with the length of the whole.
  std::shared_ptr<const std::vector<std::int64_t>> token_positions;
  std::int64_t sequence_length = 0;  ///< tokens of a whole sequence; 0: as many as a tensor has
  /// This rank's place on each axis, by MeshAxis: which piece it has of what a layout says is cut.
  std::array<MeshPlace, kMeshAxes.size()> mesh;
  [[nodiscard]] const MeshPlace& place(MeshAxis axis) const { return mesh[static_cast<std::size_t>(axis)]; }

  bool grad_enabled = true;                               ///< see autograd/grad_mode.h
  bool check_layouts = true;                              ///< see autograd/layout_rules.h
  std::uint64_t next_graph_sequence = 0;                  ///< number of the next recorded operation
  LeafTracker* leaf_tracker = nullptr;                    ///< set while recomputation runs its first forward
  MemoryCategory category = MemoryCategory::kActivation;  ///< of storages made now; see CategoryScope
  Device default_device = cpu;  ///< of tensors made without a device; see DeviceScope

  // The dotted name of the module under construction, so that a parameter knows its full name, hence its
  // random stream, from the start. Modules built at the top level after the first get a number instead: two
  // of them must not begin with equal weights.
  std::string module_path;
  int num_root_modules = 0;

  /// Key of the stream `name` at the current seed and step.
  [[nodiscard]] kernels::RandomKey random_key(std::string_view stream_name) const {
    return {seed, kernels::stream_id(stream_name), step};
  }

  [[nodiscard]] const std::shared_ptr<MemoryPool>& pool(Device device) const {
    return device.type == DeviceType::kMeta ? meta_pool_ : cpu_pool_;
  }

  /// From now on tensors on meta are counted in a pool of their own, which begins at 0: a model that was
  /// built on meta takes no memory of the run that it is planned for.
  void count_meta_from_zero();

  kernels::KernelContext kernels;

 private:
  std::shared_ptr<MemoryPool> cpu_pool_;
  std::shared_ptr<MemoryPool> meta_pool_;
};

/// Storages made in the scope belong to `category`.
class CategoryScope {
 public:
  explicit CategoryScope(MemoryCategory category) : previous_(RankContext::current().category) {
    RankContext::current().category = category;
  }
  ~CategoryScope() { RankContext::current().category = previous_; }
  CategoryScope(const CategoryScope&) = delete;
  CategoryScope& operator=(const CategoryScope&) = delete;

 private:
  MemoryCategory previous_;
};

/// Tensors made in the scope without a device lie on `device`: `DeviceScope scope(meta);` builds models
/// without memory.
class DeviceScope {
 public:
  explicit DeviceScope(Device device) : previous_(RankContext::current().default_device) {
    RankContext::current().default_device = device;
  }
  ~DeviceScope() { RankContext::current().default_device = previous_; }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  Device previous_;
};

}  // namespace tessera
