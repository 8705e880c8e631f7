// The backward pass. Nodes are visited by falling sequence number: every consumer of a value was recorded
// after the node that made it, so when a node is reached, its gradient is complete. A first walk counts the
// uses of each leaf, so that its hooks run as soon as the last contribution has arrived, in the middle of the
// pass.

#include "autograd/backward.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera {

struct DeferredGradients::Task {
  std::shared_ptr<Node> node;
  std::vector<Tensor> dys;
  std::vector<std::uint8_t> wanted;  // by input
  bool retain_graph;
};

// The sum so far of a leaf whose hooks wait for what is deferred.
struct DeferredGradients::PartialSum {
  std::shared_ptr<GradInfo> leaf;
  Tensor sum;
};

DeferredGradients::DeferredGradients() = default;
DeferredGradients::~DeferredGradients() = default;
DeferredGradients::DeferredGradients(DeferredGradients&&) noexcept = default;
DeferredGradients& DeferredGradients::operator=(DeferredGradients&&) noexcept = default;
bool DeferredGradients::empty() const noexcept { return tasks_.empty(); }

namespace {

// sum ← sum + x. The first contribution becomes the sum itself; it is copied before the first addition if
// anybody else could see its memory.
void add_to(Tensor& sum, const Tensor& x) {
  if (!sum.defined()) {
    sum = x;
    return;
  }
  if (!sum.is_unshared() || !sum.is_contiguous()) sum = sum.clone();
  sum.add_scaled(x);
}

void accumulate_into_leaf(GradInfo& leaf, const Tensor& contribution) {
  if (leaf.grad.defined()) {
    leaf.grad.add_scaled(contribution);
    return;
  }
  const CategoryScope category(MemoryCategory::kGradient);
  // The caller's handle is one; a second would be somebody who may still read this memory.
  const bool unique =
      contribution.is_unshared() &&
      static_cast<std::int64_t>(contribution.storage().size_bytes()) == contribution.size_bytes();
  if (unique && contribution.is_contiguous() && contribution.dtype() == leaf.grad_dtype) {
    leaf.grad = contribution;
    Storage storage = contribution.storage();
    storage.set_category(MemoryCategory::kGradient);
  } else {
    leaf.grad = empty(contribution.shape(), {.dtype = leaf.grad_dtype, .device = contribution.device()});
    leaf.grad.copy_from(contribution);
  }
}

// Runs hooks, each on what the one before made of the gradient.
void run_hooks(const std::vector<GradHook>& hooks, Tensor& gradient) {
  for (const GradHook& hook : hooks) {
    Tensor replaced = hook(gradient);
    if (!replaced.defined()) continue;
    if (replaced.shape() != gradient.shape()) {
      throw ShapeError(fmt::format("backward: a hook replaced a gradient {} by {}; they must have one shape",
                                   describe(gradient), describe(replaced)));
    }
    gradient = std::move(replaced);
  }
}

// Runs a node's closure; what it finds wrong with a saved value is told with the operation that saved it.
Grads call_backward(const Node& node, std::span<const Tensor> dys, Needs needs) {
  const auto told = [&node](const Error& error) {
    return fmt::format("backward of '{}': {}", node.operation, error.what());
  };
  try {
    Grads grads = node.backward(dys, needs);
    grads.resize(node.inputs.size());
    return grads;
  } catch (const AutogradError& error) {
    throw AutogradError(told(error), error.where());
  } catch (const StorageError& error) {
    throw StorageError(told(error), error.where());
  }
}

}  // namespace

class BackwardPass {
 public:
  /// Accumulates into the leaves.
  explicit BackwardPass(const BackwardOptions& options) : options_(options) {}
  /// Collects the gradients of `wanted` instead. With `stop_at_wanted`, the pass ends at these tensors and
  /// does not go on to what they were made from.
  BackwardPass(const BackwardOptions& options, std::span<const Tensor> wanted, bool stop_at_wanted)
      : options_(options), collect_(true), stop_at_wanted_(stop_at_wanted) {
    for (const Tensor& x : wanted) {
      if (x.requires_grad()) wanted_.insert(grad_info(x));
    }
  }

