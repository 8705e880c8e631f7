#include "data/text_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/error.h"

namespace tessera::data {

TextFile::TextFile(std::string what, std::filesystem::path path)
    : what_(std::move(what)), path_(std::move(path)) {
  const auto fail = [&](const char* reason) {
    if (descriptor_ >= 0) ::close(descriptor_);
    return DataError(fmt::format("{} {}: {}", what_, path_.string(), reason));
  };
  // Without O_NONBLOCK opening a pipe would wait for its other end.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throw fail(std::strerror(errno));
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw fail(std::strerror(errno));
  if (S_ISDIR(status.st_mode)) throw fail("is a folder, not a file");
  if (!S_ISREG(status.st_mode))
    throw fail("is not a regular file; it is read more than once, so save it to one first");
  size_bytes_ = status.st_size;
}

TextFile::~TextFile() { ::close(descriptor_); }

void TextFile::read(std::int64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor_, out.data(), out.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileError(fmt::format("{} {}: {}", what_, path_.string(), std::strerror(errno)));
    if (got == 0) {
      throw DataError(fmt::format("{} {}: became shorter while it was read ({} bytes at first, now {})",
                                  what_, path_.string(), size_bytes_, offset));
    }
    out = out.subspan(static_cast<std::size_t>(got));
    offset += got;
  }
}

}  // namespace tessera::data
