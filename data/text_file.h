#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

// Private to data/.
namespace tessera::data {

/// A file open for reading at any place; read in parts, so it may be larger than memory.
/// Errors    DataError `what path: reason` if it is missing, unreadable or not a regular file.
class TextFile {
 public:
  TextFile(std::string what, std::filesystem::path path);
  TextFile(const TextFile&) = delete;
  TextFile& operator=(const TextFile&) = delete;
  ~TextFile();

  [[nodiscard]] std::int64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// Fills `out` with the bytes from `offset` on.
  /// Errors    DataError if the file has become shorter; FileError if the disk fails.
  void read(std::int64_t offset, std::span<char> out) const;

 private:
  std::string what_;
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_bytes_ = 0;
};

}  // namespace tessera::data
