// Tokenizers from elsewhere against the ids that their own programs give (tests/references/
// tokenizer_hugging_face.py), and the patterns that they cut texts with.

#include "data/tokenizer_hugging_face.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "data/pre_tokenizer.h"
#include "data/split_pattern.h"
#include "data/token_stream.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::data {
namespace {

using Ids = std::vector<std::int32_t>;
using Json = nlohmann::json;
namespace fs = std::filesystem;

const fs::path kFolder = fs::path(TESSERA_SOURCE_DIR) / "tests/data/tokenizers";

struct Case {
  std::string text;
  Ids ids;                      // as `encode` of Hugging Face's tokenizers gives them
  std::optional<Ids> ordinary;  // as tiktoken's encode_ordinary gives them
};

std::vector<Case> cases_of(const std::string& name) {
  std::vector<Case> cases;
  for (const Json& json : Json::parse(read_file(kFolder / name / "ids.json"))) {
    Case c{json["text"], json["ids"], std::nullopt};
    if (!json["ordinary"].is_null()) c.ordinary = json["ordinary"].get<Ids>();
    cases.push_back(c);
  }
  return cases;
}

TEST(TokenizersFromElsewhere, GiveTheIdsOfTheirOwnPrograms) {
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = Tokenizer::load(kFolder / name);
    const std::vector<Case> cases = cases_of(name);
    ASSERT_GT(cases.size(), 160U);
    for (const Case& c : cases) {
      EXPECT_EQ(tokenizer.encode(c.text, {.added_tokens = true, .frame = true}), c.ids)
          << name << ": " << c.text;
      if (c.ordinary) {
        EXPECT_EQ(tokenizer.encode(c.text), *c.ordinary) << name << ": " << c.text;
      }
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(c.text)), c.text) << name;
    }
  }
}

TEST(TokenizersFromElsewhere, Gpt2sFilesAreReadUnderBothOfTheirNames) {
  for (const auto& [encoder, merges] :
       {std::pair{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}}) {
    const TemporaryFolder folder;
    write_file(folder / encoder, read_file(kFolder / "gpt2/encoder.json"));
    write_file(folder / merges, read_file(kFolder / "gpt2/vocab.bpe"));
    const auto tokenizer = Tokenizer::load(folder.path());
    EXPECT_EQ(tokenizer.vocabulary_hash(), Tokenizer::load(kFolder / "gpt2").vocabulary_hash());
    EXPECT_EQ(tokenizer.end_of_text(), 700);
    for (const Case& c : cases_of("gpt2"))
      EXPECT_EQ(tokenizer.encode(c.text, {.added_tokens = true, .frame = true}), c.ids) << c.text;
  }
}

TEST(TokenizersFromElsewhere, AreTheSameAfterBeingSavedInEitherForm) {
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = Tokenizer::load(kFolder / name);
    const TemporaryFolder folder;
    tokenizer.save(folder / "ours");
    save_hugging_face_tokenizer(folder / "theirs", tokenizer);
    for (const char* form : {"ours", "theirs"}) {
      const auto again = Tokenizer::load(folder / form);
      EXPECT_EQ(again.vocabulary_hash(), tokenizer.vocabulary_hash()) << name << ", " << form;
      for (const Case& c : cases_of(name)) {
        EXPECT_EQ(again.encode(c.text, {.added_tokens = true, .frame = true}), c.ids)
            << form << ": " << c.text;
        EXPECT_EQ(again.encode(c.text), tokenizer.encode(c.text)) << form << ": " << c.text;
      }
    }
  }
}

// Ids of a stream are those of the whole, wherever its parts end: inside a character, a run or a look-ahead.
TEST(TokenizersFromElsewhere, EncodeStreamsInPartsAsAWhole) {
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = Tokenizer::load(kFolder / name);
    std::string text;
    for (const Case& c : cases_of(name)) text += c.text + "\xF0\x9F\xFF \xE4";  // and what is not UTF-8
    const Ids whole = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(whole), text);
    std::mt19937_64 random(7);
    for (const std::size_t most : {1, 2, 3, 7, 100, 5000}) {
      Ids ids;
      StreamEncoder encoder(tokenizer);
      for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t size = 1 + random() % most;
        encoder.push(std::string_view(text).substr(begin, size), ids);
        begin += size;
      }
      encoder.finish(ids);
      EXPECT_EQ(ids, whole) << name << ", parts of up to " << most;
    }
  }
}

