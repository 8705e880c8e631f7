#include "dist/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/engine_layout.h"
#include "dist/engine_parts.h"
#include "dist/gather_texts.h"
#include "dist/host_memory.h"
#include "dist/invariant.h"
#include "dist/invariant_loss.h"
#include "dist/optimizer_factory.h"
#include "dist/pipeline.h"
#include "dist/same_settings.h"
#include "dist/vocab_parallel.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "optim/clip.h"
#include "optim/loss_scale.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kPp = MeshAxis::kPp, kDp = MeshAxis::kDp, kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;
constexpr std::int64_t kIgnoredTarget = CrossEntropyConfig{}.ignore_index;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

optim::LossScaler make_scaler(const Config& config) {
  if (config.dtype != kF16) return optim::LossScaler::constant(1.0);
  return optim::LossScaler::from_config(
      config.fp16.loss_scale, {.initial_scale_power = static_cast<int>(config.fp16.initial_scale_power),
                               .loss_scale_window = config.fp16.loss_scale_window,
                               .hysteresis = static_cast<int>(config.fp16.hysteresis),
                               .min_loss_scale = config.fp16.min_loss_scale});
}

// All that ranks must agree on before they train together.
Settings settings_of_engine(const nn::LanguageModel& model, const Config& config, std::int64_t seq,
                            const optim::Schedule& schedule) {
  Settings settings = settings_of(config);
  settings["model"] = model.description();
  settings["tokens of a sequence"] = std::to_string(seq);
  settings["seed"] = std::to_string(RankContext::current().seed);
  std::string rates;
  for (const std::int64_t step : {1, 10, 100, 1'000, 10'000, 100'000})
    rates += fmt::format("{}{}", rates.empty() ? "" : " ", optim::lr_at(schedule, step - 1));
  settings["learning rate at steps 1, 10, ... 100000"] = rates;
  return settings;
}

}  // namespace

// --- Making ------------------------------------------------------------------------------------------------

Engine::Parts::Parts(nn::LanguageModel& model, const Config& config, const Mesh& mesh,
                     const EngineOptions& options, std::int64_t num_passes)
    : sequences(cut_sequences(config, mesh, options.seq == 0 ? model.context() : options.seq)),
      part_parameters(mesh.size(kPp) > 1 ? count_parameters(model) : std::vector<double>()),
      laid_out(lay_out_for_engine(model, config, mesh, options)),
      pipeline(make_pipeline(model, config, mesh, options, part_parameters, num_passes)),
      scaler(make_scaler(config)) {}

Engine::Engine(nn::LanguageModel& model, const Config& config, const Mesh& mesh, const EngineOptions& options)
    : model_(model),
      config_(config),
      mesh_(mesh),
      batch_(resolve_batch_sizes(config.batch, mesh.shape(), options.largest_micro_batch)),
      seq_(options.seq == 0 ? model.context() : options.seq),
      device_(options.device),
      schedule_(options.schedule.value_or(optim::ConstantLR{config.optimizer.lr})),
      comm_summary_(mesh.world()) {
  require_same_settings(settings_of_engine(model, config, seq_, schedule_), mesh.world());
  check_supported(model, config, mesh, seq_);
  if (is_invariant()) {
    check_invariant(config, mesh);
    if (device_ == meta) {
      throw ConfigError(
          "dry run: Invariant numerics sum by values, so they are not foretold yet; \"numerics\": \"fast\" "
          "works");
    }
    batch_.accumulation *= std::exchange(batch_.micro_batch, 1);
  }
  parts_ = std::make_unique<Parts>(model, config, mesh, options, batch_.accumulation);
  if (is_invariant()) parts_->invariant_products.emplace();
  if (mesh.size(kCp) > 1) {
    parts_->token_positions = parts_->sequences.positions(mesh.index(kCp));
    replace_attention(model, config, mesh, parts_->sequences);
  }
  set_recomputation(model, config, mesh);
  const LaidOut& laid_out = parts_->laid_out;
  ZeroOptions zero = zero_options(config, mesh, laid_out, parts_->pipeline.get());
  zero.device = device_;
  const ZeroMemory memory = predict_memory(model, config, mesh, zero);
  if (options.announce) options.announce(describe_memory(memory, mesh));
  if (config.memory_check && device_ == cpu) {
    require_memory(memory.held() + memory.gathered_parameters,
                   options.host_memory ? *options.host_memory : HostMemory::read(), mesh.world());
  }
  if (device_ == meta) RankContext::current().count_meta_from_zero();
  tell_places();
  parts_->zero = std::make_unique<Zero>(model, mesh, zero, [&laid_out](const auto& record, Tensor& local) {
    laid_out.placement(record.name).fill_initial(record, local);
  });
  parts_->optimizer =
      make_optimizer(config.optimizer, parts_->zero->pieces(), options.groups, &parts_->zero->exchange());
}

Engine::~Engine() = default;

optim::Optimizer& Engine::optimizer() noexcept { return *parts_->optimizer; }
Zero& Engine::zero() noexcept { return *parts_->zero; }
optim::LossScaler& Engine::loss_scaler() noexcept { return parts_->scaler; }
const LaidOut& Engine::laid_out() const noexcept { return parts_->laid_out; }
Pipeline* Engine::pipeline() noexcept { return parts_->pipeline.get(); }

MemoryPool& Engine::pool() const { return *RankContext::current().pool(device_); }
MemoryReport Engine::memory() const { return pool().report(); }

// For MemoryReport::peak_moment. The hooks outlive the engine, so they hold nothing of it.
void Engine::tell_places() {
  std::vector<nn::Module*> modules = model_.embedding_modules();
  for (nn::Block* block : model_.blocks()) modules.push_back(block);
  for (nn::Module* module : model_.head_modules()) modules.push_back(module);
  for (nn::Module* module : modules) {
    module->add_forward_pre_hook([device = device_, place = module->name()](nn::Module&, auto&&) {
      RankContext::current().pool(device)->set_place("in", place);
    });
  }
}

// --- A step ------------------------------------------------------------------------------------------------

StepReport Engine::train_step(const SampleSource& source, std::int64_t num_samples) {
  const std::vector<MicroBatch> all = micro_batches(source, num_samples);
  struct ForgetPasses {
    const std::vector<MicroBatch>*& passes;
    ~ForgetPasses() { passes = nullptr; }
  } const forget_passes{passes_to_search_};
  if (!can_search_alone()) passes_to_search_ = &all;
  if (parts_->pipeline != nullptr) {
    const auto loss = [this](const Tensor& logits, const MicroBatch& micro_batch) {
      return training_loss(Tensor(logits), micro_batch) * backward_scale();
    };
    parts_->pipeline->train(
        *parts_->zero, all,
        {.begin_pass = [this](const MicroBatch& m) { set_context(m.first_sample); },
         .loss = loss,
         .begin_action = [this](const Action& action) { pool().set_moment(to_string(action)); }});
    passes_left_ = 0;
  } else {
    for (const MicroBatch& micro_batch : all) backward(forward(micro_batch));
  }
  return step();
}

// Costs a pass over all gradients, so it is not done where step() has ended.
void Engine::give_up_step() {
  under_way_ = false;
  in_backward_ = false;
  passes_left_ = 0;
  clear_context();
  parts_->zero->zero_gradients();
}

// The tokens of this rank's part of each sequence, as what they are on the mesh.
Tensor Engine::own_tokens(std::span<const std::int64_t> values, std::int64_t count) const {
  const Shape shape{count, seq_};
  Tensor tokens = device_ == meta ? empty(shape, {.dtype = kI64, .device = meta})
                                  : from_span<std::int64_t>(values, shape);
  Layout layout;
  if (mesh_.size(kDp) > 1) layout = layout.with(kDp, AxisLayout::sharded(0));
  if (mesh_.size(kCp) > 1) {
    tokens = parts_->sequences.take(tokens, 1, mesh_.index(kCp)).contiguous();
    layout = layout.with(kCp, parts_->sequences.layout(1));
  }
  return tokens.set_layout(layout);
}

std::int64_t Engine::num_passes(std::int64_t num_samples) {
  const std::int64_t most = shard_size(num_samples == 0 ? batch_.global : num_samples, mesh_.size(kDp), 0);
  const std::int64_t passes = (most + batch_.micro_batch - 1) / batch_.micro_batch;
  return parts_->pipeline == nullptr ? passes : parts_->pipeline->micro_batches_for(passes);
}

std::vector<MicroBatch> Engine::micro_batches(const SampleSource& source, std::int64_t num_samples) {
  if (parts_->pipeline != nullptr) parts_->pipeline->refuse_if_broken();
  if (under_way_) give_up_step();
  started_ = now();
  pool().set_moment("Samples");
  pool().reset_peak();
  comm_summary_.begin_step();
  loss_sum_ = 0.0;
  non_finite_pass_.reset();
  num_samples_ = num_samples == 0 ? batch_.global : num_samples;
  if (num_samples_ < 1) throw ConfigError(fmt::format("a step needs a sample, got {}", num_samples_));

  // dp index d has samples [begin, begin + count) of the batch, in passes of micro_batch. Every rank makes as
  // many passes as the one with most samples; one without samples makes its pass with a sample of which no
  // target counts.
  const int data_ranks = mesh_.size(kDp), data_rank = mesh_.index(kDp);
  const std::int64_t begin = shard_begin(num_samples_, data_ranks, data_rank);
  const std::int64_t count = shard_size(num_samples_, data_ranks, data_rank);
  const std::int64_t passes = num_passes(num_samples_);
  std::vector<MicroBatch> result;
  first_samples_.clear();
  double counted = 0.0;
  for (std::int64_t i = 0; i < passes; ++i) {
    const std::int64_t first = std::min(i * batch_.micro_batch, count);
    const std::int64_t size = std::min(batch_.micro_batch, count - first);
    const std::int64_t rows = std::max<std::int64_t>(size, 1);
    std::vector<std::int64_t> inputs(static_cast<std::size_t>(rows * seq_)),
        targets(inputs.size(), kIgnoredTarget);
    if (device_ == meta) {
      std::fill_n(targets.begin(), size * seq_, std::int64_t{0});
    } else if (size > 0) {
      source(steps_done_, begin + first, size, inputs, targets);
    }
    counted +=
        static_cast<double>(std::ranges::count_if(targets, [](auto t) { return t != kIgnoredTarget; }));
    first_samples_.push_back(size > 0 ? std::optional(begin + first) : std::nullopt);
    result.push_back({.ids = own_tokens(inputs, rows),
                      .targets = own_tokens(targets, rows),
                      .first_sample = begin + first,
                      .num_samples = size});
  }
  // The count by which the loss is divided is that of the whole batch: never a mean of means.
  // Ranks of one dp index have the same samples: one of them speaks.
  if (mesh_.index(kPp) != 0 || mesh_.index(kTp) != 0 || mesh_.index(kCp) != 0) counted = 0.0;
  mesh_.world().all_reduce(buffer_of(std::span(&counted, 1)));
  num_targets_ = static_cast<std::int64_t>(counted);
  num_passes_ = passes_left_ = passes;
  under_way_ = true;
  if (is_invariant()) {
    sample_losses_.assign(static_cast<std::size_t>(num_samples_), 0.0);
    parts_->zero->begin_step(num_samples_);
  }
  return result;
}

void Engine::set_context(std::int64_t first_sample) const {
  RankContext& context = RankContext::current();
  context.step = static_cast<std::uint64_t>(steps_done_);
  context.sample_offset = first_sample;
  context.token_positions = parts_->token_positions;
  context.sequence_length = seq_;
}

// What comes after a step, generation say, has other sequences, which are not cut over cp.
void Engine::clear_context() {
  RankContext& context = RankContext::current();
  context.sample_offset = 0;
  context.token_positions = nullptr;
  context.sequence_length = 0;
}

Tensor Engine::loss_of(Tensor&& logits, const Tensor& targets) {
  return vocab_parallel_cross_entropy(std::move(logits), targets, model_.vocab(), mesh_, kTp,
                                      {.reduction = Reduction::kSum});
}

Tensor Engine::loss_sum(const Tensor& ids, const Tensor& targets) {
  return loss_of(model_.logits(ids), targets);
}

void Engine::refuse_parts(const char* call) const {
  if (parts_->pipeline == nullptr) return;
  throw AutogradError(
      fmt::format("Engine::{}: with pp = {} a rank has a stage of each pass alone, and passes overlap; call "
                  "train_step",
                  call, mesh_.size(kPp)));
}

Tensor Engine::forward(const MicroBatch& micro_batch) {
  refuse_parts("forward");
  pool().set_moment(to_string(Action::forward(static_cast<int>(num_passes_ - passes_left_))));
  set_context(micro_batch.first_sample);
  return training_loss(model_.logits(micro_batch.ids), micro_batch);
}

Tensor Engine::training_loss(Tensor&& logits, const MicroBatch& micro_batch) {
  if (is_invariant()) {
    const InvariantLoss loss =
        invariant_cross_entropy(std::move(logits), micro_batch.targets, model_.vocab(), mesh_);
    return checked(loss.sum, loss.whole, micro_batch);
  }
  const Tensor loss = loss_of(std::move(logits), micro_batch.targets);
  return checked(loss, device_ == meta ? 0.0 : loss.item(), micro_batch);
}

// The loss, once its value is known to be finite and counted.
Tensor Engine::checked(const Tensor& loss, double value, const MicroBatch& micro_batch) {
  if (device_ == meta) return loss;
  if (!std::isfinite(value) && passes_to_search_ != nullptr) {
    // The others do not know, and wait in this pass: they hear of it with the norm.
    const auto same = [&](const MicroBatch& other) { return other.first_sample == micro_batch.first_sample; };
    if (!non_finite_pass_) {
      non_finite_pass_ = std::ranges::find_if(*passes_to_search_, same) - passes_to_search_->begin();
      non_finite_loss_ = value;
    }
  } else if (!std::isfinite(value)) {
    throw NonFiniteError(fmt::format("step {}: the loss is {}: {}", steps_done_ + 1,
                                     std::isnan(value) ? "NaN" : "infinite", find_culprit(micro_batch)));
  }
  if (is_invariant() && micro_batch.num_samples > 0)
    sample_losses_[static_cast<std::size_t>(micro_batch.first_sample)] += value;
  loss_sum_ += value;
  return loss;
}

double Engine::backward_scale() {
  return parts_->scaler.scale() / static_cast<double>(std::max<std::int64_t>(num_targets_, 1));
}

void Engine::refuse_after_failed_backward(const char* call) const {
  if (!in_backward_) return;
  throw AutogradError(fmt::format(
      "Engine::{}: the backward pass before ended in an exception, so this step has lost gradients; "
      "micro_batches() or train_step() gives it up and begins it anew",
      call));
}

void Engine::backward(const Tensor& loss) {
  refuse_parts("backward");
  refuse_after_failed_backward("backward");
  if (passes_left_ < 1) {
    throw AutogradError(
        "Engine::backward: every pass of this step has had its backward; call step(), then "
        "micro_batches() for the next");
  }
  pool().set_moment(to_string(Action::backward(static_cast<int>(num_passes_ - passes_left_))));
  in_backward_ = true;
  const auto pass = first_samples_.size() - static_cast<std::size_t>(passes_left_);
  parts_->zero->begin_backward({.last = --passes_left_ == 0, .sample = first_samples_[pass]});
  (loss * backward_scale()).backward();
  parts_->zero->end_backward();
  in_backward_ = false;
}

StepReport Engine::step() {
  refuse_after_failed_backward("step");
  if (passes_left_ != 0) {
    throw AutogradError(
        fmt::format("Engine::step: {} passes of this step have had no backward yet", passes_left_));
  }
  pool().set_moment("Sums of gradients over further ranks");
  parts_->zero->finish_gradients();
  StepReport report;
  // The schedule goes by updates: in a step that overflows it stands still, as DeepSpeed's does.
  report.lr = optim::lr_at(schedule_, steps_done_ - steps_skipped_);
  if (config_.dtype == kF16) report.loss_scale = parts_->scaler.scale();
  report.tokens = num_samples_ * seq_;
  report.targets = num_targets_;
  report.skipped = !update(report);
  steps_skipped_ += report.skipped ? 1 : 0;
  parts_->zero->zero_gradients();
  under_way_ = false;
  report.step = ++steps_done_;
  clear_context();
  share_figures(report);
  report.seconds = now() - started_;
  return report;
}

bool Engine::update(StepReport& report) {
  optim::Optimizer& optimizer = *parts_->optimizer;
  optim::LossScaler& scaler = parts_->scaler;
  optimizer.set_lr(report.lr);
  if (const auto momentum = optim::momentum_at(schedule_, steps_done_ - steps_skipped_))
    optimizer.set_momentum(*momentum);
  // Every logical element once, over all ranks; so every rank takes the same decision.
  const double unscale = 1.0 / scaler.scale();
  report.grad_norm =
      unscale * std::sqrt(parts_->zero->global_grad_sum_of_squares(non_finite_pass_.has_value()));
  const bool finite = std::isfinite(report.grad_norm);
  std::string culprit;
  if (!finite) {
    refuse_non_finite_loss();
    // Under ZeRO and tp it is one rank's alone.
    for (const std::string& name :
         gather_texts(optim::first_non_finite_grad(parts_->zero->pieces()).name, mesh_.world())) {
      if (culprit.empty()) culprit = name;
    }
  }
  if (config_.dtype == kF16 && !scaler.update(finite, culprit)) return false;
  if (!finite) {
    throw NonFiniteError(
        fmt::format("step {}: the loss is finite, but the gradient of {} is not", steps_done_ + 1,
                    culprit.empty() ? "the whole model, taken together," : "'" + culprit + "'"));
  }
  pool().set_moment("Optimizer step");
  optimizer.step({.grad_scale = optim::clip_factor(report.grad_norm, config_.gradient_clipping) * unscale});
  pool().set_moment("New parameters on their way");
  parts_->zero->after_update();
  return true;
}

void Engine::share_figures(StepReport& report) {
  // One small all-gather carries all that the ranks tell each other: loss, memory, and whether to stop.
  std::vector<double> mine{mesh_.index(kTp) == 0 ? loss_sum_ : 0.0, stop_requested_ ? 1.0 : 0.0};
  const MemoryReport memory = this->memory();
  mine.push_back(static_cast<double>(memory.total.peak));
  for (const MemoryUse& use : memory.by_category) mine.push_back(static_cast<double>(use.peak));
  std::vector<double> all(mine.size() * static_cast<std::size_t>(mesh_.world().size()));
  mesh_.world().all_gather(buffer_of(std::as_const(mine)), buffer_of(all));

  double total_loss = 0.0, largest = -1.0;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(mesh_.world().size()); ++rank) {
    const double* figures = all.data() + rank * mine.size();
    total_loss += figures[0];
    report.stop = report.stop || figures[1] != 0.0;
    if (figures[2] <= largest) continue;
    largest = figures[2];
    report.peak_total_bytes = static_cast<std::int64_t>(figures[2]);
    for (std::size_t c = 0; c < kNumMemoryCategories; ++c)
      report.peak_bytes[c] = static_cast<std::int64_t>(figures[3 + c]);
  }
  if (is_invariant()) total_loss = sum_of_sample_losses();
  report.loss = total_loss / static_cast<double>(std::max<std::int64_t>(num_targets_, 1));
  report.traffic = comm_summary_.end_step();
  for (const TapeTotal& total : report.traffic) {
    if (total.sent_bytes > 0) report.sent_bytes[total.group] += total.sent_bytes;
  }
}

// In the order of the samples. Each has its loss from one rank, and 0 from all others.
double Engine::sum_of_sample_losses() {
  if (mesh_.index(kTp) != 0 || mesh_.index(kCp) != 0) std::ranges::fill(sample_losses_, 0.0);
  mesh_.world().all_reduce(buffer_of(sample_losses_));
  return std::accumulate(sample_losses_.begin(), sample_losses_.end(), 0.0);
}

}  // namespace tessera::dist
