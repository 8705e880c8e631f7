#include "data/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::data {
namespace {

// Length, header and data as they lie in a file.
std::string file_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  return bytes + header + data;
}

std::string error_of(const std::filesystem::path& path) {
  try {
    (void)SafetensorsFile::open(path).read_all();
    return "";
  } catch (const DataError& error) {
    return error.what();
  }
}

// Writing over an older file makes some file systems wait for the disk, and thousands are written here.
void write_anew(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove(path);
  write_file(path, bytes);
}

template <class E>
std::string write_error(const std::filesystem::path& path, const NamedTensors& tensors,
                        const Metadata& metadata = {}) {
  try {
    write_safetensors(path, tensors, metadata);
    return "";
  } catch (const E& error) {
    return error.what();
  }
}

// Random bytes as a tensor; bools must be 0 or 1.
Tensor random_bits(std::mt19937_64& random, const Shape& shape, DType dtype) {
  std::string bytes(static_cast<std::size_t>(shape.num_elements()) * size_bytes(dtype), '\0');
  for (char& byte : bytes) byte = static_cast<char>(dtype == kBool ? random() % 2 : random());
  return from_memory(bytes.data(), shape, dtype);
}

std::string bits(const Tensor& x) {
  const Tensor values = x.contiguous();
  if (values.num_elements() == 0) return "";
  return {static_cast<const char*>(values.view().data), static_cast<std::size_t>(values.size_bytes())};
}

TEST(Safetensors, GiveBackEveryBitOfEveryDTypeAndShape) {
  const TemporaryFolder folder;
  std::mt19937_64 random(1);
  NamedTensors tensors;
  for (const DType dtype : {kF64, kF32, kF16, kBF16, kI64, kI32, kU8, kBool}) {
    for (const Shape& shape :
         {Shape{}, Shape{1}, Shape{7}, Shape{3, 5}, Shape{0}, Shape{2, 0, 3}, Shape{1, 2, 1, 3}}) {
      tensors.emplace_back(std::string(name(dtype)) + to_string(shape), random_bits(random, shape, dtype));
    }
  }
  const Metadata metadata = {{"step", "17"}, {"Grüße", "a \"text\"\nof two lines"}};
  write_safetensors(folder / "x", tensors, metadata);

  const auto file = SafetensorsFile::open(folder / "x");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.entries().size(), tensors.size());
  const NamedTensors all = file.read_all();
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(file.contains(name)) << name;
    const Tensor back = file.read(name);
    EXPECT_EQ(back.dtype(), tensor.dtype()) << name;
    EXPECT_EQ(back.shape(), tensor.shape()) << name;
    EXPECT_EQ(bits(back), bits(tensor)) << name;
    const auto same = std::ranges::find(all, name, &std::pair<std::string, Tensor>::first);
    ASSERT_NE(same, all.end()) << name;
    EXPECT_EQ(bits(same->second), bits(tensor)) << name;
  }
  EXPECT_FALSE(file.contains("f32[9]"));
}

TEST(Safetensors, LieAsTheFormatSays) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x", {{"b", from_vector<float>({1.0F, -2.0F}, Shape{2, 1})},
                                   {"a", from_vector<std::int64_t>({258}, Shape{1})}});
  const std::string bytes = read_file(folder / "x");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  EXPECT_EQ(header_bytes % 8, 0U) << "elements must be aligned";
  EXPECT_EQ(nlohmann::json::parse(bytes.substr(8, header_bytes)),
            nlohmann::json::parse(R"({"b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
                                      "a": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]}})"));
  EXPECT_EQ(bytes.substr(8 + header_bytes), std::string("\0\0\x80\x3F\0\0\0\xC0\x02\x01\0\0\0\0\0\0", 16));
}

