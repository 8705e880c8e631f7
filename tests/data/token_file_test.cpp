#include "data/token_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "data/sampler.h"
#include "kernels/error.h"
#include "tests/data/temporary_folder.h"

namespace tessera::data {
namespace {

std::filesystem::path write_tokens(const std::filesystem::path& path, std::vector<std::int32_t> ids,
                                   std::int64_t vocab_size = 1000) {
  TokenFileWriter writer(path, vocab_size, 0x1234567890ABCDEFull);
  writer.write(ids);
  writer.finish(77);
  return path;
}

std::string open_error(const std::filesystem::path& path) {
  try {
    (void)TokenFile::open(path);
    return "";
  } catch (const DataError& error) {
    return error.what();
  }
}

TEST(TokenFile, GivesBackWhatWasWritten) {
  struct Case {
    const char* name;
    std::int64_t vocab_size;
    std::vector<std::int32_t> ids;
    std::int64_t bytes_per_token;
  };
  for (const Case& c : std::vector<Case>{{"one token", 256, {7}, 2},
                                         {"largest u16", 65536, {0, 65535, 1, 32768}, 2},
                                         {"smallest u32", 65537, {0, 65536, 1, 65535}, 4},
                                         {"largest vocabulary", std::int64_t{1} << 31, {2147483647, 0}, 4}}) {
    const TemporaryFolder folder;
    const auto file = TokenFile::open(write_tokens(folder / "t", c.ids, c.vocab_size));
    EXPECT_EQ(file.info().bytes_per_token, c.bytes_per_token) << c.name;
    EXPECT_EQ(file.info().vocab_size, c.vocab_size) << c.name;
    EXPECT_EQ(file.info().vocabulary_hash, 0x1234567890ABCDEFull) << c.name;
    EXPECT_EQ(file.info().source_bytes, 77) << c.name;
    ASSERT_EQ(file.size(), static_cast<std::int64_t>(c.ids.size())) << c.name;
    std::vector<std::int64_t> all(c.ids.size());
    file.read(0, all);
    for (std::size_t i = 0; i < c.ids.size(); ++i) {
      EXPECT_EQ(all[i], c.ids[i]) << c.name;
      EXPECT_EQ(file[static_cast<std::int64_t>(i)], c.ids[i]) << c.name;
    }
    EXPECT_NO_THROW(file.verify()) << c.name;
  }
}

TEST(TokenFile, LiesAsTheHeaderSays) {
  const TemporaryFolder folder;
  const std::string bytes = read_file(write_tokens(folder / "t", {1, 2, 0x0304}, 1000));
  ASSERT_EQ(bytes.size(), 64u + 6u);
  EXPECT_EQ(bytes.substr(0, 8), "TESSTOKN");
  const auto number = [&](std::size_t offset, std::size_t size) {
    std::uint64_t value = 0;
    for (std::size_t i = size; i > 0; --i)
      value = value << 8 | static_cast<unsigned char>(bytes[offset + i - 1]);
    return value;
  };
  EXPECT_EQ(number(8, 4), 1u);
  EXPECT_EQ(number(12, 4), 2u);
  EXPECT_EQ(number(16, 8), 1000u);
  EXPECT_EQ(number(24, 8), 0x1234567890ABCDEFull);
  EXPECT_EQ(number(32, 8), 3u);
  EXPECT_EQ(number(40, 8), 77u);
  const auto fnv1a = [&](std::size_t begin, std::size_t end) {
    std::uint64_t hash = 14695981039346656037ull;
    for (std::size_t i = begin; i < end; ++i)
      hash = (hash ^ static_cast<unsigned char>(bytes[i])) * 1099511628211ull;
    return hash;
  };
  EXPECT_EQ(number(48, 8), fnv1a(64, 70));
  EXPECT_EQ(number(56, 8), fnv1a(0, 56));
  EXPECT_EQ(bytes.substr(64), std::string("\1\0\2\0\4\3", 6));
}

TEST(TokenFile, IsWrittenInPartsLargerAndSmallerThanTheBuffer) {
  const TemporaryFolder folder;
  std::vector<std::int32_t> ids(1500000);  // 3 MB: the buffer has 1 MiB
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % 50257);
  TokenFileWriter writer(folder / "t", 50257, 1);
  std::span<const std::int32_t> rest(ids);
  for (const std::size_t size : {1u, 10u, 700000u, 3u, 0u, 600000u}) {
    writer.write(rest.first(size));
    rest = rest.subspan(size);
  }
  writer.write(rest);
  writer.finish(1);
  const auto file = TokenFile::open(folder / "t");
  ASSERT_EQ(file.size(), 1500000);
  std::vector<std::int64_t> all(ids.size());
  file.read(0, all);
  EXPECT_TRUE(std::equal(all.begin(), all.end(), ids.begin()));
  EXPECT_NO_THROW(file.verify());
}

TEST(TokenFile, ChecksBounds) {
  const TemporaryFolder folder;
  const auto file = TokenFile::open(write_tokens(folder / "t", {1, 2, 3}));
  std::vector<std::int64_t> two(2), four(4), none;
  EXPECT_NO_THROW(file.read(1, two));
  EXPECT_NO_THROW(file.read(3, none));
  EXPECT_THROW(file.read(2, two), IndexError);
  EXPECT_THROW(file.read(-1, two), IndexError);
  EXPECT_THROW(file.read(0, four), IndexError);
  EXPECT_THROW(file.read(4, none), IndexError);
  EXPECT_THROW(file.read(std::numeric_limits<std::int64_t>::max(), two), IndexError);
  EXPECT_THROW((void)file[3], IndexError);
  EXPECT_THROW((void)file[-1], IndexError);
}

TEST(TokenFile, AsksForItsVocabulary) {
  const TemporaryFolder folder;
  const auto file = TokenFile::open(write_tokens(folder / "t", {1, 2, 3}));
  EXPECT_NO_THROW(file.require_vocabulary(1000, 0x1234567890ABCDEFull));
  EXPECT_THROW(file.require_vocabulary(1001, 0x1234567890ABCDEFull), DataError);
  try {
    file.require_vocabulary(1000, 5);
    FAIL() << "no error";
  } catch (const DataError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find((folder / "t").string()), std::string::npos);
    EXPECT_NE(message.find("1000 tokens, hash 1234567890abcdef; expected 1000 tokens, hash 0000000000000005"),
              std::string::npos)
        << message;
  }
}

