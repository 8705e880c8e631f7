// The simulation of a schedule counts what one counts by hand, and the picture shows what it says.

#include "dist/pipeline_simulation.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dist/pipeline_drawing.h"
#include "dist/pipeline_generators.h"
#include "kernels/error.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

// --- The simulation, by hand

TEST(Simulation, GivesTheTimesThatOneCountsByHand) {
  const std::vector<StageCost> costs{
      {.forward = 2, .backward_input = 1, .backward_weight = 1, .transfer = 0.5},
      {.forward = 3, .backward_input = 2, .backward_weight = 2, .activations = 4}};
  const Simulation simulation = simulate(schedule_1f1b({.ranks = 2, .micro_batches = 2}), costs);
  const auto times = [&](std::size_t r) {
    std::vector<std::pair<double, double>> result;
    for (const TimedAction& timed : simulation.timeline[r])
      if (timed.action.is_compute()) result.push_back({timed.start, timed.end});
    return result;
  };
  // Rank 0: F0, F1, then it waits for gradients that leave rank 1 at 9.5 and 16.5 and travel for 0.5.
  EXPECT_EQ(times(0), (std::vector<std::pair<double, double>>{{0, 2}, {2, 4}, {10, 12}, {17, 19}}));
  EXPECT_EQ(times(1),
            (std::vector<std::pair<double, double>>{{2.5, 5.5}, {5.5, 9.5}, {9.5, 12.5}, {12.5, 16.5}}));
  EXPECT_EQ(simulation.total, 19);
  EXPECT_EQ(simulation.idle, (std::vector<double>{11, 5}));
  EXPECT_EQ(simulation.idle_inside, (std::vector<double>{11, 0}));
  EXPECT_EQ(simulation.bubble(), 16.0 / 38);
  EXPECT_EQ(simulation.peak_activations, (std::vector<double>{2, 4}));
  EXPECT_EQ(simulation.num_messages, 4);
}

TEST(Simulation, LetsMessagesOfAChannelFollowEachOther) {
  const Simulation simulation =
      simulate(schedule_gpipe({.ranks = 2, .micro_batches = 3}), {.transfer = 2});  // slower than a forward
  std::vector<double> starts;
  for (const TimedAction& timed : simulation.timeline[1])
    if (timed.action.kind == ActionKind::kForward) starts.push_back(timed.start);
  EXPECT_EQ(starts, (std::vector<double>{3, 5, 7}));
}

TEST(Simulation, RefusesCostsOfAnotherNumberOfStages) {
  expect_error<ConfigError>(
      [] { (void)simulate(schedule_zb_v({.ranks = 2, .micro_batches = 3}), std::vector<StageCost>(2)); },
      {"zb-v has 4 stages", "costs of 2"});
}

TEST(Simulation, TakesChunksAsPartsOfARank) {
  const Schedule one = schedule_1f1b({.ranks = 4, .micro_batches = 8}),
                 two = schedule_interleaved({.ranks = 4, .micro_batches = 8, .chunks = 2});
  const StageCost cost{.forward = 4, .backward_input = 4, .backward_weight = 2};
  EXPECT_EQ(simulate(one, cost).idle[0], 3 * 10);
  EXPECT_EQ(simulate(two, cost.per_chunk(2)).idle[0], 3 * 10 / 2);
}

// --- Pictures

TEST(Drawing, ShowsWhatTheSimulationSays) {
  const Schedule schedule = schedule_1f1b({.ranks = 2, .micro_batches = 3});
  EXPECT_EQ(draw(schedule, simulate(schedule)),
            "1f1b: 2 ranks, 3 micro-batches    F forward, B backward\n"
            "0  F0 F1 ......B0    F2 B1    ...B2\n"
            "1  ...F0 B0    F1 B1    F2 B2    ......\n"
            "bubble 25.0 % of 12\n"
            "idle, by rank                          3 3\n"
            "idle between first and last action     3 0\n"
            "most activations alive                 2 1\n"
            "messages 6\n");
}

TEST(Drawing, IsTheSameInColour) {
  for (const std::string& name : schedule_names()) {
    const Schedule schedule = make_schedule(name, {.ranks = 4, .micro_batches = 8});
    const std::string plain = draw(schedule, simulate(schedule)),
                      coloured = draw(schedule, simulate(schedule), {.colour = true});
    std::string stripped;
    for (std::size_t i = 0; i < coloured.size(); ++i) {
      if (coloured[i] == '\x1b') i = coloured.find('m', i) + 1;
      while (coloured[i] == '\x1b') i = coloured.find('m', i) + 1;
      stripped += coloured[i];
    }
    const auto without_spaces = [](std::string text) {  // a coloured cell goes on to its end
      std::erase(text, ' ');
      return text;
    };
    EXPECT_NE(coloured, plain);
    EXPECT_EQ(without_spaces(stripped), without_spaces(plain));
  }
}

TEST(Drawing, IsNotStretchedByAStageWithLittleToDo) {
  std::vector<StageCost> costs(2);
  costs[1] = {.forward = 1e-3, .backward_input = 1e-3, .backward_weight = 1e-3};
  const Schedule schedule = schedule_1f1b({.ranks = 2, .micro_batches = 3});
  const std::string picture = draw(schedule, simulate(schedule, costs));
  EXPECT_NE(picture.find("\n0  F0 F1 B0    F2 B1    B2\n"), std::string::npos) << picture;
}

TEST(Drawing, RefusesWhatTakesNoTime) {
  const Schedule schedule = schedule_gpipe({.ranks = 2, .micro_batches = 3});
  const StageCost nothing{.forward = 0, .backward_input = 0, .backward_weight = 0};
  expect_error<ConfigError>([&] { (void)draw(schedule, simulate(schedule, nothing)); }, {"gpipe", "no time"});
}

TEST(Drawing, HasAColourForEachKindOfPassAndShadesForChunks) {
  const Schedule schedule = schedule_zb_v({.ranks = 1, .micro_batches = 1});
  const std::string picture = draw(schedule, simulate(schedule), {.colour = true});
  EXPECT_NE(picture.find("\n0  \x1b[30;44mF0 \x1b[30;104mf0 \x1b[30;102mb0 \x1b[30;103mw0 \x1b[30;42mB0 "
                         "\x1b[30;43mW0 \x1b[0m\n"),
            std::string::npos)
      << picture;
}

TEST(Drawing, GoesOnBelowWhereALineIsFull) {
  const Schedule schedule = schedule_interleaved({.ranks = 4, .micro_batches = 32, .chunks = 3});
  const std::string picture = draw(schedule, simulate(schedule), {.width = 80});
  std::istringstream lines(picture.substr(picture.find('\n') + 1));
  int num_lines_of_rank_0 = 0;
  for (std::string line; std::getline(lines, line) && !line.starts_with("bubble");) {
    EXPECT_LE(line.size(), 80u);
    num_lines_of_rank_0 += line.starts_with("0  ");
  }
  // 96 forwards and 96 backwards of two units, and 3·3 units of bubble, in cells of 4 columns: 19 in a line.
  EXPECT_EQ(num_lines_of_rank_0, (96 * 3 + 9 + 18) / 19);
  EXPECT_NE(picture.find("F31c"), std::string::npos);
}

}  // namespace
}  // namespace tessera::dist
