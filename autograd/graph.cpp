#include "autograd/graph.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera {

// --- Saved values ------------------------------------------------------------------------------------------

Saved::Saved(Tensor value) : value_(std::move(value)), version_(value_.storage().version()) {}

// A value that several may have saved and the first one that needs it makes.
struct Saved::Remade {
  std::shared_ptr<Recipe> recipe;
  Tensor value;
};

Saved::Saved(const std::shared_ptr<Recipe>& recipe) : remade_(recipe->made.lock()) {
  if (remade_ != nullptr) return;
  remade_ = std::make_shared<Remade>(recipe, Tensor());
  recipe->made = remade_;
}

bool Saved::is_sole_owner() const { return get().is_unshared() && remade_.use_count() <= 1; }

const Tensor& Saved::get() const {
  if (remade_ != nullptr) {
    if (!remade_->value.defined()) remade_->value = remade_->recipe->make();
    return remade_->value;
  }
  if (value_.storage().version() != version_) {
    throw AutogradError(fmt::format(
        "a value {} that was saved for the backward pass{} has been changed in place since (version {}, "
        "saved as {}); clone it before the change",
        describe(value_), value_.storage().name().empty() ? "" : " ('" + value_.storage().name() + "')",
        value_.storage().version(), version_));
  }
  return value_;
}

Saved saved(const Tensor& input) {
  const GradInfo* info = grad_info(input);
  if (info != nullptr && !info->is_leaf()) {
    const auto& recipe = info->producer->outputs[static_cast<std::size_t>(info->output_index)].recipe;
    if (recipe != nullptr && recipe->version == input.storage().version()) return Saved(recipe);
  }
  return Saved(input);
}
Saved saved_if(bool condition, const Tensor& input) { return condition ? saved(input) : Saved(); }
Saved saved_output(const Tensor& output) { return Saved(output.detach()); }

// --- Recording ---------------------------------------------------------------------------------------------

namespace {

std::shared_ptr<GradInfo> shared_info(const Tensor& x) {
  return std::static_pointer_cast<GradInfo>(x.autograd_meta());
}

}  // namespace

GradInfo* grad_info(const Tensor& x) { return static_cast<GradInfo*>(x.autograd_meta().get()); }

DType gradient_dtype(const Tensor& x) {
  const GradInfo* info = grad_info(x);
  return info != nullptr && info->is_leaf() ? info->grad_dtype : x.dtype();
}

namespace detail {

bool must_record(std::span<const std::reference_wrapper<const Tensor>> inputs) {
  bool any = false;
  // Every input is asked, not only up to the first: the question also tells recomputation which leaves are
  // read.
  for (const Tensor& input : inputs) any |= must_record(input);
  return any;
}

void attach(const char* operation, std::span<Tensor> outputs,
            std::span<const std::reference_wrapper<const Tensor>> inputs, BackwardMany backward) {
  auto node = std::make_shared<Node>();
  node->operation = operation;
  node->sequence = RankContext::current().next_graph_sequence++;
  node->backward = std::move(backward);
  node->inputs.reserve(inputs.size());
  for (const Tensor& input : inputs)
    node->inputs.push_back(input.requires_grad() ? shared_info(input) : nullptr);
  node->outputs.reserve(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    node->outputs.push_back({outputs[i].shape(), outputs[i].dtype(), {}, nullptr});
    if (!is_floating(outputs[i].dtype())) continue;
    auto info = std::make_shared<GradInfo>();
    info->producer = node;
    info->output_index = static_cast<int>(i);
    outputs[i].set_autograd_meta(std::move(info));
  }
}

BackwardMany single_output(Backward backward) {
  return [backward = std::move(backward)](std::span<const Tensor> dys, Needs needs) {
    return backward(dys[0], needs);
  };
}

}  // namespace detail

void GradInfo::record(const char* operation, const Tensor& input, Tensor& output,
                      std::function<Tensor(const Tensor&)> backward) const {
  const std::reference_wrapper<const Tensor> inputs[] = {input};
  detail::attach(operation, std::span(&output, 1), inputs,
                 [backward = std::move(backward)](std::span<const Tensor> dys, Needs) -> Grads {
                   return {backward(dys[0])};
                 });
}

Tensor Needs::sum_so_far(std::size_t input) const {
  if (summed_.empty() || !wanted_[input]) return {};
  const GradInfo& info = *summed_[input];
  return info.is_leaf() && info.hooks.empty() ? info.grad : Tensor();
}

void Node::free() noexcept {
  backward = nullptr;
  for (Output& output : outputs) output.recipe = nullptr;
}

Node::~Node() {
  // Values that closures saved hold the inputs too; they go first, while `open` still holds every input.
  free();
  std::vector<std::shared_ptr<GradInfo>> open = std::move(inputs);
  while (!open.empty()) {
    const std::shared_ptr<GradInfo> info = std::move(open.back());
    open.pop_back();
    // Only the last holder takes the producer along: of x·x, the second use of x.
    if (info == nullptr || info.use_count() > 1) continue;
    const std::shared_ptr<Node> producer = std::move(info->producer);
    if (producer == nullptr || producer.use_count() > 1) continue;
    producer->free();
    for (auto& input : producer->inputs) open.push_back(std::move(input));
  }
}

// --- Hooks -------------------------------------------------------------------------------------------------

void register_hook(const Tensor& x, GradHook hook) {
  GradInfo* info = x.requires_grad() ? grad_info(x) : nullptr;
  if (info == nullptr)
    throw AutogradError(fmt::format("register_hook: {} does not require gradients", describe(x)));
  auto& hooks = info->is_leaf() ? info->hooks
                                : info->producer->outputs[static_cast<std::size_t>(info->output_index)].hooks;
  hooks.push_back(std::move(hook));
}

void register_accumulated_hook(const Tensor& leaf, AccumulatedHook hook) {
  GradInfo* info = leaf.requires_grad() ? grad_info(leaf) : nullptr;
  if (info == nullptr || !info->is_leaf()) {
    throw AutogradError(
        fmt::format("register_accumulated_hook: {} is not a leaf that requires gradients", describe(leaf)));
  }
  info->accumulated_hooks.push_back(std::move(hook));
}

}  // namespace tessera