  void run(std::span<const Tensor> roots, std::span<const Tensor> gradients) {
    const NoGrad no_grad;
    const LayoutChecks no_layout_checks(false);
    for (const Tensor& root : roots) {
      if (!root.requires_grad()) {
        throw AutogradError(fmt::format("backward: {} does not depend on any tensor that requires gradients",
                                        describe(root)));
      }
      find_nodes(std::static_pointer_cast<GradInfo>(root.autograd_meta()));
    }
    if (collect_) find_wanted_nodes();
    for (std::size_t i = 0; i < roots.size(); ++i) {
      deliver(std::static_pointer_cast<GradInfo>(roots[i].autograd_meta()),
              root_gradient(roots[i], gradients, i));
    }
    while (!ready_.empty()) {
      const std::shared_ptr<Node> node = ready_.top();
      ready_.pop();
      visit(node);
    }
    if (options_.deferred != nullptr) hand_over_partial_sums();
  }

  // The gradient collected for `x`, if x was wanted and reached.
  [[nodiscard]] Tensor collected(const Tensor& x) const {
    if (!x.requires_grad()) return {};
    const auto found = results_.find(grad_info(x));
    return found == results_.end() ? Tensor() : found->second;
  }

  static void run_deferred(std::vector<DeferredGradients::Task> tasks,
                           std::vector<DeferredGradients::PartialSum> partial_sums) {
    const NoGrad no_grad;
    const LayoutChecks no_layout_checks(false);
    const BackwardOptions options;
    BackwardPass pass(options);
    for (auto& [leaf, sum] : partial_sums) add_to(pass.results_[leaf.get()], std::exchange(sum, Tensor()));
    for (const auto& task : tasks) {
      for (std::size_t i = 0; i < task.node->inputs.size(); ++i) {
        if (task.wanted[i] != 0) ++pass.uses_left_[task.node->inputs[i].get()];
      }
    }
    for (auto& task : tasks) {
      Grads grads =
          call_backward(*task.node, task.dys, Needs(task.wanted, !task.retain_graph, task.node->inputs));
      if (!task.retain_graph) task.node->free();
      task.dys.clear();
      for (std::size_t i = 0; i < grads.size(); ++i) {
        if (task.wanted[i] != 0)
          pass.deliver_to_leaf(*task.node->inputs[i], std::exchange(grads[i], Tensor()));
      }
    }
  }

 private:
  struct Later {
    bool operator()(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) const {
      return a->sequence < b->sequence;
    }
  };

  static Tensor root_gradient(const Tensor& root, std::span<const Tensor> gradients, std::size_t i) {
    if (i < gradients.size() && gradients[i].defined()) {
      if (gradients[i].shape() != root.shape()) {
        throw ShapeError(fmt::format("backward: the gradient of a root {} has shape {}", describe(root),
                                     to_string(gradients[i].shape())));
      }
      return gradients[i].detach();
    }
    if (root.num_elements() != 1) {
      throw ShapeError(fmt::format(
          "backward: a root of {} needs a gradient; only a scalar has an implied one", describe(root)));
    }
    refuse_replicated(root);
    return ones_like(root);
  }

  // 1 on each of R ranks would be R in all: gradients of R are parts of a sum over the ranks. On every other
  // axis 1 is right: a partial sum and an invariant value have the same gradient on every rank.
  static void refuse_replicated(const Tensor& root) {
    for (const MeshAxis axis : kMeshAxes) {
      if (!root.layout()[axis].is_replicated()) continue;
      throw LayoutError(fmt::format(
          "backward: the root {} is replicated (R) on {}: each rank would begin with a gradient of 1, and "
          "their "
          "sum is taken. Compute it from what is cut (a loss of S(d) tokens is P, and "
          "dist::vocab_parallel_cross_entropy takes cut logits), or pass a gradient: 1/R on each of R ranks",
          describe(root), name(axis)));
    }
  }

  // Walks everything below `info` once; counts the uses of each leaf.
  void find_nodes(const std::shared_ptr<GradInfo>& info) {
    std::vector<std::shared_ptr<GradInfo>> open{info};
    while (!open.empty()) {
      const std::shared_ptr<GradInfo> next = std::move(open.back());
      open.pop_back();
      if (ends_at(*next)) {
        ++uses_left_[next.get()];
        continue;
      }
      if (!nodes_.emplace(next->producer.get(), true).second) continue;
      if (!next->producer->backward) {
        throw AutogradError(
            fmt::format("backward: the graph of '{}' was freed by an earlier backward pass; run the forward "
                        "pass again, or pass retain_graph to the earlier backward",
                        next->producer->operation));
      }
      for (const auto& input : next->producer->inputs) {
        if (input != nullptr) open.push_back(input);
      }
    }
  }

