#pragma once

// Private to dist/: what Zero is made of. zero.cpp lays a model out, zero_gather.cpp brings cut parameters
// and drops them, zero_reduce.cpp sums gradients up (zero_samples.cpp in Invariant numerics), zero_pieces.cpp
// joins parts to whole tensors.

#include <memory>
#include <vector>

#include "dist/mesh.h"
#include "dist/tree_sum.h"
#include "dist/zero.h"
#include "dist/zero_plan.h"
#include "tensor/tensor.h"

namespace tessera::dist::detail {

/// One flat, in memory.
struct FlatMemory {
  Tensor elements;   ///< [padded]; parameters are views of it. Its storage comes and goes where they are cut
  Tensor shard;      ///< this rank's slice of it, where parameters are cut
  Tensor gradients;  ///< [padded]; this rank's own sum. Where gradients are cut, only in backward passes
  Tensor accumulated;  ///< this rank's slice of the sum over ranks, where gradients are cut
  /// Invariant numerics: sums of whole samples for each unit that uses the flat, of which `gradients` is one.
  std::vector<TreeAccumulator> samples;
};

/// Element `begin` of a contiguous storage, for a communicator; null on meta.
[[nodiscard]] inline std::byte* bytes_at(const Tensor& x, std::int64_t begin) {
  auto* const data = static_cast<std::byte*>(x.storage().data_or_null());
  return data == nullptr ? nullptr : data + begin * static_cast<std::int64_t>(size_bytes(x.dtype()));
}

struct ZeroGroups {
  Communicator* data = nullptr;          ///< all data ranks
  Communicator* inner = nullptr;         ///< the shard group, for reductions
  std::shared_ptr<Communicator> gather;  ///< the same ranks, for gathers: the two do not wait for each other
  std::shared_ptr<Communicator> outer;   ///< null if there is one shard group
  std::shared_ptr<Communicator> own_inner;  ///< keeps `inner` alive
};

/// What gathers and reductions share.
struct FlatSet {
  ZeroPlan plan;
  ZeroOptions options;
  const Mesh* mesh = nullptr;
  ZeroGroups groups;
  int data_rank = 0;
  std::vector<FlatMemory> memory;  ///< by flat

  /// What this rank holds of a flat that is cut by `spread`.
  [[nodiscard]] Range slice(const ZeroFlat& flat, Spread spread) const {
    return flat.slice(plan.ranks.ways(spread), plan.ranks.part(spread, data_rank));
  }
  /// Copies what this rank holds of a parameter, where parameters are cut, from its (local) values.
  void write_shard(std::size_t parameter, const Tensor& values);
};

/// Brings parameters before their use and drops them after it, in the order of one schedule.
class ZeroGather {
 public:
  explicit ZeroGather(FlatSet& flats);

  // Around a forward pass of a stage, and of a unit in it. A unit that is entered within a backward pass is
  // run again by recomputation: it then stays until its backward pass has ended.
  void begin_forward(std::size_t stage);
  void end_forward();
  void enter(std::size_t unit);
  void leave(std::size_t unit);

  // The same for backward passes.
  void begin_backward(std::size_t stage);
  void end_backward();
  void enter_backward(std::size_t unit);
  void leave_backward(std::size_t unit);

  /// Values have changed: whatever is still gathered is out of date.
  void drop_all();
  /// After the first step; without effect later.
  void end_recording();
  /// An exception ended the pass under way.
  void give_up();

 private:
  enum class Presence : std::uint8_t { kDropped, kUnderWay, kHere };
  struct Flat {
    Presence presence = Presence::kDropped;
    int holds = 0;  // of units that use it now
    Work work{};
  };
  struct Unit {
    bool in_forward = false;
    bool in_backward = false;
  };
  // The units of a pass through a stage, in their order. `cursor` is behind the last one that was used.
  struct Pass {
    std::vector<std::size_t> units{};
    std::vector<std::int32_t> used{};
    std::size_t cursor = 0;
  };
  struct Stage {
    Pass forward{};
    Pass backward{};
  };

  void acquire(std::size_t unit, Pass& pass);
  void release(std::size_t unit);
  void start(std::size_t flat);
  void finish(std::size_t flat);
  void drop_if_unused(std::size_t flat);
  void drop(std::size_t flat);
  void take_part(std::size_t unit);
  void catch_up(Pass& pass, std::size_t end);
  void prefetch(const Pass& pass);
  [[nodiscard]] bool is_used_again_soon(std::size_t flat) const;
  void agree_on_schedule();
  [[nodiscard]] bool uses(std::size_t unit, std::size_t flat) const;

  FlatSet& set_;
  std::vector<Flat> flats_;
  std::vector<Unit> units_;
  std::vector<Stage> stages_;
  std::int64_t prefetch_elements_;
  std::size_t stage_ = 0;  // of the pass under way
  bool recording_ = true;
  bool in_forward_ = false;
  bool in_backward_ = false;
  std::int64_t live_elements_ = 0;
};

/// Sums gradients up over micro-batches and ranks.
class ZeroReduce {
 public:
  explicit ZeroReduce(FlatSet& flats);

