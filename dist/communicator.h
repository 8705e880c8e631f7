#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <memory>
#include <ranges>
#include <source_location>
#include <string>
#include <type_traits>
#include <vector>

#include "dist/reduce.h"
#include "dist/tape.h"
#include "kernels/dtype.h"
#include "kernels/error.h"

namespace tessera::dist {

/// Contiguous memory that a call reads. It borrows: the memory stays valid and unchanged until the call has
/// completed.
struct ConstBuffer {
  const void* data = nullptr;
  std::int64_t count = 0;  ///< elements
  DType dtype = DType::kU8;

  [[nodiscard]] std::int64_t size_bytes() const noexcept {
    return count * static_cast<std::int64_t>(tessera::size_bytes(dtype));
  }
};

/// Contiguous memory that a call writes (or reads and writes).
struct Buffer {
  void* data = nullptr;
  std::int64_t count = 0;
  DType dtype = DType::kU8;

  [[nodiscard]] std::int64_t size_bytes() const noexcept { return ConstBuffer(*this).size_bytes(); }
  // Implicit: what can be written can be read. NOLINTNEXTLINE(google-explicit-constructor)
  operator ConstBuffer() const noexcept { return {data, count, dtype}; }
};

/// The elements of a vector, span or array: `world.all_reduce(buffer_of(values))`.
template <std::ranges::contiguous_range Range>
[[nodiscard]] auto buffer_of(Range&& values) {
  using Element = std::remove_reference_t<std::ranges::range_reference_t<Range>>;
  constexpr DType kType = dtype_of<std::remove_cv_t<Element>>;
  static_assert(static_cast<int>(kType) < 255, "not an element type of Tessera");
  const auto count = static_cast<std::int64_t>(std::ranges::size(values));
  if constexpr (std::is_const_v<Element>) {
    return ConstBuffer{std::ranges::data(values), count, kType};
  } else {
    return Buffer{std::ranges::data(values), count, kType};
  }
}

/// Another rank failed, and this one could not go on. The message names the rank and its cause; programs
/// report the cause itself, once, and not this echo of it.
class PeerFailure : public CommError {
 public:
  using CommError::CommError;
};

struct CommOptions {
  /// A call that waits for longer than this throws CommError: a peer hangs, or has gone without a trace.
  std::chrono::milliseconds timeout = std::chrono::seconds(300);
  /// Compare what the ranks of a group call, on every call. Threads do so at no cost and always. Under MPI it
  /// is a 16-byte all-reduce that travels beside the data; docs/dist.md has what it costs.
  bool check_calls = true;
};

namespace detail {

/// One call, as the base class hands it to a backend. Checked and on the tape.
struct Call {
  Collective op = Collective::kBarrier;
  ReduceOp reduce = ReduceOp::kSum;
  ConstBuffer in{};
  Buffer out{};
  int peer = -1;  ///< root, destination or source
  int tag = 0;    ///< of send and recv
  std::uint64_t sequence = 0;
  std::source_location where{};
};

/// "all_reduce(1024 f32, sum) at train.cpp:42".
[[nodiscard]] std::string describe(const Call& call);
/// Hash of all that ranks must agree on: kind, elements, dtype, reduction, root, sequence number.
[[nodiscard]] std::uint64_t fingerprint(const Call& call) noexcept;

/// A backend's side of a call under way.
class Operation {
 public:
  virtual ~Operation() = default;
  /// Does what can be done now without waiting; true once the call has completed. Throws CommError.
  virtual bool test() = 0;
  using Time = std::chrono::steady_clock::time_point;
  /// Returns true when the call has completed, or false at `until`. Throws CommError on mismatch, lost peer,
  /// timeout.
  virtual bool wait_until(Time until) = 0;
  /// The caller goes away with an exception while the call is under way: no access to its buffers after this
  /// returns.
  virtual void abandon() noexcept = 0;
};

}  // namespace detail

/// A call under way. Its buffers belong to the call until `wait` returned or `test` was true.
///
/// The destructor waits for completion, unless it runs because of an exception: then the group is told that
/// this rank fails, and its peers get PeerFailure. Errors that the destructor meets come back from the
/// group's next call.
/// Threads   Used by one thread at a time.
class [[nodiscard]] Work {
 public:
  Work() = default;  ///< of nothing: complete
  Work(Work&& other) noexcept;
  Work& operator=(Work&& other) noexcept;
  ~Work();