  // Keeps only the nodes on a path to a wanted tensor; inputs have smaller numbers, so one sweep upwards
  // settles it.
  void find_wanted_nodes() {
    std::vector<Node*> order;
    for (const auto& [node, needed] : nodes_) order.push_back(node);
    std::sort(order.begin(), order.end(),
              [](const Node* a, const Node* b) { return a->sequence < b->sequence; });
    for (Node* node : order)
      nodes_[node] = std::ranges::any_of(node->inputs, [this](const auto& in) { return leads_on(in); });
  }

  [[nodiscard]] bool leads_on(const std::shared_ptr<GradInfo>& info) const {
    if (info == nullptr) return false;
    if (!collect_ || wanted_.contains(info.get())) return true;
    if (info->is_leaf()) return false;
    return nodes_.at(info->producer.get());
  }

  [[nodiscard]] bool ends_at(GradInfo& info) const {
    return info.is_leaf() || (stop_at_wanted_ && wanted_.contains(&info));
  }

  void deliver(const std::shared_ptr<GradInfo>& info, const Tensor& gradient) {
    if (ends_at(*info)) {
      deliver_to_leaf(*info, gradient);
      return;
    }
    // Its node is visited even if it need not run: a wanted intermediate result is collected there.
    auto& slots = pending_[info->producer.get()];
    if (slots.empty()) {
      slots.resize(info->producer->outputs.size());
      ready_.push(info->producer);
    }
    if (collect_ && wanted_.contains(info.get())) wanted_outputs_[info->producer.get()].push_back(info.get());
    if (gradient.defined()) add_to(slots[static_cast<std::size_t>(info->output_index)], gradient);
  }

  void deliver_to_leaf(GradInfo& leaf, const Tensor& gradient) {
    const bool last = --uses_left_[&leaf] == 0;
    if (collect_) {
      if (wanted_.contains(&leaf) && gradient.defined()) add_to(results_[&leaf], gradient);
      return;
    }
    // With a hook, the sum over this pass must be complete before the hook sees it.
    if (!leaf.hooks.empty()) {
      if (gradient.defined()) add_to(results_[&leaf], gradient);
      if (!last || !results_[&leaf].defined()) return finish_leaf(leaf, last);
      Tensor sum = results_[&leaf];
      results_.erase(&leaf);
      run_hooks(leaf.hooks, sum);
      accumulate_into_leaf(leaf, sum);
    } else if (gradient.defined()) {
      accumulate_into_leaf(leaf, gradient);
    }
    finish_leaf(leaf, last);
  }

  // A leaf with hooks that is used here and also by a deferred operation: what has come of its gradient until
  // now waits for the rest.
  void hand_over_partial_sums() {
    for (const auto& task : options_.deferred->tasks_) {
      for (const auto& input : task.node->inputs) {
        const auto found = input == nullptr ? results_.end() : results_.find(input.get());
        if (found == results_.end()) continue;
        options_.deferred->partial_sums_.push_back({input, std::move(found->second)});
        results_.erase(found);
      }
    }
  }

  // Whether a leaf's gradient is one of those that are put off, if any are.
  [[nodiscard]] bool can_wait(const GradInfo& info) const {
    if (!info.is_leaf()) return false;
    return !options_.defers_all_leaves || !options_.now.defined() || grad_info(options_.now) != &info;
  }

  static void finish_leaf(GradInfo& leaf, bool last) {
    if (!last) return;
    for (const AccumulatedHook& hook : leaf.accumulated_hooks) hook(leaf.grad);
  }

