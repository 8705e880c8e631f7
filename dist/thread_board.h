#pragma once

// Where thread ranks meet. Private to dist/communicator_threads.cpp.
//
// Each group has a board: a queue of exchanges, one per collective call, in call order. A rank that calls
// posts its buffers in the exchange of its call number. When the last rank has posted, the exchange's work
// (reduce, copy) is cut into slices, and whichever ranks wait take slices until none is left. Nobody needs to
// be woken to do "his" part, so a rank that computes never holds up the others, and there is no thread but
// the ranks themselves.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dist/communicator.h"

namespace tessera::dist::detail {

class Board;

/// What the boards of one world share: whether a rank has failed or left.
class Family {
 public:
  explicit Family(int num_ranks) : left_(static_cast<std::size_t>(num_ranks)) {}

  void add(const std::shared_ptr<Board>& board);
  /// The first cause stays. Wakes every waiting rank. Not to be called with a board locked.
  void fail(const std::string& cause) noexcept;
  void leave(int world_rank) noexcept;

  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  [[nodiscard]] bool has_left(int world_rank) const noexcept {
    return left_[static_cast<std::size_t>(world_rank)];
  }
  [[nodiscard]] std::string cause() const;

 private:
  void wake_all() noexcept;

  mutable std::mutex mutex_;
  std::atomic<bool> failed_{false};
  std::string cause_;
  std::vector<std::atomic<bool>> left_;
  std::vector<std::weak_ptr<Board>> boards_;
};

/// One collective call of a group.
struct Exchange {
  explicit Exchange(int num_ranks)
      : calls(static_cast<std::size_t>(num_ranks)), posted(static_cast<std::size_t>(num_ranks)) {}

  std::vector<Call> calls;   // by rank
  std::vector<bool> posted;  // by rank
  int num_posted = 0;
  int num_units = 1;   // parts of the work, see run_unit
  int num_slices = 0;  // how many portions they are handed out in
  int next_slice = 0;
  int running = 0;  // slices being worked on now, with the board unlocked
  int done = 0;
  bool complete = false;
};

/// One half of a send and recv.
struct Message {
  Call call;
  int from = 0, to = 0;
  bool copying = false;  // a peer reads or writes our buffer now
  bool complete = false;
  std::string error;
};

class Board : public std::enable_shared_from_this<Board> {
 public:
  Board(std::string name, std::vector<int> world_ranks, std::shared_ptr<Family> family,
        std::chrono::milliseconds timeout);

  [[nodiscard]] int size() const noexcept { return static_cast<int>(world_ranks_.size()); }
  [[nodiscard]] Family& family() const noexcept { return *family_; }
  void wake_all() noexcept;

  // Collectives. `rank` is the caller's in this group.
  [[nodiscard]] std::shared_ptr<Exchange> post(int rank, const Call& call);
  [[nodiscard]] bool test(int rank, const std::shared_ptr<Exchange>& exchange);
  /// False at `until`.
  [[nodiscard]] bool wait_until(int rank, const std::shared_ptr<Exchange>& exchange, Operation::Time until);
  void abandon(int rank, const std::shared_ptr<Exchange>& exchange) noexcept;

  // Point to point.
  [[nodiscard]] std::shared_ptr<Message> post_message(int rank, const Call& call);
  [[nodiscard]] bool test(int rank, const std::shared_ptr<Message>& message);
  [[nodiscard]] bool wait_until(int rank, const std::shared_ptr<Message>& message, Operation::Time until);
  void abandon(int rank, const std::shared_ptr<Message>& message) noexcept;

  /// The board of the ranks `members` that split off by call `sequence` with `color`; made by the first who
  /// asks.
  [[nodiscard]] std::shared_ptr<Board> child(std::uint64_t sequence, int color,
                                             const std::vector<int>& members, const std::string& name);

 private:
  using Lock = std::unique_lock<std::mutex>;

  [[nodiscard]] std::shared_ptr<Exchange> post_exchange(int rank, const Call& call);
  /// Works on the exchanges in order until `target` is complete or there is nothing to do. Unlocks meanwhile.
  void advance(Lock& lock, const Exchange& target);
  void run_slice(const Exchange& exchange, int slice) const;
  void run_unit(const Exchange& exchange, int unit) const;
  void check_matches(Lock& lock, int rank, const Call& call, const Exchange& exchange);
  void copy_message(Lock& lock, const std::shared_ptr<Message>& mine, const std::shared_ptr<Message>& theirs);
  [[nodiscard]] std::string rank_name(int rank) const;
  [[nodiscard]] std::string context(int rank, const Call& call) const;
  /// Group ranks that have not posted, e.g. "rank 2, rank 5".
  [[nodiscard]] std::string missing(const Exchange& exchange) const;

  [[noreturn]] void throw_failure(int rank, const Call& call);
  [[noreturn]] void fail(Lock& lock, int rank, const Call& call, const std::string& what);

  const std::string name_;
  const std::vector<int> world_ranks_;  // of the group's ranks
  const std::shared_ptr<Family> family_;
  const std::chrono::milliseconds timeout_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string error_;  // of this group as a whole: a mismatch
  std::deque<std::shared_ptr<Exchange>> exchanges_;
  std::uint64_t first_sequence_ = 0;              // of exchanges_.front()
  std::list<std::shared_ptr<Message>> messages_;  // unmatched, in order of posting
  std::map<std::pair<std::uint64_t, int>, std::pair<std::shared_ptr<Board>, std::size_t>> children_;
};

}  // namespace tessera::dist::detail