TEST(TokenizersFromElsewhere, GiveBackRandomBytes) {
  std::mt19937_64 random(19);
  for (const char* name : {"gpt2", "llama3"}) {
    const auto tokenizer = Tokenizer::load(kFolder / name);
    for (int i = 0; i < 300; ++i) {
      std::string text(random() % 60, '\0');
      for (char& c : text) c = static_cast<char>(random() % (i % 2 == 0 ? 256 : 160));
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text) << name << ", " << i;
    }
  }
}

// A run longer than a piece may be is cut at the same places whether it comes at once or in parts.
TEST(TokenizersFromElsewhere, CutLongRunsAlikeInStreams) {
  const auto tokenizer = Tokenizer::load(kFolder / "gpt2");
  for (const std::string& unit :
       {std::string("a"), std::string(" "), std::string("é"), std::string("\xFF")}) {
    for (const std::size_t extra : {0, 1, 3, 4, 5, 9, 70000}) {
      std::string text;
      while (text.size() < kMaxPreTokenBytes + extra) text += unit;
      text += "x y";
      const Ids whole = tokenizer.encode(text);
      EXPECT_EQ(tokenizer.decode(whole), text);
      Ids ids;
      StreamEncoder encoder(tokenizer);
      for (std::size_t begin = 0; begin < text.size(); begin += 65521)
        encoder.push(std::string_view(text).substr(begin, 65521), ids);
      encoder.finish(ids);
      EXPECT_EQ(ids, whole) << unit << " and " << extra;
    }
  }
}

TEST(TokenizersFromElsewhere, ASpelledTokenStaysTextUnlessAskedFor) {
  const auto tokenizer = Tokenizer::load(kFolder / "gpt2");
  const Ids plain = tokenizer.encode("a<|endoftext|>b");
  EXPECT_EQ(std::ranges::count(plain, 700), 0);
  const Ids found = tokenizer.encode("a<|endoftext|>b", {.added_tokens = true});
  EXPECT_EQ(found, (Ids{tokenizer.encode("a")[0], 700, tokenizer.encode("b")[0]}));
}

// What tokenizers 0.23.3 gives for these: tokens that are "normalized" are found in what the others leave,
// and where a token is does not depend on the space that the one before it swallows.
TEST(TokenizersFromElsewhere, FindAddedTokensInTheOrderOfTheirOwnPrograms) {
  Json json = Json::parse(read_file(kFolder / "gpt2/tokenizer.json"));
  int id = 701;
  const auto add = [&](const char* text, bool left, bool right, bool normalized) {
    json["added_tokens"].push_back({{"id", id++},
                                    {"content", text},
                                    {"single_word", false},
                                    {"lstrip", left},
                                    {"rstrip", right},
                                    {"normalized", normalized}});
  };
  add("zz<", false, false, true);
  add("qqq", false, false, true);
  add("qq", false, false, false);
  add("<q>", false, false, false);
  add("<R>", false, true, false);
  add("<L>", true, false, true);
  add(" <W>", false, false, false);
  const TemporaryFolder folder;
  write_file(folder / "tokenizer.json", json.dump());
  const auto tokenizer = Tokenizer::load(folder.path());
  tokenizer.save(folder / "ours");
  save_hugging_face_tokenizer(folder / "theirs", tokenizer);
  using Tokens = std::vector<std::string>;
  const std::vector<std::pair<std::string, Tokens>> cases = {{"zz<q>", {"z", "z", "<q>"}},
                                                             {"qqqz", {"qq", "q", "z"}},
                                                             {"z qqqqq", {"z", " ", "qq", "qq", "q"}},
                                                             {"zz<<R>", {"zz<", "<R>"}},
                                                             {"<R>  <W>", {"<R>", " <W>"}},
                                                             {"<R>  <L>", {"<R>", "<L>"}},
                                                             {"<R> \u3000 <W>x", {"<R>", " <W>", "x"}},
                                                             {"z <L>  <L>", {"z", "<L>", "<L>"}},
                                                             {"<q> <L>", {"<q>", "<L>"}}};
  for (const auto& path : {folder.path(), folder / "ours", folder / "theirs"}) {
    const auto again = Tokenizer::load(path);
    EXPECT_EQ(again.vocabulary_hash(), tokenizer.vocabulary_hash());
    for (const auto& [text, expected] : cases) {
      Tokens tokens;
      for (const std::int32_t each : again.encode(text, {.added_tokens = true}))
        tokens.emplace_back(again.token(each));
      EXPECT_EQ(tokens, expected) << path << ": " << text;
    }
  }
}