  void visit(const std::shared_ptr<Node>& node) {
    std::vector<Tensor> dys = std::move(pending_[node.get()]);
    pending_.erase(node.get());
    for (std::size_t i = 0; i < dys.size(); ++i) {
      if (dys[i].defined()) run_hooks(node->outputs[i].hooks, dys[i]);
    }
    if (const auto found = wanted_outputs_.find(node.get()); found != wanted_outputs_.end()) {
      for (GradInfo* info : found->second) results_[info] = dys[static_cast<std::size_t>(info->output_index)];
    }
    // Which gradients to compute now, and which to leave for later.
    const std::size_t num_inputs = node->inputs.size();
    std::vector<std::uint8_t> now(num_inputs), later(num_inputs);
    bool any_later = false, any_other = false;
    for (std::size_t i = 0; i < num_inputs; ++i) {
      if (!leads_on(node->inputs[i])) continue;
      now[i] = 1;
      (can_wait(*node->inputs[i]) ? any_later : any_other) = true;
    }
    if (!any_later && !any_other) return;
    const bool any_dy = std::ranges::any_of(dys, [](const Tensor& dy) { return dy.defined(); });
    const bool defer =
        options_.deferred != nullptr && any_later && (any_other || options_.defers_all_leaves) && any_dy;
    if (defer) {
      for (std::size_t i = 0; i < num_inputs; ++i) {
        if (now[i] != 0 && can_wait(*node->inputs[i])) std::swap(now[i], later[i]);
      }
    }
    Grads grads(num_inputs);
    // Operations may rely on the dtype of their outputs' gradients.
    for (std::size_t i = 0; i < dys.size(); ++i) {
      if (dys[i].defined()) dys[i] = dys[i].to(node->outputs[i].dtype);
    }
    if (any_dy && (any_other || !defer))
      grads = call_backward(*node, dys,
                            Needs(now, !options_.retain_graph && !defer,
                                  collect_ ? std::span<const std::shared_ptr<GradInfo>>() : node->inputs));
    if (defer) {
      options_.deferred->tasks_.push_back({node, std::move(dys), std::move(later), options_.retain_graph});
    } else if (!options_.retain_graph) {
      node->free();
    }
    dys.clear();
    for (std::size_t i = 0; i < num_inputs; ++i) {
      // Moved out, so that the last holder of a gradient can take over its memory.
      if (now[i] != 0) deliver(node->inputs[i], std::exchange(grads[i], Tensor()));
    }
  }

  const BackwardOptions& options_;
  bool collect_ = false;
  bool stop_at_wanted_ = false;
  std::unordered_set<GradInfo*> wanted_;
  std::unordered_map<Node*, bool> nodes_;  // reached nodes; whether a gradient must pass through
  std::unordered_map<GradInfo*, int> uses_left_;
  std::unordered_map<Node*, std::vector<Tensor>> pending_;
  std::unordered_map<Node*, std::vector<GradInfo*>> wanted_outputs_;
  std::unordered_map<GradInfo*, Tensor> results_;
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, Later> ready_;
};

void DeferredGradients::run() {
  BackwardPass::run_deferred(std::exchange(tasks_, {}), std::exchange(partial_sums_, {}));
}

void backward(std::span<const Tensor> roots, std::span<const Tensor> gradients,
              const BackwardOptions& options) {
  BackwardPass(options).run(roots, gradients);
}

void backward(const Tensor& root, const Tensor& gradient, const BackwardOptions& options) {
  backward(std::span(&root, 1), std::span(&gradient, 1), options);
}

namespace {

std::vector<Tensor> collect(BackwardPass& pass, std::span<const Tensor> roots,
                            std::span<const Tensor> root_gradients, std::span<const Tensor> inputs) {
  pass.run(roots, root_gradients);
  std::vector<Tensor> results;
  for (const Tensor& input : inputs) results.push_back(pass.collected(input));
  return results;
}

}  // namespace

std::vector<Tensor> gradients(std::span<const Tensor> roots, std::span<const Tensor> root_gradients,
                              std::span<const Tensor> inputs, bool retain_graph) {
  const BackwardOptions options{.retain_graph = retain_graph};
  BackwardPass pass(options, inputs, /*stop_at_wanted=*/false);
  return collect(pass, roots, root_gradients, inputs);
}

std::vector<Tensor> detail::gradients_up_to(std::span<const Tensor> roots,
                                            std::span<const Tensor> root_gradients,
                                            std::span<const Tensor> inputs) {
  const BackwardOptions options;
  BackwardPass pass(options, inputs, /*stop_at_wanted=*/true);
  return collect(pass, roots, root_gradients, inputs);
}

}  // namespace tessera
