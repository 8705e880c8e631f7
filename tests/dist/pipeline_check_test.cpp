// The check finds what is wrong with a schedule that was broken on purpose; messages stand where they must.

#include "dist/pipeline_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dist/pipeline_drawing.h"
#include "dist/pipeline_generators.h"
#include "dist/pipeline_simulation.h"
#include "kernels/error.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

// --- The check, on schedules broken on purpose

using Break = std::function<void(Schedule&)>;

std::vector<Action>& rank(Schedule& schedule, int r) {
  return schedule.actions.at(static_cast<std::size_t>(r));
}

std::size_t find(Schedule& schedule, int r, const Action& action) {
  const auto& actions = rank(schedule, r);
  const auto found = std::ranges::find(actions, action);
  EXPECT_NE(found, actions.end()) << to_string(action) << " on rank " << r;
  return static_cast<std::size_t>(found - actions.begin());
}
void erase(Schedule& schedule, int r, const Action& action) {
  rank(schedule, r).erase(rank(schedule, r).begin() + static_cast<std::ptrdiff_t>(find(schedule, r, action)));
}
void swap(Schedule& schedule, int r, const Action& a, const Action& b) {
  const std::size_t i = find(schedule, r, a), j = find(schedule, r, b);
  std::swap(rank(schedule, r)[i], rank(schedule, r)[j]);
}
void move_before(Schedule& schedule, int r, const Action& action, const Action& place) {
  erase(schedule, r, action);
  const auto index = static_cast<std::ptrdiff_t>(find(schedule, r, place));
  rank(schedule, r).insert(rank(schedule, r).begin() + index, action);
}
void move_to_front(Schedule& schedule, int r, const Action& action) {
  move_before(schedule, r, action, rank(schedule, r).front());
}

constexpr Action send_activation(int i, int c = 0) { return {ActionKind::kSendActivation, i, c}; }
constexpr Action recv_activation(int i, int c = 0) { return {ActionKind::kRecvActivation, i, c}; }
constexpr Action send_gradient(int i, int c = 0) { return {ActionKind::kSendGradient, i, c}; }
constexpr Action recv_gradient(int i, int c = 0) { return {ActionKind::kRecvGradient, i, c}; }

struct Mutant {
  const char* name;
  const char* schedule;
  Break break_it;
  int rank;
  Action action;
  const char* reason;
};

