// A user's mistakes: one clear message, status 2, and nothing lost. Failures of the machine: status 1.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <regex>

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

struct Case {
  const char* name;
  std::string options;
  const char* message;  // a regular expression
};

class BadInput : public Workplace {
 protected:
  void expect(const Case& c, const std::string& line, int status, const Child::Options& options = {}) {
    const Outcome outcome = run(line, options);
    EXPECT_EQ(outcome.status, status) << c.name << ": " << outcome.all();
    EXPECT_TRUE(std::regex_search(outcome.err, std::regex(c.message))) << c.name << ": " << outcome.all();
    EXPECT_LT(outcome.seconds, 20) << c.name;
  }
};

TEST_F(BadInput, OfTrainingGetsOneMessageAndStatus2) {
  write_file(folder_ / "empty.json", "");
  write_file(folder_ / "list.json", "[1]");
  write_file(folder_ / "key.json", R"({"stpes": 5})");
  write_file(folder_ / "deep.json", R"({"optimizer": {"params": {"weight_dacay": 0.1}}})");
  write_file(folder_ / "type.json", R"({"steps": "many"})");
  write_file(
      folder_ / "batch.json",
      R"({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3})");
  write_file(folder_ / "accumulation.json", R"({"gradient_accumulation_steps": 3})");
  write_file(folder_ / "micro.json", R"({"batch": 2, "micro_batch": 1})");
  write_file(folder_ / "seed.json", R"({"seed": -1})");
  write_file(folder_ / "stage.json", R"({"zero_optimization": {"stage": 2}})");
  write_file(folder_ / "tp.json", R"({"mesh": "tp=2"})");
  write_file(folder_ / "dp.json", R"({"mesh": "dp=3"})");
  write_file(folder_ / "two_batches.json", R"({"batch": 2, "train_batch_size": 4})");
  write_file(folder_ / "two_rates.json", R"({"lr": 1e-4, "optimizer": {"params": {"lr": 2e-3}}})");
  write_file(folder_ / "two_types.json", R"({"dtype": "bf16", "fp16": {"enabled": true}})");
  write_file(
      folder_ / "scheduler.json",
      R"({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-3, "warmup_num_steps": 2}}})");
  write_file(
      folder_ / "cosine.json",
      R"({"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_num_steps": 2}}})");
  write_file(folder_ / "lion.json", R"({"optimizer": {"type": "Lion"}})");
  write_file(folder_ / "selective.json", R"({"recompute": "selective"})");
  for (const Case& c : std::vector<Case>{
           {"unknown flag", "--stepz 5", "--stepz[^]*Did you mean --steps"},
           {"no number", "--steps many", "many"},
           {"no steps", "--steps 0", "steps: expected at least 1, got 0"},
           {"no batch", "--batch 0", "batch: expected at least 1, got 0"},
           {"negative micro-batch", "--micro-batch -2", "micro_batch: expected at least 1, got -2"},
           {"no sequence", "--seq 0", "seq: expected at least 1"},
           {"negative seed", "--seed -1", "--seed: expected a number from 0, got -1"},
           {"negative lr", "--lr -0.1", "lr: expected a number from 0"},
           {"lr not a number", "--lr nan", "lr: expected a number from 0"},
           {"infinite lr", "--lr inf", "must be finite"},
           {"dropout", "--dropout 1", "dropout: expected a number in \\[0, 1\\)"},
           {"dtype", "--dtype f23", "dtype: expected bf16, f32, f64, got 'f23'"},
           {"state", "--optimizer-state bf16",
            "bf16_optimizer_states is true, but it is for bf16 parameters"},
           {"progress", "--progress some", "progress: expected auto, bar, lines, none"},
           {"two keys for a batch", "--config two_batches.json",
            "'batch' and 'train_batch_size' say the same"},
           {"two keys for a rate", "--config two_rates.json", "'lr' and 'optimizer.params.lr' say the same"},
           {"two keys for a type", "--config two_types.json", "'dtype' and 'fp16.enabled' say the same"},
           {"rate beside a scheduler", "--config scheduler.json --lr 1e-5", "lr: the scheduler WarmupLR"},
           {"floor beside a scheduler", "--config cosine.json --min-lr 1e-5", "min_lr: the scheduler"},
           {"no ranks", "--ranks 0", "--ranks: expected a number from 1"},
           {"no threads", "--threads 0", "--threads: expected a number from 1"},
           {"equation", "--batch 10 --micro-batch 4",
            "train_batch_size = micro_batch x accumulation x dp does not hold: 10 != 4 x 2 x 1 = 8; a "
            "batch of 8 or 12"},
           {"equation with ranks", "--batch 10 --ranks 3",
            "does not hold: 10 != [0-9] x [0-9] x 3 = 9; a batch of 9 or 12"},
           {"where each number comes from", "--config accumulation.json --batch 10 --ranks 2 --mesh tp=2",
            "train_batch_size 10 is --batch, micro_batch 3 follows, accumulation 3 is "
            "\"gradient_accumulation_steps\", dp 1 is that of mesh .*tp=2 on 2 ranks"},
           {"of a file and of a default", "--config micro.json --ranks 3",
            "dp 3 needs at least 3 sequences .* \\(\"batch\", dp 3 is the number of ranks"},
           {"more ranks than samples", "--batch 3 --ranks 4",
            "dp 4 needs at least 4 sequences in a batch.* is 3"},
           {"long sequence", "--seq 17",
            "--seq 17: sequences are longer than the model's context of 16 tokens"},
           {"no config", "--config none.json", "none.json cannot be opened"},
           {"empty config", "--config empty.json", "empty.json: is not valid JSON"},
           {"config is a list", "--config list.json", "list.json: must be a JSON object"},
           {"unknown key", "--config key.json", "unknown key 'stpes'; did you mean 'steps'\\?"},
           {"unknown deep key", "--config deep.json",
            "optimizer.params: unknown key 'weight_dacay'; did you mean 'weight_decay'"},
           {"wrong type", "--config type.json", "'steps' must be an integer, but it is \"many\""},
           {"equation in config", "--config batch.json", "10 != 2 x 3 x 1 = 6"},
           {"more ranks in the mesh", "--config dp.json", "ranks = dp does not hold: 1 != 3"},
           {"stage", "--zero 4", "--zero"},
           {"axis", "--ranks 2 --mesh dp=1,tq=2", "unknown axis 'tq'; did you mean 'tp'"},
           {"stages without a block", "--ranks 3 --mesh pp=3",
            "2 blocks can't be cut into 3 stages .*: pp = 2 at most"},
           {"a mesh without --ranks", "--mesh pp=2", "1 is not a multiple of 2; mesh dp=1 works, or 2 ranks"},
           {"schedule", "--ranks 2 --mesh pp=2 --schedule gpip", "did you mean 'gpipe'"},
           {"schedule without a pipeline", "--schedule gpipe", "the mesh has no pp"},
           {"mode", "--recompute half", "recompute: expected full, none, selective, got 'half'"},
           {"negative seed in config", "--config seed.json", "'seed' must be a number from 0"},
           {"name of a model", "--model gpt2-larg",
            "did you mean 'gpt2-large'\\? Known are gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-"},
           {"key of a model", "--model layers=1,head=2,width=16", "unknown key 'head'; did you mean 'heads'"},
           {"part of a model is missing", "--model layers=1,heads=2", "width is missing"},
           {"heads", "--model layers=1,heads=3,width=16", "heads must divide width"},
           {"small vocabulary", "--model layers=1,heads=2,width=16,vocab=100",
            "vocab=100 is smaller than the 290 tokens"},
           {"no layers", "--model layers=0,heads=2,width=16", "layers must be a whole number from 1"},
           {"a model larger than any memory", "--model layers=90,heads=1,width=100000",
            "memory: the rank on .* will hold [0-9,]+ bytes .* but [0-9,]+ bytes .* are left there"},
           {"no such data", "--data none", "--data none: there is no such folder; make it with gpt2_prepare"},
           {"out is a file", "--out text", "text: Not a directory"},
           {"out below a file", "--out text/run", "cannot create folder text/run: Not a directory"},
           {"log below a file", "--log text/log", "cannot create folder text: Not a directory"},
           {"log is a folder", "--log data", "log data: cannot be written: Is a directory"}}) {
    expect(c, train("--out run --steps 1 " + c.options), 2);
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run/latest")) << c.name;
  }
}

