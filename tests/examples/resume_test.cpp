// A run that was interrupted and goes on is the run that was not.

#include <map>

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class Resume : public Workplace {
 protected:
  static constexpr const char* kRun =
      " --steps 9 --batch 6 --lr 0.01 --dropout 0.1 --dtype f64 --eval-tokens 64 --progress none ";

  // The uninterrupted run, in `whole`; one that ended after 4 of 9 steps, in `parts`, its logs three steps
  // ahead.
  void run_whole_and_part(const std::string& ranks = "") {
    ASSERT_EQ(run(train(kRun + std::string("--out whole --log whole.jsonl --csv whole.csv ") + ranks)).status,
              0);
    // A checkpoint every 4 steps, and an end without one after step 7: the folder of step 4 and the logs of 7
    // steps are what a killed process leaves.
    ASSERT_EQ(
        run(train(kRun +
                  std::string("--out parts --save-every 4 --log parts.jsonl --csv parts.csv --keep 9 ") +
                  ranks))
            .status,
        0);
    std::filesystem::remove_all(folder_ / "parts/step-00000008");
    std::filesystem::remove_all(folder_ / "parts/step-00000009");
    write_file(folder_ / "parts/latest", "step-00000004\n");
    for (const char* log : {"parts.jsonl", "parts.csv"}) {
      std::istringstream in(read_file(folder_ / log));
      std::string kept, line;
      for (int i = 0; i < 7 && std::getline(in, line); ++i) kept += line + '\n';
      write_file(folder_ / log, kept + line.substr(0, line.size() / 2));  // the last line cut in the middle
    }
  }
  [[nodiscard]] std::string steps_of_csv(const std::string& name) const {
    std::string steps;
    std::istringstream in(read_file(folder_ / name));
    for (std::string line; std::getline(in, line);) steps += line.substr(0, line.find(',')) + ' ';
    return steps;
  }
};

TEST_F(Resume, GivesTheLossesAndTheCheckpointOfTheUninterruptedRun) {
  for (const char* ranks : {"", "--ranks 2 --micro-batch 1"}) {
    SCOPED_TRACE(ranks);
    for (const char* old : {"whole", "parts"}) std::filesystem::remove_all(folder_ / old);
    run_whole_and_part(ranks);
    const Outcome outcome =
        run(train(kRun + std::string("--out parts --resume --log parts.jsonl --csv parts.csv ") + ranks));
    ASSERT_EQ(outcome.status, 0) << outcome.all();
    EXPECT_NE(outcome.out.find("resuming after step 4"), std::string::npos) << outcome.out;

    const auto whole = read_log("whole.jsonl"), parts = read_log("parts.jsonl");
    ASSERT_EQ(parts.size(), 9u);
    for (std::size_t i = 0; i < 9; ++i) {
      EXPECT_EQ(parts[i]["step"], i + 1);
      for (const char* figure : {"loss", "grad_norm", "lr"})
        EXPECT_EQ(parts[i][figure], whole[i][figure]) << figure << i + 1;
    }
    EXPECT_EQ(steps_of_csv("parts.csv"), "step 1 2 3 4 5 6 7 8 9 ");
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "checkpoint.json"}) {
      EXPECT_EQ(read_file(latest("parts") / file), read_file(latest("whole") / file)) << file << " differs";
    }
  }
}

TEST_F(Resume, GoesOnWithAnotherNumberOfRanks) {
  run_whole_and_part();
  ASSERT_EQ(run(train(kRun + std::string("--out parts --resume --ranks 3 --log parts.jsonl"))).status, 0);
  const auto whole = read_log("whole.jsonl"), parts = read_log("parts.jsonl");
  ASSERT_EQ(parts.size(), 9u);
  for (std::size_t i = 0; i < 9; ++i) {
    const double loss = whole[i]["loss"];
    EXPECT_NEAR(parts[i]["loss"].get<double>(), loss, 1e-10 * loss);
  }
  const Difference between = difference(read_weights("whole"), read_weights("parts"));
  EXPECT_LE(between.largest, 1e-10 * between.scale);
}

