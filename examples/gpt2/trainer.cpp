#include "examples/gpt2/trainer.h"

#include <fmt/format.h>

#include <cmath>
#include <sstream>
#include <vector>

#include "autograd/ops.h"
#include "examples/gpt2/saved_model.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "nn/non_finite.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "optim/sgd.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace gpt2 {

using namespace tessera;

namespace {

std::unique_ptr<nn::LanguageModel> make_model(const TrainOptions& options, const data::TokenFile& tokens) {
  auto model = [&] {
    // First without memory, so that what is too large or impossible is refused before anything is allocated.
    const DeviceScope scope(meta);
    return nn::make_language_model(options.model, tokens.info().vocab_size);
  }();
  if (options.seq > model->context()) {
    throw ConfigError(fmt::format("--seq {}: sequences are longer than the model's context of {} tokens",
                                  options.seq, model->context()));
  }
  return model;
}

// Not a number for each rank: the losses shall be the same on any number of ranks.
dist::BatchSizes with_default_batch(const dist::BatchSizes& given) {
  const bool nothing_given = given.global == 0 && given.micro_batch == 0 && given.accumulation == 0;
  return nothing_given ? dist::BatchSizes{.global = 8} : given;
}

std::unique_ptr<optim::Optimizer> make_optimizer(const dist::Config::Optimizer& config,
                                                 const nn::LanguageModel& model) {
  const auto parameters = model.named_parameters();
  auto groups = optim::no_decay_for_biases_and_norms();
  if (config.type == "SGD") {
    return std::make_unique<optim::Sgd>(parameters,
                                        optim::SgdConfig{.lr = config.lr,
                                                         .momentum = config.momentum,
                                                         .dampening = config.dampening,
                                                         .weight_decay = config.weight_decay,
                                                         .nesterov = config.nesterov},
                                        groups);
  }
  const optim::AdamConfig adam{.lr = config.lr,
                               .beta1 = config.beta1,
                               .beta2 = config.beta2,
                               .epsilon = config.epsilon,
                               .weight_decay = config.weight_decay};
  if (config.decoupled_decay) return std::make_unique<optim::AdamW>(parameters, adam, groups);
  return std::make_unique<optim::Adam>(parameters, adam, groups);
}

optim::LossScaler make_scaler(const dist::Config& config) {
  if (config.dtype != kF16) return optim::LossScaler::constant(1.0);
  return optim::LossScaler::from_config(
      config.fp16.loss_scale, {.initial_scale_power = static_cast<int>(config.fp16.initial_scale_power),
                               .loss_scale_window = config.fp16.loss_scale_window,
                               .hysteresis = static_cast<int>(config.fp16.hysteresis),
                               .min_loss_scale = config.fp16.min_loss_scale});
}

// The state of loss scaling as a checkpoint's metadata keeps it, and back.
std::string to_text(const optim::LossScaler::State& state) {
  return fmt::format("{} {} {}", state.scale, state.steps_without_overflow, state.hysteresis_left);
}

optim::LossScaler::State loss_scale_from(const std::string& text) {
  optim::LossScaler::State state;
  std::istringstream in(text);
  if (!(in >> state.scale >> state.steps_without_overflow >> state.hysteresis_left)) {
    throw DataError(
        fmt::format("--resume: the checkpoint's '{}' is '{}', not three numbers", kLossScaleKey, text));
  }
  return state;
}

}  // namespace