  /// Blocks (without spinning) until the call has completed. A second wait returns at once.
  void wait();
  /// The same for `limit` at most; true once the call has completed.
  [[nodiscard]] bool wait_for(std::chrono::milliseconds limit);
  /// Makes progress without blocking; true once the call has completed.
  [[nodiscard]] bool test();
  /// Keeps `owner` alive until the call has completed: a tensor's storage, say.
  void hold(std::shared_ptr<const void> owner) { owner_ = std::move(owner); }

 private:
  friend class Communicator;
  Work(std::unique_ptr<detail::Operation> operation, std::shared_ptr<Tape> tape, std::uint64_t ticket);
  bool wait_until(detail::Operation::Time until);
  void finish() noexcept;
  void settle() noexcept;

  std::unique_ptr<detail::Operation> operation_;
  std::shared_ptr<Tape> tape_;
  std::uint64_t ticket_ = 0;
  std::shared_ptr<const void> owner_;
};

/// A group of ranks that call collectives together.
///
/// Calling   Every rank of the group makes the same collective calls (kind, elements, dtype, reduction, root)
///           in the same order; anything else is a CommError on every rank, which names both calls. send and
///           recv are matched by (sender, receiver, tag) in order of posting and need not be in line with the
///           collectives. `x_async` returns at once; several calls may be under way, and may complete in any
///           order. A blocking call is its async form followed by wait().
/// Values    A reduction is combined in the tree order of dist/reduce.h, whatever the backend, the timing and
///           the size: every rank gets the same bits, and so does every run.
/// Progress  Work is done inside wait(), test() and the start of further calls, by whichever rank comes;
///           there is no background thread. A rank that overlaps a long computation calls test() now and
///           then.
/// Buffers   Contiguous; input and output do not overlap, except where "in place" is stated. A group of one
///           rank copies input to output.
/// Errors    ShapeError, DTypeError, IndexError before any traffic for calls that are wrong on their own;
///           CommError with rank, group, sequence number and call site for mismatches, lost peers and
///           timeouts. After a CommError the group, and the world it came from, can't be used any more.
/// Threads   One thread at a time, the one of its rank.
///
/// Example   std::vector<float> gradient = ...;
///           world.all_reduce(buffer_of(gradient));   // every rank: the sum over all
///           Work work = world.all_reduce_async(buffer_of(gradient));
///           ...                                      // the same, while something else is computed
///           work.wait();
class Communicator {
 public:
  using Where = std::source_location;

  /// Which rank of which group a communicator is.
  struct Identity {
    int rank = 0;
    int size = 1;
    std::string name;
  };

  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  /// "world", or the name given to split().
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// "self", "threads", "mpi" or "fake".
  [[nodiscard]] virtual const char* backend() const noexcept = 0;
  /// False for the fake: calls are recorded and move nothing, so tensors on meta may be given.
  [[nodiscard]] virtual bool moves_data() const noexcept { return true; }
  /// This rank's tape, shared by all groups that it is in.
  [[nodiscard]] Tape& tape() const noexcept { return *tape_; }

  /// Hosts that the group's ranks stand on; 1 until somebody has said stand_on().
  [[nodiscard]] int num_hosts() const noexcept { return num_hosts_; }
  /// Rank r of this group stands on host `host_of_rank[r]`; hosts are any numbers. Groups that are made from
  /// now on know it of their ranks. A Mesh says it to its world. Not a collective: nothing is sent.
  void stand_on(std::vector<int> host_of_rank);

