#include "data/token_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "data/hash.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::string_view kMagic = "TESSTOKN";
constexpr std::uint32_t kVersion = 1;
constexpr std::int64_t kHeaderBytes = 64;
constexpr std::size_t kBufferBytes = 1 << 20;

// As it lies in the file. Eight-byte fields stand at multiples of eight: there is no padding.
struct Header {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t bytes_per_token;
  std::uint64_t vocab_size;
  std::uint64_t vocabulary_hash;
  std::uint64_t num_tokens;
  std::uint64_t source_bytes;
  std::uint64_t content_hash;
  std::uint64_t checksum;
};
static_assert(sizeof(Header) == kHeaderBytes);

std::uint64_t checksum_of(const Header& header) {
  detail::Fnv1a hash;
  hash.add(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, checksum)));
  return hash.value();
}

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& reason) {
  throw DataError(fmt::format("token file {}: {}", path.string(), reason));
}

// Closes on every way out.
struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

TokenFileInfo checked_info(const std::filesystem::path& path, const std::byte* bytes,
                           std::int64_t file_bytes) {
  Header header{};
  const auto present = static_cast<std::size_t>(std::min(file_bytes, kHeaderBytes));
  std::memcpy(&header, bytes, present);
  const std::size_t magic_present = std::min(present, kMagic.size());
  if (std::string_view(header.magic.data(), magic_present) != kMagic.substr(0, magic_present)) {
    fail(path, "not a token file (it does not start with TESSTOKN); gpt2_prepare makes one from a text");
  }
  if (file_bytes < kHeaderBytes) {
    fail(path, fmt::format("cut short: the header has {} bytes, the file {}", kHeaderBytes, file_bytes));
  }
  if (header.version > kVersion) {
    fail(path, fmt::format("version {}, but this program reads up to {}: it was made by a newer one",
                           header.version, kVersion));
  }
  if (header.checksum != checksum_of(header)) {
    fail(path, "the header is damaged (its checksum does not fit); prepare the text again");
  }
  const std::uint64_t width = header.bytes_per_token;
  const std::uint64_t most_tokens =
      static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max() - kHeaderBytes) / 4;
  if (header.version != kVersion || (width != 2 && width != 4) || header.vocab_size == 0 ||
      header.vocab_size > (width == 2 ? 65536u : 1u << 31) || header.num_tokens > most_tokens ||
      header.source_bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    fail(path, fmt::format("impossible header: version {}, {} bytes per token, vocabulary {}, {} tokens",
                           header.version, width, header.vocab_size, header.num_tokens));
  }
  if (header.num_tokens == 0) fail(path, "holds no tokens");
  const std::int64_t expected = kHeaderBytes + static_cast<std::int64_t>(header.num_tokens * width);
  if (file_bytes != expected) {
    fail(path, fmt::format("{}: {} tokens need {} bytes, the file has {}",
                           file_bytes < expected ? "cut short" : "too long", header.num_tokens, expected,
                           file_bytes));
  }
  return {.num_tokens = static_cast<std::int64_t>(header.num_tokens),
          .vocab_size = static_cast<std::int64_t>(header.vocab_size),
          .vocabulary_hash = header.vocabulary_hash,
          .source_bytes = static_cast<std::int64_t>(header.source_bytes),
          .bytes_per_token = static_cast<std::int64_t>(width),
          .content_hash = header.content_hash};
}

// Copies ids and returns the largest.
template <class Id>
std::int64_t widen(const std::byte* from, std::span<std::int64_t> out) {
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    Id id;
    std::memcpy(&id, from + i * sizeof(Id), sizeof(Id));
    out[i] = id;
    largest = std::max(largest, out[i]);
  }
  return largest;
}

}  // namespace

TokenFile TokenFile::open(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.value < 0) fail(path, std::strerror(errno));
  struct stat status {};
  if (::fstat(file.value, &status) != 0) fail(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(path, S_ISDIR(status.st_mode) ? "is a folder" : "is not a regular file");
  if (status.st_size == 0) fail(path, "is empty");

  TokenFile result;
  result.path_ = path;
  void* map = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file.value, 0);
  if (map == MAP_FAILED) {
    throw FileError(fmt::format("token file {}: cannot be mapped: {}", path.string(), std::strerror(errno)));
  }
  result.map_ = static_cast<const std::byte*>(map);
  result.map_bytes_ = static_cast<std::size_t>(status.st_size);
  // Windows come from anywhere: reading ahead would load megabytes (8, on some disks) for each of a few
  // kilobytes, and push out of memory what is needed. A kernel that does not know the advice reads the same.
  ::madvise(map, result.map_bytes_, MADV_RANDOM);
  result.info_ = checked_info(path, result.map_, status.st_size);
  return result;
}

TokenFile::TokenFile(TokenFile&& other) noexcept
    : path_(std::move(other.path_)),
      info_(std::exchange(other.info_, {})),
      map_(std::exchange(other.map_, nullptr)),
      map_bytes_(std::exchange(other.map_bytes_, 0)) {}

