// B micro-batch, T tokens of this rank, D width, p ranks along pp.

#include "dist/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <set>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "dist/collectives.h"
#include "dist/pipeline_check.h"
#include "dist/pipeline_generators.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kPp = MeshAxis::kPp, kTp = MeshAxis::kTp;

}  // namespace

// --- Stages ------------------------------------------------------------------------------------------------

Pipeline::Pipeline(nn::LanguageModel& model, const Mesh& mesh, PipelineOptions options)
    : model_(model), mesh_(mesh), options_(std::move(options)) {
  shape_ = schedule(micro_batches_for(mesh.size(kPp)));
  shape_.actions.clear();
  const int num_stages = shape_.num_stages();
  require_enough_blocks(static_cast<std::int64_t>(model.blocks().size()), shape_);
  switch (options_.partition) {
    case PipelinePartition::kUniform:
      stages_ = cut_uniformly(static_cast<std::int64_t>(model.blocks().size()), num_stages);
      break;
    case PipelinePartition::kParameters:
      if (options_.part_parameters.empty()) options_.part_parameters = count_parameters(model);
      stages_ = cut_into_stages(options_.part_parameters, num_stages);
      break;
    case PipelinePartition::kTime:
      check_part_seconds();
      stages_ = cut_into_stages(options_.part_seconds, num_stages);
      break;
  }
  find_shared_parameters();
}

Schedule Pipeline::make(std::int64_t num_micro_batches) const {
  const PipelineSize size{.ranks = mesh_.size(kPp),
                          .micro_batches = static_cast<int>(num_micro_batches),
                          .chunks = options_.chunks};
  return options_.custom_schedule ? options_.custom_schedule(size) : make_schedule(options_.schedule, size);
}

const Schedule& Pipeline::schedule(std::int64_t num_micro_batches) {
  const auto known = schedules_.find(num_micro_batches);
  if (known != schedules_.end()) return known->second;
  Schedule made = make(num_micro_batches);
  check(made);
  received_[num_micro_batches] = known_received(made, rank());
  return schedules_.emplace(num_micro_batches, std::move(made)).first->second;
}

void Pipeline::check(const Schedule& schedule) {
  check_legal(schedule);
  const bool is_first = schedules_.empty();
  if (!is_first && (schedule.num_ranks != shape_.num_ranks || schedule.num_chunks != shape_.num_chunks ||
                    schedule.order != shape_.order)) {
    throw ConfigError(fmt::format(
        "pipeline: schedule '{}' has {} stages on each rank for {} micro-batches and {} for "
        "others, or in another order: where stages lie can't depend on the number of micro-batches",
        schedule.name, schedule.num_chunks, schedule.num_micro_batches, shape_.num_chunks));
  }
  for (const std::vector<Action>& actions : schedule.actions) {
    for (const Action& action : actions) {
      if (action.kind != ActionKind::kBackwardWeight) continue;
      splits_backward_ = true;
      if (options_.split_refusal.empty()) continue;
      throw ConfigError(fmt::format("pipeline: schedule '{}' splits backward passes, and {}", schedule.name,
                                    options_.split_refusal));
    }
  }
}

// One rank's numbers are everybody's: they are measured, and would cut another model on each rank.
void Pipeline::check_part_seconds() {
  std::vector<double>& seconds = options_.part_seconds;
  if (seconds.size() != model_.blocks().size() + 2) {
    throw ConfigError(
        fmt::format("pipeline: to cut by time, seconds of the embedding, each of {} blocks and the head are "
                    "needed, but there are {} numbers",
                    model_.blocks().size(), seconds.size()));
  }
  mesh_.world().broadcast(buffer_of(seconds), 0);
  for (const double each : seconds) {
    if (!std::isfinite(each) || each < 0.0)
      throw ConfigError(fmt::format("pipeline: to cut by time, seconds are needed, but one is {}", each));
  }
}

std::int64_t Pipeline::micro_batches_for(std::int64_t wanted) {
  std::string first_refusal;
  for (std::int64_t more = 0; more <= mesh_.size(kPp); ++more) {
    if (schedules_.contains(wanted + more)) return wanted + more;
    try {
      static_cast<void>(make(wanted + more));
    } catch (const ConfigError& error) {
      if (more == 0) first_refusal = error.what();
      continue;  // the generator does not take this number
    }
    static_cast<void>(schedule(wanted + more));
    return wanted + more;
  }
  throw ConfigError(first_refusal);
}

int Pipeline::stage_of(int chunk) const { return shape_.stage(rank(), chunk); }

const StageParts& Pipeline::parts_of(int chunk) const {
  return stages_.at(static_cast<std::size_t>(stage_of(chunk)));
}

