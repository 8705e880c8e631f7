// Token files of nanoGPT and llm.c, as their programs write them.

#include "data/token_import.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::data {
namespace {

// Little-endian numbers, one behind the other.
template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes;
  for (const T value : values)
    for (std::size_t i = 0; i < sizeof(T); ++i)
      bytes += static_cast<char>(static_cast<std::uint64_t>(value) >> (8 * i) & 0xFF);
  return bytes;
}

std::string llm_c(std::uint32_t magic, std::uint32_t version, std::uint32_t count, const std::string& ids) {
  std::vector<std::uint32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  return bytes_of(header) + ids;
}

std::vector<std::int32_t> read_all(const ForeignTokenFile& file, std::int64_t vocab_size) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(file.size()));
  file.read(0, vocab_size, ids);
  return ids;
}

TEST(ForeignTokenFile, ReadsTheFormsOfNanoGptAndLlmC) {
  const TemporaryFolder folder;
  write_file(folder / "nano", bytes_of<std::uint16_t>({50256, 0, 1, 777}));
  write_file(folder / "gpt2", llm_c(20240520, 1, 3, bytes_of<std::uint16_t>({50256, 258, 1})));
  write_file(folder / "llama", llm_c(20240801, 7, 2, bytes_of<std::uint32_t>({128000, 66051})));
  const ForeignTokenFile nano(folder / "nano"), gpt2(folder / "gpt2"), llama(folder / "llama");
  EXPECT_EQ(nano.format(), "nanoGPT");
  EXPECT_EQ(gpt2.format(), "llm.c");
  EXPECT_EQ(llama.bytes_per_token(), 4);
  EXPECT_EQ(read_all(nano, 50257), (std::vector<std::int32_t>{50256, 0, 1, 777}));
  EXPECT_EQ(read_all(gpt2, 50257), (std::vector<std::int32_t>{50256, 258, 1}));
  EXPECT_EQ(read_all(llama, 128256), (std::vector<std::int32_t>{128000, 66051}));
  std::vector<std::int32_t> middle(2);
  nano.read(1, 50257, middle);
  EXPECT_EQ(middle, (std::vector<std::int32_t>{0, 1}));
}

TEST(ForeignTokenFile, RefusesWhatDoesNotFit) {
  struct Case {
    const char* name;
    std::string bytes;
    const char* reason;
  };
  const std::string three = bytes_of<std::uint16_t>({1, 2, 3});
  const std::vector<Case> cases = {
      {"empty", "", "is empty"},
      {"half a token", three + "x", "7 bytes are not a whole number of tokens"},
      {"a header alone", llm_c(20240520, 1, 0, ""), "holds no tokens"},
      {"half a header", llm_c(20240520, 1, 3, three).substr(0, 500),
       "cut short: llm.c's header has 1024 bytes"},
      {"cut short", llm_c(20240520, 1, 4, three), "cut short: 4 tokens need 1032 bytes, the file has 1030"},
      {"too long", llm_c(20240520, 1, 2, three), "too long: 2 tokens need 1028 bytes, the file has 1030"},
      {"a count of 2^32 - 1", llm_c(20240520, 1, 0xFFFFFFFFU, three), "cut short: 4294967295 tokens"},
      {"u16 under the magic of u32", llm_c(20240801, 7, 3, three), "cut short: 3 tokens need 1036 bytes"},
      {"another version", llm_c(20240520, 2, 3, three), "version 2"},
      {"version 1 of u32", llm_c(20240801, 1, 1, bytes_of<std::uint32_t>({1})), "only version 7"},
  };
  const TemporaryFolder folder;
  for (const Case& c : cases) {
    write_file(folder / "tokens", c.bytes);
    SCOPED_TRACE(c.name);
    expect_error<DataError>([&] { const ForeignTokenFile file(folder / "tokens"); },
                            {c.reason, (folder / "tokens").string()});
  }
  expect_error<DataError>([&] { const ForeignTokenFile file(folder / "nowhere"); }, {"No such file"});
  expect_error<DataError>([&] { const ForeignTokenFile file(folder.path()); }, {folder.path().string()});
}

TEST(ForeignTokenFile, RefusesIdsOutsideOfTheVocabularyAndPlacesOutsideOfTheFile) {
  const TemporaryFolder folder;
  write_file(folder / "nano", bytes_of<std::uint16_t>({1, 2, 300, 4}));
  write_file(folder / "llama", llm_c(20240801, 7, 2, bytes_of<std::uint32_t>({5, 0xFFFFFFFFU})));
  const ForeignTokenFile nano(folder / "nano"), llama(folder / "llama");
  EXPECT_EQ(read_all(nano, 301)[2], 300);
  expect_error<DataError>([&] { (void)read_all(nano, 300); },
                          {"token 300 at position 2", "vocabulary of 300"});
  expect_error<DataError>([&] { (void)read_all(llama, 128256); }, {"token 4294967295 at position 1"});
  std::vector<std::int32_t> two(2);
  expect_error<IndexError>([&] { nano.read(3, 301, two); }, {"2 tokens from 3, it has 4"});
  expect_error<IndexError>([&] { nano.read(-1, 301, two); }, {"from -1"});
}

