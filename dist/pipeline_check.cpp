#include "dist/pipeline_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <vector>

#include "kernels/error.h"

namespace tessera::dist {

std::string ScheduleFault::to_string() const {
  const std::string place = index < 0 ? "" : fmt::format(", action {}", index);
  return fmt::format("rank {}{}, {}: {}", rank, place, dist::to_string(action), reason);
}

namespace {

constexpr int kNumKinds = 8;

bool is_of_backward(ActionKind kind) {
  return kind != ActionKind::kForward && kind != ActionKind::kSendActivation &&
         kind != ActionKind::kRecvActivation;
}

class Check {
 public:
  explicit Check(const Schedule& schedule)
      : schedule_(schedule),
        p_(schedule.num_ranks),
        m_(schedule.num_micro_batches),
        v_(schedule.num_chunks) {}

  std::optional<ScheduleFault> run() {
    if (auto fault = find_malformed()) return fault;
    if (auto fault = find_repeated()) return fault;
    if (auto fault = find_missing()) return fault;
    return execute();
  }

 private:
  // --- Each rank's list by itself

  [[nodiscard]] std::optional<ScheduleFault> find_malformed() const {
    const auto lists = static_cast<int>(schedule_.actions.size());
    if (p_ < 1 || m_ < 1 || v_ < 1 || lists != p_) {
      return ScheduleFault{
          0,
          -1,
          {},
          fmt::format("there are {} ranks, {} micro-batches, {} chunks and {} lists", p_, m_, v_, lists)};
    }
    if (!schedule_.most_live.empty() && schedule_.most_live.size() != static_cast<std::size_t>(p_)) {
      return ScheduleFault{
          0,
          -1,
          {},
          fmt::format("most_live has {} numbers for {} ranks; leave it empty or give each rank one",
                      schedule_.most_live.size(), p_)};
    }
    for (int rank = 0; rank < p_; ++rank) {
      for (int i = 0; i < length(rank); ++i) {
        const Action& action = at(rank, i);
        if (action.micro_batch < 0 || action.micro_batch >= m_)
          return ScheduleFault{rank, i, action, fmt::format("micro-batches are 0 to {}", m_ - 1)};
        if (action.chunk < 0 || action.chunk >= v_)
          return ScheduleFault{rank, i, action, fmt::format("chunks are 0 to {}", v_ - 1)};
        if (schedule_.is_forward_only && is_of_backward(action.kind))
          return ScheduleFault{rank, i, action, "the schedule is of forwards alone"};
        if (!action.is_compute() && !has_message(rank, action)) {
          return ScheduleFault{rank, i, action,
                               fmt::format("stage {} has no neighbour on another rank there",
                                           schedule_.stage(rank, action.chunk))};
        }
      }
    }
    return std::nullopt;
  }

  std::optional<ScheduleFault> find_repeated() {
    seen_.assign(static_cast<std::size_t>(p_) * v_ * m_ * kNumKinds, false);
    for (int rank = 0; rank < p_; ++rank) {
      for (int i = 0; i < length(rank); ++i) {
        const Action& action = at(rank, i);
        if (seen(rank, action)) return ScheduleFault{rank, i, action, "it is there a second time"};
        const bool split =
            action.kind == ActionKind::kBackwardInput || action.kind == ActionKind::kBackwardWeight;
        if ((split && seen(rank, action, ActionKind::kBackward)) ||
            (action.kind == ActionKind::kBackward && (seen(rank, action, ActionKind::kBackwardInput) ||
                                                      seen(rank, action, ActionKind::kBackwardWeight)))) {
          return ScheduleFault{rank, i, action, "the backward pass is there both whole and in parts"};
        }
        seen(rank, action) = true;
      }
    }
    return std::nullopt;
  }

  std::optional<ScheduleFault> find_missing() {
    for (int rank = 0; rank < p_; ++rank) {
      for (int chunk = 0; chunk < v_; ++chunk) {
        for (int i = 0; i < m_; ++i) {
          for (const Action& needed : needed_by(rank, chunk, i)) {
            if (!seen(rank, needed))
              return ScheduleFault{rank, -1, needed,
                                   fmt::format("it is missing; every micro-batch needs it on stage {}",
                                               schedule_.stage(rank, chunk))};
          }
        }
      }
    }
    return std::nullopt;
  }