Trainer::Trainer(const TrainOptions& options, dist::Job& job, const data::TokenFile& tokens)
    : options_(options),
      job_(job),
      tokens_(tokens),
      batch_(dist::resolve_batch_sizes(with_default_batch(options.config.batch),
                                       dist::resolve_mesh(options.config, job.size())[MeshAxis::kDp])),
      schedule_(options.schedule()),
      group_(job.world().split(0, job.rank(), "dp")),
      model_(make_model(options, tokens)),
      scaler_(make_scaler(options.config)) {
  plan_ = {.global_batch = batch_.global,
           .seq_len = options.seq == 0 ? model_->context() : options.seq,
           .seed = options.job.seed};
  static_cast<void>(plan_.windows_per_epoch(tokens.size()));  // throws if the file is too short
  model_->materialize(cpu);
  model_->to(options.config.dtype);
  model_->set_recompute(options.recompute);
  parallel_ = std::make_unique<dist::DataParallel>(model_->named_parameters(), *group_);
  optimizer_ = make_optimizer(options.config.optimizer, *model_);
}

Trainer::~Trainer() = default;

StepReport Trainer::step() {
  const auto start = std::chrono::steady_clock::now();
  RankContext& context = RankContext::current();
  context.pool(cpu)->reset_peak();
  sent_before_ = sent_bytes_by_group();
  context.step = static_cast<std::uint64_t>(steps_done_);

  double loss_sum = 0.0;
  for (std::int64_t i = 0; i < batch_.accumulation; ++i) {
    parallel_->reduce_in_next_backward(i == batch_.accumulation - 1);
    loss_sum += accumulate_micro_batch(i);
  }
  parallel_->wait();

  StepReport report;
  report.lr = optim::lr_at(schedule_, steps_done_);
  report.tokens = batch_.global * plan_.seq_len;
  report.skipped = !update(report);
  optimizer_->zero_grad();
  report.step = ++steps_done_;
  share_figures(report, loss_sum);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

double Trainer::accumulate_micro_batch(std::int64_t micro_batch) {
  // This rank's samples are neighbours in the global batch, and so are those of a micro-batch.
  const std::int64_t first =
      job_.rank() * batch_.micro_batch * batch_.accumulation + micro_batch * batch_.micro_batch;
  RankContext::current().sample_offset = first;
  const Shape shape{batch_.micro_batch, plan_.seq_len};
  std::vector<std::int64_t> inputs(static_cast<std::size_t>(shape.num_elements())), targets(inputs.size());
  data::fill_batch(tokens_, plan_, steps_done_, first, batch_.micro_batch, inputs, targets);
  const Tensor ids = from_span<std::int64_t>(inputs, shape);
  const Tensor next_ids = from_span<std::int64_t>(targets, shape);

  Tensor loss = model_->loss(ids, next_ids, Reduction::kSum);
  const double loss_sum = loss.item();
  if (!std::isfinite(loss_sum)) {
    const auto culprit = nn::find_first_non_finite(
        *model_, [&] { static_cast<void>(model_->loss(ids, next_ids, Reduction::kSum)); });
    throw NonFiniteError(fmt::format("step {}: the loss is {}: {}", steps_done_ + 1,
                                     std::isnan(loss_sum) ? "NaN" : "infinite",
                                     culprit ? culprit->message : "every layer's output is finite"));
  }
  // The sum over all micro-batches of all ranks is then the gradient of the mean over the global batch.
  const auto global_tokens = static_cast<double>(batch_.global * plan_.seq_len);
  (loss * (scaler_.scale() / global_tokens)).backward();
  return loss_sum;
}

bool Trainer::update(StepReport& report) {
  optimizer_->set_lr(report.lr);
  if (const auto momentum = optim::momentum_at(schedule_, steps_done_)) optimizer_->set_momentum(*momentum);
  // Every rank has the same gradients, so every rank computes the same norm and takes the same decision.
  const optim::GradNorm norm = optim::global_grad_norm(optimizer_->parameters(), 1.0 / scaler_.scale());
  report.grad_norm = norm.value;
  if (options_.config.dtype == kF16 && !scaler_.update(norm.finite(), norm.non_finite)) return false;
  if (!norm.finite()) {
    throw NonFiniteError(
        fmt::format("step {}: the loss is finite, but the gradient of '{}' is not (element {})",
                    steps_done_ + 1, norm.non_finite, norm.element));
  }
  optimizer_->step(
      {.grad_scale = optim::clip_factor(norm, options_.config.gradient_clipping) * norm.grad_scale});
  return true;
}

void Trainer::share_figures(StepReport& report, double loss_sum) {
  // One small all-gather carries all that the ranks tell each other: loss, memory, and whether to stop.
  constexpr std::size_t kCategories = kNumMemoryCategories;
  std::vector<double> mine{loss_sum, stop_requested_ || job_.stop_requested() ? 1.0 : 0.0};
  const MemoryReport memory = RankContext::current().pool(cpu)->report();
  mine.push_back(static_cast<double>(memory.total.peak));
  for (const MemoryUse& use : memory.by_category) mine.push_back(static_cast<double>(use.peak));
  std::vector<double> all(mine.size() * static_cast<std::size_t>(job_.size()));
  job_.world().all_gather(dist::buffer_of(std::as_const(mine)), dist::buffer_of(all));

  double total_loss = 0.0, largest = -1.0;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(job_.size()); ++rank) {
    const double* figures = all.data() + rank * mine.size();
    total_loss += figures[0];
    report.stop = report.stop || figures[1] != 0.0;
    if (figures[2] <= largest) continue;
    largest = figures[2];
    report.peak_total_bytes = static_cast<std::int64_t>(figures[2]);
    for (std::size_t c = 0; c < kCategories; ++c)
      report.peak_bytes[c] = static_cast<std::int64_t>(figures[3 + c]);
  }
  report.loss = total_loss / static_cast<double>(report.tokens);

  for (const auto& [group, bytes] : sent_bytes_by_group())
    report.sent_bytes[group] = bytes - sent_before_[group];
}