// p = 3, m = 6.
const Mutant kMutants[] = {
    {"ReceivesInAnotherOrderThanSent", "1f1b",
     [](Schedule& s) { swap(s, 1, recv_activation(0), recv_activation(1)); }, 1, recv_activation(1),
     "the next message from rank 0 is the one for RecvActivation of micro-batch 0"},
    {"SendsInAnotherOrderThanReceived", "1f1b",
     [](Schedule& s) { move_before(s, 0, send_activation(0), Action::forward(2)); },  // behind that of 1
     1, recv_activation(0), "the next message from rank 0 is the one for RecvActivation of micro-batch 1"},
    {"DropsAReceive", "1f1b", [](Schedule& s) { erase(s, 1, recv_gradient(2)); }, 1, recv_gradient(2),
     "it is missing; every micro-batch needs it on stage 1"},
    {"DropsASend", "gpipe", [](Schedule& s) { erase(s, 2, send_gradient(5)); }, 2, send_gradient(5),
     "it is missing; every micro-batch needs it on stage 2"},
    {"SkipsAMicroBatch", "gpipe",
     [](Schedule& s) {
       for (int r = 0; r < 3; ++r)
         std::erase_if(rank(s, r), [](const Action& action) { return action.micro_batch == 4; });
     },
     0, Action::forward(4), "it is missing; every micro-batch needs it on stage 0"},
    {"SkipsABackward", "interleaved", [](Schedule& s) { erase(s, 1, Action::backward(3, 1)); }, 1,
     Action::backward(3, 1), "it is missing; every micro-batch needs it on stage 4"},
    {"SkipsAWeightPass", "zb-h1", [](Schedule& s) { erase(s, 2, Action::backward_weight(5)); }, 2,
     Action::backward_weight(5), "it is missing"},
    {"SkipsAnInputPass", "zb-v", [](Schedule& s) { erase(s, 0, Action::backward_input(0, 1)); }, 0,
     Action::backward_input(0, 1), "it is missing"},
    {"ForwardsTwice", "1f1b", [](Schedule& s) { rank(s, 2).push_back(Action::forward(5)); }, 2,
     Action::forward(5), "it is there a second time"},
    {"AddsAWeightGradientTwice", "zb-v",
     [](Schedule& s) { rank(s, 1).push_back(Action::backward_weight(0, 1)); }, 1,
     Action::backward_weight(0, 1), "it is there a second time"},
    {"AddsAWeightPassToAWholeBackward", "1f1b",
     [](Schedule& s) { rank(s, 1).push_back(Action::backward_weight(3)); }, 1, Action::backward_weight(3),
     "the backward pass is there both whole and in parts"},
    {"ForwardsBeforeItsInputHasCome", "1f1b",
     [](Schedule& s) { swap(s, 1, recv_activation(0), Action::forward(0)); }, 1, Action::forward(0),
     "its input has not come before it"},
    {"ForwardsBeforeTheStageOnTheSameRank", "zb-v",  // stages 2 and 3 are both on rank 2
     [](Schedule& s) { swap(s, 2, Action::forward(0, 0), Action::forward(0, 1)); }, 2, Action::forward(0, 1),
     "its input has not come before it"},
    {"BackwardBeforeItsGradientHasCome", "1f1b",
     [](Schedule& s) { swap(s, 0, recv_gradient(0), Action::backward(0)); }, 0, Action::backward(0),
     "the gradient of its output has not come before it"},
    {"BackwardBeforeForward", "1f1b",
     [](Schedule& s) { swap(s, 2, Action::forward(3), Action::backward(3)); }, 2, Action::backward(3),
     "it comes before its Forward"},
    {"WeightPassBeforeInputPass", "zb-h1",
     [](Schedule& s) { swap(s, 0, Action::backward_input(2), Action::backward_weight(2)); }, 0,
     Action::backward_weight(2), "it comes before its BackwardInput"},
    {"SendsBeforeItsDataAreMade", "gpipe", [](Schedule& s) { move_to_front(s, 0, send_activation(2)); }, 0,
     send_activation(2), "it comes before the Forward that makes its data"},
    {"SendsAGradientBeforeItIsMade", "gpipe", [](Schedule& s) { move_to_front(s, 2, send_gradient(0)); }, 2,
     send_gradient(0), "it comes before the backward pass that makes its data"},
    {"ReceivesBeforeItsSendInACircle", "1f1b",  // rank 1 gets its gradient once it has sent its activation
     [](Schedule& s) { move_to_front(s, 1, recv_gradient(0)); }, 1, recv_gradient(0),
     "deadlock; rank 1 waits for rank 2 (RecvGradient of micro-batch 0); rank 2 waits for rank 1 "
     "(RecvActivation "
     "of micro-batch 0)"},
    {"ReceivesInACircleOfAllRanks", "interleaved",  // with p = 3 the ranks are a ring
     [](Schedule& s) { move_to_front(s, 0, recv_activation(0, 1)); }, 0, recv_activation(0, 1),
     "deadlock; rank 0 waits for rank 2 (RecvActivation of micro-batch 0, chunk 1); rank 2 waits for rank 1 "
     "(RecvActivation of micro-batch 0); rank 1 waits for rank 0 (RecvActivation of micro-batch 0)"},
    {"ForwardsMoreThanItsMemoryHolds", "1f1b",
     [](Schedule& s) {  // one more before the first backward
       for (const Action& action : {recv_activation(2), Action::forward(2), send_activation(2)})
         move_before(s, 1, action, recv_gradient(0));
     },
     1, Action::forward(2), "activations of 3 micro-batches are alive after it; the schedule promises 2"},
    {"PromisesMemoryForOtherRanksThanItHas", "1f1b", [](Schedule& s) { s.most_live.pop_back(); }, 0, Action{},
     "most_live has 2 numbers for 3 ranks"},
    {"NamesAMicroBatchThatIsNotThere", "gpipe", [](Schedule& s) { rank(s, 1).push_back(Action::forward(6)); },
     1, Action::forward(6), "micro-batches are 0 to 5"},
    {"NamesAChunkThatIsNotThere", "gpipe", [](Schedule& s) { rank(s, 1).push_back(Action::forward(0, 1)); },
     1, Action::forward(0, 1), "chunks are 0 to 0"},
    {"SendsFromTheLastStage", "gpipe", [](Schedule& s) { rank(s, 2).push_back(send_activation(0)); }, 2,
     send_activation(0), "stage 2 has no neighbour on another rank there"},
    {"BackwardWhereThereAreForwardsAlone", "gpipe",
     [](Schedule& s) {
       s = forward_only(s);
       rank(s, 2).push_back(Action::backward(0));
     },
     2, Action::backward(0), "the schedule is of forwards alone"},
    {"EvaluatesWithoutAMicroBatch", "zb-v",
     [](Schedule& s) {
       s = forward_only(s);
       erase(s, 0, Action::forward(5, 1));
     },
     0, Action::forward(5, 1), "it is missing"},
    {"SendsToItself", "zb-v", [](Schedule& s) { rank(s, 2).push_back(send_activation(0)); }, 2,
     send_activation(0), "stage 2 has no neighbour on another rank there"},
};

