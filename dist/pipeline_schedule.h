#pragma once

// A pipeline schedule as data: for each rank the list of what it does in one training step, in order.
// Generators write such lists (pipeline_generators.h), a check proves them (pipeline_check.h), a simulation
// times them (pipeline_simulation.h), a drawing shows them (pipeline_drawing.h). No tensor comes near them.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tessera::dist {

enum class ActionKind : std::uint8_t {
  kForward,         ///< of one micro-batch, through the layers of one stage
  kBackward,        ///< gradients of the stage's input and of its weights, in one pass
  kBackwardInput,   ///< of its input alone, which the stage before waits for ...
  kBackwardWeight,  ///< ... and of its weights, for which nobody waits
  kSendActivation,  ///< the stage's output, to the next stage
  kRecvActivation,  ///< the stage's input, from the stage before
  kSendGradient,    ///< the gradient of the stage's input, to the stage before
  kRecvGradient,    ///< the gradient of the stage's output, from the next stage
};

/// "Forward", "BackwardInput", "SendActivation", ...
[[nodiscard]] const char* name(ActionKind kind) noexcept;

/// One thing that a rank does. A rank has `chunk`s 0 .. v − 1 of the model, each of them one stage of the
/// pipeline.
struct Action {
  ActionKind kind = ActionKind::kForward;
  int micro_batch = 0;
  int chunk = 0;

  [[nodiscard]] static Action forward(int micro_batch, int chunk = 0) {
    return {ActionKind::kForward, micro_batch, chunk};
  }
  [[nodiscard]] static Action backward(int micro_batch, int chunk = 0) {
    return {ActionKind::kBackward, micro_batch, chunk};
  }
  [[nodiscard]] static Action backward_input(int micro_batch, int chunk = 0) {
    return {ActionKind::kBackwardInput, micro_batch, chunk};
  }
  [[nodiscard]] static Action backward_weight(int micro_batch, int chunk = 0) {
    return {ActionKind::kBackwardWeight, micro_batch, chunk};
  }

  [[nodiscard]] bool is_send() const noexcept {
    return kind == ActionKind::kSendActivation || kind == ActionKind::kSendGradient;
  }
  [[nodiscard]] bool is_recv() const noexcept {
    return kind == ActionKind::kRecvActivation || kind == ActionKind::kRecvGradient;
  }
  [[nodiscard]] bool is_compute() const noexcept { return !is_send() && !is_recv(); }

  friend auto operator<=>(const Action&, const Action&) = default;
};

/// "Forward of micro-batch 3", "RecvGradient of micro-batch 0, chunk 1".
[[nodiscard]] std::string to_string(const Action& action);

/// How the stages lie on the ranks.
enum class StageOrder : std::uint8_t {
  kLoop,  ///< every chunk goes down the ranks 0 .. p − 1: stage = chunk·p + rank
  kV,  ///< odd chunks come back up: stage = chunk·p + (p − 1 − rank); at a turn two stages share a rank
};

/// How large a pipeline is.
struct PipelineSize {
  int ranks = 1;          ///< p
  int micro_batches = 1;  ///< m, in one step
  int chunks = 0;         ///< v, stages on each rank; 0: what the schedule has by itself
};

/// What each rank of a pipeline does in one step.
///
/// Order     A rank does its actions one after the other. A send is asynchronous: it starts when the rank
///           comes to it, right after the action that made the data, and the rank goes on. A receive is
///           blocking: the rank goes on once the message is there.
/// Messages  From one rank to another there is one channel, whatever it carries: the receiver's Recv actions
///           come in the order of the sender's Send actions. So a transport needs no tags (NCCL has none),
///           and whoever runs a schedule may post receives early, in their order. Stages that share a rank
///           hand over without a message.
/// Deadlock  None, if sends never wait and there is an order in which the computations of all ranks could run
///           one by one. For a rank waits for a message that the next computation needs, or for one that was
///           sent before that one. Sends that wait for the receiver stop two ranks that send to each other.
///
/// Example   What runs it; sends are waited for at the end of the step, or before their memory is needed.
///
///     const Schedule schedule = make_schedule("1f1b", {.ranks = pp.size(), .micro_batches = 8});
///     for (const Action& action : schedule.actions[pp.rank()]) {
///       const int stage = schedule.stage(pp.rank(), action.chunk);
///       switch (action.kind) {
///         case ActionKind::kRecvActivation: pp.recv(input(stage, action.micro_batch),
///                                                   schedule.peer(pp.rank(), action)); break;
///         case ActionKind::kForward: forward(stage, action.micro_batch); break;
///         case ActionKind::kSendActivation: sends.push_back(pp.send_async(...)); break;
///         ...
struct Schedule {
  Schedule() = default;
  /// Without actions yet. ConfigError unless there is at least one rank, micro-batch and chunk (0 chunks: 1).
  Schedule(std::string name, const PipelineSize& size, StageOrder order = StageOrder::kLoop);

  std::string name;
  int num_ranks = 1;
  int num_micro_batches = 1;
  int num_chunks = 1;
  StageOrder order = StageOrder::kLoop;
  std::vector<std::vector<Action>> actions;  ///< [rank]
  /// [rank], of how many micro-batches it holds a stage's activations at most: from Forward until Backward or
  /// BackwardWeight has ended. The generator promises it, the check verifies it. Empty: no promise.
  std::vector<int> most_live;
  bool is_forward_only = false;  ///< for evaluation: no gradients, and nothing is kept for them

  [[nodiscard]] int num_stages() const noexcept { return num_ranks * num_chunks; }
  [[nodiscard]] int stage(int rank, int chunk) const noexcept;
  [[nodiscard]] int rank_of(int stage) const noexcept;
  [[nodiscard]] int chunk_of(int stage) const noexcept { return stage / num_ranks; }
  /// Who has the stage whose output chunk `chunk` of `rank` takes, and the one that takes its own: `rank`
  /// itself at a turn, −1 where there is none.
  [[nodiscard]] int rank_before(int rank, int chunk) const noexcept;
  [[nodiscard]] int rank_after(int rank, int chunk) const noexcept;
  /// The rank that a Send or Recv of `rank` goes to or comes from; −1 for a stage without a neighbour there.
  [[nodiscard]] int peer(int rank, const Action& action) const noexcept;
};

/// Puts the sends and receives into lists that hold computations alone: a send right after what makes its
/// data; before what needs a message, the receives from its sender up to that message, so that the order of
/// each channel is kept. A generator orders computations and ends with this.
void add_messages(Schedule& schedule);

/// For each action of `rank` that is a Send: the index of its own action after which the message is sure to
/// have been received, so that waiting for the send waits for nobody and its memory can go at a moment that
/// timing does not decide: the first Recv of what the peer sent after it took the message. The number of
/// actions where there is none; 0 for what is no Send. For schedules that are legal.
[[nodiscard]] std::vector<std::size_t> known_received(const Schedule& schedule, int rank);

/// The forwards of a schedule and their messages, in the same order: to evaluate a model that is laid out for
/// it. Legal if the schedule is.
[[nodiscard]] Schedule forward_only(Schedule schedule);

/// A rank's list in one line: "F0 >1 F1 >1 <1 B0 ...": forward, a send to rank 1, a receive from it,
/// backward (to the input alone where there is a W, to the weights). "F0.1" is of chunk 1.
[[nodiscard]] std::string list(const Schedule& schedule, int rank);

}  // namespace tessera::dist
