#include "autograd/checkpoint.h"

#include <algorithm>

#include "autograd/backward.h"
#include "autograd/grad_mode.h"

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

// What the random numbers of the first run depended on, and its positions.
struct Circumstances {
  std::uint64_t step;
  std::int64_t sample_offset;
  std::shared_ptr<const std::vector<std::int64_t>> token_positions;
  std::int64_t sequence_length;

  static Circumstances now() {
    const RankContext& context = RankContext::current();
    return {context.step, context.sample_offset, context.token_positions, context.sequence_length};
  }
  void restore() const {
    RankContext& context = RankContext::current();
    context.step = step;
    context.sample_offset = sample_offset;
    context.token_positions = token_positions;
    context.sequence_length = sequence_length;
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

// An empty handle that stands for a parameter whose graph data is all that a node needs of it.
Tensor stand_in(const std::shared_ptr<AutogradMeta>& meta) {
  Tensor tensor(Storage::borrow(nullptr, 0, cpu), {0}, {1}, 0, kF32);
  tensor.set_autograd_meta(meta);
  return tensor;
}

}  // namespace

Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function, std::span<const Tensor> inputs) {
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

  std::vector<Saved> saved_inputs;
  for (const Tensor& input : inputs) saved_inputs.push_back(saved(input));
  const std::vector<Tensor> leaves(graph_inputs.begin() + static_cast<std::ptrdiff_t>(inputs.size()),
                                   graph_inputs.end());
  detail::attach("checkpoint", std::span(&y, 1), references,
                 [function = std::move(function), saved_inputs = std::move(saved_inputs), leaves,
                  first_run = Circumstances::now(), check_layouts = RankContext::current().check_layouts](
                     std::span<const Tensor> dys, Needs needs) -> Grads {
                   const EnableGrad enable_grad;
                   const LayoutChecks layout_checks(check_layouts);
                   const ReplayScope replay(first_run);
                   std::vector<Tensor> again;
                   for (std::size_t i = 0; i < saved_inputs.size(); ++i) {
                     again.push_back(saved_inputs[i].get().detach());
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

Tensor checkpoint(std::function<Tensor(const Tensor&)> function, const Tensor& input) {
  return checkpoint(
      [function = std::move(function)](std::span<const Tensor> inputs) { return function(inputs[0]); },
      std::span(&input, 1));
}

}  // namespace tessera