int Pipeline::head_rank() const { return shape_.rank_of(static_cast<int>(stages_.size()) - 1); }

std::vector<std::vector<nn::Module*>> Pipeline::own_modules() const {
  std::vector<std::vector<nn::Module*>> modules;
  for (int chunk = 0; chunk < shape_.num_chunks; ++chunk)
    modules.push_back(modules_of(model_, parts_of(chunk)));
  return modules;
}

int Pipeline::holder_of(const std::string& parameter) const {
  const auto found = holders_.find(parameter);
  if (found == holders_.end())
    throw IndexError(fmt::format("pipeline: no stage has the parameter '{}'", parameter));
  return found->second.front();
}

void Pipeline::find_shared_parameters() {
  std::vector<std::set<const void*>> held(static_cast<std::size_t>(mesh_.size(kPp)));
  for (std::size_t s = 0; s < stages_.size(); ++s) {
    auto& here = held[static_cast<std::size_t>(shape_.rank_of(static_cast<int>(s)))];
    for (const nn::Module* module : modules_of(model_, stages_[s])) {
      for (const Tensor& parameter : module->parameters()) here.insert(parameter.autograd_meta().get());
    }
  }
  std::vector<int> sharers;
  for (const auto& [name, parameter] : model_.named_parameters()) {
    std::vector<int>& holders = holders_[name];
    for (int r = 0; r < mesh_.size(kPp); ++r) {
      if (held[static_cast<std::size_t>(r)].contains(parameter.autograd_meta().get())) holders.push_back(r);
    }
    if (holders.empty()) {
      throw ConfigError(
          fmt::format("pipeline: the parameter '{}' belongs to no stage: not to a block, nor to a module "
                      "made before the first block (embedding) or behind the last (head); put it into one",
                      name));
    }
    if (holders.size() < 2) continue;
    if (!sharers.empty() && sharers != holders) {
      throw ConfigError(fmt::format(
          "pipeline: '{}' is on other ranks along pp than '{}'; parameters can be shared by one set of ranks",
          name, shared_.front()));
    }
    sharers = holders;
    shared_.push_back(name);
  }
  if (shared_.empty()) return;
  const bool is_one = std::ranges::find(sharers, rank()) != sharers.end();
  auto group = mesh_.group(kPp).group_of(is_one ? sharers : std::vector<int>{rank()}, kSharingGroupName);
  if (is_one) sharing_group_ = std::move(group);
}

// --- What goes from stage to stage -------------------------------------------------------------------------

Layout Pipeline::hidden_layout(const Tensor& ids) const {
  const Layout layout = ids.layout();
  return options_.sequence_parallel ? layout.with(kTp, AxisLayout::sharded(1)) : layout;
}

Shape Pipeline::hidden_shape(const Tensor& ids) const {
  const std::int64_t tokens =
      options_.sequence_parallel ? shard_size(ids.dim(1), mesh_.size(kTp), mesh_.index(kTp)) : ids.dim(1);
  return {ids.dim(0), tokens, model_.width()};
}

Tensor Pipeline::empty_hidden(const Tensor& ids) const {
  return empty(hidden_shape(ids), {.dtype = model_.parameters().front().dtype(), .device = ids.device()});
}

Tensor Pipeline::run_blocks(int chunk, Tensor x, const std::function<void()>& between, nn::KvCache* cache) {
  const StageParts& parts = parts_of(chunk);
  for (std::int64_t b = parts.first_block; b < parts.end_block; ++b) {
    x = model_.run_block(b, x, cache == nullptr ? nullptr : &cache->layer(b));
    if (between) between();
  }
  return x;
}

// --- Training ----------------------------------------------------------------------------------------------

struct Pipeline::Pass {
  Tensor input;   // a leaf, undefined in the first stage
  Tensor output;  // the root of its graph
  DeferredGradients weights{};
};

// One step.
struct Pipeline::Run {
  Pipeline& pipeline;
  Zero& zero;
  const Schedule& schedule;
  std::span<const MicroBatch> micro_batches;
  const Callbacks& callbacks;
  const std::vector<std::size_t>& received;  // known_received

  using Key = std::pair<int, int>;  // stage, micro-batch
  std::map<Key, Pass> passes{};
  std::map<Key, Tensor> outputs{};          // of a stage, on their way to the next
  std::map<Key, Tensor> input_gradients{};  // of a stage, on their way to the one before
  struct Sending {
    Work work;
    Tensor elements;        // must stay until they have left
    std::size_t until = 0;  // this action: then they have, whoever was slow
  };
  std::list<Sending> sending{};
  std::size_t current = 0;         // action
  std::vector<int> passes_left{};  // by chunk