TEST_F(BadInput, OfTokensGetsOneMessageAndStatus2) {
  const std::string whole = read_file(folder_ / "data/train.tokens");
  ASSERT_EQ(run("gpt2_prepare --text text --vocab 270 --out other").status, 0);
  const auto try_tokens = [&](const char* name, const std::string& content, const char* message) {
    for (const char* file : {"train.tokens", "validation.tokens"}) {
      std::filesystem::remove_all(folder_ / "bad");
      std::filesystem::copy(folder_ / "data", folder_ / "bad");
      write_file(folder_ / "bad" / file, content);
      expect({name, "", message}, train("--data bad --out run --steps 1"), 2);
      EXPECT_FALSE(std::filesystem::exists(folder_ / "run")) << name;
    }
  };
  try_tokens("empty", "", "tokens: is empty");
  for (const std::size_t size : {1, 7, 8, 16, 63}) {
    try_tokens("cut in the header", whole.substr(0, size),
               "cut short: the header has 64 bytes, the file [0-9]+");
  }
  for (const std::size_t size : {std::size_t{64}, std::size_t{65}, whole.size() / 2, whole.size() - 1}) {
    try_tokens("cut in the tokens", whole.substr(0, size),
               "cut short: [0-9]+ tokens need [0-9]+ bytes, the file has");
  }
  try_tokens("too long", whole + "x", "too long");
  try_tokens("garbage", std::string(5000, 'g'), "not a token file");
  std::string damaged = whole;
  damaged[20] ^= 1;
  try_tokens("damaged header", damaged, "the header is damaged");
  try_tokens("of another vocabulary", read_file(folder_ / "other/train.tokens"),
             "made with another vocabulary: 270 tokens");

  std::filesystem::remove(folder_ / "bad/train.tokens");
  expect({"missing", "", "train.tokens: No such file"}, train("--data bad --out run --steps 1"), 2);
  std::filesystem::remove_all(folder_ / "bad");
  std::filesystem::copy(folder_ / "data", folder_ / "bad");
  write_file(folder_ / "bad/tokenizer.json", read_file(folder_ / "bad/tokenizer.json").substr(0, 50));
  expect({"cut tokenizer", "", "tokenizer.json: not JSON, or cut short"},
         train("--data bad --out run --steps 1"), 2);
  write_file(folder_ / "short", "in the beginning was the word\n");
  ASSERT_EQ(run("gpt2_prepare --text short --tokenizer data --out short_data --validation 0.4").status, 0);
  expect({"too short", "", "a sequence of 16 tokens and its targets need 17 tokens, the data has [0-9]+"},
         train("--data short_data --out run --steps 1 --seed 1"), 2);
}

