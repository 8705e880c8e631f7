#include "dist/pipeline_simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <numeric>

#include "dist/pipeline_check.h"
#include "kernels/error.h"

namespace tessera::dist {

StageCost StageCost::per_chunk(int chunks) const {
  StageCost result = *this;
  for (double* part : {&result.forward, &result.backward_input, &result.backward_weight, &result.activations})
    *part /= chunks;
  return result;
}

double Simulation::bubble() const noexcept {
  const double all = total * static_cast<double>(idle.size());
  return all > 0 ? std::accumulate(idle.begin(), idle.end(), 0.0) / all : 0.0;
}

namespace {

// Of one rank to one other.
struct Link {
  std::deque<double> arrivals;
  double free_at = 0;
};

struct RankState {
  std::size_t next = 0;
  double now = 0;
  double computed = 0;
  double first_start = -1, last_end = 0;
  double activations = 0, peak_activations = 0;
};

class Clockwork {
 public:
  Clockwork(const Schedule& schedule, std::span<const StageCost> costs)
      : schedule_(schedule), costs_(costs) {}

  // The order in which ranks are taken changes no time: an action's start follows from its rank's clock and
  // from a message, whose arrival follows from its sender's clock.
  Simulation run() {
    ranks_.resize(schedule_.actions.size());
    result_.timeline.resize(ranks_.size());
    for (bool moves = true; moves;) {
      moves = false;
      for (int rank = 0; rank < schedule_.num_ranks; ++rank) {
        while (step(rank)) moves = true;
      }
    }
    for (const RankState& rank : ranks_) result_.total = std::max(result_.total, rank.last_end);
    for (const RankState& rank : ranks_) {
      result_.idle.push_back(result_.total - rank.computed);
      result_.idle_inside.push_back(rank.last_end - rank.first_start - rank.computed);
      result_.peak_activations.push_back(rank.peak_activations);
    }
    return std::move(result_);
  }

 private:
  bool step(int rank) {
    RankState& state = ranks_[static_cast<std::size_t>(rank)];
    const auto& actions = schedule_.actions[static_cast<std::size_t>(rank)];
    if (state.next == actions.size()) return false;
    const Action& action = actions[state.next];
    TimedAction timed{action, state.now, state.now};
    if (action.is_send()) {
      send(rank, action);
    } else if (action.is_recv()) {
      auto& arrivals = links_[{schedule_.peer(rank, action), rank}].arrivals;
      if (arrivals.empty()) return false;
      timed.end = std::max(state.now, arrivals.front());
      arrivals.pop_front();
    } else {
      timed.end = state.now + compute(state, action, cost(rank, action));
      state.computed += timed.end - timed.start;
      if (state.first_start < 0) state.first_start = timed.start;
      state.last_end = timed.end;
    }
    state.now = timed.end;
    result_.timeline[static_cast<std::size_t>(rank)].push_back(timed);
    ++state.next;
    return true;
  }

  void send(int rank, const Action& action) {
    Link& link = links_[{rank, schedule_.peer(rank, action)}];
    const int boundary =
        schedule_.stage(rank, action.chunk) - (action.kind == ActionKind::kSendActivation ? 0 : 1);
    const double start = std::max(ranks_[static_cast<std::size_t>(rank)].now, link.free_at);
    link.free_at = start + costs_[static_cast<std::size_t>(boundary)].transfer;
    link.arrivals.push_back(link.free_at);
    ++result_.num_messages;
  }

  // How long it takes; keeps the account of memory.
  double compute(RankState& state, const Action& action, const StageCost& cost) const {
    const double kept = cost.activations * cost.kept_for_weights;
    switch (action.kind) {
      case ActionKind::kForward:
        state.activations += cost.activations;
        state.peak_activations = std::max(state.peak_activations, state.activations);
        if (schedule_.is_forward_only) state.activations = 0;
        return cost.forward;
      case ActionKind::kBackward:
        state.activations -= cost.activations;
        return cost.backward_input + cost.backward_weight;
      case ActionKind::kBackwardInput:
        state.activations -= cost.activations - kept;
        return cost.backward_input;
      case ActionKind::kBackwardWeight:
        state.activations -= kept;
        return cost.backward_weight;
      default:
        return 0;
    }
  }

  [[nodiscard]] const StageCost& cost(int rank, const Action& action) const {
    return costs_[static_cast<std::size_t>(schedule_.stage(rank, action.chunk))];
  }

  const Schedule& schedule_;
  std::span<const StageCost> costs_;
  std::vector<RankState> ranks_;
  std::map<std::pair<int, int>, Link> links_;
  Simulation result_;
};

}  // namespace

Simulation simulate(const Schedule& schedule, std::span<const StageCost> costs) {
  check_legal(schedule);
  if (costs.size() != static_cast<std::size_t>(schedule.num_stages())) {
    throw ConfigError(fmt::format("simulate: schedule {} has {} stages, but came costs of {}", schedule.name,
                                  schedule.num_stages(), costs.size()));
  }
  return Clockwork(schedule, costs).run();
}

Simulation simulate(const Schedule& schedule, const StageCost& cost) {
  return simulate(schedule,
                  std::vector<StageCost>(static_cast<std::size_t>(std::max(0, schedule.num_stages())), cost));
}

}  // namespace tessera::dist