TokenFile& TokenFile::operator=(TokenFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(info_, other.info_);
  std::swap(map_, other.map_);
  std::swap(map_bytes_, other.map_bytes_);
  return *this;
}

TokenFile::~TokenFile() {
  if (map_ != nullptr) ::munmap(const_cast<std::byte*>(map_), map_bytes_);
}

std::int64_t TokenFile::operator[](std::int64_t i) const {
  std::int64_t id = 0;
  read(i, std::span(&id, 1));
  return id;
}

void TokenFile::read(std::int64_t offset, std::span<std::int64_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (offset < 0 || count > size() || offset > size() - count) {
    throw IndexError(fmt::format("token file {}: asked for {} tokens from {}, it has {}", path_.string(),
                                 count, offset, size()));
  }
  const std::byte* from = map_ + kHeaderBytes + offset * info_.bytes_per_token;
  const std::int64_t largest =
      info_.bytes_per_token == 2 ? widen<std::uint16_t>(from, out) : widen<std::uint32_t>(from, out);
  if (count > 0 && largest >= info_.vocab_size) {
    fail(path_,
         fmt::format("token {} among tokens {} to {} is outside the vocabulary of {}: the file is damaged",
                     largest, offset, offset + count - 1, info_.vocab_size));
  }
}

void TokenFile::require_vocabulary(std::int64_t vocab_size, std::uint64_t vocabulary_hash) const {
  if (vocab_size == info_.vocab_size && vocabulary_hash == info_.vocabulary_hash) return;
  fail(path_,
       fmt::format(
           "made with another vocabulary: {} tokens, hash {:016x}; expected {} tokens, hash {:016x}. "
           "Prepare the text again with this tokenizer, or use the tokenizer that stands beside the file",
           info_.vocab_size, info_.vocabulary_hash, vocab_size, vocabulary_hash));
}

void TokenFile::verify() const {
  void* const map = const_cast<std::byte*>(map_);
  ::madvise(map, map_bytes_, MADV_SEQUENTIAL);
  detail::Fnv1a hash;
  hash.add(std::span(map_, map_bytes_).subspan(kHeaderBytes));
  ::madvise(map, map_bytes_, MADV_RANDOM);
  if (hash.value() != info_.content_hash) {
    fail(path_, fmt::format("the tokens are damaged: their hash is {:016x}, not {:016x}", hash.value(),
                            info_.content_hash));
  }
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path, std::int64_t vocab_size,
                                 std::uint64_t vocabulary_hash)
    : file_(path) {
  if (vocab_size < 1 || vocab_size > (std::int64_t{1} << 31)) {
    throw ConfigError(fmt::format("TokenFileWriter: vocab_size {} is not between 1 and 2^31", vocab_size));
  }
  info_.vocab_size = vocab_size;
  info_.vocabulary_hash = vocabulary_hash;
  info_.bytes_per_token = vocab_size <= 65536 ? 2 : 4;
  info_.content_hash = detail::Fnv1a().value();
  buffer_.reserve(kBufferBytes);
  const Header blank{};  // keeps the room; complete() writes the header, once all is known
  file_.write(std::as_bytes(std::span(&blank, 1)));
}

void TokenFileWriter::write(std::span<const std::int32_t> ids) {
  const auto width = static_cast<std::size_t>(info_.bytes_per_token);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= info_.vocab_size) {
      throw IndexError(fmt::format("token file {}: token {} at position {} is outside the vocabulary of {}",
                                   file_.path().string(), id, info_.num_tokens, info_.vocab_size));
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(&id);  // little-endian: the low bytes come first
    buffer_.insert(buffer_.end(), bytes, bytes + width);
    ++info_.num_tokens;
    if (buffer_.size() >= kBufferBytes) flush();
  }
}

void TokenFileWriter::flush() {
  detail::Fnv1a hash(info_.content_hash);
  hash.add(std::span<const std::byte>(buffer_));
  info_.content_hash = hash.value();
  file_.write(buffer_);
  buffer_.clear();
}

void TokenFileWriter::finish(std::int64_t source_bytes) {
  complete(source_bytes);
  publish();
}

void TokenFileWriter::publish() { file_.commit(); }

void TokenFileWriter::complete(std::int64_t source_bytes) {
  if (info_.num_tokens == 0) fail(file_.path(), "no tokens to write");
  flush();
  Header header{};
  std::memcpy(header.magic.data(), kMagic.data(), kMagic.size());
  header.version = kVersion;
  header.bytes_per_token = static_cast<std::uint32_t>(info_.bytes_per_token);
  header.vocab_size = static_cast<std::uint64_t>(info_.vocab_size);
  header.vocabulary_hash = info_.vocabulary_hash;
  header.num_tokens = static_cast<std::uint64_t>(info_.num_tokens);
  header.source_bytes = static_cast<std::uint64_t>(source_bytes);
  header.content_hash = info_.content_hash;
  header.checksum = checksum_of(header);
  file_.write_at(0, std::as_bytes(std::span(&header, 1)));
  file_.sync();
}

}  // namespace tessera::data
