#include <algorithm>

#include "dist/pipeline_generators.h"
#include "dist/schedule_chunks.h"

namespace tessera::dist {

Schedule schedule_1f1b(const PipelineSize& size) {
  Schedule schedule("1f1b", detail::with_one_chunk("1f1b", size));
  const int p = schedule.num_ranks, m = schedule.num_micro_batches;
  for (int rank = 0; rank < p; ++rank) {
    auto& actions = schedule.actions[static_cast<std::size_t>(rank)];
    // As many as are under way below this rank when its first gradient comes back.
    const int warm_up = std::min(m, p - 1 - rank);
    for (int i = 0; i < warm_up; ++i) actions.push_back(Action::forward(i));
    for (int i = 0; i < m; ++i) {
      if (warm_up + i < m) actions.push_back(Action::forward(warm_up + i));
      actions.push_back(Action::backward(i));
    }
    schedule.most_live.push_back(std::min(m, p - rank));
  }
  add_messages(schedule);
  return schedule;
}

}  // namespace tessera::dist