  std::vector<Action> needed_by(int rank, int chunk, int i) {
    std::vector<Action> needed{Action::forward(i, chunk)};
    if (!schedule_.is_forward_only) {
      const bool is_split =
          seen(rank, Action::backward_input(i, chunk)) || seen(rank, Action::backward_weight(i, chunk));
      if (is_split) {
        needed.push_back(Action::backward_input(i, chunk));
        needed.push_back(Action::backward_weight(i, chunk));
      } else {
        needed.push_back(Action::backward(i, chunk));
      }
    }
    for (const ActionKind kind : {ActionKind::kSendActivation, ActionKind::kRecvActivation,
                                  ActionKind::kSendGradient, ActionKind::kRecvGradient}) {
      if (schedule_.is_forward_only && is_of_backward(kind)) continue;
      if (has_message(rank, {kind, i, chunk})) needed.push_back({kind, i, chunk});
    }
    return needed;
  }

  // --- All ranks together

  std::optional<ScheduleFault> execute() {
    seen_.assign(seen_.size(), false);  // from now on: done
    next_.assign(static_cast<std::size_t>(p_), 0);
    live_.assign(static_cast<std::size_t>(p_), 0);
    for (bool moves = true; moves;) {
      moves = false;
      for (int rank = 0; rank < p_; ++rank) {
        int& i = next_[static_cast<std::size_t>(rank)];
        for (; i < length(rank); ++i) {
          const Action& action = at(rank, i);
          if (action.is_recv() && channel(schedule_.peer(rank, action), rank).empty()) break;  // waits
          if (const std::string reason = perform(rank, action); !reason.empty())
            return ScheduleFault{rank, i, action, reason};
          moves = true;
        }
      }
    }
    for (int rank = 0; rank < p_; ++rank) {
      if (waits(rank)) return deadlock_from(rank);
    }
    return std::nullopt;
  }

  // Empty, or why it can't be done now.
  std::string perform(int rank, const Action& action) {
    const int i = action.micro_batch, c = action.chunk;
    switch (action.kind) {
      case ActionKind::kForward:
        if (!input_is_here(rank, action)) return "its input has not come before it";
        if (!schedule_.is_forward_only && ++live_[static_cast<std::size_t>(rank)] > most_live(rank))
          return fmt::format("activations of {} micro-batches are alive after it; the schedule promises {}",
                             live_[static_cast<std::size_t>(rank)], most_live(rank));
        break;
      case ActionKind::kBackward:
      case ActionKind::kBackwardInput:
        if (!seen(rank, Action::forward(i, c))) return "it comes before its Forward";
        if (!output_gradient_is_here(rank, action))
          return "the gradient of its output has not come before it";
        break;
      case ActionKind::kBackwardWeight:
        if (!seen(rank, Action::backward_input(i, c))) return "it comes before its BackwardInput";
        break;
      case ActionKind::kSendActivation:
        if (!seen(rank, Action::forward(i, c))) return "it comes before the Forward that makes its data";
        send(rank, action);
        break;
      case ActionKind::kSendGradient:
        if (!seen(rank, Action::backward(i, c)) && !seen(rank, Action::backward_input(i, c)))
          return "it comes before the backward pass that makes its data";
        send(rank, action);
        break;
      case ActionKind::kRecvActivation:
      case ActionKind::kRecvGradient: {
        auto& messages = channel(schedule_.peer(rank, action), rank);
        if (messages.front() != action)
          return fmt::format("the next message from rank {} is the one for {}", schedule_.peer(rank, action),
                             dist::to_string(messages.front()));
        messages.pop_front();
        break;
      }
    }
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardWeight)
      --live_[static_cast<std::size_t>(rank)];
    seen(rank, action) = true;
    return {};
  }

  void send(int rank, const Action& action) {
    const bool onwards = action.kind == ActionKind::kSendActivation;
    const int stage = schedule_.stage(rank, action.chunk) + (onwards ? 1 : -1);
    channel(rank, schedule_.peer(rank, action))
        .push_back({onwards ? ActionKind::kRecvActivation : ActionKind::kRecvGradient, action.micro_batch,
                    schedule_.chunk_of(stage)});
  }

