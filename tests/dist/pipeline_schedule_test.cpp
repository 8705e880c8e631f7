// Pipeline schedules: each is legal in every size, takes the time and holds the activations of its formula,
// and gives what one rank gives when ranks run it.

#include "dist/pipeline_schedule.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "dist/job.h"
#include "dist/pipeline_check.h"
#include "dist/pipeline_generators.h"
#include "dist/pipeline_simulation.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

// --- Sizes

constexpr int kMostRanks = 8, kMostMicroBatches = 32, kMostChunks = 4;

struct Case {
  Schedule schedule;
  int p, m, v;
};

std::vector<int> chunks_of(const std::string& name) {
  if (name == "interleaved") return {1, 2, 3, kMostChunks};
  return {name == "zb-v" ? 2 : 1};
}

// `run` for every size of a schedule, up to p = 8, m = 32, v = 4.
void for_each_size(const std::string& name, const std::function<void(const Case&)>& run) {
  int num_cases = 0;
  for (int p = 1; p <= kMostRanks; ++p) {
    for (int m = 1; m <= kMostMicroBatches; ++m) {
      for (const int v : chunks_of(name)) {
        if (name == "interleaved" && m % p != 0) continue;
        SCOPED_TRACE(fmt::format("{}: p = {}, m = {}, v = {}", name, p, m, v));
        run({make_schedule(name, {.ranks = p, .micro_batches = m, .chunks = v}), p, m, v});
        ++num_cases;
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
  EXPECT_GE(num_cases, 256);
}

double sum(const StageCost& cost) { return cost.forward + cost.backward_input + cost.backward_weight; }

// Sums of small integers: exact in f64.
const StageCost kCosts[] = {
    {},
    {.forward = 2, .backward_input = 2, .backward_weight = 1},
    {.forward = 1, .backward_input = 3, .backward_weight = 2},
    {.forward = 3, .backward_input = 1, .backward_weight = 1},
    {.forward = 1, .backward_input = 2, .backward_weight = 4},
};

std::vector<int> whole(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// --- Legal

class EachSchedule : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, EachSchedule, ::testing::ValuesIn(schedule_names()), [](const auto& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
});

TEST_P(EachSchedule, IsLegalInEverySize) {
  for_each_size(GetParam(), [](const Case& c) {
    const auto fault = find_fault(c.schedule);
    EXPECT_FALSE(fault.has_value()) << fault->to_string();
    EXPECT_EQ(c.schedule.most_live.size(), static_cast<std::size_t>(c.p));
  });
}

TEST_P(EachSchedule, SumsGradientsInTheOrderOfTheMicroBatches) {
  for_each_size(GetParam(), [](const Case& c) {
    for (const auto& actions : c.schedule.actions) {
      std::vector<int> next(static_cast<std::size_t>(c.v), 0);
      for (const Action& action : actions) {
        if (action.kind != ActionKind::kBackward && action.kind != ActionKind::kBackwardWeight) continue;
        EXPECT_EQ(action.micro_batch, next[static_cast<std::size_t>(action.chunk)]++);
      }
    }
  });
}

TEST_P(EachSchedule, HoldsAsManyActivationsAsItPromisesAndNoFewer) {
  for_each_size(GetParam(), [](const Case& c) {
    const std::vector<int> held = whole(simulate(c.schedule).peak_activations);
    if (c.schedule.name == "zb-v" && c.m < 2 * c.p - 1) return;  // that it holds no more, the check has shown
    EXPECT_EQ(held, c.schedule.most_live);
  });
}

TEST_P(EachSchedule, ComputesNothingButItsPasses) {
  for_each_size(GetParam(), [](const Case& c) {
    for (const StageCost& cost : kCosts) {
      const Simulation simulation = simulate(c.schedule, cost);
      for (const double idle : simulation.idle) EXPECT_EQ(simulation.total - idle, c.m * c.v * sum(cost));
    }
  });
}

TEST_P(EachSchedule, IsLegalWithForwardsAlone) {
  for_each_size(GetParam(), [](const Case& c) {
    const Schedule schedule = forward_only(c.schedule);
    const auto fault = find_fault(schedule);
    ASSERT_FALSE(fault.has_value()) << fault->to_string();
    const Simulation whole = simulate(c.schedule), simulation = simulate(schedule);
    EXPECT_EQ(2 * simulation.num_messages, whole.num_messages);
    EXPECT_EQ(simulation.total - simulation.idle.front(), c.m * c.v);
    EXPECT_EQ(simulation.peak_activations, std::vector<double>(static_cast<std::size_t>(c.p), 1.0));
    if (c.v == 1) {
      EXPECT_EQ(simulation.total, c.m + c.p - 1);
    }
  });
}

// --- Formulas of bubbles, activations and messages

// Idle time of each rank, which is the same for all.
double bubble_of(const Schedule& schedule, const StageCost& cost) {
  const Simulation simulation = simulate(schedule, cost);
  for (const double idle : simulation.idle) EXPECT_EQ(idle, simulation.idle.front());
  return simulation.idle.front();
}

TEST(PipelineFormula, OfGPipe) {
  for_each_size("gpipe", [](const Case& c) {
    const auto [schedule, p, m, v] = c;
    EXPECT_DOUBLE_EQ(simulate(schedule).bubble(), (p - 1.0) / (m + p - 1.0));
    for (const StageCost& cost : kCosts) EXPECT_EQ(bubble_of(schedule, cost), (p - 1) * sum(cost));
    EXPECT_EQ(schedule.most_live, std::vector<int>(static_cast<std::size_t>(p), m));
    EXPECT_EQ(simulate(schedule).num_messages, 2 * m * (p - 1));
  });
}

TEST(PipelineFormula, Of1F1B) {
  for_each_size("1f1b", [](const Case& c) {
    const auto [schedule, p, m, v] = c;
    EXPECT_DOUBLE_EQ(simulate(schedule).bubble(), (p - 1.0) / (m + p - 1.0));
    for (const StageCost& cost : kCosts) EXPECT_EQ(bubble_of(schedule, cost), (p - 1) * sum(cost));
    for (int r = 0; r < p; ++r)
      EXPECT_EQ(schedule.most_live[static_cast<std::size_t>(r)], std::min(m, p - r)) << "rank " << r;
    EXPECT_EQ(simulate(schedule).num_messages, 2 * m * (p - 1));
  });
}

TEST(PipelineFormula, OfInterleaved) {
  for_each_size("interleaved", [](const Case& c) {
    const auto [schedule, p, m, v] = c;
    // Costs are those of a chunk: v times a bubble of (p − 1)/v of a rank's layers.
    for (const StageCost& cost : kCosts) EXPECT_EQ(bubble_of(schedule, cost), (p - 1) * sum(cost));
    const Simulation simulation = simulate(schedule);
    const double without_bubble = simulation.total - simulation.idle[0];
    EXPECT_DOUBLE_EQ(simulation.idle[0] / without_bubble, (p - 1.0) / (v * m));
    for (int r = 0; r < p; ++r) {
      const int most = v == 1 ? std::min(m, p - r) : std::min(m * v, 2 * (p - 1 - r) + (v - 1) * p + 1);
      EXPECT_EQ(schedule.most_live[static_cast<std::size_t>(r)], most) << "rank " << r;
    }
    const int boundaries = p == 1 ? 0 : v * p - 1;  // v·(p − 1) of 1F1B's kind, v − 1 back to rank 0
    EXPECT_EQ(simulation.num_messages, 2 * m * boundaries);
  });
}

TEST(PipelineFormula, OfZbH1) {
  for_each_size("zb-h1", [](const Case& c) {
    const auto [schedule, p, m, v] = c;
    for (const StageCost& cost : kCosts) {
      const auto [f, b, w] = std::array{cost.forward, cost.backward_input, cost.backward_weight};
      const double bubble = bubble_of(schedule, cost);
      if (m >= p) {
        EXPECT_EQ(bubble, (p - 1) * std::max({f + b - w, f, b}));
      } else if (w <= std::min(f, b)) {
        EXPECT_EQ(bubble, (p - 1) * (f + b) - (m - 1) * w);
      }
      EXPECT_LE(bubble, (p - 1) * sum(cost));  // 1F1B's
    }
    if (m >= p) {  // equal times: a third of 1F1B's
      const Schedule one_f_one_b = schedule_1f1b({.ranks = p, .micro_batches = m});
      EXPECT_EQ(3 * bubble_of(schedule, {}), bubble_of(one_f_one_b, {}));
    }
    EXPECT_EQ(schedule.most_live, std::vector<int>(static_cast<std::size_t>(p), std::min(m, p)));
    EXPECT_EQ(simulate(schedule).num_messages, 2 * m * (p - 1));
  });
}

TEST(PipelineFormula, OfZbV) {
  for_each_size("zb-v", [](const Case& c) {
    const auto [schedule, p, m, v] = c;
    const Simulation simulation = simulate(schedule);
    if (m >= 2 * p - 1) {
      EXPECT_EQ(simulation.total, 6 * m + p - 1);
      EXPECT_EQ(simulation.idle_inside, std::vector<double>(static_cast<std::size_t>(p), 0.0));
      for (int r = 0; r < p; ++r) {
        const auto& timeline = simulation.timeline[static_cast<std::size_t>(r)];
        const auto first =
            std::ranges::find_if(timeline, [](auto& timed) { return timed.action.is_compute(); });
        EXPECT_EQ(first->start, r) << "rank " << r;
      }
    } else {  // too few to fill the way down and back: still no worse than 1F1B, in chunks' passes
      EXPECT_LE(simulation.total, 6 * (m + p - 1));
    }
    EXPECT_EQ(schedule.most_live, std::vector<int>(static_cast<std::size_t>(p), std::min(2 * m, 2 * p)));
    EXPECT_EQ(simulation.num_messages, 4 * m * (p - 1));
  });
}

TEST(PipelineFormula, OfMemoryBetweenTheTwoBackwardPasses) {
  // Rank 3 of 4: one micro-batch between its forward and backward, three waiting for their weight pass.
  const Schedule schedule = schedule_zb_h1({.ranks = 4, .micro_batches = 8});
  EXPECT_EQ(simulate(schedule).peak_activations, (std::vector<double>{4, 4, 4, 4}));
  EXPECT_EQ(simulate(schedule, {.kept_for_weights = 0.5}).peak_activations,
            (std::vector<double>{4, 3.5, 3, 2.5}));
  EXPECT_EQ(simulate(schedule, {.activations = 10, .kept_for_weights = 0}).peak_activations,
            (std::vector<double>{40, 30, 20, 10}));  // 1F1B's
}

// --- Run by ranks

// A model of integers: y = 3·x + stage + 1, and a weight whose gradient depends on x and dy, and on the order
// in which micro-batches are added. All modulo a prime.
constexpr std::int64_t kPrime = 1'000'003;
std::int64_t stage_forward(int stage, std::int64_t x) { return (3 * x + stage + 1) % kPrime; }
std::int64_t stage_backward(std::int64_t x, std::int64_t dy) { return (3 * dy + x * x) % kPrime; }
std::int64_t add_gradient(std::int64_t sum, std::int64_t x, std::int64_t dy) {
  return (7 * sum + x * dy) % kPrime;
}
std::int64_t sample(int micro_batch) { return 11 * micro_batch + 5; }

std::vector<std::int64_t> gradients_of_one_rank(int num_stages, int num_micro_batches) {
  std::vector<std::int64_t> gradients(static_cast<std::size_t>(num_stages), 0);
  for (int i = 0; i < num_micro_batches; ++i) {
    std::vector<std::int64_t> x{sample(i)};
    for (int stage = 0; stage < num_stages; ++stage) x.push_back(stage_forward(stage, x.back()));
    std::int64_t dy = x.back();  // of the loss
    for (int stage = num_stages - 1; stage >= 0; --stage) {
      const auto s = static_cast<std::size_t>(stage);
      gradients[s] = add_gradient(gradients[s], x[s], dy);
      dy = stage_backward(x[s], dy);
    }
  }
  return gradients;
}

// What one rank does with its list. Values are kept by stage and micro-batch: that a value is there when an
// action asks for it is what the schedule is for.
class Interpreter {
 public:
  Interpreter(const Schedule& schedule, Communicator& ranks) : schedule_(schedule), ranks_(ranks) {}

  // The gradients of this rank's stages; 0 for the others.
  std::vector<std::int64_t> run() {
    std::vector<std::int64_t> gradients(static_cast<std::size_t>(schedule_.num_stages()), 0);
    for (const Action& action : schedule_.actions[static_cast<std::size_t>(ranks_.rank())]) {
      const int stage = schedule_.stage(ranks_.rank(), action.chunk), i = action.micro_batch;
      auto& gradient = gradients[static_cast<std::size_t>(stage)];
      switch (action.kind) {
        case ActionKind::kForward: {
          const std::int64_t x = stage == 0 ? sample(i) : at(boundary_, stage, i);
          input_[{stage, i}] = x;
          boundary_[{stage + 1, i}] = stage_forward(stage, x);
          break;
        }
        case ActionKind::kBackward:
          backward_input(stage, i);
          gradient = add_gradient(gradient, at(input_, stage, i), dy(stage, i));
          break;
        case ActionKind::kBackwardInput:
          backward_input(stage, i);
          break;
        case ActionKind::kBackwardWeight:
          gradient = add_gradient(gradient, at(input_, stage, i), dy(stage, i));
          break;
        case ActionKind::kSendActivation:
          send(action, at(boundary_, stage + 1, i));
          break;
        case ActionKind::kSendGradient:
          send(action, at(gradient_, stage, i));
          break;
        case ActionKind::kRecvActivation:
          recv(action, boundary_[{stage, i}]);
          break;
        case ActionKind::kRecvGradient:
          recv(action, gradient_[{stage + 1, i}]);
          break;
      }
    }
    for (Work& work : sends_) work.wait();
    return gradients;
  }

 private:
  using Values = std::map<std::pair<int, int>, std::int64_t>;  // [stage, micro-batch]
  static std::int64_t at(const Values& values, int stage, int i) { return values.at({stage, i}); }
  std::int64_t dy(int stage, int i) {
    return stage + 1 == schedule_.num_stages() ? at(boundary_, stage + 1, i) : at(gradient_, stage + 1, i);
  }
  void backward_input(int stage, int i) {
    gradient_[{stage, i}] = stage_backward(at(input_, stage, i), dy(stage, i));
  }
  void send(const Action& action, std::int64_t value) {
    sent_.push_back({value});
    sends_.push_back(ranks_.send_async(buffer_of(sent_.back()), schedule_.peer(ranks_.rank(), action)));
  }
  void recv(const Action& action, std::int64_t& value) {
    ranks_.recv(buffer_of(std::span(&value, 1)), schedule_.peer(ranks_.rank(), action));
  }

  const Schedule& schedule_;
  Communicator& ranks_;
  Values input_, boundary_, gradient_;  // boundary s: between stages s − 1 and s
  std::list<std::vector<std::int64_t>> sent_;
  std::vector<Work> sends_;
};

std::vector<std::int64_t> gradients_of_ranks(const Schedule& schedule) {
  std::vector<std::int64_t> result;
  run_thread_ranks(schedule.num_ranks, [&](Job& job) {
    std::vector<std::int64_t> gradients = Interpreter(schedule, job.world()).run();
    job.world().all_reduce(buffer_of(gradients));
    if (job.is_root()) result = gradients;
  });
  return result;
}

TEST_P(EachSchedule, GivesTheGradientsOfOneRankWhenRanksRunIt) {
  for (const int p : {1, 2, 3, 4, 8}) {
    for (const int m : {1, 2, p, 3 * p, 2 * p + 1}) {
      for (const int v : chunks_of(GetParam())) {
        if (GetParam() == "interleaved" && m % p != 0) continue;
        SCOPED_TRACE(fmt::format("p = {}, m = {}, v = {}", p, m, v));
        const Schedule schedule = make_schedule(GetParam(), {.ranks = p, .micro_batches = m, .chunks = v});
        EXPECT_EQ(gradients_of_ranks(schedule), gradients_of_one_rank(p * v, m));
      }
    }
  }
}

// --- One's own

// 1F1B for ranks of little memory: none holds activations of more than `most` micro-batches.
Schedule schedule_capped(const PipelineSize& size, int most) {
  Schedule schedule("capped", size);
  const int p = schedule.num_ranks, m = schedule.num_micro_batches;
  for (int rank = 0; rank < p; ++rank) {
    auto& actions = schedule.actions[rank];
    const int ahead = std::min({m, most, p - rank});  // forwards before the first backward
    for (int i = 0; i < ahead; ++i) actions.push_back(Action::forward(i));
    for (int i = 0; i < m; ++i) {
      actions.push_back(Action::backward(i));
      if (ahead + i < m) actions.push_back(Action::forward(ahead + i));
    }
    schedule.most_live.push_back(ahead);
  }
  add_messages(schedule);
  return schedule;
}

TEST(OwnSchedule, IsAFunctionOfTwentyLines) {
  for (int p = 1; p <= kMostRanks; ++p) {
    for (int m = 1; m <= kMostMicroBatches; ++m) {
      for (int most = 1; most <= p; ++most) {
        const Schedule schedule = schedule_capped({.ranks = p, .micro_batches = m}, most);
        const auto fault = find_fault(schedule);
        ASSERT_FALSE(fault.has_value()) << fault->to_string();
        EXPECT_EQ(whole(simulate(schedule).peak_activations), schedule.most_live);
      }
    }
  }
  EXPECT_EQ(simulate(schedule_capped({.ranks = 4, .micro_batches = 8}, 4)).bubble(),
            simulate(schedule_1f1b({.ranks = 4, .micro_batches = 8})).bubble());
  EXPECT_EQ(gradients_of_ranks(schedule_capped({.ranks = 4, .micro_batches = 8}, 2)),
            gradients_of_one_rank(4, 8));
}

TEST(OwnSchedule, StandsInThePageAsItIsHere) {
  const std::filesystem::path source = TESSERA_SOURCE_DIR;
  const std::string here = data::read_file(source / "tests/dist/pipeline_schedule_test.cpp");
  const std::size_t begin = here.find("Schedule schedule_capped(");
  std::istringstream lines(here.substr(begin, here.find("\n}\n", begin) + 2 - begin));
  std::string in_page;
  int num_lines = 0;
  for (std::string line; std::getline(lines, line); ++num_lines) in_page += "    " + line + "\n";
  EXPECT_LE(num_lines, 20);
  EXPECT_NE(data::read_file(source / "docs/pipelines.md").find(in_page), std::string::npos) << in_page;
}

// --- Names and sizes

TEST(StageOrder, PlacesEveryStageOnce) {
  for (const StageOrder order : {StageOrder::kLoop, StageOrder::kV}) {
    for (int p = 1; p <= 8; ++p) {
      for (int v = 1; v <= 4; ++v) {
        const Schedule schedule("", {.ranks = p, .chunks = v}, order);
        for (int stage = 0; stage < p * v; ++stage)
          EXPECT_EQ(schedule.stage(schedule.rank_of(stage), schedule.chunk_of(stage)), stage);
      }
    }
  }
  const Schedule loop("", {.ranks = 3, .chunks = 2}), v("", {.ranks = 3, .chunks = 2}, StageOrder::kV);
  const int loop_ranks[] = {0, 1, 2, 0, 1, 2}, v_ranks[] = {0, 1, 2, 2, 1, 0};
  for (int stage = 0; stage < 6; ++stage) {
    EXPECT_EQ(loop.rank_of(stage), loop_ranks[stage]);
    EXPECT_EQ(v.rank_of(stage), v_ranks[stage]);
  }
  EXPECT_EQ(v.rank_after(2, 0), 2);
  EXPECT_EQ(v.rank_after(0, 1), -1);
  EXPECT_EQ(loop.rank_before(0, 1), 2);
  EXPECT_EQ(loop.rank_before(0, 0), -1);
}

TEST(MakeSchedule, NamesTheKnownOnesForAnotherName) {
  expect_error<ConfigError>([] { (void)make_schedule("1F1B", {}); },
                            {"'1F1B'", "did you mean '1f1b'?", "gpipe, 1f1b, interleaved, zb-h1, zb-v"});
  expect_error<ConfigError>([] { (void)make_schedule("dualpipe", {}); },  // no guess: none is near
                            {"'dualpipe' is not known; schedules are gpipe"});
  for (const std::string& name : schedule_names())
    EXPECT_EQ(make_schedule(name, {.ranks = 2, .micro_batches = 4}).name, name);
}

TEST(MakeSchedule, RefusesSizesThatAScheduleCannotHave) {
  const auto make = [](const char* name, const PipelineSize& size) {
    return [=] { (void)make_schedule(name, size); };
  };
  expect_error<ConfigError>(make("interleaved", {.ranks = 4, .micro_batches = 10}),
                            {"4 ranks do not divide 10 micro-batches", "take 8 or 12", "1f1b"});
  expect_error<ConfigError>(make("interleaved", {.ranks = 4, .micro_batches = 3}), {"take 4, or"});
  expect_error<ConfigError>(make("zb-v", {.ranks = 4, .micro_batches = 8, .chunks = 3}), {"2 chunks", "3"});
  expect_error<ConfigError>(make("1f1b", {.ranks = 4, .micro_batches = 8, .chunks = 2}),
                            {"1 chunk on each rank, but 2", "interleaved"});
  for (const std::string& name : schedule_names()) {
    expect_error<ConfigError>(make(name.c_str(), {.ranks = 0, .micro_batches = 8}),
                              {"at least 1 rank", "0, 8"});
    expect_error<ConfigError>(make(name.c_str(), {.ranks = 2, .micro_batches = 0}), {"2, 0"});
    expect_error<ConfigError>(make(name.c_str(), {.ranks = 2, .micro_batches = 4, .chunks = -1}), {"-1"});
  }
}

TEST(MakeSchedule, TakesItsOwnNumberOfChunksUnlessTold) {
  const PipelineSize size{.ranks = 2, .micro_batches = 4};
  EXPECT_EQ(make_schedule("1f1b", size).num_chunks, 1);
  EXPECT_EQ(make_schedule("interleaved", size).num_chunks, 2);
  EXPECT_EQ(make_schedule("zb-v", size).num_chunks, 2);
}

}  // namespace
}  // namespace tessera::dist