class BrokenSchedule : public ::testing::TestWithParam<Mutant> {};
INSTANTIATE_TEST_SUITE_P(, BrokenSchedule, ::testing::ValuesIn(kMutants),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(BrokenSchedule, IsCaughtWithRankActionAndReason) {
  const Mutant& mutant = GetParam();
  Schedule schedule = make_schedule(mutant.schedule, {.ranks = 3, .micro_batches = 6});
  ASSERT_FALSE(find_fault(schedule).has_value());
  mutant.break_it(schedule);
  const auto fault = find_fault(schedule);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->rank, mutant.rank) << fault->to_string();
  EXPECT_EQ(fault->action, mutant.action) << fault->to_string();
  EXPECT_NE(fault->reason.find(mutant.reason), std::string::npos) << fault->to_string();
  if (fault->index >= 0) {
    EXPECT_EQ(rank(schedule, fault->rank).at(static_cast<std::size_t>(fault->index)), fault->action);
  }
  expect_error<ConfigError>([&] { check_legal(schedule); },
                            {"schedule " + schedule.name, fault->to_string()});
  expect_error<ConfigError>([&] { (void)simulate(schedule); }, {fault->to_string()});
}

// add_messages cannot mend computations that wait for each other, and must not hide it.
TEST(Messages, LeaveComputationsThatWaitForEachOtherToTheCheck) {
  Schedule schedule("circle", {.ranks = 2, .micro_batches = 2});
  schedule.actions[0] = {Action::forward(0), Action::backward(0), Action::forward(1), Action::backward(1)};
  schedule.actions[1] = {Action::forward(1), Action::backward(1), Action::forward(0), Action::backward(0)};
  add_messages(schedule);
  const auto fault = find_fault(schedule);
  ASSERT_TRUE(fault.has_value());
  EXPECT_NE(fault->reason.find("deadlock"), std::string::npos) << fault->to_string();

  Schedule incomplete("incomplete", {.ranks = 2, .micro_batches = 1});
  incomplete.actions[1] = {Action::forward(0), Action::backward(0)};
  add_messages(incomplete);
  EXPECT_EQ(find_fault(incomplete)->action, Action::forward(0));
}

// --- Messages

TEST(Messages, FollowTheComputationThatMakesThemAndComeBeforeTheOneThatNeedsThem) {
  const Schedule schedule = schedule_1f1b({.ranks = 3, .micro_batches = 2});
  EXPECT_EQ(list(schedule, 0), "F0 >1 F1 >1 <1 B0 <1 B1");
  EXPECT_EQ(list(schedule, 1), "<0 F0 >2 <0 F1 >2 <2 B0 >0 <2 B1 >0");
  EXPECT_EQ(list(schedule, 2), "<1 F0 B0 >1 <1 F1 B1 >1");
  EXPECT_EQ(list(schedule_zb_v({.ranks = 2, .micro_batches = 1}), 1), "<0 F0 F0.1 >0 <0 B0.1 W0.1 B0 >0 W0");
}

TEST(Messages, KeepTheOrderOfAChannelWhereTheReceiverNeedsThemInAnother) {
  // Rank 0 sends the activations of 0 and 1; rank 1 starts with 1, and so must take 0 first.
  Schedule schedule("last first", {.ranks = 2, .micro_batches = 2});
  schedule.actions[0] = {Action::forward(0), Action::forward(1), Action::backward(0), Action::backward(1)};
  schedule.actions[1] = {Action::forward(1), Action::backward(1), Action::forward(0), Action::backward(0)};
  add_messages(schedule);
  EXPECT_EQ(list(schedule, 1), "<0 <0 F1 B1 >0 F0 B0 >0");
  EXPECT_EQ(schedule.actions[1][0], recv_activation(0));
  EXPECT_EQ(list(schedule, 0), "F0 >1 F1 >1 <1 <1 B0 B1");
  EXPECT_FALSE(find_fault(schedule).has_value());
}

}  // namespace
}  // namespace tessera::dist
