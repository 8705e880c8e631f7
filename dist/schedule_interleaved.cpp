#include <fmt/format.h>

#include <algorithm>

#include "dist/pipeline_generators.h"
#include "dist/schedule_chunks.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

// The k-th forward of every rank: p micro-batches through chunk 0, the same through chunk 1, ..., then the
// next p. The k-th backward takes the chunks from the last to the first.
Action kth(int k, int p, int v, bool is_forward) {
  const int group = k / (p * v), within = k % (p * v);
  const int micro_batch = group * p + within % p, chunk = within / p;
  return is_forward ? Action::forward(micro_batch, chunk) : Action::backward(micro_batch, v - 1 - chunk);
}

}  // namespace

Schedule schedule_interleaved(const PipelineSize& size) {
  Schedule schedule("interleaved", {size.ranks, size.micro_batches, size.chunks == 0 ? 2 : size.chunks});
  const int p = schedule.num_ranks, m = schedule.num_micro_batches, v = schedule.num_chunks;
  if (m % p != 0) {
    const int below = m / p * p;
    throw ConfigError(
        fmt::format("schedule interleaved: micro-batches go through the chunks in groups of as many as there "
                    "are ranks, but "
                    "{} ranks do not divide {} micro-batches; take {}{}, or the schedule 1f1b",
                    p, m, below > 0 ? fmt::format("{} or ", below) : "", below + p));
  }
  const int total = m * v;
  for (int rank = 0; rank < p; ++rank) {
    auto& actions = schedule.actions[static_cast<std::size_t>(rank)];
    // Rank p − 1 has its first gradient once the first group is through all chunks but one. Each rank above
    // forwards two more than the next one: while micro-batch 0 is on its way down, and its gradient up.
    const int above = p - 1 - rank;
    const int warm_up = std::min(total, v == 1 ? above : 2 * above + (v - 1) * p);
    for (int k = 0; k < warm_up; ++k) actions.push_back(kth(k, p, v, true));
    for (int k = 0; k < total; ++k) {
      if (warm_up + k < total) actions.push_back(kth(warm_up + k, p, v, true));
      actions.push_back(kth(k, p, v, false));
    }
    schedule.most_live.push_back(std::min(total, warm_up + 1));
  }
  add_messages(schedule);
  return schedule;
}

}  // namespace tessera::dist
