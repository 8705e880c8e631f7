#include <algorithm>

#include "dist/pipeline_generators.h"
#include "dist/schedule_chunks.h"

namespace tessera::dist {

Schedule schedule_zb_h1(const PipelineSize& size) {
  Schedule schedule("zb-h1", detail::with_one_chunk("zb-h1", size));
  const int p = schedule.num_ranks, m = schedule.num_micro_batches;
  for (int rank = 0; rank < p; ++rank) {
    auto& actions = schedule.actions[static_cast<std::size_t>(rank)];
    const int warm_up = std::min(m, p - 1 - rank);
    for (int i = 0; i < warm_up; ++i) actions.push_back(Action::forward(i));
    for (int i = 0; i < m; ++i) {
      if (warm_up + i < m) actions.push_back(Action::forward(warm_up + i));
      actions.push_back(Action::backward_input(i));
      // p − rank micro-batches are between forward and backward, `rank` wait for their weight pass: p on
      // every rank.
      if (i >= rank) actions.push_back(Action::backward_weight(i - rank));
    }
    for (int i = std::max(0, m - rank); i < m; ++i) actions.push_back(Action::backward_weight(i));
    schedule.most_live.push_back(std::min(m, p));
  }
  add_messages(schedule);
  return schedule;
}

}  // namespace tessera::dist