std::map<std::string, std::int64_t> Trainer::sent_bytes_by_group() const {
  std::map<std::string, std::int64_t> sent;
  for (const dist::TapeTotal& total : job_.tape().totals()) sent[total.group] += total.sent_bytes;
  return sent;
}

dist::Checkpoint Trainer::checkpoint() {
  return {.step = steps_done_,
          .model = model_->state(),
          .optimizer = optimizer_->state(),
          .metadata = {{kModelKey, model_->description()},
                       {kSeqKey, std::to_string(plan_.seq_len)},
                       {kVocabularyKey, hash_text(tokens_.info().vocabulary_hash)},
                       {kSeedKey, std::to_string(options_.job.seed)},
                       {kDTypeKey, name(options_.config.dtype)},
                       {kBatchKey, std::to_string(batch_.global)},
                       {kLossScaleKey, to_text(scaler_.state())}}};
}

void Trainer::restore(const dist::Checkpoint& checkpoint) {
  const auto said = [&](const char* key) -> std::string {
    const auto found = checkpoint.metadata.find(key);
    return found == checkpoint.metadata.end() ? "nothing" : found->second;
  };
  const auto require_equal = [&](const char* key, const std::string& ours, const char* what) {
    const std::string theirs = said(key);
    if (theirs != ours) {
      throw DataError(fmt::format("--resume: the checkpoint was made with {} '{}', but this run has '{}'",
                                  what, theirs, ours));
    }
  };
  require_equal(kModelKey, model_->description(), "the model");
  require_equal(kVocabularyKey, hash_text(tokens_.info().vocabulary_hash), "the vocabulary");
  require_equal(kDTypeKey, name(options_.config.dtype), "the dtype");
  require_equal(kSeedKey, std::to_string(options_.job.seed), "the seed");
  // The optimizer first: it may be of another kind and refuse, and then nothing must have changed. A model
  // of the same description takes the weights.
  optimizer_->load_state(checkpoint.optimizer);
  model_->load_state(checkpoint.model);
  if (options_.config.dtype == kF16) scaler_.load_state(loss_scale_from(said(kLossScaleKey)));
  steps_done_ = checkpoint.step;
}

}  // namespace gpt2
