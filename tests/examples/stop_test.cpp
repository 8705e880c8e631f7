// Ctrl-C, SIGTERM and killed processes: nothing is lost, nothing hangs.

#include <map>

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class Stop : public Workplace {
 protected:
  // Long enough not to end by itself.
  static std::string endless(const std::string& options = "") {
    return train("--out run --steps 1000000 --batch 4 --log run.jsonl " + options);
  }
  static bool has_started(const Outcome& so_far) {
    return so_far.out.find("step      10/") != std::string::npos;
  }

  // Signals a run, and has it go on from where it was for one step.
  void stop_and_resume(const std::string& launcher, const std::string& ranks, int signal) {
    Child child = start(launcher + endless(ranks));
    ASSERT_TRUE(child.wait_until(has_started)) << child.wait(0s).all();
    child.signal_group(signal);
    const Outcome outcome = child.wait(20s);
    ASSERT_EQ(outcome.status, 0) << outcome.all();
    EXPECT_NE(outcome.out.find("stopped after step "), std::string::npos) << outcome.out;
    EXPECT_NE(outcome.out.find("saved in run, go on with --resume"), std::string::npos) << outcome.out;
    EXPECT_EQ(outcome.err.find("error"), std::string::npos) << outcome.err;

    const auto steps = read_log("run.jsonl");
    ASSERT_GE(steps.size(), 10u);
    EXPECT_EQ(steps.back()["step"], steps.size());
    // One more step; --resume takes the schedule's length from --steps, so this is another run from here on.
    const Outcome more = run(
        train("--out run --batch 4 --resume --log run.jsonl --steps " + std::to_string(steps.size() + 1)));
    EXPECT_EQ(more.status, 0) << more.all();
    EXPECT_EQ(read_log("run.jsonl").size(), steps.size() + 1);
  }
};

TEST_F(Stop, ByCtrlCSavesAndEndsWell) { stop_and_resume("", "", SIGINT); }
TEST_F(Stop, BySigtermSavesAndEndsWell) { stop_and_resume("", "", SIGTERM); }
TEST_F(Stop, OfThreadRanksByCtrlCSavesAndEndsWell) { stop_and_resume("", "--ranks 2", SIGINT); }
TEST_F(Stop, OfThreadRanksBySigtermSavesAndEndsWell) { stop_and_resume("", "--ranks 2", SIGTERM); }
TEST_F(Stop, UnderMpiByCtrlCSavesAndEndsWell) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  stop_and_resume("mpiexec -n 2 ", "", SIGINT);
}
TEST_F(Stop, UnderMpiBySigtermSavesAndEndsWell) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  stop_and_resume("mpiexec -n 2 ", "", SIGTERM);
}

TEST_F(Stop, AtOnceByASecondCtrlC) {
  // A step of this takes minutes.
  Child child = start(
      "gpt2_train --data data --out run --model layers=4,heads=4,width=128,context=128 --batch 8192 "
      "--micro-batch 8 "
      "--threads 1");
  ASSERT_TRUE(child.wait_until(
      [](const Outcome& so_far) { return so_far.out.find("optimizer") != std::string::npos; }));
  child.signal_group(SIGINT);
  std::this_thread::sleep_for(700ms);  // within 0.5 s it counts as the same Ctrl-C
  ASSERT_EQ(::kill(child.pid(), 0), 0) << "the first ended it";
  child.signal_group(SIGINT);
  EXPECT_EQ(child.wait(5s).status, 128 + SIGINT);
}

// The process ids of the ranks below mpiexec; between the two stands a process for each host.
std::vector<pid_t> ranks_below(pid_t mpiexec) {
  std::map<pid_t, pid_t> parents;
  std::vector<pid_t> programs, result;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string status = data::read_file(entry.path() / "stat");  // pid (name) state parent ...
    const std::size_t end_of_name = status.rfind(')');
    if (end_of_name == std::string::npos) continue;
    const pid_t pid = std::stoi(name);
    parents[pid] = std::stoi(status.substr(end_of_name + 4));
    if (status.find("(gpt2_train)") != std::string::npos) programs.push_back(pid);
  }
  for (const pid_t pid : programs)
    if (parents[parents[pid]] == mpiexec) result.push_back(pid);
  return result;
}

