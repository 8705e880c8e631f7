#pragma once

// What ZeRO cuts and who gets which part: arithmetic on shapes alone, before a byte is allocated.

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dist/mesh.h"
#include "dist/range.h"
#include "dist/tree_sum.h"
#include "nn/module.h"

namespace tessera::dist {

/// Over which of the data ranks a thing is cut.
enum class Spread : std::uint8_t {
  kWhole,  ///< not cut: every data rank holds all of it
  kInner,  ///< over the ranks of a shard group; the same in each of the groups
  kAll,    ///< over all data ranks
};

/// ZeRO as one table: a row says where parameters, gradients and optimizer state lie.
///
///     stage(0)  whole   whole   whole     data parallelism
///     stage(1)  whole   whole   all       Rajbhandari et al., "ZeRO: memory optimizations toward training
///     stage(2)  whole   all     all       trillion parameter models", 2020
///     stage(3)  all     all     all
///     mics()    inner   inner   inner     Zhang et al., "MiCS: near-linear scaling for training gigantic
///                                         model on public cloud", 2022
///     hpz()     inner   all     all       Wang et al., "ZeRO++", 2023: parameters in each host's memory once
struct ZeroPlacement {
  Spread parameters = Spread::kWhole;
  Spread gradients = Spread::kWhole;
  Spread optimizer = Spread::kWhole;

  /// ConfigError unless 0 ≤ stage ≤ 3.
  [[nodiscard]] static ZeroPlacement stage(int stage);
  [[nodiscard]] static ZeroPlacement mics() { return {Spread::kInner, Spread::kInner, Spread::kInner}; }
  [[nodiscard]] static ZeroPlacement hpz() { return {Spread::kInner, Spread::kAll, Spread::kAll}; }
  friend bool operator==(const ZeroPlacement&, const ZeroPlacement&) = default;
};

/// How a parameter's local part (of tensor parallelism) and the logical tensor become each other; identity
/// where empty. `whole` may be a collective over tp.
struct TensorParts {
  std::function<Tensor(const std::string& name, const Tensor& local)> whole;
  std::function<Tensor(const std::string& name, const Tensor& whole)> part;
};

struct ZeroOptions {
  ZeroPlacement placement{};
  /// Ranks of a shard group: neighbours among the data ranks, usually those of one host. 0: all data ranks.
  /// Without meaning where nothing is kInner.
  int ranks_per_shard_group = 0;
  /// Where gradients are cut: sum micro-batches up in full gradients, and reduce once. 2Ψ sent instead of
  /// (g+1)Ψ, for Ψ more elements in memory until the last backward pass.
  bool keep_full_gradients = false;
  /// Invariant numerics: a backward pass is one sample, and gradients are summed over samples in the tree of
  /// dist/tree_sum.h, whoever has which. Implies keep_full_gradients. A weight that several units use has a
  /// sum for each of them, and no gradient hook.
  bool tree_sums = false;

  // Where parameters are cut. Counted in elements, as DeepSpeed counts them.
  std::int64_t max_live_parameters = 1'000'000'000;  ///< gathered at once, as far as prefetching goes
  /// Gathered ahead of their use; 0: none; −1: as many as the largest unit has, so that one is on its way
  /// while another computes.
  std::int64_t prefetch_elements = -1;
  std::int64_t persistence_threshold = 0;  ///< flats up to this size stay gathered until the update
  /// A flat that is to be used again before this many elements of others is kept; 0: never.
  std::int64_t max_reuse_distance = 0;

  TensorParts tensor_parts{};

  /// Where parameters are cut, how long a rank waits in the middle of a backward pass for the reduction of
  /// gradients that fill its memory. Peers that skip units may not come before its next gathers have: then
  /// it goes on, and from there on waits no more.
  std::chrono::milliseconds patience = std::chrono::seconds(10);

  /// Where parameters, gradients and optimizer state lie; meta to run without data.
  Device device = cpu;

  /// Of a pipeline: what each of this rank's stages has, blocks and other modules with all that is below
  /// them. Parameters of none of them are other ranks' and stay on meta. Empty: one stage that has
  /// everything.
  std::vector<std::vector<nn::Module*>> stages{};
  /// Parameters that a rank with another stage has too (a tied embedding), and the group of those that do:
  /// their gradients are summed over it, and its first rank counts their elements.
  std::vector<std::string> shared_parameters{};
  Communicator* sharing_group = nullptr;
  /// Whether its schedules have passes for weights (BackwardPass::Gradients::kWeights).
  bool splits_backward = false;
};

/// How the data ranks (dp × cp) are arranged: `outer` groups of `inner` neighbours. Data rank d is number
/// p = d mod inner of group q = ⌊d / inner⌋.
struct DataRanks {
  int inner = 1;
  int outer = 1;

  [[nodiscard]] int size() const noexcept { return inner * outer; }
  /// Into how many parts a spread cuts, and which of them a rank holds.
  [[nodiscard]] int ways(Spread spread) const noexcept;
  [[nodiscard]] int part(Spread spread, int data_rank) const noexcept;
  friend bool operator==(const DataRanks&, const DataRanks&) = default;
};

struct ZeroParameter {
  nn::ParameterRecord record;
  std::size_t flat = 0;
  std::int64_t offset = 0;  ///< in the flat
};

/// Parameters that are gathered and reduced together, one behind the other in one storage: those of the same
/// units, dtype and axes over which gradients are summed, trainable and frozen ones apart. A tied weight,
/// which several units use, is a flat of its own.
struct ZeroFlat {
  std::vector<std::size_t> parameters;
  std::vector<std::size_t> units;
  /// Axes besides dp and cp on which the layout is R. Over these two gradients are always summed.
  std::vector<MeshAxis> sum_axes;
  bool is_shared = false;  ///< ZeroOptions::shared_parameters
  DType dtype = kF32;
  DType gradient_dtype = kF32;
  bool trainable = true;
  std::int64_t elements = 0;
  std::int64_t padded = 0;  ///< to a multiple of the number of parts