TEST_F(Resume, GoesOnUnderMpi) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  run_whole_and_part();
  const Outcome outcome =
      run(train(kRun + std::string("--out parts --resume --log parts.jsonl"), "mpiexec -n 2"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  const auto whole = read_log("whole.jsonl"), parts = read_log("parts.jsonl");
  ASSERT_EQ(parts.size(), 9u);
  const double loss = whole[8]["loss"];
  EXPECT_NEAR(parts[8]["loss"].get<double>(), loss, 1e-10 * loss);
}

TEST_F(Resume, RefusesWhatWouldBeAnotherRunAndLosesNothing) {
  ASSERT_EQ(run(train("--out run --steps 2 --batch 2 --log run.jsonl --progress none")).status, 0);
  ASSERT_EQ(run("gpt2_prepare --text text --vocab 280 --out other").status, 0);
  ASSERT_EQ(run("gpt2_prepare --text text --tokenizer run --out run").status, 0)
      << "the same vocabulary is fine";
  const auto before = contents("run");
  const std::string log = read_file(folder_ / "run.jsonl");
  struct Case {
    const char* name;
    const char* command;
    const char* message;
  };
  for (const Case& c : std::vector<Case>{
           {"no --resume", "gpt2_train --data data --out run --steps 3", "add --resume"},
           {"another model",
            "gpt2_train --data data --out run --resume --model layers=1,heads=2,width=16,context=16",
            "made with the model 'family=gpt2,layers=2"},
           {"another vocabulary", "gpt2_train --data other --out run --resume", "another vocabulary"},
           {"another vocabulary, no --resume", "gpt2_train --data data --out other", "another vocabulary"},
           {"another seed", "MODEL --resume --seed 5", "made with the seed '0', but this run has '5'"},
           {"another dtype", "MODEL --resume --dtype f64",
            "made with the dtype 'f32', but this run has 'f64'"},
           {"another tokenizer", "gpt2_prepare --text text --vocab 270 --out run",
            "trained with another vocabulary"},
           {"log is a folder", "MODEL --resume --log run", "log run: cannot be written: Is a directory"},
       }) {
    std::string line = c.command;
    if (line.starts_with("MODEL")) line = train("--out run --log run.jsonl" + line.substr(5));
    const Outcome outcome = run(line);
    EXPECT_EQ(outcome.status, 2) << c.name << ": " << outcome.all();
    EXPECT_NE(outcome.err.find(c.message), std::string::npos) << c.name << ": " << outcome.all();
    EXPECT_EQ(contents("run"), before) << c.name;
    EXPECT_EQ(read_file(folder_ / "run.jsonl"), log) << c.name;
  }
  const Outcome other_batch = run(train("--out run --steps 3 --batch 4 --resume"));
  EXPECT_EQ(other_batch.status, 0);
  EXPECT_NE(other_batch.out.find("until here a step had 2 sequences of 16 tokens"), std::string::npos)
      << other_batch.out;
}

TEST_F(Resume, NoticesADamagedCheckpoint) {
  ASSERT_EQ(run(train("--out run --steps 2 --batch 2 --progress none")).status, 0);
  const std::filesystem::path file = latest("run") / "model.safetensors";
  const std::string good = read_file(file);
  std::string bad = good;
  bad[bad.size() - 5] = static_cast<char>(bad[bad.size() - 5] ^ 1);
  for (const std::string& content : {bad, good.substr(0, good.size() / 2), std::string()}) {
    write_file(file, content);
    for (const std::string& line :
         {train("--out run --resume"), std::string("gpt2_generate --model run --prompt a"),
          std::string("gpt2_evaluate --threads 1 --model run --data data")}) {
      const Outcome outcome = run(line);
      EXPECT_EQ(outcome.status, 2) << line << outcome.all();
      EXPECT_NE(outcome.err.find("model.safetensors"), std::string::npos) << outcome.all();
    }
  }
}

TEST_F(Resume, StartsFromTheBeginningWhereThereIsNoCheckpoint) {
  const Outcome outcome = run(train("--out run --steps 1 --batch 2 --resume"));
  EXPECT_EQ(outcome.status, 0);
  EXPECT_NE(outcome.out.find("no checkpoint in run, starting from the beginning"), std::string::npos)
      << outcome.out;
}

TEST_F(Resume, WorksInTheFolderOfTheData) {
  std::filesystem::rename(folder_ / "data", folder_ / "both");
  const std::string line =
      std::string("gpt2_train --data both --out both --batch 2 --threads 1 --model ") + kModel;
  EXPECT_EQ(run(line + " --steps 1").status, 0);
  EXPECT_EQ(run(line + " --steps 2").status, 2);
  EXPECT_EQ(run(line + " --steps 2 --resume").status, 0);
  EXPECT_EQ(run("gpt2_evaluate --threads 1 --model both --data both").status, 0);
}

}  // namespace
}  // namespace tessera::programs