TEST_F(BadInput, OnOneRankEndsAllWithTheCausePrintedOnce) {
  write_file(folder_ / "key.json", R"({"stpes": 5})");
  for (const char* launcher : {"", "mpiexec -n 3"}) {
    if (*launcher != '\0' && !has_mpi()) continue;
    for (const Case& c : std::vector<Case>{{"unknown flag", "--stepz 5", "--stepz"},
                                           {"unknown key", "--config key.json", "unknown key 'stpes'"},
                                           {"model", "--model gpt3", "there is no model 'gpt3'"},
                                           {"batch", "--batch 10", "does not hold"},
                                           {"data", "--data none", "--data none: there is no such folder"},
                                           {"out", "--out text/run", "cannot create folder text/run"}}) {
      const std::string ranks = *launcher == '\0' ? " --ranks 3" : "";
      const Outcome outcome = run(train("--steps 1 --batch 3 --out run " + c.options + ranks, launcher));
      EXPECT_EQ(outcome.status, 2) << launcher << c.name << ": " << outcome.all();
      const std::size_t first = outcome.err.find(c.message);
      EXPECT_NE(first, std::string::npos) << launcher << c.name << ": " << outcome.all();
      EXPECT_EQ(outcome.err.find(c.message, first + 1), std::string::npos)
          << launcher << c.name << ": " << outcome.all();
      const std::size_t hint = outcome.err.find("docs/config.md (keys)");
      EXPECT_EQ(hint == std::string::npos, c.name == std::string("unknown flag")) << outcome.err;
      EXPECT_EQ(outcome.err.find("docs/config.md (keys)", hint + 1), std::string::npos) << outcome.err;
      EXPECT_LT(outcome.seconds, 20) << launcher << c.name;
    }
  }
}