// As another tool may write it: other spaces, data in another order than names, an empty tensor in between.
TEST(Safetensors, FromElsewhereAreReadAsTheyAre) {
  const TemporaryFolder folder;
  write_file(folder / "x",
             file_bytes(R"( {"last" : {"shape":[2],"data_offsets":[4,6],"dtype":"U8","note":[1,{"x":2}]},
                                           "none":{"dtype":"F64","shape":[3,0],"data_offsets":[4,4]},
                                           "first":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}   )",
                        std::string("\x80\x3F\0\x40\x05\x06", 6)));
  const auto file = SafetensorsFile::open(folder / "x");
  ASSERT_EQ(file.entries().size(), 3U);
  EXPECT_EQ(file.entries()[0].name, "first");
  EXPECT_EQ(file.read("first").to_vector<double>(), (std::vector<double>{1.0, 2.0}));
  EXPECT_EQ(file.read("last").to_vector<std::int64_t>(), (std::vector<std::int64_t>{5, 6}));
  EXPECT_EQ(file.read("none").shape(), (Shape{3, 0}));
  EXPECT_TRUE(file.metadata().empty());
}

TEST(Safetensors, StridedTensorsAreWrittenRowByRow) {
  const TemporaryFolder folder;
  const Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, Shape{2, 3});
  write_safetensors(folder / "x", {{"t", x.transpose(0, 1)}, {"s", x.slice(1, 0, 3, 2)}});
  const auto file = SafetensorsFile::open(folder / "x");
  EXPECT_EQ(file.read("t").to_vector<double>(), (std::vector<double>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(file.read("s").to_vector<double>(), (std::vector<double>{1, 3, 4, 6}));
}

TEST(Safetensors, ReadTensorsOutliveTheirFile) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x", {{"a", from_vector<float>({1, 2}, Shape{2})}});
  auto file = SafetensorsFile::open(folder / "x");
  auto moved = std::move(file);
  const Tensor a = moved.read("a");
  write_safetensors(folder / "x", {{"a", from_vector<float>({5, 6}, Shape{2})}});  // the old one stays mapped
  EXPECT_EQ(moved.read("a").to_vector<double>(), (std::vector<double>{1, 2}));
  moved = SafetensorsFile::open(folder / "x");
  EXPECT_EQ(moved.read("a").to_vector<double>(), (std::vector<double>{5, 6}));
  std::filesystem::remove(folder / "x");
  EXPECT_EQ(a.to_vector<double>(), (std::vector<double>{1, 2}));
}

