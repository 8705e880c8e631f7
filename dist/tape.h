#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dtype.h"

namespace tessera::dist {

/// What a call to a communicator does.
enum class Collective : std::uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kAllToAll,
  kSend,
  kRecv,
  kBarrier,
  kSplit,
  kFinish,  ///< a rank has left the program: the last call of the world
};
inline constexpr int kNumCollectives = 10;

/// "all_reduce", "reduce_scatter", ...
[[nodiscard]] const char* name(Collective op) noexcept;

/// Bytes that one rank sends in one call: the ledger's unit, equal for every backend.
///
/// Formula   n = elements of the call (below), b = bytes of one, R ranks; slice(r) = ⌊n/R⌋, one more for
///           r < n mod R.
///             all_reduce      n·b in and out: (n − slice(r))·b to reduce-scatter, (R−1)·slice(r)·b to
///                             all-gather;
///                             where R divides n this is the ring's 2(R−1)/R · n·b
///             reduce_scatter  n = elements of a rank's result: (R−1)·n·b
///             all_gather      n = elements of a rank's input:  (R−1)·n·b
///             all_to_all      n = elements for one peer:       (R−1)·n·b
///             broadcast       n·b, passed on along a ring from the root; its last rank sends nothing
///             send            n·b; recv, barrier, split 0
/// Source    Chan et al., "Collective communication: theory, practice, and experience", 2007 (lower bounds on
///           bytes).
[[nodiscard]] std::int64_t sent_bytes(Collective op, std::int64_t elements, DType dtype, int num_ranks,
                                      int rank, int root) noexcept;

/// The clock of all tapes: of all threads and processes of one host.
[[nodiscard]] double steady_seconds() noexcept;

/// One call, as the tape keeps it.
struct TapeEntry {
  std::uint64_t sequence = 0;  ///< number of the call in its group, from 0; the same on every rank
  Collective op = Collective::kBarrier;
  std::string group;
  std::uint64_t group_id = 0;  ///< the same on every rank of a group; groups of one name have different ones
  int rank = 0;                ///< this one, in the group
  int num_ranks = 1;
  int num_hosts = 1;          ///< that these ranks stand on: Communicator::num_hosts()
  std::int64_t elements = 0;  ///< as in sent_bytes()
  DType dtype = DType::kU8;
  int peer = -1;  ///< root, destination or source; -1 where there is none
  int tag = 0;    ///< of messages
  std::int64_t sent_bytes = 0;
  std::source_location where{};
  double start_seconds = 0.0;   ///< since the tape was made
  double end_seconds = -1.0;    ///< negative while the call is under way
  double inside_seconds = 0.0;  ///< that the rank was inside of the call itself and of Work::test()
  double wait_seconds = 0.0;    ///< and of Work::wait(), which ended at
  double wait_end_seconds = 0.0;
};

/// Sums over all calls of one kind in one group.
struct TapeTotal {
  std::string group;
  Collective op = Collective::kBarrier;
  int num_ranks = 1;  ///< of the group
  std::int64_t calls = 0;
  std::int64_t elements = 0;
  std::int64_t sent_bytes = 0;
  int num_hosts = 1;     ///< of the call whose ranks stand on most
  double seconds = 0.0;  ///< from start to completion, summed: calls that overlap count twice
  /// That the rank stood still for them, in the calls themselves, Work::test() and Work::wait():
  /// communication that nothing hid.
  double wait_seconds = 0.0;
};

/// A rank's record of its communication: exact byte ledger, and flight recorder of the latest calls.
///
/// Every communicator of a rank, and all that is split from it, write to one tape. Totals are kept for ever,
/// single entries for the latest `capacity` calls.
///
/// Threads   All members may be called from any thread.
/// Cost      A call is recorded in about 0.1 µs; memory for `capacity` entries is taken at construction.
class Tape {
 public:
  explicit Tape(std::size_t capacity = 1024);
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// Records the start of a call and returns its ticket. `start_seconds` is filled in here.
  std::uint64_t begin(TapeEntry entry);
  /// Records that the rank was inside of the call, or of a test of it, until now.
  void was_inside(std::uint64_t ticket, double seconds) noexcept;
  /// Records that the rank has waited for the call until now, before it ends.
  void waited(std::uint64_t ticket, double seconds) noexcept;
  /// Records its completion.
  void end(std::uint64_t ticket) noexcept;

  /// Bytes sent by this rank in all groups, in one group, in one group by one kind of call.
  [[nodiscard]] std::int64_t total_sent_bytes() const;
  [[nodiscard]] std::int64_t total_sent_bytes(const std::string& group) const;
  [[nodiscard]] std::int64_t total_sent_bytes(const std::string& group, Collective op) const;
  /// One row per group and kind of call, sorted.
  [[nodiscard]] std::vector<TapeTotal> totals() const;
  /// Totals start again from zero; entries stay.
  void reset_totals();

  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// When the tape was made, by steady_seconds(): what entries' times count from.
  [[nodiscard]] double origin_seconds() const noexcept { return origin_seconds_; }
  /// The latest entries, oldest first.
  [[nodiscard]] std::vector<TapeEntry> recent() const;
  /// The latest entries, one a line: what a rank was doing when it hung.
  [[nodiscard]] std::string dump(std::size_t max_entries = 32) const;

 private:
  [[nodiscard]] double seconds() const noexcept { return steady_seconds() - origin_seconds_; }
  [[nodiscard]] std::vector<TapeEntry> recent_locked() const;
  [[nodiscard]] TapeEntry* find_locked(std::uint64_t ticket) noexcept;
  void add_wait_locked(const TapeEntry& entry, double seconds) noexcept;

  mutable std::mutex mutex_;
  double origin_seconds_ = steady_seconds();
  std::size_t capacity_;
  std::vector<TapeEntry> entries_;  // a ring: ticket t lies at t mod capacity
  std::uint64_t next_ticket_ = 0;
  std::map<std::pair<std::string, Collective>, TapeTotal> totals_;
};

}  // namespace tessera::dist