// A learning rate that makes the weights overflow in the second step.
TEST_F(BadInput, ThatMakesTheLossNanNamesTheFirstTensorAndItsLayer) {
  ASSERT_EQ(run(train("--out run --steps 1 --batch 4 --progress none")).status, 0);
  const auto before = contents("run");
  for (const char* launcher : {"", "--ranks 2", "mpiexec -n 2", "--ranks 2 --mesh tp=2",
                               "--ranks 2 --mesh cp=2", "--ranks 2 --mesh pp=2", "--ranks 2 --zero 3"}) {
    const bool mpi = std::string_view(launcher).starts_with("mpiexec");
    if (mpi && !has_mpi()) continue;
    const Outcome outcome = run(train(
        std::string("--out run --resume --steps 5 --batch 4 --lr 1e30 --warmup 0 ") + (mpi ? "" : launcher),
        mpi ? launcher : ""));
    EXPECT_EQ(outcome.status, 1) << launcher << outcome.all();
    EXPECT_TRUE(std::regex_search(
        outcome.err,
        std::regex("step [0-9]: the loss is (NaN|infinite): (on rank [01] \\([a-z]+ [01]\\), )?the first "
                   "value that is not finite is in the "
                   "(output|parameter).*'h\\.0\\.[a-z_.0-9]+'.* at element \\[.*\\] of f32 \\[")))
        << launcher << outcome.all();
    EXPECT_EQ(outcome.err.find("the loss is"), outcome.err.rfind("the loss is")) << launcher << outcome.err;
    EXPECT_EQ(contents("run"), before) << launcher;
  }
}

TEST_F(BadInput, OfAnOutputFolderWithoutPermissionIsNoticedBeforeTraining) {
  std::filesystem::create_directory(folder_ / "locked");
  std::filesystem::permissions(folder_.path(), std::filesystem::perms(0755));
  const bool root = ::geteuid() == 0;
  std::filesystem::permissions(folder_ / "locked", std::filesystem::perms(root ? 0755 : 0555));
  // The programs themselves must be in reach of nobody.
  const Child::Options nobody{.as_nobody = root};
  if (run("gpt2_train --help", nobody).status != 0) GTEST_SKIP() << "user nobody cannot run the programs";
  expect({"train", "", "locked/run: Permission denied"}, train("--out locked/run --steps 1000000"), 2,
         nobody);
  expect({"prepare", "", "locked.*: Permission denied"}, "gpt2_prepare --text text --out locked/data", 2,
         nobody);
  expect({"log", "", "locked.*: Permission denied"}, train("--out locked --steps 1000000"), 2, nobody);
}

// Which the one that is there holds as this test does: by a lock that goes with the process.
TEST_F(BadInput, OfASecondRunIntoOneFolderIsRefused) {
  std::filesystem::create_directories(folder_ / "run");
  const int file = ::open((folder_ / "run/.lock").c_str(), O_CREAT | O_RDWR, 0644);
  ASSERT_GE(file, 0);
  ASSERT_EQ(::flock(file, LOCK_EX | LOCK_NB), 0);
  expect({"second run", "", "--out run: another run writes into it"}, train("--out run --steps 1"), 1);
  ::close(file);
  EXPECT_EQ(run(train("--out run --steps 1")).status, 0);
}

TEST_F(BadInput, ThatOverflowsInEveryStepIsNoSuccess) {
  write_file(folder_ / "overflows.json", R"({"fp16": {"enabled": true, "loss_scale": 1e30}})");
  const auto outcome = run(train("--out run --steps 3 --config overflows.json"));
  EXPECT_EQ(outcome.status, 1) << outcome.err;
  EXPECT_NE(outcome.out.find("step 2: gradients overflowed, nothing was updated"), std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.err.find("overflowed in every one of 3 steps"), std::string::npos) << outcome.err;
}

TEST_F(BadInput, OfAFullDiskKeepsTheLastCheckpointAndEndsWithStatus1) {
  ASSERT_EQ(run(train("--out run --steps 2 --batch 2 --progress none")).status, 0);
  const auto before = contents("run");
  const Child::Options full{.largest_file = 10000};  // the model has 47 kB
  expect({"checkpoint", "", "cannot write .*safetensors: File too large"},
         train("--out run --resume --steps 4 --batch 2"), 1, full);
  EXPECT_EQ(contents("run"), before);
  expect({"checkpoint of ranks", "", "rank 0 of 2.*cannot write .*safetensors: File too large"},
         train("--out run --resume --steps 4 --batch 2 --ranks 2"), 1, full);
  EXPECT_EQ(contents("run"), before);
  expect({"prepare", "", "cannot write .*: File too large"},
         "gpt2_prepare --text text --tokenizer data --out other", 1, {.largest_file = 1000});
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "other"));
}