  /// Invariant numerics: the samples of the step.
  void begin_step(LeafOwners samples);
  void begin_backward(const BackwardPass& pass);
  void end_backward();
  /// Ends a pass that an exception left, with what other ranks have begun.
  void give_up();
  /// The backward pass of a unit begins: its gradients will be added to one buffer.
  void prepare_unit(std::size_t unit);
  /// It has ended: in Invariant numerics, what it gave to weights that other units use, too, is put aside.
  void take_parts(std::size_t unit);
  /// The leaf has its whole gradient of this pass.
  void gradient_is_complete(std::size_t parameter);
  /// True once all parameters of the unit have theirs, and none of it is frozen.
  [[nodiscard]] bool unit_is_complete(std::size_t unit) const;
  void sum_over_further_axes();
  void zero();
  /// Every stage has had its last pass.
  [[nodiscard]] bool has_all_stages() const noexcept { return stages_left_ == 0; }

  /// This rank's piece of the reduced gradient of a parameter.
  [[nodiscard]] Tensor gradient_piece(std::size_t parameter, Range part) const;

 private:
  enum class Step : std::uint8_t { kCollecting, kInner, kOuter, kDone };
  struct Flat {
    std::size_t complete = 0;
    std::size_t stages_left = 1;  // that use it and have not had their last pass
    Step step = Step::kCollecting;
    Work work{};
  };

  [[nodiscard]] bool keeps_full() const;
  [[nodiscard]] bool is_due(std::size_t flat) const;
  [[nodiscard]] Buffer buffer(std::size_t flat, Range range) const;
  [[nodiscard]] const Tensor& home(std::size_t flat) const;
  [[nodiscard]] std::int64_t home_begin(std::size_t flat) const;
  void ensure_buffer(std::size_t flat);
  void attach(std::size_t parameter);
  void reset_gradient(std::size_t parameter);
  void start(std::size_t flat);
  void start_outer(std::size_t flat);
  [[nodiscard]] bool is_outer_due(std::size_t flat) const;
  void finish(std::size_t flat);
  enum class Wait : std::uint8_t { kNone, kPatiently, kToTheEnd };
  [[nodiscard]] bool is_complete(Work& work, Wait wait);
  [[nodiscard]] bool is_through(std::size_t flat, Wait wait);
  void start_complete_ones();
  [[nodiscard]] std::size_t may_be_under_way() const;
  void make_room();
  void advance(std::size_t may_be_under_way, Wait wait);
  void drop_buffer(std::size_t flat);
  void check_hooks(std::size_t flat) const;
  void take_part(std::size_t flat, std::size_t unit);
  void take_rest(std::size_t flat);
  void end_sample();
  void sum_samples(std::size_t flat);

  FlatSet& set_;
  LeafOwners samples_;
  std::vector<std::size_t> order_;  // of reductions: trainable flats, the last used first
  std::vector<std::size_t> due_;    // of order_, those that are reduced in the pass under way
  std::vector<Flat> flats_;
  std::vector<std::uint8_t> complete_;  // by parameter
  std::vector<std::uint8_t> is_taken_;  // by unit: its parts of shared weights, in this pass
  std::size_t stages_left_;             // that have not had their last pass
  std::size_t num_started_ = 0;         // of due_
  std::size_t num_done_ = 0;
  BackwardPass pass_{};
  bool in_backward_ = false;
  bool peers_are_apart_ = false;  // one was waited for in vain: they skip units
};

/// All of Zero but its interface.
struct ZeroState : FlatSet {
  explicit ZeroState(FlatSet set) : FlatSet(std::move(set)), gather(*this), reduce(*this) {}

  ZeroGather gather;
  ZeroReduce reduce;
  NamedTensors pieces;
  std::vector<std::size_t> piece_parameters;  // of pieces
  enum class Phase : std::uint8_t { kAccumulating, kReduced, kFinished } phase = Phase::kAccumulating;
  bool in_backward = false;

  void check_in_backward(const std::string& what) const;
  void check_trainable() const;
  void make_pieces();
  void set_piece_gradients();
  void bring_new_values();
  [[nodiscard]] std::size_t parameter_index(const char* operation, const std::string& name) const;
  /// True if this rank is the one whose copy of a piece counts among those with its stages, or of all.
  [[nodiscard]] bool counts_in_stage(std::size_t parameter) const;
  [[nodiscard]] bool counts(std::size_t parameter) const;
  /// Joins the parts that the data ranks hold of a tensor cut as `spread` cuts.
  [[nodiscard]] Tensor join(std::size_t parameter, const Tensor& part, Spread spread) const;
  /// Between a parameter's local values and those of the unsharded model.
  [[nodiscard]] Tensor logical(const std::string& name, const Tensor& local) const;
  [[nodiscard]] Tensor local_part(const char* operation, std::size_t parameter, const Tensor& whole) const;
};

/// Gives the model memory for what this rank holds.
void materialise(nn::Module& model, FlatSet& flats, const FillParameter& fill);
[[nodiscard]] std::unique_ptr<optim::PieceExchange> make_exchange(std::shared_ptr<ZeroState> state);

}  // namespace tessera::dist::detail
