// What an engine says of a loss that is not finite: the rank, the layer and the tensor in which it begins.
// dist/non_finite_search.h searches over ranks, nn/non_finite.h on one.

#include <fmt/format.h>

#include <optional>
#include <string>

#include "autograd/grad_mode.h"
#include "dist/engine.h"
#include "dist/engine_parts.h"
#include "dist/non_finite_search.h"
#include "kernels/error.h"
#include "nn/non_finite.h"

namespace tessera::dist {

bool Engine::can_search_alone() const {
  return mesh_.size(MeshAxis::kPp) == 1 && mesh_.size(MeshAxis::kTp) == 1 && mesh_.size(MeshAxis::kCp) == 1 &&
         parts_->zero->plan().placement.parameters == Spread::kWhole;
}

// The pass is run again to see each layer. Where it needs the other ranks, which do not take part, it is not.
std::string Engine::find_culprit(const MicroBatch& micro_batch) {
  if (!can_search_alone())
    return "train_step(), which runs the pass again on all ranks, says in which layer it begins";
  const auto culprit = nn::find_first_non_finite(
      model_, [&] { static_cast<void>(loss_sum(micro_batch.ids, micro_batch.targets)); });
  return culprit ? culprit->message : "every layer's output is finite";
}

// "rank 3 (dp 1, tp 1)"
std::string Engine::describe_rank(int world_rank) const {
  std::string place;
  const MeshShape::Coordinate coordinate = mesh_.coordinate_of(world_rank);
  for (const MeshAxis axis : kMeshAxes) {
    if (mesh_.size(axis) > 1)
      place += fmt::format("{}{} {}", place.empty() ? "" : ", ", name(axis), coordinate[axis]);
  }
  return fmt::format("rank {} ({})", world_rank, place);
}

// All ranks come here, whose sum of squares is the same.
void Engine::refuse_non_finite_loss() {
  if (mesh_.world().size() == 1 || passes_to_search_ == nullptr) return;
  std::optional<NonFinitePass> own;
  if (non_finite_pass_) own = {.pass = *non_finite_pass_, .loss = non_finite_loss_};
  const NoGrad no_grad;
  const auto found =
      search_non_finite_together(model_, mesh_, parts_->zero->pieces(), own, [this](std::size_t pass) {
        const MicroBatch& micro_batch = (*passes_to_search_)[pass];
        set_context(micro_batch.first_sample);
        static_cast<void>(parts_->pipeline != nullptr
                              ? parts_->pipeline->logits(*parts_->zero, micro_batch.ids)
                              : model_.logits(micro_batch.ids));
      });
  if (!found) return;
  throw NonFiniteError(fmt::format(
      "step {}: the loss is {}: {}", steps_done_ + 1, found->loss,
      found->message.empty() ? "every layer's output is finite"
                             : fmt::format("on {}, {}", describe_rank(found->rank), found->message)));
}

}  // namespace tessera::dist
