#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/pre_tokenizer.h"
#include "data/token_stream.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

using Ids = std::vector<std::int32_t>;

// Sennrich et al.'s example, with the space that our words carry: low 1, ␣low 4, ␣lower 2, ␣newest 6,
// ␣widest 3.
constexpr std::string_view kSennrich =
    "low low low low low lower lower newest newest newest newest newest newest widest widest widest";

std::string random_bytes(std::mt19937_64& random, std::size_t longest) {
  // Some strings of any bytes, some of pieces that a text has: scripts, emoji, white space, contractions, bad
  // UTF-8.
  static const std::vector<std::string> pieces = {
      "the",    " and",   " ",    "  ",   "\n",       "\r\n",     "\t",    "'s",   "'ll", "'",
      "don't",  "1611",   " 7",   "...",  "é",        "ß",        "Слово", "天地", "🎉",   "👍🏽",
      "\u00A0", "\u3000", "\xFF", "\xC3", "\xE2\x82", "\xF0\x9F", "\x80",  "aaaa", "x",   "<|endoftext|>"};
  std::string text;
  const std::size_t length = random() % (longest + 1);
  const bool any_bytes = random() % 2 == 0;
  while (text.size() < length) {
    if (any_bytes) {
      text += static_cast<char>(random());
    } else {
      text += pieces[random() % pieces.size()];
    }
  }
  return text;
}

std::string sample_text(std::uint64_t seed, std::size_t size) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < size) text += random_bytes(random, 60);
  return text;
}

TEST(TokenizerTraining, LearnsTheMergesOfTheExampleByHand) {
  const auto tokenizer = Tokenizer::train(kSennrich, 1000);
  const std::vector<std::string> learned(tokenizer.vocabulary().tokens.begin() + 256,
                                         tokenizer.vocabulary().tokens.end());
  // Counts: es 9 (before st 9: lower ids), es+t 9, lo 7 (before ow 7), lo+w 7, then the sixes " n", " "+low,
  // ew, " n"+ew, " new"+est, the threes " w", d+est, i+dest, " w"+idest, the twos er, " low"+er. "low" itself
  // stands once.
  const std::vector<std::string> expected = {"es",   "est",   "lo",      "low",     " n",
                                             " low", "ew",    " new",    " newest", " w",
                                             "dest", "idest", " widest", "er",      " lower"};
  EXPECT_EQ(learned, expected);
  EXPECT_EQ(tokenizer.vocab_size(), 271);

  EXPECT_EQ(tokenizer.encode("low lowest newer"), Ids({259, 261, 257, 263, 269}));
  EXPECT_EQ(tokenizer.encode(" widest"), Ids({268}));
  EXPECT_EQ(tokenizer.encode("Z"), Ids({'Z'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(TokenizerTraining, TakesRunsOfOneLetterFromTheLeft) {
  const auto tokenizer = Tokenizer::train("aaaaa aaaaa", 258);
  EXPECT_EQ(tokenizer.token(256), "aa");
  EXPECT_EQ(tokenizer.token(257), "aaa");  // aa aa a: (aa, a) and (aa, aa) stand twice, the lower ids win
  EXPECT_EQ(tokenizer.encode("aaaaaaa"), Ids({256, 256, 257}));
}

// The definition, with nothing kept from one merge to the next.
std::vector<std::pair<std::int32_t, std::int32_t>> merges_by_definition(std::string_view text,
                                                                        int num_merges) {
  std::map<std::string, std::int64_t> words;
  while (!text.empty()) {
    const std::size_t length = pre_token_length(text);
    ++words[std::string(text.substr(0, length))];
    text.remove_prefix(length);
  }
  std::vector<std::pair<Ids, std::int64_t>> rows;
  for (const auto& [word, count] : words) {
    Ids ids;
    for (const char c : word) ids.push_back(static_cast<unsigned char>(c));
    rows.emplace_back(ids, count);
  }
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  std::vector<std::pair<std::int32_t, std::int32_t>> merges;
  while (static_cast<int>(tokens.size()) < 256 + num_merges) {
    std::map<std::pair<std::int32_t, std::int32_t>, std::int64_t> counts;
    for (const auto& [ids, count] : rows) {
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) counts[{ids[i], ids[i + 1]}] += count;
    }
    auto best = counts.end();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (best == counts.end() || it->second > best->second)
        best = it;  // the map is sorted: ties go to lower ids
    }
    if (best == counts.end() || best->second < 2) break;
    const auto [left, right] = best->first;
    const std::string joined =
        tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)];
    std::size_t id = 0;
    while (id < tokens.size() && tokens[id] != joined) ++id;
    if (id == tokens.size()) tokens.push_back(joined);
    merges.emplace_back(left, right);
    for (auto& row : rows) {
      Ids& ids = row.first;
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
        if (ids[i] != left || ids[i + 1] != right) continue;
        ids[i] = static_cast<std::int32_t>(id);
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
      }
    }
  }
  return merges;
}

