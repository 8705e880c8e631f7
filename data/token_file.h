#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "data/atomic_file.h"

namespace tessera::data {

/// What stands at the head of a token file, besides magic, version and checksum.
struct TokenFileInfo {
  std::int64_t num_tokens = 0;
  std::int64_t vocab_size = 0;        ///< every id is below this
  std::uint64_t vocabulary_hash = 0;  ///< Tokenizer::vocabulary_hash() of the tokenizer that made the ids
  std::int64_t source_bytes = 0;  ///< bytes of the text that the ids stand for; makes bits per byte of a loss
  std::int64_t bytes_per_token = 0;  ///< 2 where vocab_size ≤ 65,536, else 4
  std::uint64_t content_hash = 0;    ///< FNV-1a of the bytes of the ids
};

/// A file of token ids, mapped into memory: opening is instant, only what is read is loaded, and all
/// processes of a host share one copy. The file may be larger than memory. Layout (little-endian):
///
///     offset  bytes
///          0      8  magic "TESSTOKN"
///          8      4  version, 1
///         12      4  bytes per token, 2 or 4
///         16      8  vocabulary size
///         24      8  vocabulary hash
///         32      8  number of tokens
///         40      8  bytes of the source text
///         48      8  content hash: FNV-1a of all bytes from offset 64
///         56      8  header checksum: FNV-1a of bytes 0 to 55
///         64         the ids, u16 or u32
///
/// Threads   Reading is safe from any number of threads.
/// Note      The file must not be cut short while it is open (no map survives that). TokenFileWriter never
///           does so: it replaces the file, and who has the old one open keeps it.
/// Example
///     auto tokens = data::TokenFile::open("run/train.tokens");
///     tokens.require_vocabulary(tokenizer.vocab_size(), tokenizer.vocabulary_hash());
///     std::vector<std::int64_t> window(257);
///     tokens.read(1000, window);                                 // tokens 1000 to 1256
class TokenFile {
 public:
  /// Errors    DataError with path and reason: missing, empty, not a token file, cut short (with both sizes),
  ///           made by a newer version, damaged header.
  [[nodiscard]] static TokenFile open(const std::filesystem::path& path);

  TokenFile(TokenFile&& other) noexcept;
  TokenFile& operator=(TokenFile&& other) noexcept;
  ~TokenFile();

  /// Number of tokens, at least 1.
  [[nodiscard]] std::int64_t size() const noexcept { return info_.num_tokens; }
  [[nodiscard]] const TokenFileInfo& info() const noexcept { return info_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// Token i.
  /// Errors    IndexError, if i is not in [0, size()).
  [[nodiscard]] std::int64_t operator[](std::int64_t i) const;

  /// Copies tokens offset ... offset + out.size() - 1 into `out`.
  /// Errors    IndexError, if they are not all in the file; DataError, if one is not in the vocabulary
  ///           (damaged file).
  void read(std::int64_t offset, std::span<std::int64_t> out) const;

  /// Throws DataError unless the ids were made with this vocabulary.
  void require_vocabulary(std::int64_t vocab_size, std::uint64_t vocabulary_hash) const;

  /// Reads the whole file and throws DataError if its content is not what was written.
  void verify() const;

 private:
  TokenFile() = default;

  std::filesystem::path path_;
  TokenFileInfo info_;
  const std::byte* map_ = nullptr;
  std::size_t map_bytes_ = 0;
};

/// Writes a token file of any length with 1 MiB of memory. The file appears under its name when finish()
/// returns; if the writer goes away before, nothing of it stays, and an older file of that name is untouched.
///
/// Errors    DataError: the folder is missing or can't be written to. FileError: disk full, I/O error.
/// Example
///     data::TokenFileWriter writer("run/train.tokens", tokenizer.vocab_size(), tokenizer.vocabulary_hash());
///     writer.write(tokenizer.encode(text));
///     writer.finish(text.size());
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, std::int64_t vocab_size, std::uint64_t vocabulary_hash);

  /// Appends ids.
  /// Errors    IndexError, if one is not in the vocabulary.
  void write(std::span<const std::int32_t> ids);

  /// Writes the header and brings the file into being: complete, then publish.
  /// Errors    DataError, if no id was written.
  void finish(std::int64_t source_bytes);

  /// finish in two steps, for several files that shall appear together: complete() does all that can fail for
  /// want of space, publish() gives the file its name.
  void complete(std::int64_t source_bytes);
  void publish();

  [[nodiscard]] std::int64_t num_tokens() const noexcept { return info_.num_tokens; }

 private:
  void flush();

  AtomicFile file_;
  TokenFileInfo info_;
  std::vector<std::byte> buffer_;
};

}  // namespace tessera::data