TEST(Safetensors, HostileFilesAreRefusedWithTheirReason) {
  const auto entry = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string(R"({"dtype":")") + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
  };
  const std::string eight(8, '\1');
  struct Case {
    const char* name;
    std::string bytes;
    const char* reason;
  };
  const auto one = [&](const std::string& header) { return file_bytes("{\"a\":" + header + "}", eight); };
  const auto two = [&](const std::string& a, const std::string& b) {
    return file_bytes("{\"a\":" + a + ",\"b\":" + b + "}", eight);
  };
  const std::vector<Case> cases = {
      {"empty", "", "is cut short: 0 bytes"},
      {"seven bytes", std::string(7, '\0'), "is cut short: 7 bytes"},
      {"no header", std::string(8, '\0'), "header: "},
      {"a text", "In the beginning God created the heaven and the earth.", "is cut short: the header says"},
      {"a header longer than the file", file_bytes("{}", "").replace(0, 1, "\x03"), "is cut short"},
      {"a header of 2^64 - 1 bytes", std::string(8, '\xFF') + "{}", "is cut short"},
      {"a header of 2^64 - 8 bytes", '\xF8' + std::string(7, '\xFF') + "{}", "is cut short"},
      {"not JSON", file_bytes("{\"a\":", eight), "header: "},
      {"an array", file_bytes("[]", ""), "must be a JSON object"},
      {"more than JSON", file_bytes("{}{}", ""), "header: "},
      {"bytes that are not UTF-8", file_bytes("{\"\xFF\":" + entry("U8", "[8]", "[0,8]") + "}", eight),
       "header: "},
      {"a hundred thousand brackets", file_bytes("{\"a\":" + std::string(100000, '[') + "}", ""), "header: "},
      {"closed brackets, a stack full",
       one(R"({"dtype":)" + std::string(300000, '[') + std::string(300000, ']') + "}"),
       "stand in more than 100 others"},
      {"brackets in a name", one(R"({"dtype":")" + std::string(300, '[') + "\\\"[\"}"), "unknown dtype '[[["},
      {"a tensor that is a number", one("5"), "'a': "},
      {"no dtype", one(R"({"shape":[8],"data_offsets":[0,8]})"), "'a': "},
      {"no shape", one(R"({"dtype":"U8","data_offsets":[0,8]})"), "'a': "},
      {"no offsets", one(R"({"dtype":"U8","shape":[8]})"), "'a': "},
      {"an unknown dtype", one(entry("F128", "[1]", "[0,8]")), "'a': unknown dtype 'F128'"},
      {"a dtype in small letters", one(entry("u8", "[8]", "[0,8]")), "unknown dtype 'u8'"},
      {"a dtype that is no text", one(R"({"dtype":8,"shape":[8],"data_offsets":[0,8]})"), "'a': "},
      {"a negative size", one(entry("U8", "[-8]", "[0,8]")), "a size is not a natural number"},
      {"a broken size", one(entry("U8", "[8.0]", "[0,8]")), "a size is not a natural number"},
      {"a size of 2^64", one(entry("U8", "[18446744073709551616]", "[0,8]")),
       "a size is not a natural number"},
      {"a size of 2^63", one(entry("U8", "[9223372036854775808]", "[0,8]")), "a size is too large"},
      {"a product of 2^64 bytes", one(entry("F32", "[4294967296,1073741824]", "[0,0]")),
       "the shape is too large"},
      {"a product that wraps to 8", one(entry("F64", "[2305843009213693953]", "[0,8]")),
       "the shape is too large"},
      {"nothing of far too many", one(entry("F64", "[0,4611686018427387904,4611686018427387904]", "[0,0]")),
       "the shape is too large"},
      {"too many dimensions", one(entry("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,8]", "[0,8]")), "at most"},
      {"a shape that is a number", one(entry("U8", "8", "[0,8]")), "the shape must be an array"},
      {"three offsets", one(entry("U8", "[8]", "[0,8,8]")), "data_offsets must be two numbers"},
      {"offsets backwards", one(entry("U8", "[8]", "[8,0]")), "do not hold the 8 bytes"},
      {"offsets of another size", one(entry("U8", "[8]", "[0,7]")),
       "[0, 7] do not hold the 8 bytes of U8 [8]"},
      {"negative offsets", one(entry("U8", "[8]", "[-8,0]")), "a size is not a natural number"},
      {"behind the file", one(entry("U8", "[16]", "[0,16]")), "describes 16 bytes of data, and 8 follow"},
      {"far behind the file", one(entry("U8", "[8]", "[18446744073709551600,18446744073709551608]")),
       "begins at byte 18446744073709551600"},
      {"data that nobody describes", one(entry("U8", "[7]", "[0,7]")),
       "describes 7 bytes of data, and 8 follow"},
      {"a gap at the start", one(entry("U8", "[7]", "[1,8]")), "begins at byte 1"},
      {"a gap", two(entry("U8", "[3]", "[0,3]"), entry("U8", "[4]", "[4,8]")),
       "neither overlap nor leave gaps"},
      {"an overlap", two(entry("U8", "[5]", "[0,5]"), entry("U8", "[4]", "[4,8]")),
       "neither overlap nor leave gaps"},
      {"the same bytes twice", two(entry("U8", "[8]", "[0,8]"), entry("U8", "[8]", "[0,8]")),
       "neither overlap"},
      {"a name twice",
       file_bytes("{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"a\":" + entry("U8", "[4]", "[4,8]") + "}",
                  eight),
       "the name 'a' stands there twice"},
      {"a shape twice", one(R"({"dtype":"U8","shape":[4],"shape":[8],"data_offsets":[0,8]})"),
       "the name 'shape' stands there twice"},
      {"metadata that is a list", file_bytes(R"({"__metadata__":["x"]})", ""), "must be an object of texts"},
      {"metadata that is a number", file_bytes(R"({"__metadata__":{"x":1}})", ""), "'__metadata__': "},
      {"a bool that is 2", file_bytes("{\"a\":" + entry("BOOL", "[2]", "[0,2]") + "}", std::string("\1\2")),
       "not all of its bytes are 0 or 1"},
  };
  const TemporaryFolder folder;
  for (const Case& c : cases) {
    write_anew(folder / "bad", c.bytes);
    const std::string message = error_of(folder / "bad");
    EXPECT_NE(message.find(c.reason), std::string::npos) << c.name << ": " << message;
    EXPECT_NE(message.find((folder / "bad").string()), std::string::npos) << c.name << ": " << message;
  }
  write_anew(folder / "bad", file_bytes("", ""));
  std::filesystem::resize_file(folder / "bad", 300'000'000);  // takes no disk
  std::fstream(folder / "bad", std::ios::in | std::ios::out | std::ios::binary)
      .write("\x01\xE1\xF5\x05\0\0\0\0", 8);  // 100,000,001
  EXPECT_NE(error_of(folder / "bad").find("header of 100000001 bytes is too large"), std::string::npos);
  EXPECT_NE(error_of(folder / "nowhere").find("No such file"), std::string::npos);
  EXPECT_NE(error_of(folder.path()).find("is not a regular file"), std::string::npos);
  EXPECT_NE(error_of("/dev/zero").find("is not a regular file"), std::string::npos);
}

