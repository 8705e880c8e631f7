// What an engine's model is asked beside training, over all ranks: losses of other sequences, and new tokens.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/engine.h"
#include "dist/engine_parts.h"
#include "kernels/error.h"
#include "nn/evaluation_scope.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kPp = MeshAxis::kPp, kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;
constexpr std::int64_t kIgnoredTarget = CrossEntropyConfig{}.ignore_index;

}  // namespace

Engine::LossSum Engine::evaluate(std::span<const std::int64_t> inputs, std::span<const std::int64_t> targets,
                                 std::int64_t count) {
  const NoGrad no_grad;
  double sum = 0.0;
  {
    const nn::EvaluationScope evaluation(model_);
    set_context(0);
    if (parts_->pipeline != nullptr) {
      Tensor logits = parts_->pipeline->logits(*parts_->zero, own_tokens(inputs, count));
      if (logits.defined()) sum = loss_of(std::move(logits), own_tokens(targets, count)).item();
    } else {
      sum = loss_sum(own_tokens(inputs, count), own_tokens(targets, count)).item();
    }
    clear_context();
  }
  mesh_.group(kPp, kCp).all_reduce(buffer_of(std::span(&sum, 1)));
  return {.sum = sum, .targets = std::ranges::count_if(targets, [](auto t) { return t != kIgnoredTarget; })};
}

// On every rank, from those that have the head.
Tensor Engine::next_logits(const Tensor& ids, nn::KvCache* cache) {
  Tensor logits = parts_->pipeline == nullptr
                      ? model_.next_logits(ids, cache)
                      : parts_->pipeline->logits(*parts_->zero, ids, /*last_position=*/true, cache);
  if (logits.defined() && logits.dim(-1) != model_.vocab())
    logits = all_gather(logits, -1, mesh_, kTp, model_.vocab());
  if (parts_->pipeline == nullptr) return logits;
  const Shape shape{ids.dim(0), model_.vocab()};
  Tensor everywhere =
      logits.defined() ? logits.contiguous().reshape(shape).to(kF64) : empty(shape, {.dtype = kF64});
  mesh_.group(kPp).broadcast(buffer_of(everywhere), parts_->pipeline->head_rank());
  return everywhere;
}

std::vector<std::int64_t> Engine::generate(std::span<const std::int64_t> prompt,
                                           nn::GenerateOptions options) {
  if (mesh_.size(kCp) > 1 || (config_.sequence_parallel && mesh_.size(kTp) > 1)) {
    throw ConfigError(fmt::format(
        "generate: {} cuts sequences, and a new token has none to cut; save a checkpoint, and load it "
        "on a mesh without",
        mesh_.size(kCp) > 1 ? "cp" : "sequence_parallel"));
  }
  clear_context();
  options.next_logits = [this](const Tensor& ids, nn::KvCache* cache) { return next_logits(ids, cache); };
  return nn::generate(model_, prompt, options);
}

}  // namespace tessera::dist
