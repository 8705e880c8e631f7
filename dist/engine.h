#pragma once

// The training of one language model by all ranks of a mesh, whatever the layout:
//
//   nn::Gpt2 model(config);                                   // under DeviceScope(meta): no memory yet
//   dist::Engine engine(model, settings, mesh);               // lays it out, materialises this rank's part
//   while (engine.steps_done() < 1000) fmt::print("{}\n", engine.train_step(source).loss);
//
// and with every move visible, which is all that train_step does:
//
//   for (const dist::MicroBatch& micro_batch : engine.micro_batches(source)) {
//     const Tensor loss = engine.forward(micro_batch);        // this rank's part of the sum of losses
//     engine.backward(loss);                                  // gradients are reduced meanwhile
//   }
//   const dist::StepReport report = engine.step();            // norm, clipping, update, parameters gathered

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/checkpoint.h"
#include "dist/comm_summary.h"
#include "dist/config.h"
#include "dist/host_memory.h"
#include "dist/mesh.h"
#include "dist/micro_batch.h"
#include "dist/pipeline_schedule.h"
#include "dist/tensor_parallel.h"
#include "nn/generate.h"
#include "nn/language_model.h"
#include "optim/parameter_groups.h"
#include "optim/schedule.h"
#include "tensor/memory.h"

namespace tessera::optim {
class LossScaler;
class Optimizer;
}  // namespace tessera::optim

