#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace tessera::data {

/// A file that appears under its name whole or not at all.
///
/// Bytes go to a temporary file in the same folder. commit() brings them to the disk (fsync), then renames,
/// which replaces an older file in one step: a reader sees the old content or the new one, never a part, even
/// if the machine stops. Without commit the destructor removes the temporary file and an older file stays as
/// it was. For one thread at a time.
///
/// Errors    DataError where the user can help it (no such folder, no permission, a folder of that name);
///           FileError where the machine failed (disk full, I/O error). Both name the path and the system's
///           reason.
/// Example
///     data::AtomicFile file("run/notes.txt");
///     file.write(std::string_view("all or nothing\n"));
///     file.commit();
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  /// Appends. Not buffered: each call is a system call.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

  /// Writes at `offset` bytes from the start; where `write` appends next does not change.
  void write_at(std::int64_t offset, std::span<const std::byte> bytes);

  /// Brings what was written to the disk: after that, commit fails only if the folder goes away.
  void sync();

  /// sync, close, rename, fsync of the folder. Nothing may be written afterwards.
  void commit();

  /// The final name.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

 private:
  void discard() noexcept;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  std::int64_t size_bytes_ = 0;
};

/// Makes `folder` and its parents unless they are there.
/// Errors    DataError with the path and the system's reason (FileError if the disk is full).
void create_folder(const std::filesystem::path& folder);

}  // namespace tessera::data