TEST(TokenizersFromElsewhere, AreRefusedWithTheReason) {
  struct Change {
    const char* name;
    std::function<void(Json&)> change;
    const char* reason;
  };
  const std::vector<Change> changes = {
      {"WordPiece", [](Json& j) { j["model"]["type"] = "WordPiece"; }, "only byte-level BPE"},
      {"byte fallback", [](Json& j) { j["model"]["byte_fallback"] = true; }, "\"byte_fallback\": true"},
      {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "\"dropout\": 0.1"},
      {"suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix"},
      {"normalizer",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer \"NFC\""},
      {"no pre-tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }, "\"type\" is null"},
      {"Metaspace",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       "Metaspace"},
      {"space first", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
       "add_prefix_space"},
      {"two patterns", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true; },
       "two patterns"},
      {"text split",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
       },
       "\"Regex\" is null"},
      {"merging split",
       [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; },
       "MergedWithNext"},
      {"broken pattern", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; },
       "pattern '(a'"},
      {"no vocabulary", [](Json& j) { j["model"].erase("vocab"); }, "no object of tokens"},
      {"id text", [](Json& j) { j["model"]["vocab"]["a"] = "5"; }, "not a number below 2^24"},
      {"id large", [](Json& j) { j["model"]["vocab"]["a"] = 4000000000U; }, "not a number below 2^24"},
      {"id twice", [](Json& j) { j["model"]["vocab"]["a"] = 5; }, "have the id 5"},
      {"gap", [](Json& j) { j["model"]["vocab"]["zzz"] = 708; },
       "id 708, but of 708 tokens: ids must have no gaps"},
      {"wide gap", [](Json& j) { j["model"]["vocab"]["zzz"] = 16777215; },
       "'zzz' has the id 16777215, but of 708"},
      {"gap beside a token twice",
       [](Json& j) {
         j["model"]["vocab"]["<|begin_of_text|>"] = 700;
         j["model"]["vocab"]["zzz"] = 708;
       },
       "no token has the id 707"},
      {"strange character", [](Json& j) { j["model"]["vocab"]["天"] = 707; }, "U+5929"},
      {"merges object", [](Json& j) { j["model"]["merges"] = Json::object(); }, "\"merges\" is not a list"},
      {"merge of one", [](Json& j) { j["model"]["merges"][3] = "ab"; }, "merge 3 ('ab') is not two tokens"},
      {"merge of three", [](Json& j) { j["model"]["merges"][3] = "a b c"; }, "merge 3 ('a b c')"},
      {"merge number", [](Json& j) { j["model"]["merges"][3] = 5; }, "not as it must be"},
      {"merge of none",
       [](Json& j) {
         j["model"]["merges"][3] = {"QQ", "Z"};
       },
       "joins what are no tokens"},
      {"byte gone",
       [](Json& j) {
         const int id = j["model"]["vocab"]["õ"];
         j["model"]["vocab"].erase("õ");
         j["added_tokens"].push_back({{"id", id}, {"content", "<x>"}});
       },
       "byte 0xF5 has no token"},
      {"whole word", [](Json& j) { j["added_tokens"][0]["single_word"] = true; }, "single_word"},
      {"added twice", [](Json& j) { j["added_tokens"][1]["content"] = j["added_tokens"][0]["content"]; },
       "is there twice"},
      {"added nothing", [](Json& j) { j["added_tokens"][1]["content"] = ""; }, "is empty"},
      {"post-processor",
       [](Json& j) {
         j["post_processor"] = {{"type", "Magic"}};
       },
       "Magic"},
      {"frame of nobody",
       [](Json& j) { j["post_processor"]["processors"][1]["special_tokens"] = Json::object(); },
       "not as it must be"},
      {"two frames",
       [](Json& j) {
         Json& list = j["post_processor"]["processors"];
         list.push_back(Json(list[1]));
       },
       "TemplateProcessing puts a frame around another"},
      {"template without the text", [](Json& j) { j["post_processor"]["processors"][1]["single"].erase(1); },
       "has the text 0 times"},
      {"template with the text twice",
       [](Json& j) {
         Json& single = j["post_processor"]["processors"][1]["single"];
         single.push_back(Json(single[1]));
       },
       "has the text 2 times"},
      {"frame out of range",
       [](Json& j) {
         j["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = {90000};
       },
       "token 90000 frames a text"},
  };
  const Json good = Json::parse(read_file(kFolder / "llama3/tokenizer.json"));
  const TemporaryFolder folder;
  for (const Change& change : changes) {
    Json changed = good;
    change.change(changed);
    write_file(folder / "tokenizer.json", changed.dump());
    SCOPED_TRACE(change.name);
    expect_error<DataError>([&] { (void)Tokenizer::load(folder.path()); },
                            {change.reason, (folder / "tokenizer.json").string()});
  }
}

