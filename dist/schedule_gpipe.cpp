#include "dist/pipeline_generators.h"
#include "dist/schedule_chunks.h"

namespace tessera::dist {

Schedule schedule_gpipe(const PipelineSize& size) {
  Schedule schedule("gpipe", detail::with_one_chunk("gpipe", size));
  const int m = schedule.num_micro_batches;
  for (auto& actions : schedule.actions) {
    for (int i = 0; i < m; ++i) actions.push_back(Action::forward(i));
    for (int i = 0; i < m; ++i) actions.push_back(Action::backward(i));
    schedule.most_live.push_back(m);
  }
  add_messages(schedule);
  return schedule;
}

}  // namespace tessera::dist
