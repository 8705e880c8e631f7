#pragma once

// Small tools around MPI's non-blocking calls. Private to the mpi backend; the only header that includes
// mpi.h.

#include <mpi.h>
#include <sched.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/memory.h"

namespace tessera::dist::detail {

/// The kind of error in a few words. MPICH's text of the code itself is a stack of its functions.
inline std::string mpi_error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0, error_class = code;
  MPI_Error_class(code, &error_class);
  MPI_Error_string(error_class, text, &length);
  return {text, static_cast<std::size_t>(length)};
}

inline void check_mpi(int code, const char* call) {
  if (code != MPI_SUCCESS) throw CommError(std::string(call) + ": " + mpi_error_text(code));
}

/// A number of bytes as MPI takes it: (count, type). MPI counts in int; more than 2 GiB become one element of
/// a type that is as long.
class MessageType {
 public:
  explicit MessageType(std::int64_t num_bytes, std::int64_t block_bytes = std::int64_t{1} << 30) {
    if (num_bytes <= block_bytes) {
      count_ = static_cast<int>(num_bytes);
      return;
    }
    // Blocks of 1 GiB, then the rest.
    const std::int64_t num_blocks = num_bytes / block_bytes, rest = num_bytes % block_bytes;
    MPI_Datatype block;
    check_mpi(MPI_Type_contiguous(static_cast<int>(block_bytes), MPI_BYTE, &block), "MPI_Type_contiguous");
    const int lengths[2] = {static_cast<int>(num_blocks), static_cast<int>(rest)};
    const MPI_Aint offsets[2] = {0, static_cast<MPI_Aint>(num_blocks * block_bytes)};
    const MPI_Datatype types[2] = {block, MPI_BYTE};
    check_mpi(MPI_Type_create_struct(2, lengths, offsets, types, &type_), "MPI_Type_create_struct");
    check_mpi(MPI_Type_commit(&type_), "MPI_Type_commit");
    MPI_Type_free(&block);
    count_ = 1;
    owned_ = true;
  }
  // MPI keeps the type until the calls that use it have completed.
  ~MessageType() {
    if (owned_) MPI_Type_free(&type_);
  }
  MessageType(const MessageType&) = delete;
  MessageType& operator=(const MessageType&) = delete;

  [[nodiscard]] int count() const noexcept { return count_; }
  [[nodiscard]] MPI_Datatype type() const noexcept { return type_; }

 private:
  int count_ = 0;
  MPI_Datatype type_ = MPI_BYTE;
  bool owned_ = false;
};

/// Requests of one operation that complete together.
class Requests {
 public:
  [[nodiscard]] MPI_Request* add() {
    requests_.push_back(MPI_REQUEST_NULL);
    return &requests_.back();
  }
  [[nodiscard]] bool test() {
    if (requests_.empty()) return true;
    int done = 0;
    // One by one: those that are done are not looked at again.
    while (!requests_.empty()) {
      check_mpi(MPI_Test(&requests_.back(), &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done == 0) return false;
      requests_.pop_back();
    }
    return true;
  }

 private:
  std::vector<MPI_Request> requests_;
};

/// Scratch memory from the rank's pool, counted as communication. Bytes, not cleared.
class CommunicationBuffer {
 public:
  explicit CommunicationBuffer(std::int64_t num_bytes)
      : pool_(RankContext::current().pool(cpu)), size_bytes_(static_cast<std::size_t>(num_bytes)) {
    data_ = static_cast<char*>(pool_->allocate(size_bytes_, MemoryCategory::kCommunication));
  }
  ~CommunicationBuffer() { pool_->free(data_, size_bytes_, MemoryCategory::kCommunication); }
  CommunicationBuffer(const CommunicationBuffer&) = delete;
  CommunicationBuffer& operator=(const CommunicationBuffer&) = delete;

  [[nodiscard]] char* data() const noexcept { return data_; }

 private:
  std::shared_ptr<MemoryPool> pool_;
  std::size_t size_bytes_;
  char* data_ = nullptr;
};

/// How to wait for what must be polled: give the core to whoever has work, and sleep once nothing has
/// happened for long. MPI's own blocking calls spin: with 8 ranks on 2 cores a one-float all-reduce then
/// takes 25 ms, and 0.1 ms with this.
class PollingWait {
 public:
  using Clock = std::chrono::steady_clock;

  /// To be called after a poll that found nothing.
  void pause() {
    sched_yield();
    if (++polls_ % 64 != 0) return;
    const auto idle = Clock::now() - idle_since_;
    if (idle > std::chrono::seconds(1)) {
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    } else if (idle > std::chrono::milliseconds(20)) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    // Once idle, every poll may sleep.
    if (idle > std::chrono::milliseconds(20)) polls_ = 63;
  }
  void progress_was_made() {
    polls_ = 0;
    idle_since_ = Clock::now();
  }
  [[nodiscard]] Clock::duration elapsed() const { return Clock::now() - start_; }

 private:
  Clock::time_point start_ = Clock::now();
  Clock::time_point idle_since_ = start_;
  unsigned polls_ = 0;
};

}  // namespace tessera::dist::detail