TEST(TokenizerTraining, LearnsWhatTheDefinitionGives) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    // Few letters and long words: many ties, overlaps ("aaa") and tokens that come about in two ways.
    std::mt19937_64 random(seed);
    std::string text;
    for (int i = 0; i < 1500; ++i) text += "aaab bc"[random() % (seed % 2 == 0 ? 7 : 4)];
    const auto tokenizer = Tokenizer::train(text, 256 + 60);
    EXPECT_EQ(tokenizer.vocabulary().merges, merges_by_definition(text, 60)) << "seed " << seed;
  }
  const std::string text = sample_text(5, 6000);
  EXPECT_EQ(Tokenizer::train(text, 256 + 100).vocabulary().merges, merges_by_definition(text, 100));
}

TEST(TokenizerTraining, IsTheSameEveryTime) {
  const std::string text = sample_text(7, 50000);
  const auto once = Tokenizer::train(text, 600);
  const auto again = Tokenizer::train(std::string(text), 600);
  EXPECT_EQ(once.vocabulary().tokens, again.vocabulary().tokens);
  EXPECT_EQ(once.vocabulary_hash(), again.vocabulary_hash());
  // Stored: the hash must not change between machines, compilers and versions, or token files become
  // unreadable.
  EXPECT_EQ(Tokenizer::train(kSennrich, 1000).vocabulary_hash(), 0xbe7e3a28b01e2e14ull);
}

TEST(TokenizerTraining, StopsWhenNoPairOccursOftenEnough) {
  EXPECT_EQ(Tokenizer::train("", 5000).vocab_size(), 256);
  EXPECT_EQ(Tokenizer::train("abcdefg", 5000).vocab_size(), 256);
  EXPECT_EQ(Tokenizer::train("ab ab", 5000).vocab_size(), 257);
  EXPECT_EQ(Tokenizer::train("ab", 5000, {.min_pair_count = 1}).vocab_size(), 257);
  EXPECT_EQ(Tokenizer::train(kSennrich, 260).vocab_size(), 260);
}

TEST(TokenizerTraining, NeverMergesAcrossPreTokens) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "a.b 1x\n";
  const auto tokenizer = Tokenizer::train(text, 300);
  for (std::int32_t id = 256; id < tokenizer.vocab_size(); ++id) {
    const std::string_view token = tokenizer.token(id);
    EXPECT_EQ(pre_token_length(token), token.size()) << token;
  }
}

TEST(TokenizerTraining, RefusesImpossibleVocabularies) {
  for (const std::int64_t size : {-1, 0, 255, (1 << 24) + 1}) {
    EXPECT_THROW((void)Tokenizer::train("text", size), ConfigError) << size;
  }
  EXPECT_THROW((void)Tokenizer::train("text", 256, {.end_of_text = true}), ConfigError);
}

TEST(TokenizerTraining, ReportsProgressAndCanBeStopped) {
  std::int64_t last = -1;
  const std::string text = sample_text(9, 30000);
  (void)Tokenizer::train(text, 500, {.progress = [&](std::int64_t done, std::int64_t total) {
                           EXPECT_GT(done, last);
                           EXPECT_EQ(total, 244);
                           last = done;
                         }});
  EXPECT_EQ(last, 244);
  EXPECT_THROW((void)Tokenizer::train(text, 500, {.progress = [](auto, auto) { throw Error("stop"); }}),
               Error);
}

