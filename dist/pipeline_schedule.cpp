#include "dist/pipeline_schedule.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "kernels/error.h"

namespace tessera::dist {

const char* name(ActionKind kind) noexcept {
  switch (kind) {
    case ActionKind::kForward:
      return "Forward";
    case ActionKind::kBackward:
      return "Backward";
    case ActionKind::kBackwardInput:
      return "BackwardInput";
    case ActionKind::kBackwardWeight:
      return "BackwardWeight";
    case ActionKind::kSendActivation:
      return "SendActivation";
    case ActionKind::kRecvActivation:
      return "RecvActivation";
    case ActionKind::kSendGradient:
      return "SendGradient";
    case ActionKind::kRecvGradient:
      return "RecvGradient";
  }
  return "?";
}

std::string to_string(const Action& action) {
  const std::string chunk = action.chunk == 0 ? "" : fmt::format(", chunk {}", action.chunk);
  return fmt::format("{} of micro-batch {}{}", name(action.kind), action.micro_batch, chunk);
}

// --- Where stages lie --------------------------------------------------------------------------------------

Schedule::Schedule(std::string schedule_name, const PipelineSize& size, StageOrder stage_order)
    : name(std::move(schedule_name)),
      num_ranks(size.ranks),
      num_micro_batches(size.micro_batches),
      num_chunks(size.chunks == 0 ? 1 : size.chunks),
      order(stage_order) {
  if (num_ranks < 1 || num_micro_batches < 1 || num_chunks < 1) {
    throw ConfigError(
        fmt::format("schedule {}: at least 1 rank, 1 micro-batch and 1 chunk on each rank are needed, but "
                    "came {}, {} and {}",
                    name, num_ranks, num_micro_batches, num_chunks));
  }
  actions.resize(static_cast<std::size_t>(num_ranks));
}

int Schedule::stage(int rank, int chunk) const noexcept {
  const bool upwards = order == StageOrder::kV && chunk % 2 == 1;
  return chunk * num_ranks + (upwards ? num_ranks - 1 - rank : rank);
}

int Schedule::rank_of(int stage) const noexcept {
  const bool upwards = order == StageOrder::kV && chunk_of(stage) % 2 == 1;
  return upwards ? num_ranks - 1 - stage % num_ranks : stage % num_ranks;
}

int Schedule::rank_before(int rank, int chunk) const noexcept {
  if (chunk < 0 || chunk >= num_chunks) return -1;
  const int own = stage(rank, chunk);
  return own == 0 ? -1 : rank_of(own - 1);
}

int Schedule::rank_after(int rank, int chunk) const noexcept {
  if (chunk < 0 || chunk >= num_chunks) return -1;
  const int own = stage(rank, chunk);
  return own == num_stages() - 1 ? -1 : rank_of(own + 1);
}

int Schedule::peer(int rank, const Action& action) const noexcept {
  const bool later = action.kind == ActionKind::kSendActivation || action.kind == ActionKind::kRecvGradient;
  return later ? rank_after(rank, action.chunk) : rank_before(rank, action.chunk);
}

// --- Messages ----------------------------------------------------------------------------------------------

namespace {

// What is in a channel, in the receiver's words: the Recv that takes it.
Action recv_of(const Schedule& schedule, int sender, const Action& send) {
  const bool forward = send.kind == ActionKind::kSendActivation;
  const int stage = schedule.stage(sender, send.chunk) + (forward ? 1 : -1);
  return {forward ? ActionKind::kRecvActivation : ActionKind::kRecvGradient, send.micro_batch,
          schedule.chunk_of(stage)};
}

bool crosses_ranks(int rank, int peer) { return peer >= 0 && peer != rank; }

std::vector<Action> with_sends(const Schedule& schedule, int rank) {
  std::vector<Action> result;
  for (const Action& action : schedule.actions[static_cast<std::size_t>(rank)]) {
    result.push_back(action);
    Action send = action;
    if (action.kind == ActionKind::kForward) {
      send.kind = ActionKind::kSendActivation;
    } else if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput) {
      send.kind = ActionKind::kSendGradient;
    } else {
      continue;
    }
    if (crosses_ranks(rank, schedule.peer(rank, send))) result.push_back(send);
  }
  return result;
}

// What comes to one rank from one other: each message's place in the order of sending; the first `taken` of
// them have their Recv.
struct Channel {
  std::vector<Action> messages;
  std::map<Action, std::size_t> place;
  std::size_t taken = 0;
};

// The receives that have to come before `action`, which needs the message of `recv`.
void append_recvs(std::vector<Action>& result, Channel& channel, const Action& recv) {
  const auto found = channel.place.find(recv);
  if (found == channel.place.end()) {  // nobody sends it; the check will say so
    result.push_back(recv);
    return;
  }
  for (; channel.taken <= found->second; ++channel.taken) result.push_back(channel.messages[channel.taken]);
}

std::vector<Action> with_recvs(const Schedule& schedule, int rank, const std::vector<Action>& own,
                               std::map<int, Channel>& channel_from) {
  std::vector<Action> result;
  for (const Action& action : own) {
    Action recv = action;
    if (action.kind == ActionKind::kForward) recv.kind = ActionKind::kRecvActivation;
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput)
      recv.kind = ActionKind::kRecvGradient;
    const int sender = recv.is_recv() ? schedule.peer(rank, recv) : -1;
    if (crosses_ranks(rank, sender)) append_recvs(result, channel_from[sender], recv);
    result.push_back(action);
  }
  return result;
}

}  // namespace

