#include "data/prepare.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"

namespace tessera::data {
namespace {

std::string english(std::uint64_t seed, std::size_t size) {
  static const std::vector<std::string> words = {"the",  "and",   "of",    "light",   "God's",
                                                 "day",  "night", "é",     "天",      "waters",
                                                 "1611", "saw,",  "it.\n", "evening;"};
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < size) text += words[random() % words.size()] + (random() % 9 == 0 ? "  " : " ");
  return text;
}

std::string decoded(const Tokenizer& tokenizer, const TokenFile& file) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(file.size()));
  file.read(0, ids);
  return tokenizer.decode(std::vector<std::int32_t>(ids.begin(), ids.end()));
}

TEST(Prepare, WritesWhatTrainingNeeds) {
  const TemporaryFolder folder;
  const std::string text = english(1, 50000);
  write_file(folder / "text", text);
  const auto result = prepare({.text = folder / "text", .out = folder / "out", .vocab_size = 300});

  const auto tokenizer = Tokenizer::load(folder / "out");
  const auto train = TokenFile::open(folder / "out/train.tokens");
  const auto validation = TokenFile::open(folder / "out/validation.tokens");
  for (const TokenFile* file : {&train, &validation}) {
    EXPECT_NO_THROW(file->require_vocabulary(tokenizer.vocab_size(), tokenizer.vocabulary_hash()));
    EXPECT_NO_THROW(file->verify());
  }
  EXPECT_EQ(decoded(tokenizer, train) + decoded(tokenizer, validation), text);
  EXPECT_EQ(train.info().source_bytes, static_cast<std::int64_t>(decoded(tokenizer, train).size()));
  EXPECT_EQ(validation.info().source_bytes, static_cast<std::int64_t>(decoded(tokenizer, validation).size()));
  EXPECT_NEAR(static_cast<double>(result.validation_bytes), static_cast<double>(text.size()) / 10, 4.0);

  EXPECT_EQ(result.train_bytes, train.info().source_bytes);
  EXPECT_EQ(result.validation_bytes, validation.info().source_bytes);
  EXPECT_EQ(result.train_tokens, train.size());
  EXPECT_EQ(result.validation_tokens, validation.size());
  EXPECT_EQ(result.vocab_size, tokenizer.vocab_size());
  EXPECT_EQ(result.vocabulary_hash, tokenizer.vocabulary_hash());
}

TEST(Prepare, LearnsFromTheTrainingPartOnly) {
  const TemporaryFolder folder;
  const std::string start = english(2, 9000);
  std::string end;
  while (end.size() < 1000) end += "zyx ";
  write_file(folder / "text", start + end);
  (void)prepare({.text = folder / "text", .out = folder.path(), .vocab_size = 400});
  const auto tokenizer = Tokenizer::load(folder.path());
  for (const std::string& token : tokenizer.vocabulary().tokens)
    EXPECT_EQ(token.find("zy"), std::string::npos);
}

TEST(Prepare, PartsHaveNoInfluenceOnTheIds) {
  const TemporaryFolder folder;
  write_file(folder / "text", english(3, 30000));
  (void)prepare({.text = folder / "text", .out = folder / "whole", .vocab_size = 350});
  for (const std::int64_t chunk_bytes : {1, 17, 1000, 1 << 20}) {
    (void)prepare(
        {.text = folder / "text", .out = folder / "parts", .vocab_size = 350, .chunk_bytes = chunk_bytes});
    for (const char* name : {"tokenizer.json", "train.tokens", "validation.tokens"}) {
      EXPECT_EQ(read_file(folder / "parts" / name), read_file(folder / "whole" / name))
          << name << ' ' << chunk_bytes;
    }
  }
}

TEST(Prepare, TakesASampleOfATextLargerThanIt) {
  const TemporaryFolder folder;
  // The second half has a word that the first lacks: a sample from the beginning would miss it.
  const std::string text = english(4, 300000) + [] {
    std::string late;
    while (late.size() < 300000) late += "quixotic ";
    return late;
  }();
  write_file(folder / "text", text);
  (void)prepare({.text = folder / "text", .out = folder.path(), .vocab_size = 300, .sample_bytes = 200000});
  const auto tokenizer = Tokenizer::load(folder.path());
  const auto& tokens = tokenizer.vocabulary().tokens;
  EXPECT_NE(std::find(tokens.begin(), tokens.end(), " quixotic"), tokens.end());
  EXPECT_EQ(decoded(tokenizer, TokenFile::open(folder / "train.tokens")) +
                decoded(tokenizer, TokenFile::open(folder / "validation.tokens")),
            text);
}

// Largest resident memory, in bytes, of a process that prepares `text`.
std::int64_t peak_memory_of_preparing(const std::filesystem::path& text, const std::filesystem::path& out) {
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 1;
    try {
      (void)prepare(
          {.text = text, .out = out, .vocab_size = 400, .sample_bytes = 1 << 20, .chunk_bytes = 1 << 20});
      status = 0;
    } catch (...) {
    }
    ::_exit(status);
  }
  int status = 0;
  rusage use{};
  EXPECT_EQ(::wait4(child, &status, 0, &use), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "preparing failed";
  return std::int64_t{use.ru_maxrss} << 10;
}

