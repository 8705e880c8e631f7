#include "tests/dist/zero_training.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "autograd/ops.h"
#include "dist/tensor_parallel.h"
#include "dist/vocab_parallel.h"
#include "nn/model_factory.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::testing {
namespace {

std::vector<std::pair<std::string, std::vector<double>>> whole_values(const Zero& zero) {
  std::vector<std::pair<std::string, std::vector<double>>> values;
  for (const ZeroParameter& parameter : zero.plan().parameters) {
    const std::string& name = parameter.record.name;
    values.emplace_back(name, zero.whole(name).to_vector<double>());
  }
  return values;
}

std::vector<ZeroTraffic> traffic_of(const Tape& tape) {
  std::vector<ZeroTraffic> rows;
  for (const TapeTotal& total : tape.totals()) {
    if (total.group.starts_with("dp")) rows.push_back({total.group, total.op, total.calls, total.sent_bytes});
  }
  return rows;
}

bool is_step(const std::string& state_name) { return state_name.ends_with("/step"); }
std::string parameter_of(const std::string& state_name) { return state_name.substr(0, state_name.find('/')); }

ZeroSaved save(int step, const Zero& zero, optim::Optimizer& optimizer) {
  ZeroSaved saved{.step = step};
  for (const ZeroParameter& parameter : zero.plan().parameters) {
    saved.parameters.emplace_back(parameter.record.name, zero.whole(parameter.record.name));
  }
  for (const auto& [name, piece] : optimizer.state()) {
    saved.optimizer.emplace_back(name, is_step(name) ? piece : zero.whole(parameter_of(name), piece));
  }
  return saved;
}

void restore(const ZeroSaved& saved, Zero& zero, optim::Optimizer& optimizer) {
  for (const auto& [name, whole] : saved.parameters) zero.load(name, whole);
  NamedTensors pieces;
  for (const auto& [name, whole] : saved.optimizer) {
    pieces.emplace_back(name, is_step(name) ? whole : zero.piece(parameter_of(name), whole));
  }
  optimizer.load_state(pieces);
}

// --- Over tensor parallelism, where there is a tp axis

ZeroOptions with_tensor_parts(ZeroOptions options, const std::optional<LaidOut>& laid_out, const Mesh& mesh) {
  if (!laid_out) return options;
  options.tensor_parts.whole = [&](const std::string& name, const Tensor& local) {
    return laid_out->whole(name, local, mesh);
  };
  options.tensor_parts.part = [&](const std::string& name, const Tensor& whole) {
    return laid_out->placement(name).own_part(whole);
  };
  return options;
}

FillParameter fill_of(const std::optional<LaidOut>& laid_out) {
  if (!laid_out) return nullptr;
  return [&laid_out](const nn::ParameterRecord& record, Tensor& local) {
    laid_out->placement(record.name).fill_initial(record, local);
  };
}

Tensor laid_out_loss(nn::LanguageModel& model, const Mesh& mesh, std::pair<Tensor, Tensor> batch) {
  auto& [ids, targets] = batch;
  RankContext::current().sequence_length = ids.dim(1);
  if (mesh.size(MeshAxis::kDp) > 1) {
    for (Tensor* x : {&ids, &targets}) {
      x->set_layout(Layout().with(MeshAxis::kDp, AxisLayout::sharded(0, AxisLayout::Order::kPacked)));
    }
  }
  return vocab_parallel_cross_entropy(model.logits(ids), targets, kVocab, mesh, MeshAxis::kTp,
                                      {.reduction = Reduction::kSum});
}

ZeroTrained train(Job& job, const ZeroTraining& training) {
  Communicator& world = job.world();
  RankContext context({.rank = world.rank(), .world_size = world.size(), .num_threads = 1, .seed = 17});
  const RankContext::Scope scope(context);
  const MeshShape shape =
      MeshShape::parse(training.mesh.empty() ? fmt::format("dp={}", world.size()) : training.mesh);
  const Mesh mesh(shape, job.shared_world());
  const MemoryPool& pool = *context.pool(cpu);
  ZeroTrained result;

  const auto model = [&training] {
    const DeviceScope on_meta(meta);
    auto built = nn::make_language_model(training.model, kVocab);
    built->to(training.dtype);
    return built;
  }();
  model->set_recompute(training.recompute);
  freeze(*model, training.frozen);
  std::optional<LaidOut> laid_out;
  if (mesh.size(MeshAxis::kTp) > 1) {
    laid_out = lay_out(*model, tensor_parallel_plan(*model, mesh.size(MeshAxis::kTp)), mesh,
                       {.sequence_parallel = training.sequence_parallel});
  }
  Zero zero(*model, mesh, with_tensor_parts(training.zero, laid_out, mesh), fill_of(laid_out));
  result.after_construction = pool.report();
  result.trained.num_parameters = model->num_parameters();
  result.trained.initial_weights = whole_values(zero);
  optim::AdamW optimizer(zero.pieces(), {.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1},
                         optim::no_decay_for_biases_and_norms());

  if (training.from != nullptr) restore(*training.from, zero, optimizer);
  if (training.prepare) training.prepare(*model, job);

  Communicator& data = mesh.group(MeshAxis::kDp, MeshAxis::kCp);
  const std::int64_t per_rank = kGlobalBatch / data.size();
  const std::int64_t micro_batch = training.micro_batch == 0 ? per_rank : training.micro_batch;
  const std::int64_t accumulation = per_rank / micro_batch;
  const auto valid = static_cast<double>(num_targets(0, kGlobalBatch));
  const int first_step = training.from == nullptr ? 0 : training.from->step;
  for (int step = first_step; step < training.steps; ++step) {
    context.step = static_cast<std::uint64_t>(step);
    context.pool(cpu)->reset_peak();
    job.tape().reset_totals();
    double loss_sum[1] = {0.0};
    for (std::int64_t pass = 0; pass < accumulation; ++pass) {
      const std::int64_t first = data.rank() * per_rank + pass * micro_batch;
      context.sample_offset = first;
      const Tensor loss = laid_out ? laid_out_loss(*model, mesh, batch_of(step, first, micro_batch))
                                   : sum_of_losses(*model, step, first, micro_batch);
      loss_sum[0] += loss.item();
      zero.begin_backward(pass == accumulation - 1);
      (loss / valid).backward();
      zero.end_backward();
    }
    zero.finish_gradients();
    const double norm = std::sqrt(zero.global_grad_sum_of_squares());
    optimizer.step({.grad_scale = optim::clip_factor(norm, kMaxNorm)});
    zero.after_update();
    zero.zero_gradients();
    result.traffic = traffic_of(job.tape());
    result.between_steps = pool.report();
    data.all_reduce(buffer_of(loss_sum));
    result.trained.losses.push_back(loss_sum[0] / valid);
    result.trained.grad_norms.push_back(norm);
    if (training.after_step) training.after_step(*model, job, step);
  }
  result.trained.weights = whole_values(zero);
  // Moments have the parameter's dtype, or f32 and a master beside them.
  const std::int64_t optimizer_bytes = training.dtype == kF64 ? 16 : training.dtype == kF32 ? 8 : 12;
  result.predicted_memory = zero.predicted_memory(optimizer_bytes);
  result.predicted_traffic = zero.predicted_traffic(static_cast<int>(accumulation));
  result.plan = zero.plan();
  result.saved = save(training.steps, zero, optimizer);
  return result;
}

}  // namespace

std::vector<ZeroTrained> train_with_zero(int num_ranks, const ZeroTraining& training) {
  std::vector<ZeroTrained> results(static_cast<std::size_t>(num_ranks));
  run_thread_ranks(num_ranks,
                   [&](Job& job) { results[static_cast<std::size_t>(job.rank())] = train(job, training); });
  return results;
}

}  // namespace tessera::dist::testing
