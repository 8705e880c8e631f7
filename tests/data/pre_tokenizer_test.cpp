#include "data/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tessera::data {
namespace {

std::vector<std::string> pre_tokens(std::string_view text) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const std::size_t length = pre_token_length(text);
    pieces.emplace_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return pieces;
}

struct Case {
  const char* name;
  std::string text;
  std::vector<std::string> expected;
};

// ASCII rows: what GPT-2's pattern gives,
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// (made with the Python module `regex` 2026.5.9; rows beyond ASCII agree with it as well, unless the name
// says otherwise).
TEST(PreTokenizer, CutsAsTheTableSays) {
  const std::vector<Case> cases = {
      {"empty", "", {}},
      {"words keep their space", "In the beginning", {"In", " the", " beginning"}},
      {"contractions",
       "don't we'll I'm you're he'd it's they've",
       {"don", "'t", " we", "'ll", " I", "'m", " you", "'re", " he", "'d", " it", "'s", " they", "'ve"}},
      {"contractions are lower case", "IT'S", {"IT", "'", "S"}},
      {"contractions need no word", "'tis 'sup", {"'t", "is", " '", "sup"}},
      {"an apostrophe at the end", "dogs'", {"dogs", "'"}},
      {"half a contraction", "'l 'r 'v", {"'", "l", " '", "r", " '", "v"}},
      {"digits", "In 1611, 3rd", {"In", " 1611", ",", " 3", "rd"}},
      {"punctuation", "Wait... (what?!)", {"Wait", "...", " (", "what", "?!)"}},
      {"spaces before a word", "a   b", {"a", "  ", " b"}},
      {"spaces at the end", "a   ", {"a", "   "}},
      {"one space at the end", "a ", {"a", " "}},
      {"line feeds", "a\n\nb", {"a", "\n", "\n", "b"}},
      {"one line feed", "a\nb", {"a", "\n", "b"}},
      {"space, line feed, space", "a \n b", {"a", " \n", " b"}},
      {"tab", "\tx\t\ty", {"\t", "x", "\t", "\t", "y"}},
      {"control characters are no space", std::string("a\x1F\x1C z", 5), {"a", "\x1F\x1C", " z"}},
      {"zero bytes", std::string("a\0\0b", 4), {"a", std::string("\0\0", 2), "b"}},
      {"accents", "café, naïve Ökonomie", {"café", ",", " naïve", " Ökonomie"}},
      {"Cyrillic and Greek", "Слово λόγος", {"Слово", " λόγος"}},
      {"Chinese", "起初神創造天地。", {"起初神創造天地", "。"}},
      {"quotes and dashes", "“yes” — no…", {"“", "yes", "”", " —", " no", "…"}},
      {"emoji", "ok 👍🏽!", {"ok", " 👍🏽!"}},
      {"no-break space", "a\u00A0b", {"a", "\u00A0", "b"}},
      {"ideographic space before a word", "神\u3000\u3000天", {"神", "\u3000", "\u3000", "天"}},
      {"Arabic-Indic digits", "سنة ١٢٣", {"سنة", " ١٢٣"}},
      {"fractions are numbers", "½x", {"½", "x"}},
      {"combining marks stay in their word (GPT-2 cuts)", "e\u0301te\u0301", {"e\u0301te\u0301"}},
      {"bytes that are not UTF-8", "a\xFF\xC3 b\x80", {"a", "\xFF\xC3", " b", "\x80"}},
      {"overlong and surrogate", "a\xC0\xAF\xED\xA0\x80", {"a", "\xC0\xAF\xED\xA0\x80"}},
      {"cut inside a character", "a\xE2\x82", {"a", "\xE2\x82"}},
  };
  for (const Case& c : cases) EXPECT_EQ(pre_tokens(c.text), c.expected) << c.name;
}

TEST(PreTokenizer, CutsLongRunsBetweenCharacters) {
  std::string text = "x";  // so that the limit falls inside an "é"
  while (text.size() < 3 * kMaxPreTokenBytes) text += "é";
  const auto pieces = pre_tokens(text);
  EXPECT_EQ(pieces.size(), 3u);
  for (const std::string& piece : pieces) {
    EXPECT_LE(piece.size(), kMaxPreTokenBytes + 3);
    EXPECT_NE(static_cast<unsigned char>(piece.front()) & 0xC0, 0x80);
  }
}

}  // namespace
}  // namespace tessera::data