// A text of 48 MB takes the memory that one of 2 MB takes, but for what an allocator is untidy by: so one of
// any size can be prepared. Holding the text, or its ids (4 bytes each, some 3 bytes of text), would show.
TEST(Prepare, TakesNoMoreMemoryForALongText) {
  const TemporaryFolder folder;
  const std::string block = english(10, 2'000'000);
  write_file(folder / "short", block);
  {
    std::ofstream text(folder / "long", std::ios::binary);
    for (int i = 0; i < 24; ++i) text << block;
  }
  const std::int64_t short_peak = peak_memory_of_preparing(folder / "short", folder / "a");
  const std::int64_t long_peak = peak_memory_of_preparing(folder / "long", folder / "b");
  EXPECT_LT(long_peak, short_peak + 20'000'000);  // sanitizers are untidier: 8 MB were seen
  EXPECT_GT(TokenFile::open(folder / "b/train.tokens").size(),
            23 * TokenFile::open(folder / "a/train.tokens").size());
}

TEST(Prepare, UsesATokenizerThatIsThere) {
  const TemporaryFolder folder;
  const auto tokenizer = Tokenizer::train(english(5, 20000), 333);
  write_file(folder / "text", english(6, 5000));
  const auto result = prepare({.text = folder / "text", .out = folder.path(), .tokenizer = tokenizer});
  EXPECT_EQ(result.vocabulary_hash, tokenizer.vocabulary_hash());
  EXPECT_EQ(Tokenizer::load(folder.path()).vocabulary_hash(), tokenizer.vocabulary_hash());
}

TEST(Prepare, CutsNoCharacterInTwo) {
  const TemporaryFolder folder;
  for (const std::size_t extra : {0u, 1u, 2u, 3u, 4u, 5u}) {
    std::string text(extra, 'x');
    for (int i = 0; i < 50; ++i) text += "🎉";
    write_file(folder / "text", text);
    const auto result = prepare({.text = folder / "text", .out = folder.path(), .vocab_size = 256});
    EXPECT_EQ((result.train_bytes - static_cast<std::int64_t>(extra)) % 4, 0) << extra;
  }
}

TEST(Prepare, TakesAnyBytes) {
  const TemporaryFolder folder;
  std::mt19937_64 random(7);
  std::string binary(20000, '\0');
  for (char& c : binary) c = static_cast<char>(random());
  for (const std::string& text : {binary, std::string(3000, '\0'), std::string(3000, '\x80')}) {
    write_file(folder / "text", text);
    (void)prepare({.text = folder / "text", .out = folder.path(), .vocab_size = 300});
    const auto tokenizer = Tokenizer::load(folder.path());
    EXPECT_EQ(decoded(tokenizer, TokenFile::open(folder / "train.tokens")) +
                  decoded(tokenizer, TokenFile::open(folder / "validation.tokens")),
              text);
  }
}

TEST(Prepare, SaysWhatIsWrongAndKeepsWhatIsThere) {
  const TemporaryFolder folder;
  write_file(folder / "good", english(8, 5000));
  write_file(folder / "empty", "");
  write_file(folder / "tiny", "hi");
  (void)prepare({.text = folder / "good", .out = folder / "out", .vocab_size = 280});
  const std::string before = read_file(folder / "out/train.tokens");

  struct Case {
    const char* name;
    PrepareOptions options;
    const char* reason;
  };
  const auto out = folder / "out";
  const std::vector<Case> cases = {
      {"missing", {.text = folder / "none", .out = out}, "none: No such file or directory"},
      {"empty", {.text = folder / "empty", .out = out}, "empty: is empty"},
      {"folder", {.text = folder.path(), .out = out}, "is a folder, not a file"},
      {"device", {.text = "/dev/zero", .out = out}, "/dev/zero: is not a regular file"},
      {"tiny", {.text = folder / "tiny", .out = out}, "tiny: 2 bytes are too few"},
      {"out is a file", {.text = folder / "good", .out = folder / "tiny"}, "tiny: Not a directory"},
      {"out cannot be made", {.text = folder / "good", .out = "/proc/out"}, "/proc/out: "},
      {"no name", {.text = folder / "good", .out = ""}, "name is empty"},
      {"small vocabulary", {.text = folder / "good", .out = out, .vocab_size = 255}, "a vocabulary of 255"},
      {"fraction 0",
       {.text = folder / "good", .out = out, .validation_fraction = 0},
       "between 0 and 1, got 0"},
      {"fraction 1",
       {.text = folder / "good", .out = out, .validation_fraction = 1},
       "between 0 and 1, got 1"},
      {"no chunk", {.text = folder / "good", .out = out, .chunk_bytes = 0}, "must be at least 1"},
  };
  for (const Case& c : cases) {
    try {
      (void)prepare(c.options);
      ADD_FAILURE() << c.name << ": no error";
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find(c.reason), std::string::npos)
          << c.name << ": " << error.what();
    }
  }
  EXPECT_EQ(read_file(folder / "out/train.tokens"), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(out), {}), 3);
}

TEST(Prepare, ReportsProgressAndStopsCleanly) {
  const TemporaryFolder folder;
  write_file(folder / "text", english(9, 50000));
  std::vector<PrepareStage> stages;
  PrepareOptions options{.text = folder / "text", .out = folder / "out", .vocab_size = 300};
  options.progress = [&](PrepareStage stage, std::int64_t done, std::int64_t total) {
    EXPECT_LE(done, total);
    if (stages.empty() || stages.back() != stage) stages.push_back(stage);
  };
  (void)prepare(options);
  EXPECT_EQ(stages,
            std::vector<PrepareStage>({PrepareStage::kReadSample, PrepareStage::kTrainTokenizer,
                                       PrepareStage::kEncodeTraining, PrepareStage::kEncodeValidation}));

  std::filesystem::remove_all(folder / "out");
  options.progress = [](PrepareStage stage, std::int64_t, std::int64_t) {
    if (stage == PrepareStage::kEncodeValidation) throw Error("stop");
  };
  EXPECT_THROW((void)prepare(options), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder / "out"));
}

}  // namespace
}  // namespace tessera::data