NamedTensors small_tensors() {
  std::mt19937_64 random(3);
  return {{"w", random_bits(random, {3, 2}, kF32)},
          {"flags", random_bits(random, {5}, kBool)},
          {"n", random_bits(random, {0, 4}, kI64)},
          {"h", random_bits(random, {4}, kBF16)}};
}

TEST(Safetensors, CutShortAnywhereAreRefused) {
  const TemporaryFolder folder;
  write_safetensors(folder / "good", small_tensors(), {{"step", "1"}});
  const std::string good = read_file(folder / "good");
  for (std::size_t size = 0; size < good.size(); ++size) {
    write_anew(folder / "bad", good.substr(0, size));
    EXPECT_NE(error_of(folder / "bad"), "") << size << " of " << good.size() << " bytes";
  }
}

// Whatever the damage: an error with a reason, or tensors that lie inside the file. (Flipped bits of elements
// are found by the hashes of a checkpoint, not here.)
TEST(Safetensors, DamagedAtRandomAreRefusedOrReadWithinTheFile) {
  constexpr std::uint64_t kSeed = 11;
  const TemporaryFolder folder;
  write_safetensors(folder / "good", small_tensors(), {{"step", "1"}});
  const std::string good = read_file(folder / "good");
  std::mt19937_64 random(kSeed);
  const std::string alphabet = "{}[]\",:0123456789-.eE\\utfn \xFF";
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string bad = good;
    for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      const std::size_t at = random() % bad.size();
      switch (random() % 4) {
        case 0:
          bad[at] = static_cast<char>(random());
          break;
        case 1:
          bad[at] = alphabet[random() % alphabet.size()];
          break;
        case 2:
          bad.erase(at, 1 + random() % 4);
          break;
        default:
          bad.insert(at, 1, alphabet[random() % alphabet.size()]);
      }
    }
    write_anew(folder / "bad", bad);
    try {
      const auto file = SafetensorsFile::open(folder / "bad");
      std::int64_t bytes = 0;
      for (const auto& [name, tensor] : file.read_all()) bytes += tensor.size_bytes();
      EXPECT_LE(bytes, static_cast<std::int64_t>(bad.size()) - 8) << "seed " << kSeed << ", file " << i;
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 2000) << "the damage is too small to test anything";
}

