#include "autograd/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera {
namespace {

// Collects the parameters that the first run reads: they become inputs of the node, so that the pass around
// it counts their uses right (a weight may also be used outside) and accumulates their gradients itself.
class CollectLeaves final : public LeafTracker {
 public:
  CollectLeaves() : previous_(RankContext::current().leaf_tracker) {
    RankContext::current().leaf_tracker = this;
  }
  ~CollectLeaves() override { RankContext::current().leaf_tracker = previous_; }
  CollectLeaves(const CollectLeaves&) = delete;
  CollectLeaves& operator=(const CollectLeaves&) = delete;

  void touch(const std::shared_ptr<AutogradMeta>& meta) override {
    if (std::ranges::find(found_, meta) == found_.end()) found_.push_back(meta);
    if (previous_ != nullptr) previous_->touch(meta);
  }
  [[nodiscard]] const std::vector<std::shared_ptr<AutogradMeta>>& found() const { return found_; }

 private:
  LeafTracker* previous_;
  std::vector<std::shared_ptr<AutogradMeta>> found_;
};

// What the random numbers of the first run depended on, its positions, and whether it checked layouts.
struct Circumstances {
  std::uint64_t step;
  std::int64_t sample_offset;
  std::shared_ptr<const std::vector<std::int64_t>> token_positions;
  std::int64_t sequence_length;
  bool check_layouts;

  static Circumstances now() {
    const RankContext& context = RankContext::current();
    return {context.step, context.sample_offset, context.token_positions, context.sequence_length,
            context.check_layouts};
  }
  void restore() const {
    RankContext& context = RankContext::current();
    context.step = step;
    context.sample_offset = sample_offset;
    context.token_positions = token_positions;
    context.sequence_length = sequence_length;
    context.check_layouts = check_layouts;
  }
};

// The circumstances of the first run, for the length of the second.
class ReplayScope {
 public:
  explicit ReplayScope(const Circumstances& first_run) : before_(Circumstances::now()) {
    first_run.restore();
  }
  ~ReplayScope() { before_.restore(); }
  ReplayScope(const ReplayScope&) = delete;
  ReplayScope& operator=(const ReplayScope&) = delete;

 private:
  Circumstances before_;
};

// An input between the two passes.
class KeptInput {
 public:
  KeptInput(const Tensor& input, const CheckpointOptions& options)
      : unpack_(options.unpack), input_{input.shape(), input.dtype(), input.device(), input.layout()} {
    if (options.pack == nullptr) {
      kept_ = saved(input);
      return;
    }
    const NoGrad no_grad;
    kept_ = Saved(options.pack(input.detach()));
  }

  [[nodiscard]] Tensor get() const {
    if (unpack_ == nullptr) return kept_.get().detach();
    const NoGrad no_grad;
    const LayoutChecks no_layout_checks(false);
    Tensor input = unpack_(kept_.get(), input_).detach();
    if (input.shape() != input_.shape || input.dtype() != input_.dtype || input.device() != input_.device) {
      throw ShapeError(fmt::format("checkpoint: unpack() must give the input {} {} on {} again, but gave {}",
                                   name(input_.dtype), to_string(input_.shape), to_string(input_.device),
                                   describe(input)));
    }
    return input.set_layout(input_.layout);
  }

 private:
  std::function<Tensor(const Tensor&, const PackedInput&)> unpack_;
  PackedInput input_;
  Saved kept_;
};

// An empty handle that stands for a parameter whose graph data is all that a node needs of it.
Tensor stand_in(const std::shared_ptr<AutogradMeta>& meta) {
  Tensor tensor(Storage::borrow(nullptr, 0, cpu), {0}, {1}, 0, kF32);
  tensor.set_autograd_meta(meta);
  return tensor;
}

}  // namespace

Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function, std::span<const Tensor> inputs,
                  const CheckpointOptions& options) {
  if ((options.pack == nullptr) != (options.unpack == nullptr))
    throw AutogradError("checkpoint: pack and unpack belong together; one of them is missing");
  if (!RankContext::current().grad_enabled) return function(inputs);

  std::vector<Tensor> graph_inputs(inputs.begin(), inputs.end());
  Tensor y;
  {
    const NoGrad no_grad;
    CollectLeaves leaves;
    std::vector<Tensor> detached;
    for (const Tensor& input : inputs) detached.push_back(input.detach());
    y = function(detached).detach();
    for (const auto& meta : leaves.found()) graph_inputs.push_back(stand_in(meta));
  }
  const std::vector<std::reference_wrapper<const Tensor>> references(graph_inputs.begin(),
                                                                     graph_inputs.end());
  if (!detail::must_record(references)) return y;

  std::vector<KeptInput> kept;
  for (const Tensor& input : inputs) kept.emplace_back(input, options);
  const std::vector<Tensor> leaves(graph_inputs.begin() + static_cast<std::ptrdiff_t>(inputs.size()),
                                   graph_inputs.end());
  detail::attach("checkpoint", std::span(&y, 1), references,
                 [function = std::move(function), kept = std::move(kept), leaves,
                  first_run = Circumstances::now()](std::span<const Tensor> dys, Needs needs) -> Grads {
                   const EnableGrad enable_grad;
                   const ReplayScope replay(first_run);
                   std::vector<Tensor> again;
                   for (std::size_t i = 0; i < kept.size(); ++i) {
                     again.push_back(kept[i].get());
                     if (needs[i]) again.back().set_requires_grad();
                   }
                   const Tensor result = function(again);
                   // Undefined stands for what nobody asks for now: the weights' part may be deferred.
                   std::vector<Tensor> wanted = again;
                   for (std::size_t i = 0; i < leaves.size(); ++i)
                     wanted.push_back(needs[again.size() + i] ? leaves[i] : Tensor());
                   if (!result.requires_grad()) return {};
                   return detail::gradients_up_to(std::span(&result, 1), dys, wanted);
                 });
  return y;
}