TEST(Tokenizer, GivesTheEndOfTextAnIdThatNoTextEncodesTo) {
  const auto tokenizer = Tokenizer::train(sample_text(3, 20000), 400, {.end_of_text = true});
  ASSERT_TRUE(tokenizer.end_of_text().has_value());
  EXPECT_EQ(*tokenizer.end_of_text(), tokenizer.vocab_size() - 1);
  for (const std::int32_t id : tokenizer.encode("a<|endoftext|>b<|endoftext|>"))
    EXPECT_NE(id, tokenizer.end_of_text());
  const Ids ids = {'a', *tokenizer.end_of_text()};
  EXPECT_EQ(tokenizer.decode(ids), "a<|endoftext|>");
}

TEST(Tokenizer, RoundTripIsTheIdentityOnAnyBytes) {
  const auto tokenizer = Tokenizer::train(sample_text(11, 100000), 1000);
  std::mt19937_64 random(2024);
  for (int i = 0; i < 10000; ++i) {
    const std::string text = random_bytes(random, i % 100 == 0 ? 5000 : 80);
    const Ids ids = tokenizer.encode(text);
    ASSERT_EQ(tokenizer.decode(ids), text) << "string " << i;
    ASSERT_LE(ids.size(), text.size());
  }
}

TEST(Tokenizer, EncodesAsTheDefinitionSays) {
  const auto tokenizer = Tokenizer::train(sample_text(13, 50000), 800);
  std::map<std::pair<std::int32_t, std::int32_t>, std::size_t> ranks;
  for (const auto& merge : tokenizer.vocabulary().merges) ranks.emplace(merge, ranks.size());
  std::mt19937_64 random(17);
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_bytes(random, 60);
    Ids expected;
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t length = pre_token_length(rest);
      Ids ids;
      for (const char c : rest.substr(0, length)) ids.push_back(static_cast<unsigned char>(c));
      while (true) {
        std::size_t best = ids.size(), best_rank = ranks.size();
        for (std::size_t k = 0; k + 1 < ids.size(); ++k) {
          const auto found = ranks.find({ids[k], ids[k + 1]});
          if (found != ranks.end() && found->second < best_rank) best = k, best_rank = found->second;
        }
        if (best == ids.size()) break;
        const std::string joined =
            std::string(tokenizer.token(ids[best])) + std::string(tokenizer.token(ids[best + 1]));
        for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
          if (tokenizer.token(id) == joined) ids[best] = id;
        }
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      }
      expected.insert(expected.end(), ids.begin(), ids.end());
      rest.remove_prefix(length);
    }
    EXPECT_EQ(tokenizer.encode(text), expected) << text;
  }
}

TEST(Tokenizer, NamesAnUnknownId) {
  const auto tokenizer = Tokenizer::train("", 256);
  const Ids ids = {1, 2, 300};
  try {
    (void)tokenizer.decode(ids);
    FAIL() << "no error";
  } catch (const IndexError& error) {
    EXPECT_STREQ(error.what(),
                 "decode: token id 300 at position 2 is outside the vocabulary of 256 (0 to 255)");
  }
  EXPECT_THROW((void)tokenizer.token(-1), IndexError);
  EXPECT_THROW((void)tokenizer.token(256), IndexError);
}

TEST(Tokenizer, CopiesAreIndependent) {
  auto original = std::make_unique<Tokenizer>(Tokenizer::train(kSennrich, 1000));
  const Tokenizer copy = *original;
  Tokenizer other = Tokenizer::train("", 256);
  other = *original;
  const Ids ids = original->encode("lowest");
  original.reset();
  EXPECT_EQ(copy.encode("lowest"), ids);
  EXPECT_EQ(other.encode("lowest"), ids);
}

