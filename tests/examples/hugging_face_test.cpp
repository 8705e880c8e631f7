// Models that go out to transformers' form and come back, and token files of other programs.

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class Exported : public Workplace {
 protected:
  void SetUp() override {
    Workplace::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const Outcome trained = run(train("--out run --steps 20 --batch 4 --lr 0.01 --progress none"));
    ASSERT_EQ(trained.status, 0) << trained.all();
    const Outcome exported = run("gpt2_export --model run --out exported");
    ASSERT_EQ(exported.status, 0) << exported.all();
  }
  std::string output(const std::string& line) const {
    const Outcome outcome = run(line);
    EXPECT_EQ(outcome.status, 0) << line << "\n" << outcome.all();
    return outcome.out;
  }
};

TEST_F(Exported, WritesAndPredictsAsTheModelThatItCameFrom) {
  const std::string options = " --prompt the --tokens 30 --seed 3 --top-p 0.9 --repetition-penalty 1.1";
  EXPECT_EQ(output("gpt2_generate --model exported" + options),
            output("gpt2_generate --model run" + options));
  // Prepared with the exported tokenizer, in which our rules of cutting are a regular expression.
  output("gpt2_prepare --text text --tokenizer exported --out again");
  EXPECT_EQ(output("gpt2_evaluate --model exported --data again --seq 16"),
            output("gpt2_evaluate --model run --data data --seq 16"));
}

TEST_F(Exported, IsWhereTrainingBeginsUnderAnyLayout) {
  output("gpt2_prepare --text text --tokenizer exported --out again");
  const std::string common =
      "gpt2_train --data again --from-hf exported --threads 1 --steps 3 --batch 4 --progress none ";
  output(common + "--out one --log one.jsonl");
  for (const char* layout : {"--ranks 2 --mesh tp=2", "--ranks 2 --zero 3", "--ranks 2 --mesh pp=2"}) {
    output(common + layout + " --out many --log many.jsonl");
    const auto one = read_log("one.jsonl"), many = read_log("many.jsonl");
    ASSERT_EQ(one.size(), 3U);
    ASSERT_EQ(many.size(), 3U);
    for (std::size_t i = 0; i < one.size(); ++i)
      EXPECT_NEAR(many[i]["loss"], one[i]["loss"], 1e-5) << layout << ", step " << i;
    std::filesystem::remove_all(folder_ / "many");
  }
  // It has learned something already, and goes on from there.
  output(
      "gpt2_train --data data --threads 1 --steps 1 --batch 4 --progress none --out new --log new.jsonl "
      "--model layers=2,heads=2,width=16,context=16");
  EXPECT_LT(read_log("one.jsonl")[0]["loss"], read_log("new.jsonl")[0]["loss"].get<double>() - 0.5);
  output(common + "--out one --resume --steps 5");
}

TEST_F(Exported, RefusesWhatDoesNotGoTogether) {
  const auto error = [this](const std::string& line) {
    const Outcome outcome = run(line);
    EXPECT_EQ(outcome.status, 2) << line << "\n" << outcome.all();
    return outcome.err;
  };
  EXPECT_NE(error("gpt2_export --model run --out exported").find("holds a config.json already"),
            std::string::npos);
  EXPECT_NE(
      error("gpt2_train --data data --from-hf exported --model gpt2 --out x").find("leave one of them out"),
      std::string::npos);
  EXPECT_NE(error("gpt2_train --data data --from-hf nowhere --out x").find("nowhere/config.json"),
            std::string::npos);
  // As many tokens as the model has, but others.
  write_file(folder_ / "reversed", [this] {
    std::string text = read_file(folder_ / "text");
    std::ranges::reverse(text);
    return text;
  }());
  output("gpt2_prepare --text reversed --vocab 290 --out reversed_data");
  EXPECT_NE(error("gpt2_train --data reversed_data --from-hf exported --out x")
                .find("--data reversed_data: was made with another tokenizer"),
            std::string::npos);
  output("gpt2_train --data data --from-hf exported --out same --steps 1 --threads 1");
  EXPECT_NE(error("gpt2_generate --model run").find("--prompt is required"), std::string::npos);
  EXPECT_NE(error("gpt2_generate --model run --prompt a --top-p 2").find("--top-p"), std::string::npos);
  EXPECT_NE(error("gpt2_generate --model run --prompt a --stop unto-him").find("is not one token"),
            std::string::npos);
}

TEST_F(Exported, TakesManyPromptsAtOnce) {
  write_file(folder_ / "prompts", "the\n\nand the lord said unto\nin\n");
  const std::string all =
      output("gpt2_generate --model exported --prompts prompts --tokens 12 --temperature 0");
  std::string alone;
  for (const char* prompt : {"the", "and the lord said unto", "in"}) {
    Child child(
        [&] {
          std::vector<std::string> line =
              command("gpt2_generate --model exported --tokens 12 --temperature 0 --prompt");
          line.emplace_back(prompt);
          return line;
        }(),
        {.folder = folder_.path()});
    alone += child.wait().out;
  }
  EXPECT_EQ(all, alone);
  write_file(folder_ / "prompts", "the\r\n\r\nand the lord said unto\r\nin\r\n");  // as Windows ends lines
  EXPECT_EQ(output("gpt2_generate --model exported --prompts prompts --tokens 12 --temperature 0"), alone);
}

TEST_F(Exported, TokenFilesOfOtherProgramsBecomeOurs) {
  // The ids of data/train.tokens behind its header of 64 bytes, as nanoGPT has them; and llm.c, with its own.
  const std::string train_ids = read_file(folder_ / "data/train.tokens").substr(64);
  const std::string validation_ids = read_file(folder_ / "data/validation.tokens").substr(64);
  std::string header(1024, '\0');
  const std::uint32_t start[3] = {20240520, 1, static_cast<std::uint32_t>(validation_ids.size() / 2)};
  header.replace(0, sizeof(start), reinterpret_cast<const char*>(start), sizeof(start));
  write_file(folder_ / "train.bin", train_ids);
  write_file(folder_ / "val.bin", header + validation_ids);
  const std::string prepare =
      "gpt2_prepare --train-tokens train.bin --validation-tokens val.bin --tokenizer data --out imported";
  const std::string out = output(prepare);
  for (const char* file : {"train.tokens", "validation.tokens"})
    EXPECT_TRUE(read_file(folder_ / "imported" / file) == read_file(folder_ / "data" / file)) << file;
  EXPECT_EQ(output("gpt2_evaluate --model run --data imported"),
            output("gpt2_evaluate --model run --data data"));

  write_file(folder_ / "train.bin", train_ids + "\xFF\xFF");
  const Outcome damaged = run(prepare);
  EXPECT_EQ(damaged.status, 2);
  EXPECT_NE(damaged.err.find("token 65535"), std::string::npos) << damaged.all();
  EXPECT_TRUE(read_file(folder_ / "imported/train.tokens") == read_file(folder_ / "data/train.tokens"));
  std::filesystem::remove_all(folder_ / "imported");
  EXPECT_EQ(run(prepare).status, 2);
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "imported")) << "all three files, or none";
}

}  // namespace
}  // namespace tessera::programs