  [[nodiscard]] Communicator& group() const { return pipeline.mesh_.group(kPp); }
  [[nodiscard]] const MicroBatch& micro_batch(const Action& action) const {
    return micro_batches[static_cast<std::size_t>(action.micro_batch)];
  }
  [[nodiscard]] int stage(const Action& action) const { return pipeline.stage_of(action.chunk); }

  void run() {
    passes_left.assign(static_cast<std::size_t>(schedule.num_chunks), schedule.num_micro_batches);
    const std::vector<Action>& actions = schedule.actions[static_cast<std::size_t>(pipeline.rank())];
    for (current = 0; current < actions.size(); ++current) {
      if (callbacks.begin_action) callbacks.begin_action(actions[current]);
      perform(actions[current]);
      release_sent();
      make_progress();
    }
    for (Sending& each : sending) each.work.wait();
  }

  void perform(const Action& action) {
    const Key here{stage(action), action.micro_batch};
    const Key before{here.first - 1, here.second}, after{here.first + 1, here.second};
    switch (action.kind) {
      case ActionKind::kForward:
        return forward(action);
      case ActionKind::kBackward:
        return backward(action, BackwardPass::Gradients::kAll);
      case ActionKind::kBackwardInput:
        return backward(action, BackwardPass::Gradients::kInputs);
      case ActionKind::kBackwardWeight:
        return backward_weights(action);
      case ActionKind::kSendActivation:
        return send(take(outputs, here), action);
      case ActionKind::kRecvActivation:
        outputs[before] = receive(action);
        return;
      case ActionKind::kSendGradient:
        return send(take(input_gradients, here), action);
      case ActionKind::kRecvGradient:
        input_gradients[after] = receive(action);
        return;
    }
  }

  static Tensor take(std::map<Key, Tensor>& from, const Key& key) {
    auto node = from.extract(key);
    if (node.empty()) {
      throw ConfigError(
          fmt::format("pipeline: stage {} has nothing of micro-batch {} that its schedule asks for",
                      key.first, key.second));
    }
    return std::move(node.mapped());
  }

  void send(const Tensor& x, const Action& action) {
    const Tensor elements = x.detach().contiguous();
    Work work = group().send_async(const_buffer_of(elements), schedule.peer(pipeline.rank(), action));
    sending.push_back({std::move(work), elements, received[current]});
  }

  [[nodiscard]] Tensor receive(const Action& action) const {
    const Tensor& ids = micro_batch(action).ids;
    Tensor x = pipeline.empty_hidden(ids);
    group().recv(buffer_of(x), schedule.peer(pipeline.rank(), action));
    return x.set_layout(pipeline.hidden_layout(ids));
  }

  // Messages go on in calls alone. What has left stays: when is a matter of luck, and memory must not be.
  void make_progress() {
    for (Sending& each : sending) static_cast<void>(each.work.test());
  }

  void release_sent() {
    sending.remove_if([this](Sending& each) {
      if (each.until > current) return false;
      each.work.wait();
      return true;
    });
  }

  void forward(const Action& action) {
    const MicroBatch& samples = micro_batch(action);
    const StageParts& parts = pipeline.parts_of(action.chunk);
    const Key here{stage(action), action.micro_batch};
    callbacks.begin_pass(samples);
    zero.begin_forward(static_cast<std::size_t>(action.chunk));
    Pass pass;
    Tensor x;
    if (parts.embeds) {
      x = pipeline.model_.embed(samples.ids, 0);
    } else {
      pass.input = take(outputs, {here.first - 1, here.second}).detach().set_requires_grad();
      // A leaf below operations with weights would wait for its gradient until those of the weights come.
      x = record("stage_input", pass.input.detach(), {pass.input},
                 [](const Tensor& dy, Needs) -> Grads { return {dy}; });
    }
    x = pipeline.run_blocks(
        action.chunk, x, [this] { make_progress(); }, nullptr);
    if (parts.has_head) {
      pass.output = callbacks.loss(pipeline.model_.head(x), samples);
    } else {
      check_output(x, samples.ids);
      pass.output = x;
      outputs[here] = x.detach();
    }
    zero.end_forward();
    passes.emplace(here, std::move(pass));
  }

