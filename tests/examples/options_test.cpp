// The names that stay: flags, config keys, model names.

#include <algorithm>
#include <array>
#include <map>
#include <regex>

#include "tests/examples/workplace.h"

#ifndef TESSERA_SOURCE_DIR
#define TESSERA_SOURCE_DIR "."
#endif

namespace tessera::programs {
namespace {

class ProgramOptions : public Workplace {};

TEST_F(ProgramOptions, AreAllInTheHelp) {
  struct Case {
    const char* program;
    std::vector<const char*> flags;
  };
  for (const Case& c : std::vector<Case>{
           {"gpt2_prepare",
            {"--text", "--vocab", "--out", "--tokenizer", "--train-tokens", "--validation-tokens"}},
           {"gpt2_train",
            {"--config", "--data",    "--out",    "--model",      "--steps",   "--batch", "--micro-batch",
             "--seq",    "--lr",      "--seed",   "--from-hf",    "--dropout", "--dtype", "--optimizer-state",
             "--ranks",  "--threads", "--resume", "--eval-every", "--log",     "--csv"}},
           {"gpt2_generate",
            {"--model", "--prompt", "--prompts", "--tokens", "--temperature", "--top-k", "--top-p",
             "--repetition-penalty", "--stop", "--seed"}},
           {"gpt2_export", {"--model", "--out", "--dtype"}},
           {"gpt2_evaluate", {"--model", "--data"}},
           {"mlp", {"--steps", "--lr", "--seed"}},
           {"digits", {"--data", "--epochs", "--batch", "--lr", "--seed"}}}) {
    const Outcome outcome = run(std::string(c.program) + " --help");
    EXPECT_EQ(outcome.status, 0) << c.program;
    EXPECT_EQ(outcome.err, "") << c.program;
    for (const char* flag : c.flags)
      EXPECT_TRUE(std::regex_search(outcome.out, std::regex(std::string(flag) + "[ \n]")))
          << c.program << ' ' << flag;
  }
  if (!has_mpi()) return;
  const Outcome outcome = run("mpiexec -n 2 gpt2_train --help");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out.find("--config"), outcome.out.rfind("--config")) << "printed by each process";
}

TEST_F(ProgramOptions, ComeFromTheConfigFileUnlessAFlagSaysOtherwise) {
  write_file(folder_ / "run.json", R"({
    "data": "data", "out": "from_file", "log": "file.jsonl", "seq": 8, "threads": 1, "ranks": 2, "dtype": "f64",
    "model": "layers=1,heads=2,width=16,context=16",  // comments are allowed
    "steps": 2, "seed": 7, "progress": "none",
    "train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.25,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.5, "betas": [0.9, 0.99], "weight_decay": 0.01}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.125, "warmup_num_steps": 1}}
  })");
  const Outcome file = run("gpt2_train --config run.json");
  ASSERT_EQ(file.status, 0) << file.all();
  EXPECT_NE(file.out.find("4 sequences of 8 tokens = 1 a pass x 2 passes x 2 ranks (threads), 1 thread each"),
            std::string::npos)
      << file.out;
  EXPECT_NE(file.out.find("layers=1,heads=2,width=16"), std::string::npos) << file.out;
  EXPECT_NE(file.out.find("f64"), std::string::npos) << file.out;
  EXPECT_NE(file.out.find("betas 0.9 0.99"), std::string::npos) << file.out;
  EXPECT_EQ(read_log("file.jsonl").size(), 2u);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "from_file/latest"));

  const Outcome flags =
      run("gpt2_train --config run.json --out flags --log flags.jsonl --steps 3 --batch 6 --micro-batch 3 "
          "--seq 16 --ranks 1 "
          "--dtype f32 --model layers=2,heads=2,width=16,context=16");
  ASSERT_EQ(flags.status, 0) << flags.all();
  EXPECT_NE(flags.out.find("6 sequences of 16 tokens = 3 a pass x 2 passes x 1 rank (self)"),
            std::string::npos)
      << flags.out;
  EXPECT_NE(flags.out.find("layers=2"), std::string::npos) << flags.out;
  EXPECT_NE(flags.out.find("f32"), std::string::npos) << flags.out;
  EXPECT_EQ(read_log("flags.jsonl").size(), 3u);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "flags/latest"));
}