std::int64_t import_to(const std::filesystem::path& path, const std::vector<std::filesystem::path>& from,
                       const Tokenizer& tokenizer,
                       const std::function<void(std::int64_t, std::int64_t)>& progress = {}) {
  TokenFileWriter writer(path, tokenizer.vocab_size(), tokenizer.vocabulary_hash());
  writer.finish(import_tokens(from, tokenizer, writer, progress));
  return writer.num_tokens();
}

TEST(ImportTokens, RefuseNumbersOfAnotherWidthThanNanoGptHas) {
  const auto tokenizer = Tokenizer::train("any text", 256);
  const TemporaryFolder folder;
  const std::vector<std::int64_t> ids = {104, 101, 0, 108, 111};
  write_file(folder / "i64", bytes_of(ids));
  write_file(folder / "u32", bytes_of<std::uint32_t>({ids.begin(), ids.end()}));
  write_file(folder / "u16", bytes_of<std::uint16_t>({104, 0, 101, 0, 108, 0, 0, 111}));
  for (const char* wide : {"i64", "u32"}) {
    expect_error<DataError>(
        [&] {
          (void)import_to(folder / "out", {folder / "u16", folder / wide}, tokenizer);
        },
        {(folder / wide).string(), "every second token is 0", "uint16"});
    EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  }
  EXPECT_EQ(import_to(folder / "out", {folder / "u16"}, tokenizer), 8);
}

TEST(ImportTokens, MakesATokenFileOfTheTokenizer) {
  const std::string text = "the cat and the hat and the bat sat; the cat ate the hat";
  const auto tokenizer = Tokenizer::train(text, 280, {.end_of_text = true});
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  std::vector<std::uint16_t> first(ids.begin(), ids.end());
  first.push_back(static_cast<std::uint16_t>(*tokenizer.end_of_text()));
  const TemporaryFolder folder;
  write_file(folder / "1.bin", bytes_of(first));
  write_file(folder / "2.bin", llm_c(20240520, 1, static_cast<std::uint32_t>(first.size()), bytes_of(first)));
  std::int64_t told = 0;
  EXPECT_EQ(import_to(folder / "train.tokens", {folder / "1.bin", folder / "2.bin"}, tokenizer,
                      [&](std::int64_t done, std::int64_t) { told = done; }),
            static_cast<std::int64_t>(2 * first.size()));
  EXPECT_EQ(told, static_cast<std::int64_t>(2 * first.size()));
  const auto file = TokenFile::open(folder / "train.tokens");
  file.require_vocabulary(tokenizer.vocab_size(), tokenizer.vocabulary_hash());
  file.verify();
  EXPECT_EQ(file.info().source_bytes, static_cast<std::int64_t>(2 * text.size())) << "ends of texts are none";
  ASSERT_EQ(file.size(), static_cast<std::int64_t>(2 * first.size()));
  for (std::int64_t i = 0; i < file.size(); ++i)
    EXPECT_EQ(file[i], first[static_cast<std::size_t>(i) % first.size()]);
}

// Files of several parts of the importer's memory.
TEST(ImportTokens, TakesFilesOfAnySize) {
  const auto tokenizer = Tokenizer::train("", 256);
  std::mt19937_64 random(3);
  std::vector<std::uint16_t> ids((1 << 19) + 77);
  for (std::uint16_t& id : ids) id = static_cast<std::uint16_t>(random() % 256);
  const TemporaryFolder folder;
  write_file(folder / "train.bin", bytes_of(ids));
  import_to(folder / "train.tokens", {folder / "train.bin"}, tokenizer);
  const auto file = TokenFile::open(folder / "train.tokens");
  std::vector<std::int64_t> read(ids.size());
  file.read(0, read);
  EXPECT_TRUE(std::equal(read.begin(), read.end(), ids.begin()));
}

TEST(ImportTokens, LeavesNothingAfterAnError) {
  const auto tokenizer = Tokenizer::train("", 256);
  const TemporaryFolder folder;
  write_file(folder / "good", bytes_of<std::uint16_t>({1, 2, 3}));
  write_file(folder / "bad", bytes_of<std::uint16_t>({1, 2, 256}));
  write_file(folder / "one", bytes_of<std::uint16_t>({1}));
  expect_error<DataError>(
      [&] {
        import_to(folder / "t", {folder / "good", folder / "bad"}, tokenizer);
      },
      {"token 256 at position 2"});
  expect_error<DataError>([&] { import_to(folder / "t", {folder / "one"}, tokenizer); }, {"too few"});
  expect_error<DataError>([&] { import_to(folder / "t", {}, tokenizer); }, {"too few"});
  EXPECT_EQ(folder.num_files(), 3U);
}

}  // namespace
}  // namespace tessera::data
