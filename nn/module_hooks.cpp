// Hooks around forward and backward. Those on backward ride on the graph: the inputs and the outputs of the
// module pass through a node that changes nothing. A node is visited when all gradients of its outputs have
// arrived, so the node behind the module's outputs tells that its backward pass begins, the one before its
// inputs that it has ended.

#include "nn/module_hooks.h"

#include <algorithm>
#include <ranges>

#include "autograd/checkpoint.h"
#include "autograd/graph.h"

namespace tessera::nn {
namespace {

// Puts one node behind those of `tensors` that are in a graph; `notify` sees a gradient for each of
// `tensors`, undefined for the others.
void pass_through(const char* operation, std::span<Tensor> tensors,
                  std::function<void(std::span<const Tensor>)> notify) {
  std::vector<std::reference_wrapper<const Tensor>> inputs;
  std::vector<std::size_t> positions;
  std::vector<Tensor> outputs;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].requires_grad()) continue;
    positions.push_back(i);
    inputs.emplace_back(tensors[i]);
    outputs.push_back(tensors[i].detach());
  }
  if (inputs.empty() || !RankContext::current().grad_enabled) return;
  record_many(
      operation, outputs, inputs,
      [notify = std::move(notify), positions, count = tensors.size()](std::span<const Tensor> dys, Needs) {
        std::vector<Tensor> gradients(count);
        for (std::size_t i = 0; i < positions.size(); ++i) gradients[positions[i]] = dys[i];
        notify(gradients);
        return Grads(dys.begin(), dys.end());
      });
  for (std::size_t i = 0; i < positions.size(); ++i) {
    keep_recomputable(tensors[positions[i]], outputs[i]);
    tensors[positions[i]] = outputs[i];
  }
}

template <class F>
void erase(std::vector<std::pair<HookId, F>>& hooks, HookId id) {
  std::erase_if(hooks, [id](const auto& hook) { return hook.first == id; });
}

}  // namespace

Module::Hooks& Module::hooks() {
  if (hooks_ == nullptr) hooks_ = std::make_unique<Hooks>();
  return *hooks_;
}

HookId Module::add_forward_pre_hook(ForwardHook hook) {
  hooks().before_forward.emplace_back(++hooks().last_id, std::move(hook));
  return hooks_->last_id;
}

HookId Module::add_forward_hook(ForwardHook hook) {
  hooks().after_forward.emplace_back(++hooks().last_id, std::move(hook));
  return hooks_->last_id;
}

HookId Module::add_backward_pre_hook(BackwardHook hook) {
  hooks().before_backward.emplace_back(++hooks().last_id, std::move(hook));
  return hooks_->last_id;
}

HookId Module::add_backward_hook(BackwardHook hook) {
  hooks().after_backward.emplace_back(++hooks().last_id, std::move(hook));
  return hooks_->last_id;
}

void Module::remove_hook(HookId id) {
  if (hooks_ == nullptr) return;
  erase(hooks_->before_forward, id);
  erase(hooks_->after_forward, id);
  erase(hooks_->before_backward, id);
  erase(hooks_->after_backward, id);
}

// Each list is copied before it is walked: a hook may add and remove hooks.

void Module::before_forward(std::span<Tensor> inputs) {
  const auto pre_hooks = hooks_->before_forward;
  for (const auto& [id, hook] : pre_hooks) hook(*this, inputs);
  if (hooks_->after_backward.empty()) return;
  pass_through("module_inputs", inputs, [this](std::span<const Tensor> gradients) {
    const auto hooks = hooks_->after_backward;
    for (const auto& [id, hook] : hooks | std::views::reverse) hook(*this, gradients);
  });
}

void Module::after_forward(std::span<Tensor> outputs) {
  const auto post_hooks = hooks_->after_forward;
  for (const auto& [id, hook] : post_hooks | std::views::reverse) hook(*this, outputs);
  if (hooks_->before_backward.empty()) return;
  pass_through("module_outputs", outputs, [this](std::span<const Tensor> gradients) {
    const auto hooks = hooks_->before_backward;
    for (const auto& [id, hook] : hooks) hook(*this, gradients);
  });
}

}  // namespace tessera::nn