TEST_F(BadInput, OfAFullDiskUnderTheLogSavesWhatWasLearned) {
  for (const char* ranks : {"", " --ranks 2"}) {
    std::filesystem::remove_all(folder_ / "run");
    expect({"log", "", "log /dev/full: cannot be written: No space left on device"},
           train(std::string("--out run --steps 1000000 --batch 2 --log /dev/full") + ranks), 1);
    EXPECT_EQ(run("gpt2_evaluate --model run --data data").status, 0) << "no checkpoint";
  }
}

TEST_F(BadInput, ThatResemblesNoFlagIsNotTakenForOne) {
  const Outcome outcome = run("gpt2_generate --prompt a --device cuda");
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.err.find("Did you mean"), std::string::npos) << outcome.err;
  EXPECT_NE(run("gpt2_generate --max-new-tokens 5").err.find("Did you mean --tokens?"), std::string::npos);
  EXPECT_NE(run("gpt2_train --batch_size 8").err.find("Did you mean --batch?"), std::string::npos);
}

TEST_F(BadInput, OfEvaluationAndGenerationGetsOneMessageAndStatus2) {
  ASSERT_EQ(run(train("--out run --steps 1 --batch 2")).status, 0);
  ASSERT_EQ(run("gpt2_prepare --text text --vocab 270 --out other").status, 0);
  std::filesystem::create_directory(folder_ / "nothing");
  std::filesystem::create_directory(folder_ / "old");
  write_file(folder_ / "old/config.json",
             R"({"model_type": "gpt2", "vocab_size": 290, "n_positions": 16, "n_embd": 16, "n_layer": 1,
                 "n_head": 2, "activation_function": "gelu_new"})");
  for (const Case& c : std::vector<Case>{
           {"no model", "gpt2_evaluate --model none --data data", "none: there is no such folder"},
           {"a file", "gpt2_generate --model text --prompt a", "text: there is no such folder"},
           {"data only", "gpt2_evaluate --model data --data data",
            "there is no saved model, but tokens to train one with: gpt2_train --data data --out data"},
           {"an empty folder", "gpt2_generate --model nothing --prompt a",
            "neither a checkpoint of gpt2_train .'latest' or 'checkpoint.json'. nor a model of Hugging Face"},
           {"weights of an older form", "gpt2_generate --model old --prompt a", "pytorch_model.bin"},
           {"no data", "gpt2_evaluate --model run --data none", "none/validation.tokens: No such file"},
           {"vocabulary", "gpt2_evaluate --model run --data other", "made with another vocabulary"},
           {"window", "gpt2_evaluate --model run --data data --seq 17",
            "longer than the model's context of 16"},
           {"stride", "gpt2_evaluate --model run --data data --stride 17", "stride 17 is not between 1 and"},
           {"split", "gpt2_evaluate --model run --data data --split test", "test"},
           {"no prompt", "gpt2_generate --model run", "--prompt is required"},
           {"no model to generate with", "gpt2_generate --model none --prompt a", "none"},
           {"temperature", "gpt2_generate --model run --prompt a --temperature -1",
            "--temperature: expected a number from 0"},
           {"top-k", "gpt2_generate --model run --prompt a --top-k -1", "--top-k: expected a number from 0"},
           {"tokens", "gpt2_generate --model run --prompt a --tokens -1",
            "--tokens: expected a number from 0"},
           {"top-p of nothing", "gpt2_generate --model run --prompt a --top-p 0",
            "--top-p: expected a number above 0 and up to 1, got 0"},
           {"top-p", "gpt2_generate --model run --prompt a --top-p nan",
            "--top-p: expected a number above 0"},
           {"penalty", "gpt2_generate --model run --prompt a --repetition-penalty 0",
            "--repetition-penalty: expected a number above 0, got 0"},
           {"prompts in a folder", "gpt2_generate --model run --prompts data", "--prompts data: is no file"},
           {"mlp", "mlp --stepz 3", "Did you mean --steps"},
           {"mlp value", "mlp --steps few", "few"},
           {"digits", "digits --data none.txt", "can't read none.txt"},
           {"digits of another kind", "digits --data text",
            "picture 0 of text is not 64 letters and a digit"}}) {
    expect(c, c.options, 2);
  }
}

}  // namespace
}  // namespace tessera::programs
