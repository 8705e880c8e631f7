#include "tests/dist/training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "autograd/ops.h"
#include "dist/data_parallel.h"
#include "kernels/random_key.h"
#include "nn/model_factory.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist::testing {
namespace {

constexpr std::int64_t kTime = 10;
constexpr std::int64_t kIgnored = -100;

std::int64_t token(int step, std::int64_t sample, std::int64_t t) {
  const auto stream = static_cast<std::uint64_t>((step * kGlobalBatch + sample) * (kTime + 1) + t);
  return static_cast<std::int64_t>(kernels::random_key_bits({.seed = 5, .stream = stream}) % kVocab);
}

/// How many of a sample's targets count: all, or three, or (one sample of each batch) none.
std::int64_t num_targets(std::int64_t sample) { return sample == 11 ? 0 : sample % 5 == 0 ? 3 : kTime; }

}  // namespace

std::int64_t num_targets(std::int64_t first, std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int64_t sample = first; sample < first + count; ++sample) sum += num_targets(sample);
  return sum;
}

std::pair<Tensor, Tensor> batch_of(int step, std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> ids, targets;
  for (std::int64_t sample = first; sample < first + count; ++sample) {
    for (std::int64_t t = 0; t < kTime; ++t) {
      ids.push_back(token(step, sample, t));
      targets.push_back(t < num_targets(sample) ? token(step, sample, t + 1) : kIgnored);
    }
  }
  const Shape shape{count, kTime};
  return {from_vector(ids, shape), from_vector(targets, shape)};
}

Tensor sum_of_losses(nn::LanguageModel& model, int step, std::int64_t first, std::int64_t count) {
  const auto [ids, targets] = batch_of(step, first, count);
  return model.loss(ids, targets, Reduction::kSum);
}

namespace {

std::vector<std::pair<std::string, std::vector<double>>> values_of(const NamedTensors& tensors) {
  std::vector<std::pair<std::string, std::vector<double>>> values;
  for (const auto& [name, tensor] : tensors) values.emplace_back(name, tensor.to_vector<double>());
  return values;
}

double difference(double a, double b) {
  const double d = std::abs(a - b) / std::max(1.0, std::abs(b));
  return std::isnan(d) ? std::numeric_limits<double>::infinity() : d;
}

}  // namespace

void freeze(nn::Module& model, const std::vector<std::string>& patterns) {
  for (auto [name, parameter] : model.named_parameters()) {
    for (const std::string& pattern : patterns) {
      if (optim::matches(pattern, name)) parameter.set_requires_grad(false);
    }
  }
}

Trained train(const Training& training, Communicator& group) {
  RankContext context({.rank = group.rank(), .world_size = group.size(), .num_threads = 1, .seed = 17});
  const RankContext::Scope scope(context);
  const auto model = nn::make_language_model(training.model, kVocab);
  model->to(training.dtype);
  freeze(*model, training.frozen);
  model->set_recompute(training.recompute);
  Trained result;
  result.num_parameters = model->num_parameters();
  result.initial_weights = values_of(model->state());

  auto reduced = model->named_parameters();
  // The smallest mistake of its kind: one gain vector of 16 elements.
  if (training.mutant == Mutant::kSkippedParameter) {
    std::erase_if(reduced, [](const auto& p) {
      return p.first == "h.1.ln_2.weight" || p.first == "layers.1.post_attention_layernorm.weight";
    });
  }
  DataParallel parallel(reduced, group, {.bucket_bytes = training.bucket_bytes});
  result.num_buckets = parallel.num_buckets();
  optim::AdamW optimizer(model->named_parameters(), {.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1},
                         optim::no_decay_for_biases_and_norms());

  const std::int64_t per_rank = kGlobalBatch / group.size();
  const std::int64_t micro_batch = training.micro_batch == 0 ? per_rank : training.micro_batch;
  const std::int64_t accumulation = per_rank / micro_batch;
  for (int step = 0; step < training.steps; ++step) {
    context.step = static_cast<std::uint64_t>(step);
    double loss_sum[1] = {0.0};
    for (std::int64_t pass = 0; pass < accumulation; ++pass) {
      const std::int64_t in_share = pass * micro_batch;
      const std::int64_t first = group.rank() * per_rank + in_share;
      context.sample_offset = training.mutant == Mutant::kSharedSampleOffset ? in_share : first;
      const bool last = pass == accumulation - 1;
      parallel.reduce_in_next_backward((last && training.mutant != Mutant::kClippedLocally) ||
                                       training.mutant == Mutant::kReducedEveryPass);
      const Tensor loss = sum_of_losses(
          *model, step, training.mutant == Mutant::kSharedSamples ? in_share : first, micro_batch);
      loss_sum[0] += loss.item();
      const double divisor =
          training.mutant == Mutant::kMeanOfMeans
              ? static_cast<double>(num_targets(group.rank() * per_rank, per_rank) * group.size())
              : static_cast<double>(num_targets(0, kGlobalBatch));
      (loss / divisor).backward();
      if (training.mutant == Mutant::kReducedEveryPass) parallel.wait();
    }
    optim::GradNorm norm;
    if (training.mutant == Mutant::kClippedLocally) {
      norm = optim::global_grad_norm(optimizer.parameters());
      parallel.reduce_in_next_backward(true);  // all buckets start in wait()
    }
    parallel.wait();
    if (training.mutant != Mutant::kClippedLocally) norm = optim::global_grad_norm(optimizer.parameters());
    optimizer.step({.grad_scale = optim::clip_factor(norm, kMaxNorm)});
    optimizer.zero_grad();
    group.all_reduce(buffer_of(loss_sum));
    result.losses.push_back(loss_sum[0] / static_cast<double>(num_targets(0, kGlobalBatch)));
    result.grad_norms.push_back(norm.value);
  }
  result.weights = values_of(model->state());
  return result;
}

Trained train_alone(Training training) {
  training.micro_batch = 0;
  training.recompute = false;
  training.mutant = Mutant::kNone;
  const auto self = make_self_communicator(std::make_shared<Tape>());
  return train(training, *self);
}

double largest_loss_difference(const Trained& a, const Trained& b) {
  double largest = a.losses.size() == b.losses.size() ? 0.0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < std::min(a.losses.size(), b.losses.size()); ++i) {
    largest = std::max(largest, difference(a.losses[i], b.losses[i]));
  }
  return largest;
}

double largest_weight_difference(const Trained& a, const Trained& b) {
  double largest = a.weights.size() == b.weights.size() ? 0.0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < std::min(a.weights.size(), b.weights.size()); ++i) {
    const auto& [name, ours] = a.weights[i];
    const auto& [other_name, theirs] = b.weights[i];
    if (name != other_name || ours.size() != theirs.size()) return std::numeric_limits<double>::infinity();
    for (std::size_t j = 0; j < ours.size(); ++j) largest = std::max(largest, difference(ours[j], theirs[j]));
  }
  return largest;
}

}  // namespace tessera::dist::testing