  /// Part `part` of `ways`.
  [[nodiscard]] Range slice(int ways, int part) const noexcept {
    return {padded / ways * part, padded / ways * (part + 1)};
  }
};

/// What is gathered before its use and released after it: a block of a transformer, or any other module that
/// owns parameters.
struct ZeroUnit {
  std::string name;
  nn::Module* module = nullptr;
  std::size_t stage = 0;  ///< of this rank's
  std::vector<std::size_t> flats;
};

struct ZeroPlan {
  std::vector<ZeroUnit> units;            ///< in the model's order
  std::vector<ZeroParameter> parameters;  ///< in the model's order
  std::vector<ZeroFlat> flats;            ///< in the order of their first parameters
  ZeroPlacement placement;                ///< with what is cut into one part as kWhole
  DataRanks ranks;
  MeshShape mesh;
  std::size_t num_stages = 1;
  /// The stage with the model's first unit, whose input takes no gradient; none of this rank's.
  std::optional<std::size_t> first_stage = 0;
  int num_sharing = 1;  ///< ranks that have shared parameters
  bool keep_full_gradients = false;
  bool tree_sums = false;
  std::int64_t persistence_threshold = 0;

  /// How many of this rank's stages use the flat.
  [[nodiscard]] std::size_t stages_using(const ZeroFlat& flat) const noexcept;
  /// Whether a pass through `stage` uses the flat.
  [[nodiscard]] bool is_used_in(const ZeroFlat& flat, std::size_t stage) const noexcept;
  /// The elements of the parameter within a slice of its flat, counted from the parameter's first; empty
  /// ranges are [0, 0).
  [[nodiscard]] Range part_of(std::size_t parameter, Range slice) const noexcept;
  [[nodiscard]] bool is_persistent(const ZeroFlat& flat) const noexcept {
    return flat.elements <= persistence_threshold;
  }
};

/// Errors   ConfigError: gradients cut less than parameters or optimizer state less than gradients; a
///          ranks_per_shard_group that do not divide the data ranks; a parameter that is a partial sum on
///          some axis; with tree_sums, one that three units on several ranks use, or two of a stage whose
///          backward pass is split.
[[nodiscard]] ZeroPlan plan_zero(nn::Module& model, const MeshShape& mesh, const ZeroOptions& options);

/// Which samples of a step each data rank has, as the engine deals them out: the d-th dp index has the d-th
/// of dp runs, and with it all of its cp ranks.
[[nodiscard]] LeafOwners sample_owners(const MeshShape& mesh, std::int64_t num_samples);

/// Bytes that one rank holds between two steps, and what parameters and gradients come to within one. Not of
/// activations and messages: a dry run has every byte.
struct ZeroMemory {
  std::int64_t parameters = 0;
  std::int64_t gradients = 0;
  std::int64_t optimizer = 0;
  /// Largest unit, gathered: what comes to `parameters` while it is used. 0 where parameters are not cut.
  std::int64_t gathered_parameters = 0;
  /// Units gathered ahead of their use, at most: what comes to both.
  std::int64_t prefetched_parameters = 0;
  /// Gradients that are whole until they have been reduced: what comes to `gradients` in a backward pass, at
  /// most; of a pipeline, whose passes overlap, about. 0 where gradients are not cut.
  std::int64_t full_gradients = 0;
  /// Between steps.
  [[nodiscard]] std::int64_t held() const noexcept { return parameters + gradients + optimizer; }
};

/// `optimizer_bytes_per_element`: 12 for AdamW on 16-bit parameters, 8 in f32, 16 in f64.
/// `options` are those that the plan was made with.
[[nodiscard]] ZeroMemory predict_memory(const ZeroPlan& plan, const ZeroOptions& options, int data_rank,
                                        std::int64_t optimizer_bytes_per_element);

/// Bytes that one rank sends in a step, by group and kind of call, as the tape counts them.
struct ZeroTraffic {
  std::string group;
  Collective op = Collective::kBarrier;
  std::int64_t calls = 0;
  std::int64_t sent_bytes = 0;
  friend bool operator==(const ZeroTraffic&, const ZeroTraffic&) = default;
};

/// Of a step with `accumulation` micro-batches whose units run in the model's order, without what
/// max_reuse_distance saves. A frozen unit is gathered in the backward pass only behind a trainable one.
[[nodiscard]] std::vector<ZeroTraffic> predict_traffic(const ZeroPlan& plan,
                                                       const MeshShape::Coordinate& coordinate,
                                                       int accumulation);

/// Name of the group over which gradients of shared parameters are summed.
inline constexpr const char* kSharingGroupName = "pp.shared";

/// Names of the groups: of all data ranks; of a shard group, for gradients and for parameters; of the ranks
/// that hold the same parts of different shard groups.
struct ZeroGroupNames {
  std::string data, inner, gather, outer;
};
[[nodiscard]] ZeroGroupNames zero_group_names(const ZeroPlan& plan);

}  // namespace tessera::dist
