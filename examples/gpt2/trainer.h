#pragma once

#include <memory>

#include "data/sampler.h"
#include "data/token_file.h"
#include "dist/checkpoint.h"
#include "dist/data_parallel.h"
#include "dist/job.h"
#include "examples/gpt2/train_log.h"
#include "examples/gpt2/train_options.h"
#include "nn/language_model.h"
#include "optim/loss_scale.h"
#include "optim/optimizer.h"

namespace gpt2 {

/// The training of one language model by all ranks of a job: what belongs to a run, and one step of it.
///
/// The losses and the weights are those of one rank, whatever the number of ranks and however the batch is
/// cut into micro-batches, within rounding: samples, dropout and initial weights are functions of global
/// indices, and the loss is divided by the number of tokens of the *global* batch.
///
/// Example   Trainer trainer(options, job, tokens);
///           while (trainer.steps_done() < options.steps) log.write(trainer.step());
class Trainer {
 public:
  /// `options`, `job` and `tokens` outlive this. A collective.
  /// Errors   ConfigError, before any memory is taken: impossible sizes of batch, sequence or model;
  ///          DataError for a token file that is too short.
  Trainer(const TrainOptions& options, tessera::dist::Job& job, const tessera::data::TokenFile& tokens);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// One optimizer step on the next global batch. A collective.
  /// Errors   NonFiniteError that names the first tensor that is not finite, and its layer.
  StepReport step();
  [[nodiscard]] std::int64_t steps_done() const noexcept { return steps_done_; }
  /// The next step's report says `stop` on every rank.
  void request_stop() noexcept { stop_requested_ = true; }

  [[nodiscard]] tessera::nn::LanguageModel& model() noexcept { return *model_; }
  [[nodiscard]] tessera::optim::Optimizer& optimizer() noexcept { return *optimizer_; }
  [[nodiscard]] const tessera::dist::BatchSizes& batch() const noexcept { return batch_; }
  [[nodiscard]] std::int64_t seq() const noexcept { return plan_.seq_len; }

  /// All that it takes to go on; the tensors are those in use.
  [[nodiscard]] tessera::dist::Checkpoint checkpoint();
  /// Goes on from a checkpoint, made with any number of ranks.
  /// Errors   DataError if it belongs to another model or vocabulary; nothing is changed then.
  void restore(const tessera::dist::Checkpoint& checkpoint);

 private:
  /// Forward and backward of one micro-batch; returns its sum of losses.
  double accumulate_micro_batch(std::int64_t micro_batch);
  [[nodiscard]] bool update(StepReport& report);
  void share_figures(StepReport& report, double loss_sum);
  [[nodiscard]] std::map<std::string, std::int64_t> sent_bytes_by_group() const;

  const TrainOptions& options_;
  tessera::dist::Job& job_;
  const tessera::data::TokenFile& tokens_;
  tessera::dist::BatchSizes batch_;
  tessera::data::BatchPlan plan_;
  tessera::optim::Schedule schedule_;
  std::shared_ptr<tessera::dist::Communicator> group_;  // carries gradients
  std::unique_ptr<tessera::nn::LanguageModel> model_;
  std::unique_ptr<tessera::optim::Optimizer> optimizer_;
  std::unique_ptr<tessera::dist::DataParallel> parallel_;
  tessera::optim::LossScaler scaler_;
  std::int64_t steps_done_ = 0;
  bool stop_requested_ = false;
  std::map<std::string, std::int64_t> sent_before_;  // this step
};

}  // namespace gpt2
