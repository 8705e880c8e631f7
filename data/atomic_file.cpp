#include "data/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/error.h"

namespace tessera::data {
namespace {

// Reasons that the user can put right by naming another place or changing its permissions.
bool is_users_to_fix(int error) {
  return error == ENOENT || error == ENOTDIR || error == EISDIR || error == EACCES || error == EPERM ||
         error == EROFS || error == EEXIST || error == ENAMETOOLONG || error == ELOOP;
}

[[noreturn]] void fail(const char* action, const std::filesystem::path& path, int error) {
  const std::string message = fmt::format("{} {}: {}", action, path.string(), std::strerror(error));
  if (is_users_to_fix(error)) throw DataError(message);
  throw FileError(message);
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) fail("cannot write", path_, EISDIR);
  // Process id and a count make the name free, unless a killed run left one behind; O_EXCL keeps us off
  // others' files.
  for (int attempt = 0; attempt < 10000; ++attempt) {
    temporary_ = path_;
    temporary_ += fmt::format(".{}-{}.tmp", ::getpid(), attempt);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) return;
    if (errno != EEXIST && errno != EINTR) break;
  }
  fail("cannot create", path_, errno);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_bytes_(other.size_bytes_) {
  other.temporary_.clear();
}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  if (this == &other) return *this;
  discard();
  path_ = std::move(other.path_);
  temporary_ = std::move(other.temporary_);
  other.temporary_.clear();
  descriptor_ = std::exchange(other.descriptor_, -1);
  size_bytes_ = other.size_bytes_;
  return *this;
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_at(size_bytes_, bytes);
  size_bytes_ += static_cast<std::int64_t>(bytes.size());
}

void AtomicFile::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("cannot write", path_, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += written;
  }
}

void AtomicFile::sync() {
  if (::fsync(descriptor_) != 0) fail("cannot write", path_, errno);
}

void AtomicFile::commit() {
  sync();
  // close can report what a network file system could not store.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot write", path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot write", path_, errno);
  temporary_.clear();

  // Without this the rename itself may be lost in a power cut. Some file systems refuse it: then there is no
  // better.
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  const int folder_descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_descriptor >= 0) {
    ::fsync(folder_descriptor);
    ::close(folder_descriptor);
  }
}

void create_folder(const std::filesystem::path& folder) {
  if (folder.empty()) throw DataError("cannot create folder: its name is empty");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("cannot create folder", folder, error.value());
  if (!std::filesystem::is_directory(folder, error)) fail("cannot create folder", folder, ENOTDIR);
}

}  // namespace tessera::data