TEST_F(ProgramOptions, ThatDifferBetweenRanksEndTheRunBeforeItBegins) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  ASSERT_EQ(run("gpt2_prepare --text text --vocab 290 --out other --validation 0.3").status, 0);
  for (const auto& [a, b, message] : std::vector<std::array<std::string, 3>>{
           {"--lr 1e-3", "--lr 1e-4",
            "settings differ between ranks: optimizer.params.lr (--lr) is 0.001 on rank 0, 0.0001 on rank 1"},
           {"--seed 1", "--seed 2", "settings differ between ranks: --seed is 1 on rank 0, 2 on rank 1"},
           {"--mesh tp=2", "--mesh dp=2",
            "settings differ between ranks: mesh is tp=2, dp left out on rank 0, dp=2 on rank 1"},
           {"", "--data other", "--data other: what rank 1 finds there"}}) {
    const Outcome outcome = run("mpiexec -n 1" + train("--out run --steps 1 " + a) + " : -n 1" +
                                train("--out run --steps 1 " + b));
    EXPECT_EQ(outcome.status, 2) << outcome.all();
    EXPECT_NE(outcome.err.find(message), std::string::npos) << message << outcome.all();
    EXPECT_EQ(outcome.err.find(message), outcome.err.rfind(message)) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run")) << message;
  }
}

// Of what takes a value: "=value", "[value]", or that it must be given.
TEST_F(ProgramOptions, ShowTheirDefaultsInTheHelp) {
  for (const char* program : {"gpt2_prepare", "gpt2_train", "gpt2_generate", "gpt2_evaluate", "mlp"}) {
    const std::string help = run(std::string(program) + " --help").out;
    const std::regex option("\n  (--[a-z-]+) ([A-Z]+\\S*)(( |\n      )[^\n]*)*");
    int found = 0;
    for (std::sregex_iterator i(help.begin(), help.end(), option), end; i != end; ++i, ++found) {
      const std::string text = i->str();
      EXPECT_TRUE(std::regex_search(text, std::regex("[A-Z}]=|\\[[^\\]]+\\]|REQUIRED"))) << program << text;
    }
    EXPECT_GE(found, 3) << program << help;
  }
}

// Each is a key, or the key that is meant is named: nobody is sent to the wrong one.
TEST_F(ProgramOptions, AsKeysOfTheConfigFileAreReadOrExplained) {
  const Outcome help = run("gpt2_train --help");
  const std::regex flag("--([a-z-]+)");
  std::map<std::string, std::string> answers;
  for (std::sregex_iterator i(help.out.begin(), help.out.end(), flag), end; i != end; ++i) {
    std::string key = (*i)[1];
    std::ranges::replace(key, '-', '_');
    if (key == "help" || answers.contains(key)) continue;
    write_file(folder_ / "run.json", "{\"" + key + "\": null}");
    answers[key] = run("gpt2_train --config run.json --data none").err;
  }
  EXPECT_GT(answers.size(), 30u);
  for (const auto& [key, answer] : answers) {
    const bool read = answer.find("--data none: there is no such folder") != std::string::npos;
    const bool explained =
        answer.find("unknown key '" + key + "'; write \"") != std::string::npos ||
        answer.find("unknown key '" + key + "'; give it on the command line") != std::string::npos;
    EXPECT_TRUE(read || explained) << answer;
  }
  EXPECT_NE(answers["zero"].find("\"zero_optimization\": {\"stage\": 1}"), std::string::npos);
}