namespace tessera::dist {

class Pipeline;
class Zero;

/// Writes sequences first ... first + count − 1 of the global batch of a step, T tokens each, and their
/// targets (−100 counts for nothing). Asked by every rank for its own; ranks of one dp index get the same.
using SampleSource = std::function<void(std::int64_t step, std::int64_t first, std::int64_t count,
                                        std::span<std::int64_t> inputs, std::span<std::int64_t> targets)>;

/// What is known of a step; the same on every rank, but for the times.
struct StepReport {
  std::int64_t step = 0;   ///< from 1: steps done with this one
  double loss = 0.0;       ///< mean over all targets of the global batch that count, before the update
  double grad_norm = 0.0;  ///< of all gradients, before clipping
  double lr = 0.0;
  double seconds = 0.0;
  std::int64_t tokens = 0;                                      ///< of the global batch
  std::int64_t targets = 0;                                     ///< that count
  std::array<std::int64_t, kNumMemoryCategories> peak_bytes{};  ///< of the rank with the largest total
  std::int64_t peak_total_bytes = 0;                            ///< of that rank
  std::map<std::string, std::int64_t> sent_bytes;               ///< by group, of this rank
  std::vector<TapeTotal> traffic;                               ///< by group and operation, of this rank
  bool skipped = false;                                         ///< f16: gradients overflowed, no update
  std::optional<double> loss_scale;                             ///< f16: what the loss was multiplied by
  bool stop = false;                                            ///< a rank was asked to stop
  [[nodiscard]] double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
};

struct EngineOptions {
  std::int64_t seq = 0;  ///< T; 0: the model's context
  /// Cuts the model over tp; empty: the plan that is shipped for it.
  Plan plan;
  std::vector<optim::ParameterGroup> groups = optim::no_decay_for_biases_and_norms();
  std::optional<optim::Schedule> schedule;  ///< default: the learning rate of the config, constant
  /// A pipeline schedule of one's own, in the place of the config's.
  std::function<Schedule(const PipelineSize&)> pipeline_schedule;
  /// Seconds of the embedding, of each block and of the head, the same on all ranks: for a partition by time.
  std::vector<double> part_seconds;
  /// Told the bytes that this rank is going to hold between steps, before any is allocated.
  std::function<void(const std::string& text)> announce;
  /// What may still be taken of the host; default: what the system says. See Config::memory_check.
  std::optional<HostMemory> host_memory;
  /// Where everything lies. On meta there is no data: nothing is asked of a SampleSource, every target
  /// counts, losses and norms are 0. What is allocated, sent and counted is that of a run; see
  /// dist/dry_run.h.
  Device device = cpu;
  /// Micro-batches larger than this are cut where only the batch is given.
  std::int64_t largest_micro_batch = 8;
};

/// Values    Losses and weights are those of one rank within rounding, whatever the mesh, the ZeRO stage, the
///           way the batch is cut, and recomputation: initial weights, samples and dropout are functions of
///           global indices, and the loss is one sum divided by the global count of targets.
/// Bits      Of two runs of one layout: the same. Of two layouts: the same in Invariant numerics
///           (Config::numerics), where a pass is one sample whatever the micro-batch of the config.
/// Calling   Every rank of the mesh calls everything here, in the same order. Model and mesh outlive it.
/// Given up  A step that met an exception, or that the program left before step(), is forgotten by the next
///           micro_batches() or train_step(): that step equals one without the attempt. Every rank must have
///           left it in the same pass and on the same side of forward(), in whichever layer; where one rank
///           alone fails, its exception must leave the program, for the others wait for it: one rank's error
///           ends the job. Not undone is an optimizer step that failed half-way.
/// Errors    ConfigError from the constructor, before any memory is taken, for what cannot be honoured, with
///           the nearest that works; for settings that differ between ranks; and for a model that the hosts
///           cannot hold. LayoutError on the first step for a plan that does not fit its model.
class Engine {
 public:
  Engine(nn::LanguageModel& model, const Config& config, const Mesh& mesh, const EngineOptions& options = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// One optimizer step on `num_samples` sequences (0: the batch of the config; any number works, a smaller
  /// last batch as well).
  /// Errors   NonFiniteError that names the first tensor that is not finite, its layer, and where ranks share
  ///          a model the rank. There (pp, tp, cp, or parameters that are cut) it comes at the end of the
  ///          step, from every rank, and the step may be tried again.
  StepReport train_step(const SampleSource& source, std::int64_t num_samples = 0);

  // --- The same in its parts. With pp > 1 a rank has a part of each pass alone, and passes overlap: there
  // --- forward(), backward() and step() throw AutogradError, and dist/pipeline.cpp is the place to see each.
  /// This rank's passes of the next step. The number of targets that count is agreed on here: one small
  /// all-reduce. Gives up a step that is still under way.
  [[nodiscard]] std::vector<MicroBatch> micro_batches(const SampleSource& source,
                                                      std::int64_t num_samples = 0);
  /// How many those are, for `num_samples` as there; the same on every rank: as many as the one with most
  /// samples needs, or the next number that the pipeline's schedule takes.
  [[nodiscard]] std::int64_t num_passes(std::int64_t num_samples = 0);
  /// The sum of the losses of this rank's tokens: P on dp and cp.
  [[nodiscard]] Tensor forward(const MicroBatch& micro_batch);
  /// Gradients of loss · scale / targets of the global batch; reduced as far as the ZeRO stage does.
  /// Errors   AutogradError if the backward pass before met an exception; as of step(). The way out is
  ///          micro_batches(), which gives the step up.
  void backward(const Tensor& loss);
  /// Ends the step: waits for gradients, clips by the global norm, updates, brings parameters up to date.
  StepReport step();

  /// The sum of losses of sequences [count, T] and their number of targets that count, in evaluation mode
  /// and without gradients, over this rank's tp and cp peers: for the ranks of one dp index the same. All
  /// dp indices call it equally often.
  struct LossSum {
    double sum = 0.0;
    std::int64_t targets = 0;
  };
  [[nodiscard]] LossSum evaluate(std::span<const std::int64_t> inputs, std::span<const std::int64_t> targets,
                                 std::int64_t count);

  /// nn::generate with the model as it lies on the mesh: all ranks call it with the same prompt and options
  /// and get the same tokens.
  /// Errors   As nn::generate; ConfigError where sequences are cut (cp, sequence_parallel).
  std::vector<std::int64_t> generate(std::span<const std::int64_t> prompt, nn::GenerateOptions options = {});

  // --- State
  [[nodiscard]] std::int64_t steps_done() const noexcept { return steps_done_; }
  /// Of those, the ones that updated nothing, because f16 gradients overflowed. The learning rate's schedule
  /// stands still in them, as DeepSpeed's.
  [[nodiscard]] std::int64_t steps_skipped() const noexcept { return steps_skipped_; }
  /// What this rank sent in the steps that ended; a step that was given up is not counted.
  [[nodiscard]] const CommSummary& comm_summary() const noexcept { return comm_summary_; }
  /// Of this rank, since the last step began.
  [[nodiscard]] MemoryReport memory() const;
  /// The next step's report says `stop` on every rank.
  void request_stop() noexcept { stop_requested_ = true; }
  [[nodiscard]] const BatchSizes& batch() const noexcept { return batch_; }
  [[nodiscard]] std::int64_t seq() const noexcept { return seq_; }
  [[nodiscard]] nn::LanguageModel& model() noexcept { return model_; }
  [[nodiscard]] optim::Optimizer& optimizer() noexcept;
  [[nodiscard]] Zero& zero() noexcept;
  [[nodiscard]] optim::LossScaler& loss_scaler() noexcept;
  [[nodiscard]] const LaidOut& laid_out() const noexcept;
  /// Null where pp is 1.
  [[nodiscard]] Pipeline* pipeline() noexcept;
  [[nodiscard]] const Mesh& mesh() const noexcept { return mesh_; }

  /// The whole model and optimizer state, tensor by tensor, as save_checkpoint takes them; `get` is a
  /// collective of all ranks. In f16 metadata has the loss scaler's state as "loss_scale", and the steps
  /// that were skipped as "skipped_steps"; a program adds its own keys. The sources hold on to this engine.
  [[nodiscard]] CheckpointSources checkpoint_sources();
  /// Takes this rank's parts of a checkpoint that any layout wrote. Every rank reads. In f16, a checkpoint
  /// without "loss_scale" (of a run in another dtype) leaves the scaler as it is.
  /// Errors   DataError for one of another model or optimizer, or with a "loss_scale" or
  ///          "skipped_steps" that is none: nothing is changed then. DataError for a damaged tensor: those
  ///          before it may have been loaded.
  void load(const CheckpointReader& checkpoint);
  /// Takes this rank's parts of weights that come from elsewhere; the optimizer begins as in a new run.
  /// Masters of 16-bit parameters are the rounded weights.
  /// `weights.get` gives whole tensors in any dtype, by the model's names, on every rank that asks.
  /// Errors   DataError if a name or a shape is not the model's: nothing is changed then.
  /// Example  const HuggingFaceReader reader("gpt2");
  ///          engine.load_weights({reader.tensors(), [&](const auto& name) { return reader.read(name); }});
  void load_weights(const TensorSource& weights);

 private:
  struct Parts;  // what each technique made of the model
  [[nodiscard]] bool is_invariant() const noexcept {
    return config_.numerics == Config::Numerics::kInvariant;
  }
  [[nodiscard]] Tensor loss_sum(const Tensor& ids, const Tensor& targets);
  [[nodiscard]] Tensor loss_of(Tensor&& logits, const Tensor& targets);
  [[nodiscard]] Tensor training_loss(Tensor&& logits, const MicroBatch& micro_batch);
  [[nodiscard]] Tensor checked(const Tensor& loss, double value, const MicroBatch& micro_batch);
  [[nodiscard]] double backward_scale();
  [[nodiscard]] Tensor next_logits(const Tensor& ids, nn::KvCache* cache);
  void refuse_parts(const char* call) const;
  [[nodiscard]] Tensor own_tokens(std::span<const std::int64_t> values, std::int64_t count) const;
  void set_context(std::int64_t first_sample) const;
  [[nodiscard]] MemoryPool& pool() const;
  void tell_places();
  static void clear_context();
  [[nodiscard]] bool can_search_alone() const;
  [[nodiscard]] std::string find_culprit(const MicroBatch& micro_batch);
  void refuse_non_finite_loss();
  [[nodiscard]] std::string describe_rank(int world_rank) const;
  [[nodiscard]] bool update(StepReport& report);
  void refuse_after_failed_backward(const char* call) const;
  void give_up_step();
  void share_figures(StepReport& report);
  [[nodiscard]] double sum_of_sample_losses();
  struct StateEntry {
    std::string name;
    DType dtype;
  };
  [[nodiscard]] std::vector<StateEntry> optimizer_entries() const;
  void load_parts(const std::function<Tensor(const std::string& name)>& get);
  [[nodiscard]] Tensor from_holder(const std::string& parameter, DType dtype, const Shape& shape,
                                   const std::function<Tensor()>& get) const;

  nn::LanguageModel& model_;
  Config config_;
  const Mesh& mesh_;
  BatchSizes batch_;
  std::int64_t seq_ = 0;
  Device device_;
  optim::Schedule schedule_;
  std::unique_ptr<Parts> parts_;

  // Of the step under way.
  bool under_way_ = false;
  bool in_backward_ = false;  // since an exception, where no backward() is running
  double started_ = 0.0;
  double loss_sum_ = 0.0;
  std::int64_t num_samples_ = 0, num_targets_ = 0;
  std::int64_t num_passes_ = 0, passes_left_ = 0;
  /// Of train_step, where the search for what is not finite takes all ranks: its passes, until it ends.
  const std::vector<MicroBatch>* passes_to_search_ = nullptr;
  std::optional<std::size_t> non_finite_pass_;  // the first of this rank, of those
  double non_finite_loss_ = 0.0;
  std::vector<std::optional<std::int64_t>> first_samples_;  // by pass; none where this rank has none
  std::vector<double> sample_losses_;  // Invariant numerics: of the samples that this rank has had, else 0

  std::int64_t steps_done_ = 0, steps_skipped_ = 0;
  bool stop_requested_ = false;
  CommSummary comm_summary_;
};

}  // namespace tessera::dist
