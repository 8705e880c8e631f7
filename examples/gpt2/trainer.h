#pragma once

#include <memory>
#include <vector>

#include "data/sampler.h"
#include "data/token_file.h"
#include "dist/checkpoint.h"
#include "dist/engine.h"
#include "dist/job.h"
#include "examples/gpt2/train_log.h"
#include "examples/gpt2/train_options.h"
#include "nn/language_model.h"

namespace gpt2 {

/// Of a batch that nobody gave: 8 sequences. Not a number for each rank: the losses shall be the same on any
/// number of ranks.
[[nodiscard]] tessera::dist::BatchSizes with_default_batch(const tessera::dist::BatchSizes& given);

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
  [[nodiscard]] std::int64_t steps_done() const noexcept { return engine_->steps_done(); }
  /// The next step's report says `stop` on every rank.
  void request_stop() noexcept { engine_->request_stop(); }

  [[nodiscard]] tessera::nn::LanguageModel& model() noexcept { return *model_; }
  /// Elements of all parameters, whole.
  [[nodiscard]] std::int64_t num_parameters() const noexcept { return num_parameters_; }
  [[nodiscard]] tessera::dist::Engine& engine() noexcept { return *engine_; }
  [[nodiscard]] const tessera::dist::Mesh& mesh() const noexcept { return *mesh_; }
  [[nodiscard]] const tessera::dist::BatchSizes& batch() const noexcept { return engine_->batch(); }
  [[nodiscard]] std::int64_t seq() const noexcept { return plan_.seq_len; }

  /// All that it takes to go on, tensor by tensor: for save_checkpoint.
  [[nodiscard]] tessera::dist::CheckpointSources checkpoint();
  /// Begins with the weights of options.from_hf, whose description is options.model.
  void load_hugging_face();
  /// Goes on from a checkpoint that any layout wrote.
  /// Errors   DataError if it belongs to another model, vocabulary, seed or optimizer; nothing is changed
  ///          then.
  void restore(const tessera::dist::CheckpointReader& checkpoint);

 private:
  [[nodiscard]] std::vector<double> measure_parts_of_model(std::int64_t micro_batch) const;

  const TrainOptions& options_;
  tessera::dist::Job& job_;
  const tessera::data::TokenFile& tokens_;
  tessera::dist::Config config_;
  tessera::data::BatchPlan plan_;
  std::unique_ptr<tessera::dist::Mesh> mesh_;
  std::unique_ptr<tessera::nn::LanguageModel> model_;
  std::int64_t num_parameters_ = 0;
  std::unique_ptr<tessera::dist::Engine> engine_;
};

}  // namespace gpt2