// Puts the right checksum on a changed header.
void seal(std::string& bytes) {
  std::uint64_t hash = 14695981039346656037ull;
  for (std::size_t i = 0; i < 56; ++i)
    hash = (hash ^ static_cast<unsigned char>(bytes[i])) * 1099511628211ull;
  std::memcpy(bytes.data() + 56, &hash, 8);
}

TEST(TokenFile, SaysWhatIsWrong) {
  struct Case {
    const char* name;
    std::function<void(std::string&)> damage;
    const char* reason;
  };
  const std::vector<Case> cases = {
      {"empty", [](std::string& b) { b.clear(); }, "is empty"},
      {"a text",
       [](std::string& b) { b = "In the beginning God created the heaven and the earth, and so on and on."; },
       "not a token file"},
      {"one byte", [](std::string& b) { b.resize(1); }, "cut short: the header has 64 bytes, the file 1"},
      {"half a header", [](std::string& b) { b.resize(40); },
       "cut short: the header has 64 bytes, the file 40"},
      {"magic", [](std::string& b) { b[3] = 'x'; }, "not a token file"},
      {"newer version", [](std::string& b) { b[8] = 2; }, "version 2, but this program reads up to 1"},
      {"a flipped bit in the size", [](std::string& b) { b[32] ^= 1; }, "the header is damaged"},
      {"a flipped bit in the checksum", [](std::string& b) { b[60] ^= 1; }, "the header is damaged"},
      {"version 0", [](std::string& b) { b[8] = 0, seal(b); }, "impossible header: version 0"},
      {"3 bytes per token", [](std::string& b) { b[12] = 3, seal(b); },
       "impossible header: version 1, 3 bytes"},
      {"vocabulary 0", [](std::string& b) { b[16] = b[17] = 0, seal(b); }, "vocabulary 0"},
      {"huge vocabulary", [](std::string& b) { b[19] = 1, seal(b); }, "impossible header"},
      {"no tokens", [](std::string& b) { b[32] = 0, b.resize(64), seal(b); }, "holds no tokens"},
      {"tokens that overflow", [](std::string& b) { b[39] = '\x80', seal(b); }, "impossible header"},
      {"cut short", [](std::string& b) { b.pop_back(); },
       "cut short: 3 tokens need 70 bytes, the file has 69"},
      {"no content", [](std::string& b) { b.resize(64); },
       "cut short: 3 tokens need 70 bytes, the file has 64"},
      {"too long", [](std::string& b) { b += "x"; }, "too long: 3 tokens need 70 bytes, the file has 71"},
      {"more tokens than bytes", [](std::string& b) { b[34] = 1, seal(b); },
       "need 131142 bytes, the file has 70"},
  };
  const TemporaryFolder folder;
  const std::string good = read_file(write_tokens(folder / "good", {1, 2, 3}));
  for (const Case& c : cases) {
    std::string damaged = good;
    c.damage(damaged);
    write_file(folder / "bad", damaged);
    const std::string message = open_error(folder / "bad");
    EXPECT_NE(message.find(c.reason), std::string::npos) << c.name << ": " << message;
    EXPECT_NE(message.find((folder / "bad").string()), std::string::npos) << c.name << ": " << message;
  }
  EXPECT_NE(open_error(folder / "nowhere").find("No such file"), std::string::npos);
  EXPECT_NE(open_error(folder.path()).find("is a folder"), std::string::npos);
  EXPECT_NE(open_error("/dev/null").find("is not a regular file"), std::string::npos);
}

