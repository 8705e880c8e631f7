#pragma once

#include <cstdint>
#include <string>

namespace tessera::testing {

/// Counts how often this process asks the kernel for memory from now on: brk, mmap, mremap and mprotect, by
/// which the C library's heaps grow, from any thread and any library. Snapshots of mallinfo2() would not
/// notice memory that is given back and asked for again.
///
/// A seccomp filter sends each such call to a signal handler, which counts it and makes it. Neither can be
/// taken away again: a program of its own has them.
/// Returns why this machine can't count them; empty if it does. A second call does nothing.
[[nodiscard]] std::string count_system_requests();
/// Since then, of all threads.
[[nodiscard]] std::int64_t num_system_requests() noexcept;
/// Bytes of those, rounded up: the lengths of mmap and mprotect, the new ones of mremap, and for each brk,
/// which says an address, the 128 KiB by which malloc moves it.
[[nodiscard]] std::int64_t system_requests_bytes() noexcept;

}  // namespace tessera::testing