// Brackets that are closed are JSON. To copy or print them took the stack.
TEST(TokenizersFromElsewhere, OfBracketsAloneAreRefused) {
  const TemporaryFolder folder;
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  for (const std::string& text :
       {"{\"model\": {\"vocab\": " + deep + "}}", "{\"added_tokens\": " + deep + ", \"model\": {}}"}) {
    write_file(folder / "tokenizer.json", text);
    expect_error<DataError>([&] { (void)Tokenizer::load(folder.path()); }, {"stand in more than 100 others"});
  }
}

TEST(TokenizersFromElsewhere, DamagedAtRandomAreRefusedOrLoad) {
  const std::string good = read_file(kFolder / "llama3/tokenizer.json");
  const TemporaryFolder folder;
  std::mt19937_64 random(23);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    for (int n = 0; n < 3; ++n) bad[random() % bad.size()] = "{}[]\",:09a\\ \xFF"[random() % 13];
    write_file(folder / "tokenizer.json", bad);
    try {
      const auto tokenizer = Tokenizer::load(folder.path());
      EXPECT_EQ(tokenizer.decode(tokenizer.encode("the text")), "the text");
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

std::vector<std::string> pieces(const std::string& pattern, std::string_view text) {
  const detail::SplitPattern compiled(pattern);
  detail::PatternCutter cutter(compiled);
  cutter.start(text, true);
  std::vector<std::string> result;
  std::size_t begin = 0;
  while (const std::size_t length = cutter.next()) {
    result.emplace_back(text.substr(begin, length));
    begin += length;
  }
  EXPECT_EQ(begin, text.size());
  return result;
}

TEST(SplitPattern, CutsAtMatchesAndKeepsWhatLiesBetween) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces("[0-9]+", "ab12c"), (Pieces{"ab", "12", "c"}));
  EXPECT_EQ(pieces("[0-9]*", "ab12c"), (Pieces{"ab", "12", "c"})) << "a match of nothing is none";
  EXPECT_EQ(pieces("x", ""), Pieces{});
  EXPECT_EQ(pieces("\\s+", "a \u180e\u3000b"), (Pieces{"a", " ", "\u180e", "\u3000", "b"}));
  EXPECT_EQ(pieces("[^\\s]+", "a \u180e"), (Pieces{"a", " ", "\u180e"}));
  EXPECT_EQ(pieces("\\p{L}+", "a\xFF\xFE\xC3z"), (Pieces{"a", "\xFF\xFE\xC3", "z"}));
  EXPECT_EQ(pieces("a+(?!b)|b", "aa\xFF"), (Pieces{"aa", "\xFF"})) << "text ends at what is not UTF-8";
}

TEST(SplitPattern, RefusesWhatLibrariesUnderstandDifferently) {
  for (const char* pattern : {"\\w+",          "a\\b",    "\\h",     "^a",    "a$",    "(a)\\1",
                              "[[:alpha:]]",   "[a&&b]",  "(?<=a)b", "(",     "[",     "\\",
                              "\\p{Nonsense}", "\\pL",    "\\X",     "\\C",   "\\K",   "\\p{N}{1,3}+",
                              "a{2}+",         "a{2,}+",  "a{2}?",   "a{,2}", "(?m).", "(?s:.)",
                              "(?i-m:.)",      "(*UCP)a", "[]a[]"}) {
    SCOPED_TRACE(pattern);
    expect_error<DataError>([&] { const detail::SplitPattern compiled(pattern); }, {"pattern '"});
  }
}