  // By message, or from a stage on the same rank; the first stage takes samples, the last has the loss.
  bool input_is_here(int rank, const Action& action) {
    const Action recv{ActionKind::kRecvActivation, action.micro_batch, action.chunk};
    if (schedule_.peer(rank, recv) < 0) return true;
    if (has_message(rank, recv)) return seen(rank, recv);
    const int before = schedule_.chunk_of(schedule_.stage(rank, action.chunk) - 1);
    return seen(rank, Action::forward(action.micro_batch, before));
  }

  bool output_gradient_is_here(int rank, const Action& action) {
    const Action recv{ActionKind::kRecvGradient, action.micro_batch, action.chunk};
    if (schedule_.peer(rank, recv) < 0) return true;
    if (has_message(rank, recv)) return seen(rank, recv);
    const int after = schedule_.chunk_of(schedule_.stage(rank, action.chunk) + 1);
    return seen(rank, Action::backward(action.micro_batch, after)) ||
           seen(rank, Action::backward_input(action.micro_batch, after));
  }

  // A rank that is through has sent all that others wait for, so who waits for whom leads into a circle.
  [[nodiscard]] ScheduleFault deadlock_from(int rank) const {
    const auto awaited = [&](int waiter) { return schedule_.peer(waiter, waiting(waiter)); };
    for (int i = 0; i < p_; ++i) rank = awaited(rank);  // into the circle, if it began outside of it
    std::string reason = "deadlock";
    int waiter = rank;
    do {
      reason += fmt::format("; rank {} waits for rank {} ({})", waiter, awaited(waiter),
                            dist::to_string(waiting(waiter)));
      waiter = awaited(waiter);
    } while (waiter != rank);
    return {rank, next_[static_cast<std::size_t>(rank)], waiting(rank), reason};
  }

  // --- Short names

  [[nodiscard]] int length(int rank) const {
    return static_cast<int>(schedule_.actions[static_cast<std::size_t>(rank)].size());
  }
  [[nodiscard]] const Action& at(int rank, int i) const {
    return schedule_.actions[static_cast<std::size_t>(rank)][static_cast<std::size_t>(i)];
  }
  [[nodiscard]] bool waits(int rank) const { return next_[static_cast<std::size_t>(rank)] < length(rank); }
  [[nodiscard]] const Action& waiting(int rank) const {
    return at(rank, next_[static_cast<std::size_t>(rank)]);
  }
  [[nodiscard]] bool has_message(int rank, const Action& action) const {
    const int peer = schedule_.peer(rank, action);
    return peer >= 0 && peer != rank;
  }
  [[nodiscard]] int most_live(int rank) const {
    return schedule_.most_live.empty() ? v_ * m_ : schedule_.most_live.at(static_cast<std::size_t>(rank));
  }
  std::deque<Action>& channel(int sender, int receiver) { return channels_[{sender, receiver}]; }
  std::vector<bool>::reference seen(int rank, const Action& action) {
    const auto stage = static_cast<std::size_t>(schedule_.stage(rank, action.chunk));
    return seen_[(stage * static_cast<std::size_t>(m_) + static_cast<std::size_t>(action.micro_batch)) *
                     kNumKinds +
                 static_cast<std::size_t>(action.kind)];
  }
  bool seen(int rank, Action action, ActionKind kind) {
    action.kind = kind;
    return seen(rank, action);
  }

  const Schedule& schedule_;
  const int p_, m_, v_;
  std::vector<bool> seen_;                                      // [stage][micro-batch][kind]
  std::vector<int> next_;                                       // [rank] in its list
  std::vector<int> live_;                                       // [rank]
  std::map<std::pair<int, int>, std::deque<Action>> channels_;  // as the Recv that takes it
};

}  // namespace

std::optional<ScheduleFault> find_fault(const Schedule& schedule) { return Check(schedule).run(); }

void check_legal(const Schedule& schedule) {
  if (const auto fault = find_fault(schedule))
    throw ConfigError(fmt::format("schedule {}: {}", schedule.name, fault->to_string()));
}

}  // namespace tessera::dist