TEST(SafetensorsWriter, RefusesWhatNoReaderCouldTake) {
  const TemporaryFolder folder;
  const Tensor x = from_vector<float>({1}, Shape{1});
  EXPECT_NE(write_error<DataError>(folder / "x", {{"a", x}, {"a", x}}).find("'a' is given twice"),
            std::string::npos);
  EXPECT_NE(write_error<DataError>(folder / "x", {{"__metadata__", x}}).find("cannot be named"),
            std::string::npos);
  EXPECT_NE(write_error<DataError>(folder / "x", {{"\xFF", x}}).find("not UTF-8"), std::string::npos);
  EXPECT_NE(write_error<DataError>(folder / "x", {{"a", x}}, {{"k", "\xFF"}}).find("not UTF-8"),
            std::string::npos);
  EXPECT_NE(
      write_error<DeviceError>(folder / "x", {{"a", zeros({2}, {.device = meta})}}).find("'a' has no data"),
      std::string::npos);
  EXPECT_NE(write_error<DeviceError>(folder / "x", {{"a", Tensor()}}).find("'a' has no data"),
            std::string::npos);
  EXPECT_NE(write_error<DataError>(folder / "none/x", {{"a", x}}).find("No such file"), std::string::npos);
  EXPECT_EQ(folder.num_files(), 0U);

  write_safetensors(folder / "x", {{"a", x}});
  EXPECT_NE(write_error<DataError>(folder / "x", {{"b", x}, {"b", x}}), "");
  EXPECT_TRUE(SafetensorsFile::open(folder / "x").contains("a")) << "an older file stays";
  EXPECT_EQ(folder.num_files(), 1U);
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x", {});
  EXPECT_TRUE(SafetensorsFile::open(folder / "x").entries().empty());
}

// --- One tensor at a time ----------------------------------------------------------------------------------

TEST(SafetensorsWriter, WritesTheBytesOfTheWholeForm) {
  const TemporaryFolder folder;
  const Tensor a = uniform({3, 4}, -1, 1, "a"), b = uniform({5}, -1, 1, "b").to(kBF16), c = ones({0, 2});
  write_safetensors(folder / "whole", {{"a", a.transpose(0, 1)}, {"b", b}, {"c", c}}, {{"format", "pt"}});
  SafetensorsWriter writer(folder / "one by one",
                           {{"a", kF32, {4, 3}}, {"b", kBF16, {5}}, {"c", kF32, {0, 2}}}, {{"format", "pt"}});
  writer.write(a.transpose(0, 1));
  writer.write(b);
  EXPECT_FALSE(std::filesystem::exists(folder / "one by one")) << "before commit";
  writer.write(c);
  writer.commit();
  EXPECT_TRUE(read_file(folder / "one by one") == read_file(folder / "whole"));
}

TEST(SafetensorsWriter, RefusesWhatTheHeaderDoesNotSay) {
  const TemporaryFolder folder;
  {
    SafetensorsWriter writer(folder / "file", {{"a", kF32, {4, 3}}, {"b", kBF16, {5}}});
    expect_error<DataError>([&] { writer.write(ones({3, 4})); }, {"'a'", "[4, 3]", "[3, 4]"});
    expect_error<DataError>([&] { writer.write(ones({4, 3}).to(kF64)); }, {"'a'", "f32", "f64"});
    expect_error<DeviceError>([&] { writer.write(empty({4, 3}, {.device = meta})); }, {"'a'", "meta"});
    writer.write(ones({4, 3}));
    expect_error<DataError>([&] { writer.commit(); }, {"'b'", "not written"});
    writer.write(ones({5}).to(kBF16));
    expect_error<DataError>([&] { writer.write(ones({1})); }, {"all 2 tensors", "[1]"});
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "without commit nothing stays";
  expect_error<DataError>(
      [&] {
        SafetensorsWriter(folder / "file", {{"a", kF32, {1}}, {"a", kF32, {1}}});
      },
      {"'a'", "twice"});
}

}  // namespace
}  // namespace tessera::data