// As Oniguruma cuts them, which Hugging Face's tokenizers have.
TEST(SplitPattern, TakesScriptsCountsAndFlagsAsOtherLibrariesDo) {
  using Pieces = std::vector<std::string>;
  EXPECT_EQ(pieces("\\p{Han}+", "漢、字〇々。ー漢"), (Pieces{"漢", "、", "字〇々", "。ー", "漢"}));
  EXPECT_EQ(pieces("[\\p{Han}x]+", "漢x、"), (Pieces{"漢x", "、"}));
  EXPECT_EQ(pieces("\\P{Han}+|\\p{^Greek}", "漢、α"), (Pieces{"漢", "、α"}));
  EXPECT_EQ(pieces("\\p{L}+|\\p{Lu}|\\p{^L}", "aB12"), (Pieces{"aB", "1", "2"}));
  EXPECT_EQ(pieces("a{2}", "a{2}aa"), (Pieces{"a{2}", "aa"}));
  EXPECT_EQ(pieces("a{2,3}?", "aaaaa"), (Pieces{"aa", "aa", "a"}));
  EXPECT_EQ(pieces("a{2", "aaa{2"), (Pieces{"aa", "a{2"})) << "a bracket that opens nothing is one";
  EXPECT_EQ(pieces("a{,}|\\x{62}+", "aa{,}bb"), (Pieces{"a", "a{,}", "bb"}));
  EXPECT_EQ(pieces("[^]a]+", "xy]a"), (Pieces{"xy", "]a"}));
  EXPECT_EQ(pieces("[]{2}]+|(?i:B)(?=c)(?x: d )", "]{2}abcd"), (Pieces{"]{2}", "abcd"}));
}

TEST(SplitPattern, ThatTakesForeverIsAnError) {
  const detail::SplitPattern pattern("(?:a+)+(?:b|c)d");  // 2^60 ways to fail
  detail::PatternCutter cutter(pattern);
  const std::string text = std::string(60, 'a') + "d";
  cutter.start(text, true);
  expect_error<DataError>([&] { (void)cutter.next(); }, {"its pattern fails on this text"});
}

// The rules of pre_tokenizer.h in both of their forms.
TEST(SplitPattern, OfOurRulesCutsAsTheyDo) {
  const detail::SplitPattern pattern(pre_token_pattern());
  detail::PatternCutter cutter(pattern);
  std::mt19937_64 random(31);
  const std::vector<std::string> units = {" ",  "  ",     "\n", "'", "s",      "ll",     "a",    "É",
                                          "1",  "½",      "²",  ".", "\u00a0", "世",     "🙂", "\u0301",
                                          "。", "\u2028", "٣",  "!", "\x01",   "\u00b7", "𝟘"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (std::uint64_t n = random() % 20; n > 0; --n) text += units[random() % units.size()];
    cutter.start(text, true);
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t length = pre_token_length(rest);
      ASSERT_EQ(cutter.next(), length) << text << ", before " << rest;
      rest.remove_prefix(length);
    }
    ASSERT_EQ(cutter.next(), 0U);
  }
}

TEST(SaveHuggingFaceTokenizer, OfOurOwnGivesTheSameIds) {
  const std::string text = "the cat and the hat and the bat sat; the 'é' ate 77 and 77\n\n½ ² e\u0301";
  const auto tokenizer = Tokenizer::train(text, 290, {.end_of_text = true});
  const TemporaryFolder folder;
  save_hugging_face_tokenizer(folder.path(), tokenizer);
  const auto again = Tokenizer::load(folder.path());
  EXPECT_EQ(again.encode(text), tokenizer.encode(text));
  EXPECT_EQ(again.vocab_size(), tokenizer.vocab_size());
  EXPECT_EQ(again.end_of_text(), tokenizer.end_of_text());
  for (const Case& c : cases_of("gpt2")) EXPECT_EQ(again.encode(c.text), tokenizer.encode(c.text)) << c.text;
}

}  // namespace
}  // namespace tessera::data