void add_messages(Schedule& schedule) {
  std::vector<std::vector<Action>> with;
  std::vector<std::map<int, Channel>> channel_from(static_cast<std::size_t>(schedule.num_ranks));
  for (int sender = 0; sender < schedule.num_ranks; ++sender) {
    with.push_back(with_sends(schedule, sender));
    for (const Action& action : with.back()) {
      if (!action.is_send()) continue;
      const int receiver = schedule.peer(sender, action);
      Channel& channel = channel_from[static_cast<std::size_t>(receiver)][sender];
      const Action recv = recv_of(schedule, sender, action);
      channel.place.emplace(recv, channel.messages.size());
      channel.messages.push_back(recv);
    }
  }
  for (int rank = 0; rank < schedule.num_ranks; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    schedule.actions[r] = with_recvs(schedule, rank, with[r], channel_from[r]);
  }
}

std::vector<std::size_t> known_received(const Schedule& schedule, int rank) {
  // For each peer, by Recv of its own, where this rank takes the first message that the peer sends after it.
  std::map<int, std::map<Action, std::size_t>> answered;
  const std::vector<Action>& own = schedule.actions.at(static_cast<std::size_t>(rank));
  std::map<Action, std::size_t> place;
  for (std::size_t i = 0; i < own.size(); ++i) place[own[i]] = i;
  for (int peer = 0; peer < schedule.num_ranks; ++peer) {
    if (peer == rank) continue;
    const std::vector<Action>& theirs = schedule.actions[static_cast<std::size_t>(peer)];
    std::size_t next = own.size();
    for (auto action = theirs.rbegin(); action != theirs.rend(); ++action) {
      if (action->is_compute() || schedule.peer(peer, *action) != rank) continue;
      if (action->is_send()) next = place.at(recv_of(schedule, peer, *action));
      if (action->is_recv()) answered[peer][*action] = next;
    }
  }
  std::vector<std::size_t> known(own.size(), 0);
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (own[i].is_send())
      known[i] = answered.at(schedule.peer(rank, own[i])).at(recv_of(schedule, rank, own[i]));
  }
  return known;
}

Schedule forward_only(Schedule schedule) {
  for (auto& actions : schedule.actions) {
    std::erase_if(actions, [](const Action& action) {
      return action.kind != ActionKind::kForward && action.kind != ActionKind::kSendActivation &&
             action.kind != ActionKind::kRecvActivation;
    });
  }
  schedule.most_live.clear();
  schedule.is_forward_only = true;
  return schedule;
}

std::string list(const Schedule& schedule, int rank) {
  std::string result;
  for (const Action& action : schedule.actions.at(static_cast<std::size_t>(rank))) {
    if (!result.empty()) result += ' ';
    if (action.is_send() || action.is_recv()) {
      result += fmt::format("{}{}", action.is_send() ? '>' : '<', schedule.peer(rank, action));
      continue;
    }
    const bool of_weights = action.kind == ActionKind::kBackwardWeight;
    const char letter = action.kind == ActionKind::kForward ? 'F' : of_weights ? 'W' : 'B';
    result += fmt::format("{}{}", letter, action.micro_batch);
    if (action.chunk > 0) result += fmt::format(".{}", action.chunk);
  }
  return result;
}

}  // namespace tessera::dist