TEST(Tokenizer, ServesSeveralThreadsAtOnce) {
  const std::string text = sample_text(19, 30000);
  const auto tokenizer = Tokenizer::train(text, 700);
  const Ids expected = tokenizer.encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, EncodesALongRunInReasonableTime) {
  const auto tokenizer = Tokenizer::train(std::string(1000, 'a'), 300);
  const std::string text(1 << 20, 'a');  // quadratic merging would take minutes
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

TEST(StreamEncoder, CutsHaveNoInfluenceOnTheIds) {
  const std::string words = sample_text(23, 60000);
  const std::string long_runs =
      std::string(200000, ' ') + std::string(150000, '=') + "é" + std::string(90000, '\n') + "x";
  const auto tokenizer = Tokenizer::train(words, 900);
  StreamEncoder encoder(tokenizer);
  std::mt19937_64 random(29);
  for (const std::string& text : {words, long_runs, std::string()}) {
    const Ids expected = tokenizer.encode(text);
    for (const std::size_t longest : {1u, 7u, 100u, 70000u}) {
      if (longest < 100 && text.size() > 100000) continue;  // each short push looks at the whole run again
      Ids ids;
      for (std::size_t done = 0; done < text.size();) {
        const std::size_t size = std::min(text.size() - done, 1 + random() % longest);
        encoder.push(std::string_view(text).substr(done, size), ids);
        done += size;
      }
      encoder.finish(ids);
      EXPECT_EQ(ids, expected) << "parts of up to " << longest;
    }
  }
}

TEST(StreamDecoder, HoldsBackUnfinishedCharacters) {
  const auto bytes = Tokenizer::train("", 256);
  struct Case {
    const char* name;
    std::vector<int> ids;
    std::vector<std::string> shown;  // after each id, then at the end
  };
  const std::vector<Case> cases = {
      {"ascii", {'a', 'b'}, {"a", "b", ""}},
      {"two bytes", {0xC3, 0xA9}, {"", "é", ""}},
      {"four bytes", {0xF0, 0x9F, 0x8E, 0x89}, {"", "", "", "🎉", ""}},
      {"cut off at the end", {'a', 0xE2, 0x82}, {"a", "", "", "\xE2\x82"}},
      {"broken by a letter", {0xE2, 0x82, 'x'}, {"", "", "\xE2\x82x", ""}},
      {"broken by another start", {0xE2, 0xC3, 0xA9}, {"", "\xE2", "é", ""}},
      {"never valid", {0xFF, 0x80, 0xC0}, {"\xFF", "\x80", "\xC0", ""}},
      {"surrogate", {0xED, 0xA0}, {"", "\xED\xA0", ""}},
      {"overlong", {0xE0, 0x80}, {"", "\xE0\x80", ""}},
      {"above U+10FFFF", {0xF4, 0x90}, {"", "\xF4\x90", ""}},
  };
  for (const Case& c : cases) {
    StreamDecoder decoder(bytes);
    for (std::size_t i = 0; i < c.ids.size(); ++i)
      EXPECT_EQ(decoder.push(c.ids[i]), c.shown[i]) << c.name << " " << i;
    EXPECT_EQ(decoder.finish(), c.shown.back()) << c.name;
    EXPECT_EQ(decoder.finish(), "") << c.name;
  }
  StreamDecoder decoder(bytes);
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_THROW((void)decoder.push(256), IndexError);
  EXPECT_EQ(decoder.push(0xA9), "é");
}

TEST(StreamDecoder, PartsJoinedAreTheWhole) {
  const auto tokenizer = Tokenizer::train(sample_text(31, 50000), 600);
  std::mt19937_64 random(37);
  for (int i = 0; i < 200; ++i) {
    Ids ids(random() % 50);
    for (std::int32_t& id : ids)
      id = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(tokenizer.vocab_size()));
    StreamDecoder decoder(tokenizer);
    std::string text;
    for (const std::int32_t id : ids) text += decoder.push(id);
    text += decoder.finish();
    EXPECT_EQ(text, tokenizer.decode(ids));
  }
}

}  // namespace
}  // namespace tessera::data