TEST_F(ProgramOptions, OfTheConfigFileMayHaveTheFlagsNames) {
  write_file(folder_ / "run.json",
             R"({"batch": 4, "micro_batch": 2, "lr": 0.25, "weight_decay": 0, "dropout": 0.5,
                                       "warmup": 0, "eval_every": 1, "steps": 2})");
  const Outcome outcome = run(train("--config run.json --out run --log run.jsonl"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_NE(outcome.out.find("4 sequences of 16 tokens = 2 a pass x 2 passes"), std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("dropout=0.5"), std::string::npos) << outcome.out;
  EXPECT_EQ(read_log("run.jsonl").at(0)["lr"], 0.25);
  EXPECT_NE(outcome.out.find("step 1: validation loss"), std::string::npos) << outcome.out;
}

TEST_F(ProgramOptions, OfTheConfigFileAndFlagsMayNotContradictEachOther) {
  write_file(folder_ / "run.json", R"({"zero_optimization": {"stage": 3, "mics_shard_size": 2}})");
  const Outcome outcome = run(train("--config run.json --out run --ranks 2 --zero 1"));
  EXPECT_EQ(outcome.status, 2) << outcome.all();
  EXPECT_NE(outcome.err.find("mics_shard_size is 2, but MiCS cuts parameters, which stage 1 does not"),
            std::string::npos)
      << outcome.all();
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

// What one would run with these flags is what a dry run is of; --world asks about another number.
TEST_F(ProgramOptions, OfADryRunSayHowManyRanksItHas) {
  const std::string program =
      "gpt2_train --dry-run --zero 3 --batch 12 --model layers=2,heads=2,width=16,context=16 ";
  for (const auto& [flags, ranks] : std::vector<std::pair<const char*, const char*>>{
           {"", "of 1 rank,"},
           {"--ranks 4", "of 4 ranks,"},
           {"--mesh dp=2,tp=2", "of 4 ranks,"},
           {"--ranks 4 --mesh tp=2 --world 12", "of 12 ranks,"}}) {
    const Outcome outcome = run(program + flags);
    EXPECT_EQ(outcome.status, 0) << outcome.all();
    EXPECT_NE(outcome.out.find(ranks), std::string::npos) << flags << ": " << outcome.all();
  }
}

TEST_F(ProgramOptions, ChooseAmongModels) {
  struct Case {
    const char* model;
    const char* described;
  };
  for (const Case& c : std::vector<Case>{
           {"gpt2,layers=1,width=48,context=16",
            "family=gpt2,layers=1,heads=12,width=48,context=16,vocab=290,"},
           {"gpt2-medium,layers=1,width=32,context=16", "family=gpt2,layers=1,heads=16,width=32"},
           {"gpt2-large,layers=1,width=40,context=16", "family=gpt2,layers=1,heads=20,width=40"},
           {"gpt2-xl,layers=1,width=50,context=16", "family=gpt2,layers=1,heads=25,width=50"},
           {"llama-15m,layers=1,width=36,context=16", "family=llama,layers=1,heads=6"},
           {"layers=1,heads=2,width=16,context=16,vocab=512", "vocab=512"}}) {
    std::filesystem::remove_all(folder_ / "run");
    const Outcome outcome = run(
        std::string("gpt2_train --data data --out run --steps 1 --batch 1 --threads 1 --model ") + c.model);
    ASSERT_EQ(outcome.status, 0) << c.model << outcome.all();
    EXPECT_NE(outcome.out.find(c.described), std::string::npos) << c.model << outcome.out;
    EXPECT_EQ(run("gpt2_generate --model run --prompt a --tokens 5").status, 0) << c.model;
  }
}

TEST_F(ProgramOptions, OfTheFirstProgramFitUnder60Lines) {
  const std::filesystem::path source = std::filesystem::path(TESSERA_SOURCE_DIR) / "examples/mlp/mlp.cpp";
  const std::string text = read_file(source);
  EXPECT_GT(text.size(), 1000u);
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 60);
}

TEST_F(ProgramOptions, OfTheFirstProgramGiveTheOutputOfItsHeader) {
  const Outcome outcome = run("mlp");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_TRUE(std::regex_search(
      outcome.out, std::regex("step    0   loss 0\\.69[0-9]+   right about new points: +[45].\\.. %")))
      << outcome.out;
  EXPECT_TRUE(std::regex_search(
      outcome.out, std::regex("step  200   loss 0\\.00[0-9]+   right about new points: +(99|100)\\.. %")))
      << outcome.out;
}

}  // namespace
}  // namespace tessera::programs