TEST_F(Stop, OfOneMpiRankByKillEndsTheJobWithinSecondsAndKeepsTheCheckpoint) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  Child child = start("mpiexec -n 2 " + endless("--save-every 5"));
  ASSERT_TRUE(child.wait_until(has_started)) << child.wait(0s).all();
  const std::vector<pid_t> ranks = ranks_below(child.pid());
  ASSERT_EQ(ranks.size(), 2u);
  ::kill(ranks.back(), SIGKILL);
  const Outcome outcome = child.wait(10s);
  EXPECT_GT(outcome.status, 0) << outcome.all();
  EXPECT_EQ(run("gpt2_evaluate --model run --data data --threads 1").status, 0);
  const Outcome more =
      run(train("--out run --batch 4 --resume --steps 1000000 --save-every 1 --log run.jsonl"),
          {.largest_file = 4096});  // ends at the next save: a checkpoint has more bytes
  EXPECT_EQ(more.status, 1) << more.all();
  EXPECT_NE(more.out.find("resuming after step"), std::string::npos) << more.out;
}

TEST_F(Stop, ByAKilledProcessAtAnyMomentKeepsTheLastCheckpoint) {
  for (int i = 0; i < 6; ++i) {
    Child child = start(endless("--save-every 1 --resume --progress none"));
    const std::filesystem::path marker = folder_ / "run/latest";
    ASSERT_TRUE(child.wait_until([&](const Outcome&) { return std::filesystem::exists(marker); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(200 + 7 * i));  // somewhere within a step or a save
    child.signal_group(SIGKILL);
    ASSERT_EQ(child.wait(5s).status, 128 + SIGKILL);
    const Outcome outcome = run("gpt2_evaluate --model run --data data --threads 1");
    EXPECT_EQ(outcome.status, 0) << outcome.all();
  }
}

TEST_F(Stop, EndsAnEvaluationAndAText) {
  ASSERT_EQ(run(train("--out run --steps 1 --batch 2")).status, 0);
  Child text = start("gpt2_generate --model run --prompt a --tokens 1000000000");
  ASSERT_TRUE(text.wait_until([](const Outcome& so_far) { return so_far.out.size() > 10; }));
  text.signal_group(SIGINT);
  EXPECT_EQ(text.wait(5s).status, 0);

  // Of many texts at once there is nothing to show yet.
  write_file(folder_ / "prompts", "the\nand the lord\n");
  Child texts = start("gpt2_generate --model run --prompts prompts --tokens 1000000000 --threads 1");
  std::this_thread::sleep_for(300ms);
  texts.signal_group(SIGINT);
  EXPECT_EQ(texts.wait(5s).status, 128 + SIGINT);

  write_file(folder_ / "long", sample_text(400000));
  ASSERT_EQ(run("gpt2_prepare --text long --tokenizer run --out long_data").status, 0);
  Child evaluation = start("gpt2_evaluate --model run --data long_data --split train --stride 1 --threads 1");
  std::this_thread::sleep_for(300ms);
  evaluation.signal_group(SIGINT);
  EXPECT_EQ(evaluation.wait(5s).status, 128 + SIGINT);
}

TEST_F(Stop, OfPreparationLeavesNothing) {
  write_file(folder_ / "long", sample_text(3000000));
  Child child = start("gpt2_prepare --text long --vocab 4000 --out prepared");
  ASSERT_TRUE(
      child.wait_until([](const Outcome& so_far) { return so_far.out.find("output") != std::string::npos; }));
  child.signal_group(SIGTERM);
  const Outcome outcome = child.wait(20s);
  EXPECT_EQ(outcome.status, 1) << outcome.all();
  EXPECT_NE(outcome.err.find("interrupted; nothing was written"), std::string::npos) << outcome.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "prepared"));
}

}  // namespace
}  // namespace tessera::programs
