#pragma once

// A model in stages, one or several on each rank along pp, and a schedule (dist/pipeline_schedule.h) that
// says what each rank does when. This is the interpreter that does it:
//
//   rank 0   F0 > F1 > F2 > ...        < B0   F3 > ...      F, B: a micro-batch through a rank's stage
//   rank 1      > F0 > F1 > ...   B0 <    ...               >: a stage's output [b, T, D], to the next stage
//                                                           <: the gradient of its input, to the one before
//
// Each stage is a graph of its own: its input is a leaf, its output a root to which the gradient comes that
// the next stage sent.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dist/mesh.h"
#include "dist/micro_batch.h"
#include "dist/pipeline_schedule.h"
#include "dist/pipeline_stages.h"
#include "nn/language_model.h"

namespace tessera::dist {

class Zero;

struct PipelineOptions {
  std::string schedule = "1f1b";  ///< a name that make_schedule knows
  /// Instead of that: a schedule of one's own.
  std::function<Schedule(const PipelineSize&)> custom_schedule = nullptr;
  int chunks = 0;  ///< stages on each rank; 0: what the schedule has by itself
  PipelinePartition partition = PipelinePartition::kParameters;
  /// For kParameters: count_parameters of the model before tp cut it, since ranks have pieces of different
  /// sizes of it. Empty: the model is whole.
  std::vector<double> part_parameters{};
  std::vector<double> part_seconds{};  ///< for kTime: of embedding, each block, head; rank 0's count
  bool sequence_parallel = false;      ///< hidden states are cut over tp, too
  std::string split_refusal{};         ///< why schedules that split backward are refused; empty: they are not
};

/// Moves    To the next stage b·T·D elements of activations a micro-batch, back as many of gradients, over
///          the group "pp"; between stages on one rank nothing. Where tp leaves hidden states whole, each tp
///          rank sends its copy to its peer; under sequence parallelism its piece.
/// Memory   Of as many micro-batches as Schedule::most_live says.
/// Values   Those of one rank: a stage's gradients are added in the order of the micro-batches and have its
///          bits. Sums over the whole model (the norm) and over both copies of a shared weight are taken in
///          another order; in Invariant numerics, in one that no layout changes.
/// Calling  All ranks of the pp group call everything here together. Model and mesh outlive it.
class Pipeline {
 public:
  /// Before the model has memory. A collective of the world.
  /// Errors  ConfigError: fewer blocks than stages; no such schedule; a parameter that belongs to neither
  ///         embedding, blocks nor head.
  Pipeline(nn::LanguageModel& model, const Mesh& mesh, PipelineOptions options);

  /// The schedule of so many micro-batches, checked.
  /// Errors  ConfigError: it is not legal, lays stages on ranks otherwise than for other numbers of
  ///         micro-batches, or is refused.
  [[nodiscard]] const Schedule& schedule(std::int64_t num_micro_batches);
  /// The least number of micro-batches, not below `wanted`, that the schedule takes: interleaving asks for
  /// multiples of pp.
  [[nodiscard]] std::int64_t micro_batches_for(std::int64_t wanted);
  [[nodiscard]] const std::vector<StageParts>& stages() const noexcept { return stages_; }
  /// Whether a schedule that was asked for until now has passes for weights alone.
  [[nodiscard]] bool splits_backward() const noexcept { return splits_backward_; }

  // --- For Zero: what this rank has
  [[nodiscard]] std::vector<std::vector<nn::Module*>> own_modules() const;
  /// Parameters that stages on different ranks have: a tied embedding. Their group is null if there are none
  /// here.
  [[nodiscard]] const std::vector<std::string>& shared_parameters() const noexcept { return shared_; }
  [[nodiscard]] Communicator* sharing_group() const noexcept { return sharing_group_.get(); }

  /// The pp index of the rank with the last stage, which has the loss, and whether that is this one.
  [[nodiscard]] int head_rank() const;
  [[nodiscard]] bool has_head() const { return head_rank() == rank(); }
  /// The pp index of a rank that holds a parameter of this name.
  [[nodiscard]] int holder_of(const std::string& parameter) const;

  /// What the training program does between the stages.
  struct Callbacks {
    /// Tells the rank's context which samples the next forward pass is of; what a backward pass runs again
    /// remembers.
    std::function<void(const MicroBatch&)> begin_pass;
    /// From the head's output to the scalar from which the backward pass begins.
    std::function<Tensor(const Tensor& logits, const MicroBatch&)> loss;
    /// Told of each action before it begins.
    std::function<void(const Action&)> begin_action = nullptr;
  };
  /// Forward and backward passes of all micro-batches, in the order of the schedule.
  /// Errors  What a pass throws. Ranks are in different passes then and messages are under way: every further
  ///         call throws CommError, and the way on is a new job from a checkpoint.
  void train(Zero& zero, std::span<const MicroBatch> micro_batches, const Callbacks& callbacks);

  /// CommError if an exception ended a step.
  void refuse_if_broken() const;

  /// One forward pass through all stages, without gradients: the head's output (of the last position alone,
  /// if asked) on the ranks that have it, elsewhere undefined.
  [[nodiscard]] Tensor logits(Zero& zero, const Tensor& ids, bool last_position = false,
                              nn::KvCache* cache = nullptr);

 private:
  // A micro-batch in a stage, from its forward to its last backward pass.
  struct Pass;
  struct Run;

  [[nodiscard]] Schedule make(std::int64_t num_micro_batches) const;
  void check(const Schedule& schedule);
  void check_part_seconds();
  [[nodiscard]] int rank() const { return mesh_.index(MeshAxis::kPp); }
  [[nodiscard]] int stage_of(int chunk) const;
  [[nodiscard]] const StageParts& parts_of(int chunk) const;
  void find_shared_parameters();
  [[nodiscard]] Layout hidden_layout(const Tensor& ids) const;
  [[nodiscard]] Shape hidden_shape(const Tensor& ids) const;
  [[nodiscard]] Tensor empty_hidden(const Tensor& ids) const;
  [[nodiscard]] Tensor run_blocks(int chunk, Tensor x, const std::function<void()>& between,
                                  nn::KvCache* cache);

  nn::LanguageModel& model_;
  const Mesh& mesh_;
  PipelineOptions options_;
  Schedule shape_;  // ranks, chunks and their order: the same for every number of micro-batches
  bool broken_ = false;
  bool splits_backward_ = false;
  std::vector<StageParts> stages_;
  std::map<std::int64_t, Schedule> schedules_;                 // by number of micro-batches
  std::map<std::int64_t, std::vector<std::size_t>> received_;  // the same: known_received of this rank
  std::map<std::string, std::vector<int>> holders_;
  std::vector<std::string> shared_;
  std::shared_ptr<Communicator> sharing_group_;
};

}  // namespace tessera::dist