  /// x ← x of rank 0 + ... + x of rank R−1 (or the maximum, the minimum), in place.
  ///
  /// Shapes    x [n], the same n on every rank; 0 is allowed.
  /// Cost      2(R−1)/R · bytes(x) sent by each rank; threads: one pass over all ranks' memory.
  /// Example   R = 2; {1, 2} and {10, 20}  →  {11, 22} on both.
  void all_reduce(Buffer x, ReduceOp op = ReduceOp::kSum, Where where = Where::current());
  [[nodiscard]] Work all_reduce_async(Buffer x, ReduceOp op = ReduceOp::kSum, Where where = Where::current());

  /// y ← slice `rank` of the reduction of x.
  ///
  /// Shapes    x [R·n], y [n]. In place: y may be the rank's own slice of x, x.data + rank·n.
  /// Cost      (R−1)/R · bytes(x).
  /// Example   R = 2; x = {1,2,3,4} and {10,20,30,40}  →  y = {11,22} and {33,44}
  void reduce_scatter(ConstBuffer x, Buffer y, ReduceOp op = ReduceOp::kSum, Where where = Where::current());
  [[nodiscard]] Work reduce_scatter_async(ConstBuffer x, Buffer y, ReduceOp op = ReduceOp::kSum,
                                          Where where = Where::current());

  /// y ← x of rank 0, x of rank 1, ..., one behind the other. Any dtype.
  ///
  /// Shapes    x [n], y [R·n]. In place: x may be y.data + rank·n.
  /// Cost      (R−1) · bytes(x).
  void all_gather(ConstBuffer x, Buffer y, Where where = Where::current());
  [[nodiscard]] Work all_gather_async(ConstBuffer x, Buffer y, Where where = Where::current());

  /// x ← x of rank `root`. Any dtype.
  ///
  /// Cost      bytes(x), passed on from rank to rank.
  void broadcast(Buffer x, int root, Where where = Where::current());
  [[nodiscard]] Work broadcast_async(Buffer x, int root, Where where = Where::current());

  /// Part p of y ← part `rank` of x of rank p: a transpose of parts over ranks. Any dtype.
  ///
  /// Shapes    x [R·n], y [R·n]; not in place.
  /// Cost      (R−1)/R · bytes(x).
  /// Example   R = 2; x = {1,2} and {3,4}  →  y = {1,3} and {2,4}
  void all_to_all(ConstBuffer x, Buffer y, Where where = Where::current());
  [[nodiscard]] Work all_to_all_async(ConstBuffer x, Buffer y, Where where = Where::current());

  /// Sends x to rank `to`, which calls recv with equal count, dtype and tag (0 ≤ tag < 32768). May wait for
  /// the receiver: two ranks that send to each other use the async form for one of the two.
  void send(ConstBuffer x, int to, int tag = 0, Where where = Where::current());
  [[nodiscard]] Work send_async(ConstBuffer x, int to, int tag = 0, Where where = Where::current());
  /// Receives what rank `from` sends. CommError if count differs from the sender's.
  void recv(Buffer y, int from, int tag = 0, Where where = Where::current());
  [[nodiscard]] Work recv_async(Buffer y, int from, int tag = 0, Where where = Where::current());

  /// Returns when every rank of the group has come here.
  void barrier(Where where = Where::current());
  [[nodiscard]] Work barrier_async(Where where = Where::current());

  /// New groups: ranks of equal `color` form one, in order of `key` (of `rank` among equals). Null for color
  /// < 0. All ranks of the group call it.
  ///
  /// Example   4 ranks; split(rank % 2, rank, "dp") → groups {0, 2} and {1, 3}, both called "dp".
  [[nodiscard]] std::shared_ptr<Communicator> split(int color, int key, const std::string& name,
                                                    Where where = Where::current());

