#include "dist/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace tessera::dist {

void reserve_standard_streams() noexcept {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    if (::fcntl(stream, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest number that is free, hence this one: all below are taken. For reading alone: to write there
    // is then an error (EBADF), which a program reports, and not text that silently disappears.
    if (::open("/dev/null", O_RDONLY) != stream) return;
  }
}

}  // namespace tessera::dist