TEST(TokenFile, NoticesDamagedTokens) {
  const TemporaryFolder folder;
  std::string bytes = read_file(write_tokens(folder / "t", {1, 2, 3}));
  bytes[66] = 5;
  write_file(folder / "t", bytes);
  EXPECT_THROW(TokenFile::open(folder / "t").verify(), DataError);
  bytes[67] = '\x7F';  // 0x7F05 is above the vocabulary
  write_file(folder / "t", bytes);
  std::vector<std::int64_t> all(3);
  EXPECT_THROW(TokenFile::open(folder / "t").read(0, all), DataError);
}

// Pages of [begin, begin + bytes) of a file that are in memory.
std::int64_t resident_pages(const std::filesystem::path& path, std::int64_t begin, std::size_t bytes) {
  const auto page = static_cast<std::int64_t>(::sysconf(_SC_PAGESIZE));
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  void* map = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, begin / page * page);
  ::close(descriptor);
  std::vector<unsigned char> resident(bytes / static_cast<std::size_t>(page));
  EXPECT_EQ(::mincore(map, bytes, resident.data()), 0);
  ::munmap(map, bytes);
  return std::count_if(resident.begin(), resident.end(),
                       [](unsigned char flags) { return (flags & 1) != 0; });
}

// 256 GiB, of which only the pages written here exist: a file that no memory could hold. Opening it and
// cutting batches out of it must load no more than the pages that are asked for.
TEST(TokenFile, MayBeLargerThanMemory) {
  constexpr std::int64_t kTokens = std::int64_t{1} << 37;
  const TemporaryFolder folder;
  std::string header = read_file(write_tokens(folder / "t", {7}, 1000)).substr(0, 64);
  std::memcpy(header.data() + 32, &kTokens, 8);
  seal(header);
  write_file(folder / "t", header);
  const int descriptor = ::open((folder / "t").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  if (::ftruncate(descriptor, 64 + kTokens * 2) != 0) {
    ::close(descriptor);
    GTEST_SKIP() << "this file system holds no sparse file of 256 GiB";
  }
  const std::int64_t middle = kTokens / 2 + 12345;
  for (const std::int64_t at : {middle, kTokens - 1}) {
    const std::uint16_t id = at == middle ? 501 : 502;
    ASSERT_EQ(::pwrite(descriptor, &id, 2, 64 + at * 2), 2);
  }
  ::close(descriptor);

  const auto file = TokenFile::open(folder / "t");
  EXPECT_EQ(file.size(), kTokens);
  std::vector<std::int64_t> window(3);
  file.read(middle - 1, window);
  EXPECT_EQ(window, (std::vector<std::int64_t>{0, 501, 0}));
  EXPECT_EQ(file[kTokens - 1], 502);
  // A window that nobody wrote, hence not in memory yet: its page comes, and the kernel may map a few around
  // it (64 KiB), of the 16 MiB around.
  const std::int64_t unread = kTokens / 4;
  file.read(unread, window);
  EXPECT_EQ(window, std::vector<std::int64_t>(3, 0));
  EXPECT_LE(resident_pages(folder / "t", 64 + unread * 2 - (8 << 20), 16 << 20) * ::sysconf(_SC_PAGESIZE),
            128 << 10);

  // Windows from all over the file, of the first epoch and of a late one.
  const BatchPlan plan{.global_batch = 64, .seq_len = 256, .seed = 3};
  std::vector<std::int64_t> inputs(64 * 256), targets(64 * 256);
  for (const std::int64_t step : {0, 1, 1000, 1 << 30}) {
    EXPECT_NO_THROW(fill_batch(file, plan, step, 0, 64, inputs, targets)) << "step " << step;
  }
}

TEST(TokenFile, ServesSeveralThreadsAtOnceAndOutlivesItsReplacement) {
  const TemporaryFolder folder;
  std::vector<std::int32_t> ids(1000);
  std::iota(ids.begin(), ids.end(), 0);
  const auto file = TokenFile::open(write_tokens(folder / "t", ids));
  std::vector<std::int64_t> sums(4);
  std::vector<std::thread> threads;
  for (std::int64_t& sum : sums) {
    threads.emplace_back([&] {
      for (std::int64_t i = 0; i < file.size(); ++i) sum += file[i];
    });
  }
  write_tokens(folder / "t", {5});
  for (std::thread& thread : threads) thread.join();
  for (const std::int64_t sum : sums) EXPECT_EQ(sum, 499500);
  EXPECT_EQ(TokenFile::open(folder / "t").size(), 1);
}

TEST(TokenFile, CanBeMoved) {
  const TemporaryFolder folder;
  auto first = TokenFile::open(write_tokens(folder / "a", {1}));
  auto second = TokenFile::open(write_tokens(folder / "b", {2, 3}));
  first = std::move(second);
  EXPECT_EQ(first[1], 3);
  const TokenFile third = std::move(first);
  EXPECT_EQ(third[0], 2);
}

TEST(TokenFileWriter, LeavesNothingUnlessItFinishes) {
  const TemporaryFolder folder;
  {
    TokenFileWriter writer(folder / "t", 10, 0);
    writer.write(std::vector<std::int32_t>(1000000, 3));
  }
  EXPECT_EQ(folder.num_files(), 0u);
  write_tokens(folder / "t", {1, 2});
  {
    TokenFileWriter writer(folder / "t", 10, 0);
    writer.write(std::vector<std::int32_t>{3});
    writer.complete(5);
    EXPECT_EQ(TokenFile::open(folder / "t").size(), 2);  // the old one
  }
  EXPECT_EQ(TokenFile::open(folder / "t").size(), 2);
  EXPECT_EQ(folder.num_files(), 1u);
}

TEST(TokenFileWriter, RefusesWhatTheFileCannotHold) {
  const TemporaryFolder folder;
  TokenFileWriter writer(folder / "t", 100, 0);
  EXPECT_THROW(writer.finish(0), DataError);
  EXPECT_THROW(writer.write(std::vector<std::int32_t>{5, 100}), IndexError);
  EXPECT_THROW(writer.write(std::vector<std::int32_t>{-1}), IndexError);
  EXPECT_THROW(TokenFileWriter(folder / "t", 0, 0), ConfigError);
}

TEST(TokenFileWriter, SaysWhyAFileCannotBeMade) {
  const TemporaryFolder folder;
  write_file(folder / "file", "");
  std::filesystem::create_directory(folder / "taken");
  struct Case {
    const char* name;
    std::filesystem::path path;
    const char* reason;
  };
  for (const Case& c : std::vector<Case>{{"no folder", folder / "none/t", "No such file or directory"},
                                         {"a file for a folder", folder / "file/t", "Not a directory"},
                                         {"a folder of that name", folder / "taken", "Is a directory"}}) {
    try {
      TokenFileWriter writer(c.path, 10, 0);
      FAIL() << c.name;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(c.reason), std::string::npos)
          << c.name << ": " << error.what();
      EXPECT_NE(std::string(error.what()).find(c.path.string()), std::string::npos)
          << c.name << ": " << error.what();
    }
  }
}

TEST(TokenFileWriter, SaysThatPermissionIsMissing) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write anywhere: the missing permission can't be tested";
  const TemporaryFolder folder;
  ::chmod(folder.path().c_str(), 0555);
  EXPECT_THROW(TokenFileWriter(folder / "t", 10, 0), DataError);
  ::chmod(folder.path().c_str(), 0755);
}

// A limit on the size of files stands in for a full disk, which needs root to make.
TEST(TokenFileWriter, LeavesNothingWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", {1, 2});
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  auto* const old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    TokenFileWriter writer(folder / "t", 10, 0);
    for (int i = 0; i < 10; ++i) writer.write(std::vector<std::int32_t>(200000, 3));
    writer.finish(1);
  } catch (const FileError& error) {
    message = error.what();
    EXPECT_EQ(error.exit_code(), 1);
  }
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_NE(message.find((folder / "t").string() + ": File too large"), std::string::npos) << message;
  EXPECT_EQ(folder.num_files(), 1u);
  EXPECT_EQ(TokenFile::open(folder / "t").size(), 2);
}

}  // namespace
}  // namespace tessera::data
