#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"

namespace tessera::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kText =
    "the cat and the hat and the bat sat; the 'é' ate 77 and 77\n\n\xFF\xFE\xFF\xFE";

std::string load_error(const std::filesystem::path& path) {
  try {
    (void)Tokenizer::load(path);
    return "";
  } catch (const DataError& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
}

TEST(TokenizerFile, GivesBackWhatWasSaved) {
  const TemporaryFolder folder;
  for (const bool end_of_text : {false, true}) {
    const auto saved = Tokenizer::train(kText, 290, {.end_of_text = end_of_text});
    saved.save(folder / "a/new/folder");
    const auto loaded = Tokenizer::load(folder / "a/new/folder");
    EXPECT_EQ(loaded.vocabulary().tokens, saved.vocabulary().tokens);
    EXPECT_EQ(loaded.vocabulary().merges, saved.vocabulary().merges);
    EXPECT_EQ(loaded.end_of_text(), saved.end_of_text());
    EXPECT_EQ(loaded.vocabulary_hash(), saved.vocabulary_hash());
    EXPECT_EQ(loaded.encode(kText), saved.encode(kText));
    EXPECT_EQ(Tokenizer::load(folder / "a/new/folder/tokenizer.json").vocabulary_hash(),
              saved.vocabulary_hash());
  }
}

TEST(TokenizerFile, ReplacesAnOlderOneAndLeavesNothingBeside) {
  const TemporaryFolder folder;
  Tokenizer::train("", 256).save(folder.path());
  Tokenizer::train(kText, 290).save(folder.path());
  EXPECT_EQ(Tokenizer::load(folder.path()).vocab_size(), Tokenizer::train(kText, 290).vocab_size());
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(TokenizerFile, TakesVocabulariesInAnyOrder) {
  Vocabulary vocabulary = Tokenizer::train(kText, 290).vocabulary();
  const auto last = static_cast<std::int32_t>(vocabulary.tokens.size()) - 1;
  std::reverse(vocabulary.tokens.begin(), vocabulary.tokens.end());
  for (auto& [left, right] : vocabulary.merges) left = last - left, right = last - right;
  const TemporaryFolder folder;
  Tokenizer(vocabulary).save(folder.path());
  std::vector<std::int32_t> expected = Tokenizer::train(kText, 290).encode(kText);
  for (std::int32_t& id : expected) id = last - id;
  EXPECT_EQ(Tokenizer::load(folder.path()).encode(kText), expected);
}

TEST(TokenizerFile, HasADifferentHashForEveryDifference) {
  const Vocabulary base = Tokenizer::train(kText, 290, {.end_of_text = true}).vocabulary();
  const std::uint64_t hash = Tokenizer(base).vocabulary_hash();
  auto swapped = base;
  std::swap(swapped.tokens[0], swapped.tokens[1]);
  EXPECT_NE(Tokenizer(swapped).vocabulary_hash(), hash);
  auto shorter = base;
  shorter.merges.pop_back();
  EXPECT_NE(Tokenizer(shorter).vocabulary_hash(), hash);
  auto reordered = base;
  std::swap(reordered.merges[0], reordered.merges.back());
  EXPECT_NE(Tokenizer(reordered).vocabulary_hash(), hash);
  auto without = base;
  without.end_of_text.reset();
  EXPECT_NE(Tokenizer(without).vocabulary_hash(), hash);
}

TEST(TokenizerFile, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto path = folder / "tokenizer.json";
  Tokenizer::train(kText, 265, {.end_of_text = true}).save(folder.path());
  const Json good = Json::parse(read_file(path));

  struct Case {
    const char* name;
    std::function<void(Json&)> damage;
    const char* reason;
  };
  const std::vector<Case> cases = {
      {"an array", [](Json& j) { j = Json::array(); }, "not a tokenizer of ours"},
      {"a number", [](Json& j) { j = 3; }, "not a tokenizer of ours"},
      {"another's", [](Json& j) { j["format"] = "huggingface"; }, "not a tokenizer of ours"},
      {"no format", [](Json& j) { j.erase("format"); }, "not a tokenizer of ours"},
      {"newer", [](Json& j) { j["version"] = 3; }, "version 3, but this program reads up to 2"},
      {"version text", [](Json& j) { j["version"] = "1"; }, "\"version\" is string"},
      {"no version", [](Json& j) { j.erase("version"); }, "\"version\" is missing"},
      {"no tokens", [](Json& j) { j.erase("tokens"); }, "\"tokens\" is missing"},
      {"tokens object", [](Json& j) { j["tokens"] = Json::object(); }, "\"tokens\" is object"},
      {"empty tokens", [](Json& j) { j["tokens"] = Json::array(); },
       "\"end_of_text\" is not one of the 0 ids"},
      {"token number", [](Json& j) { j["tokens"][5] = 5; }, "token 5 is number"},
      {"empty token", [](Json& j) { j["tokens"][5] = ""; }, "token 5 is empty"},
      {"strange character", [](Json& j) { j["tokens"][260] = "天"; }, "token 260 has the character U+5929"},
      {"byte gone", [](Json& j) { j["tokens"][65] = "AAAA"; }, "byte 0x41 has no token"},
      {"token twice", [](Json& j) { j["tokens"][260] = j["tokens"][261]; },
       "tokens 260 and 261 are the same bytes"},
      {"no merges", [](Json& j) { j.erase("merges"); }, "\"merges\" is missing"},
      {"merges text", [](Json& j) { j["merges"] = "t h"; }, "\"merges\" is string"},
      {"merge list",
       [](Json& j) {
         j["merges"][2] = Json::array({1, 2});
       },
       "merge 2 is not \"left right\""},
      {"merge of one", [](Json& j) { j["merges"][2] = "th"; }, "merge 2 is not \"left right\""},
      {"merge of three", [](Json& j) { j["merges"][2] = "t h e"; },
       "merge 2 (\"t h e\") joins what are no tokens"},
      {"merge to nothing", [](Json& j) { j["merges"][2] = "Q Z"; }, "makes no token"},
      {"merge twice", [](Json& j) { j["merges"][2] = j["merges"][1]; }, "is there twice"},
      {"merge of the end", [](Json& j) { j["merges"][2] = "a <|endoftext|>"; }, "which can't be joined"},
      {"end out of range", [](Json& j) { j["end_of_text"] = 265; },
       "\"end_of_text\" is not one of the 265 ids"},
      {"end negative", [](Json& j) { j["end_of_text"] = -1; }, "\"end_of_text\" is not one of"},
      {"end text", [](Json& j) { j["end_of_text"] = "x"; }, "\"end_of_text\" is not one of"},
      {"merges swapped", [](Json& j) { std::swap(j["merges"][0], j["merges"][3]); },
       "not the one that was saved"},
      {"no hash", [](Json& j) { j.erase("vocabulary_hash"); }, "\"vocabulary_hash\" is missing"},
      {"hash number", [](Json& j) { j["vocabulary_hash"] = 7; }, "\"vocabulary_hash\" is number"},
  };
  for (const Case& c : cases) {
    Json damaged = good;
    c.damage(damaged);
    write_file(path, damaged.dump());
    const std::string message = load_error(folder.path());
    EXPECT_NE(message.find(c.reason), std::string::npos) << c.name << ": " << message;
    EXPECT_NE(message.find(path.string()), std::string::npos) << c.name << ": " << message;
  }

  EXPECT_NE(load_error(folder / "nowhere").find("No such file or directory"), std::string::npos);
  const TemporaryFolder other;
  EXPECT_NE(load_error(other.path()).find("holds no tokenizer: no tokenizer.json"), std::string::npos);
  write_file(other / "tokenizer.model", "of SentencePiece");
  EXPECT_NE(load_error(other.path()).find("SentencePiece's tokenizer.model"), std::string::npos);
  std::filesystem::create_directory(folder / "d");
  std::filesystem::create_directory(folder / "d/tokenizer.json");
  EXPECT_NE(load_error(folder / "d").find("is a folder, not a file"), std::string::npos);
  write_file(path, "");
  EXPECT_NE(load_error(path).find("not JSON, or cut short"), std::string::npos);
  write_file(path, std::string(1000000, '['));  // must not exhaust the stack
  EXPECT_NE(load_error(path).find("stand in more than 100 others"), std::string::npos);
  write_file(path, "{\"format\": \"\xFF\xFF\"}");
  EXPECT_NE(load_error(path).find("not JSON, or cut short"), std::string::npos);
}

TEST(TokenizerFile, CutShortAnywhereIsAnError) {
  const TemporaryFolder folder;
  Tokenizer::train(kText, 270).save(folder.path());
  const std::string good = read_file(folder / "tokenizer.json");
  for (std::size_t size = 0; size + 2 < good.size(); size += 13) {  // the last two bytes are "}\n"
    write_file(folder / "tokenizer.json", good.substr(0, size));
    EXPECT_NE(load_error(folder.path()), "") << size;
  }
}

TEST(TokenizerFile, DamagedAnywhereIsAnErrorOrTheSameTokenizer) {
  const TemporaryFolder folder;
  const auto tokenizer = Tokenizer::train(kText, 270);
  tokenizer.save(folder.path());
  const std::string good = read_file(folder / "tokenizer.json");
  std::mt19937_64 random(41);
  for (int i = 0; i < 400; ++i) {
    std::string damaged = good;
    for (std::uint64_t n = 1 + random() % 3; n > 0; --n)
      damaged[random() % good.size()] = static_cast<char>(random());
    write_file(folder / "tokenizer.json", damaged);
    if (load_error(folder.path()).empty()) {
      EXPECT_EQ(Tokenizer::load(folder.path()).vocabulary_hash(), tokenizer.vocabulary_hash());
    }
  }
}

TEST(TokenizerFile, SaysWhyAFolderCannotBeWrittenTo) {
  const TemporaryFolder folder;
  write_file(folder / "file", "");
  EXPECT_THROW(Tokenizer::train("", 256).save(folder / "file"), DataError);
  EXPECT_THROW(Tokenizer::train("", 256).save(folder / "file/below"), DataError);
  EXPECT_THROW(Tokenizer::train("", 256).save("/proc/nothing/here"), DataError);
}

}  // namespace
}  // namespace tessera::data