  // What the next stage expects, which sees no more than bytes.
  void check_output(const Tensor& x, const Tensor& ids) const {
    const Shape shape = pipeline.hidden_shape(ids);
    const DType dtype = pipeline.model_.parameters().front().dtype();
    if (x.shape() != shape || x.dtype() != dtype) {
      throw ShapeError(fmt::format("pipeline: hidden states must leave a stage as {} {}, but they are {}",
                                   tessera::name(dtype), tessera::to_string(shape), describe(x)));
    }
    const Layout layout = pipeline.hidden_layout(ids);
    if (!RankContext::current().check_layouts || x.layout() == layout) return;
    throw LayoutError(fmt::format("pipeline: hidden states must leave a stage as {}, but they are {} ({})",
                                  tessera::to_string(layout), tessera::to_string(x.layout()), describe(x)));
  }

  [[nodiscard]] BackwardPass window(const Action& action, BackwardPass::Gradients gradients) {
    int& left = passes_left[static_cast<std::size_t>(action.chunk)];
    if (gradients != BackwardPass::Gradients::kInputs) --left;
    BackwardPass pass{
        .last = left == 0, .stage = static_cast<std::size_t>(action.chunk), .gradients = gradients};
    const MicroBatch& samples = micro_batch(action);
    if (samples.num_samples > 0) pass.sample = samples.first_sample;
    return pass;
  }

  void backward(const Action& action, BackwardPass::Gradients gradients) {
    const Key here{stage(action), action.micro_batch};
    Pass& pass = passes.at(here);
    zero.begin_backward(window(action, gradients));
    Tensor dy;
    if (!pipeline.parts_of(action.chunk).has_head) dy = take(input_gradients, {here.first + 1, here.second});
    const bool splits = gradients == BackwardPass::Gradients::kInputs;
    if (pass.output.requires_grad()) {
      // Where each sample has gradients of its own, none of a weight may come before the pass for weights.
      tessera::backward(pass.output, dy,
                        {.deferred = splits ? &pass.weights : nullptr,
                         .defers_all_leaves = splits && zero.plan().tree_sums,
                         .now = pass.input});
    }
    zero.end_backward();
    pass.output = {};
    if (pass.input.defined()) input_gradients[here] = pass.input.grad().to(pass.input.dtype());
    pass.input = {};
    if (!splits) passes.erase(here);
  }

  void backward_weights(const Action& action) {
    const Key here{stage(action), action.micro_batch};
    zero.begin_backward(window(action, BackwardPass::Gradients::kWeights));
    passes.at(here).weights.run();
    zero.end_backward();
    passes.erase(here);
  }
};

void Pipeline::train(Zero& zero, std::span<const MicroBatch> micro_batches, const Callbacks& callbacks) {
  refuse_if_broken();
  const Schedule& steps = schedule(static_cast<std::int64_t>(micro_batches.size()));
  broken_ = true;  // until all has ended well
  const auto& received = received_.at(static_cast<std::int64_t>(micro_batches.size()));
  Run{*this, zero, steps, micro_batches, callbacks, received}.run();
  broken_ = false;
}

void Pipeline::refuse_if_broken() const {
  if (!broken_) return;
  throw CommError(
      "pipeline: an exception ended a step, in other passes on other ranks, and messages of it may be under "
      "way; begin a new job from the last checkpoint");
}

// --- Without gradients -------------------------------------------------------------------------------------

Tensor Pipeline::logits(Zero& zero, const Tensor& ids, bool last_position, nn::KvCache* cache) {
  const NoGrad no_grad;
  refuse_if_broken();
  const std::int64_t first_position = cache == nullptr ? 0 : cache->length();
  const int num_stages = static_cast<int>(stages_.size());
  Tensor x;  // the output of the stage before, where it is here
  for (int stage = 0; stage < num_stages; ++stage) {
    if (shape_.rank_of(stage) != rank()) continue;
    const int chunk = shape_.chunk_of(stage);
    const StageParts& parts = parts_of(chunk);
    zero.begin_forward(static_cast<std::size_t>(chunk));
    if (parts.embeds) {
      x = model_.embed(ids, first_position);
    } else if (shape_.rank_of(stage - 1) != rank()) {
      x = empty_hidden(ids);
      mesh_.group(kPp).recv(buffer_of(x), shape_.rank_of(stage - 1));
      x.set_layout(hidden_layout(ids));
    }
    x = run_blocks(chunk, x, nullptr, cache);
    if (parts.has_head) {
      if (last_position) x = x.slice(1, x.dim(1) - 1, x.dim(1));
      x = model_.head(x);
    }
    zero.end_forward();
    if (!parts.has_head && shape_.rank_of(stage + 1) != rank())
      mesh_.group(kPp).send(const_buffer_of(x.contiguous()), shape_.rank_of(stage + 1));
  }
  return has_head() ? x : Tensor();
}

}  // namespace tessera::dist