namespace {

std::function<Tensor(std::span<const Tensor>)> of_span(std::function<Tensor(const Tensor&)> function) {
  return [function = std::move(function)](std::span<const Tensor> inputs) { return function(inputs[0]); };
}

Tensor copy_to(const Tensor& x, Device device, MemoryCategory category) {
  const CategoryScope scope(category);
  Tensor copy = empty(x.shape(), {.dtype = x.dtype(), .device = device});
  copy.copy_from(x);
  return copy;
}

}  // namespace

Tensor checkpoint(std::function<Tensor(const Tensor&)> function, const Tensor& input,
                  const CheckpointOptions& options) {
  return checkpoint(of_span(std::move(function)), std::span(&input, 1), options);
}

CheckpointOptions kept_in_host_memory(CheckpointOptions inner) {
  CheckpointOptions options;
  options.pack = [pack = std::move(inner.pack)](const Tensor& input) {
    const Device host = input.device() == meta ? meta : cpu;  // what is only counted has no data to copy
    return copy_to(pack == nullptr ? input : pack(input), host, MemoryCategory::kHostActivation);
  };
  options.unpack = [unpack = std::move(inner.unpack)](const Tensor& packed, const PackedInput& input) {
    const Tensor back = copy_to(packed, input.device, MemoryCategory::kActivation);
    return unpack == nullptr ? back : unpack(back, input);
  };
  return options;
}

// --- Single values -----------------------------------------------------------------------------------------

void make_recomputable(const Tensor& y, std::function<Tensor(std::span<const Tensor>)> function,
                       std::span<const Tensor> inputs) {
  const GradInfo* info = grad_info(y);
  if (info == nullptr || info->is_leaf() || !RankContext::current().grad_enabled) return;
  auto recipe = std::make_shared<Recipe>();
  recipe->version = y.storage().version();
  std::vector<Saved> kept;
  for (const Tensor& input : inputs) {
    // The recipe hangs on the node that made y; an input's place in the graph may lead there: of two outputs
    // of one node, say. Held by the recipe, that would be a cycle.
    const Saved value = saved(input);
    kept.push_back(value.can_be_remade() ? value : Saved(input.detach()));
  }
  recipe->make = [function = std::move(function), kept = std::move(kept), layout = y.layout(),
                  first_run = Circumstances::now()] {
    const NoGrad no_grad;
    const ReplayScope replay(first_run);
    std::vector<Tensor> again;
    for (const Saved& input : kept) again.push_back(input.get().detach());
    return function(again).detach().set_layout(layout);
  };
  info->producer->outputs[static_cast<std::size_t>(info->output_index)].recipe = std::move(recipe);
}

void keep_recomputable(const Tensor& x, const Tensor& y) {
  const GradInfo* info = grad_info(x);
  if (info == nullptr || info->is_leaf()) return;
  if (info->producer->outputs[static_cast<std::size_t>(info->output_index)].recipe == nullptr) return;
  make_recomputable(
      y, [](std::span<const Tensor> again) { return again[0]; }, std::span(&x, 1));
}

Tensor recomputed(std::function<Tensor(std::span<const Tensor>)> function, std::span<const Tensor> inputs) {
  Tensor y = function(inputs);
  make_recomputable(y, std::move(function), inputs);
  return y;
}

Tensor recomputed(std::function<Tensor(const Tensor&)> function, const Tensor& input) {
  return recomputed(of_span(std::move(function)), std::span(&input, 1));
}

}  // namespace tessera