  /// The group of the ranks `members` of this one, in that order; this rank is among them. All ranks of this
  /// group call it, each with the members of its own: split() for callers that know who is with whom.
  [[nodiscard]] virtual std::shared_ptr<Communicator> group_of(const std::vector<int>& members,
                                                               const std::string& name,
                                                               Where where = Where::current());

  /// A group of this rank alone, on the same tape. Not a collective: nothing is sent.
  [[nodiscard]] std::shared_ptr<Communicator> alone(const std::string& name) const;

  /// The last call on the world: a barrier through which ranks leave. A peer that still waits for this rank
  /// in another call learns that it has left. dist::run calls it.
  void finish(Where where = Where::current());

  /// This rank fails with `cause`: all ranks that wait in a call of this family, or make one later, get
  /// PeerFailure at once. Does nothing under MPI, where the job ends all processes instead.
  virtual void abort(const std::string& cause) noexcept = 0;

 protected:
  Communicator(Identity identity, std::shared_ptr<Tape> tape, const CommOptions& options);

  /// Starts a call that has passed all checks; only for groups of two ranks and more.
  [[nodiscard]] virtual std::unique_ptr<detail::Operation> start(const detail::Call& call) = 0;
  /// The group of the ranks that gave `color` (< 0: none), `members` in new rank order, this rank the one at
  /// `new_rank`.
  [[nodiscard]] virtual std::shared_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                                                 int new_rank, const detail::Call& call,
                                                                 const std::string& name) = 0;

  /// This rank's place in a group that is to be called `name`.
  /// Errors   IndexError if it is not among the members.
  [[nodiscard]] int place_among(const std::vector<int>& members, const std::string& name, Where where) const;

  [[nodiscard]] const std::shared_ptr<Tape>& shared_tape() const noexcept { return tape_; }
  [[nodiscard]] const CommOptions& options() const noexcept { return options_; }

 private:
  [[nodiscard]] Work submit(detail::Call& call, std::int64_t elements);  // numbers the call
  [[nodiscard]] std::string context(const detail::Call& call) const;
  void check_buffer(const detail::Call& call, const char* which, ConstBuffer buffer) const;
  void check_layout(const detail::Call& call) const;
  void check_rank(const detail::Call& call, const char* which) const;

  int rank_;
  int size_;
  std::string name_;
  std::uint64_t id_ = 0;           // see TapeEntry::group_id
  std::vector<int> host_of_rank_;  // empty: all on one
  int num_hosts_ = 1;
  std::shared_ptr<Tape> tape_;
  CommOptions options_;
  std::uint64_t next_collective_ = 0;  // collectives and point-to-point calls are numbered apart: only the
  std::uint64_t next_message_ = 0;     // former are in line on all ranks
};

/// A group of this rank alone.
[[nodiscard]] std::shared_ptr<Communicator> make_self_communicator(std::shared_ptr<Tape> tape,
                                                                   const CommOptions& options = {},
                                                                   const std::string& name = "world");

/// One rank of a world of any size in which there is nobody else: calls are checked, written to the tape with
/// the bytes that they would send, and return at once. What they give is what every other rank would have
/// given if it were this one; data of tensors on meta is not touched. For dry runs, and for checking layout
/// types without data.
///
/// Groups    group_of() works, and so do the groups of a Mesh; split(), which asks the others, throws
///           CommError.
[[nodiscard]] std::shared_ptr<Communicator> make_fake_communicator(int size, int rank,
                                                                   std::shared_ptr<Tape> tape);

/// The world of `tapes.size()` ranks that are threads of this process; element r is for the thread of rank r.
///
/// Data goes straight from rank to rank: a reduction reads each rank's buffer once and writes each once, in
/// slices that are taken by whichever ranks wait. Waiting is on condition variables.
[[nodiscard]] std::vector<std::shared_ptr<Communicator>> make_thread_communicators(
    const std::vector<std::shared_ptr<Tape>>& tapes, const CommOptions& options = {});

}  // namespace tessera::dist
