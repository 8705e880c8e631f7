// The program as its users meet it: output, messages and exit status.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "tests/data/temporary_folder.h"

namespace tessera::data {
namespace {

struct Outcome {
  int status = -1;
  std::string output;  // standard output and error
};

Outcome run(const std::string& command) {
  Outcome outcome;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> part{};
  while (const std::size_t size = std::fread(part.data(), 1, part.size(), pipe))
    outcome.output.append(part.data(), size);
  const int status = ::pclose(pipe);
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

class Gpt2Prepare : public ::testing::Test {
 protected:
  void SetUp() override {
    // Programs and tests land in the same folder.
    program_ = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "gpt2_prepare";
    if (!std::filesystem::exists(program_)) GTEST_SKIP() << "examples are not built: no " << program_;
    std::string text;
    for (int i = 0; i < 500; ++i)
      text += "And God saw the light, that it was good: verse " + std::to_string(i) + "\n";
    write_file(folder_ / "text", text);
    write_file(folder_ / "empty", "");
  }

  Outcome prepare(const std::string& options) {
    return run("cd " + folder_.path().string() + " && " + program_.string() + " " + options);
  }

  TemporaryFolder folder_;
  std::filesystem::path program_;
};

TEST_F(Gpt2Prepare, PreparesAText) {
  const Outcome outcome = prepare("--text text --vocab 300 --out run/a");
  EXPECT_EQ(outcome.status, 0) << outcome.output;
  for (const char* part : {"training", "validation", "bytes per token", "300 tokens, hash"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << outcome.output;
  }
  EXPECT_EQ(outcome.output.find('\r'), std::string::npos) << "a progress bar where there is no terminal";
  EXPECT_EQ(Tokenizer::load(folder_ / "run/a").vocab_size(), 300);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "run/a/train.tokens"));
  EXPECT_TRUE(std::filesystem::exists(folder_ / "run/a/validation.tokens"));

  const Outcome again = prepare("--text text --tokenizer run/a --out run/b");
  EXPECT_EQ(again.status, 0) << again.output;
  EXPECT_EQ(read_file(folder_ / "run/a/train.tokens"), read_file(folder_ / "run/b/train.tokens"));
}

TEST_F(Gpt2Prepare, SaysWhenTheTextYieldsFewerTokens) {
  const Outcome outcome = prepare("--text text --vocab 5000 --out run");
  EXPECT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("fewer than the 5,000 asked for"), std::string::npos) << outcome.output;
}

TEST_F(Gpt2Prepare, ShowsItsOptions) {
  const Outcome outcome = prepare("--help");
  EXPECT_EQ(outcome.status, 0);
  for (const char* option : {"--text", "--vocab", "--out", "--tokenizer"}) {
    EXPECT_NE(outcome.output.find(option), std::string::npos) << option;
  }
}

TEST_F(Gpt2Prepare, AnswersMistakesWithOneMessageAndStatus2) {
  struct Case {
    const char* name;
    const char* options;
    const char* message;
  };
  for (const Case& c : std::vector<Case>{
           {"nothing given", "", "is required"},
           {"unknown option", "--text text --out run --vocabulary 300", "--vocabulary"},
           {"no number", "--text text --out run --vocab many", "many"},
           {"missing text", "--text none --out run", "text none: No such file or directory"},
           {"empty text", "--text empty --out run", "text empty: is empty"},
           {"a folder", "--text . --out run", "text .: is a folder, not a file"},
           {"small vocabulary", "--text text --out run --vocab 100",
            "a vocabulary of 100 is not between 256"},
           {"no tokenizer", "--text text --out run --tokenizer none", "No such file or directory"},
           {"both", "--text text --out run --tokenizer none --vocab 300", "excludes"},
           {"out is a file", "--text text --out empty", "cannot create folder empty: Not a directory"},
           {"out is a device", "--text text --out /dev/full", "/dev/full: Not a directory"},
           {"all is held out", "--text text --out run --validation 1", "between 0 and 1"},
       }) {
    const Outcome outcome = prepare(c.options);
    EXPECT_EQ(outcome.status, 2) << c.name << ": " << outcome.output;
    EXPECT_NE(outcome.output.find(c.message), std::string::npos) << c.name << ": " << outcome.output;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "run/train.tokens")) << c.name;
  }
}

TEST_F(Gpt2Prepare, EndsWithStatus1WhenItsOutputIsLost) {
  EXPECT_EQ(prepare("--text text --vocab 300 --out run > /dev/full").status, 1);
}

}  // namespace
}  // namespace tessera::data
