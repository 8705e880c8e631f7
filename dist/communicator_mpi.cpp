// Ranks as processes of an MPI job.
//
// Copying collectives are MPI's own non-blocking ones, posted when the call is made. Reductions are done
// here, not by MPI: pieces go to the rank that owns them, are combined in the tree order of dist/reduce.h,
// and come back. That sends the ring's number of bytes, rounds bf16 once, and gives the bits that the threads
// backend gives, which no MPI library promises. Tiny reductions gather everything everywhere and reduce on
// the spot: one step instead of two.
//
// Beside each collective travels a check: the minimum over ranks of (h, ~h), h = hash of the call. The two
// minima are complements of each other if and only if all hashes are equal.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dist/communicator.h"
#include "dist/mpi_requests.h"
#include "dist/mpi_runtime.h"

namespace tessera::dist::detail {
namespace {

// Reductions of at most this many bytes per rank are gathered whole.
constexpr std::int64_t kTinyBytes = 4096;
// Pieces of a rank's slice that are on their way at a time, and their size: enough to keep the wire busy
// while one is reduced, few enough to stay in cache.
constexpr std::int64_t kPieceBytes = 512 * 1024;
constexpr int kPiecesUnderWay = 2;
constexpr std::size_t kDescriptionBytes = 512;
// Tag, in the world's control communicator, of the empty message that a rank sends to every other when it
// leaves the program. Pieces of reductions have smaller ones.
constexpr int kLeftTag = 32767;
// A wait that lasts looks for such messages; what a rank had sent before may take this much longer to arrive.
constexpr std::chrono::milliseconds kLookForLeavers{50};
constexpr std::chrono::seconds kLeaverGrace{2};
// How long a rank that fails serves its peers in calls under way.
constexpr std::chrono::seconds kAbandonTime{1};

/// Owns a duplicate of an MPI communicator, so that nobody else's messages meet ours.
class MpiComm {
 public:
  explicit MpiComm(MPI_Comm comm) : comm_(comm) { MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN); }
  ~MpiComm() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  MpiComm(const MpiComm&) = delete;
  MpiComm& operator=(const MpiComm&) = delete;

  [[nodiscard]] static MPI_Comm duplicate(MPI_Comm comm) {
    MPI_Comm copy = MPI_COMM_NULL;
    Requests requests;
    check_mpi(MPI_Comm_idup(comm, &copy, requests.add()), "MPI_Comm_idup");
    for (PollingWait wait; !requests.test();) wait.pause();
    return copy;
  }
  [[nodiscard]] MPI_Comm get() const noexcept { return comm_; }

 private:
  MPI_Comm comm_;
};

class MpiOperation;

/// What the operations of one group share.
struct MpiGroup {
  /// `parent` is the group that this one was split from, null for the world; `members` are its ranks there.
  MpiGroup(Communicator::Identity group_identity, MPI_Comm group_comm, const CommOptions& comm_options,
           const std::shared_ptr<MpiGroup>& parent, const std::vector<int>& members)
      : identity(std::move(group_identity)),
        options(comm_options),
        data(group_comm),
        control(MpiComm::duplicate(group_comm)),
        world(parent == nullptr || parent->world == nullptr ? parent : parent->world) {
    for (const int member : members) {
      world_ranks.push_back(parent == nullptr ? member
                                              : parent->world_ranks[static_cast<std::size_t>(member)]);
    }
  }

  [[nodiscard]] int rank() const noexcept { return identity.rank; }
  [[nodiscard]] int size() const noexcept { return identity.size; }
  void progress_all();  // of every operation under way, so that none starves while another is waited for
  [[nodiscard]] bool has_left(int rank) const {
    int flag = 0;
    MPI_Iprobe(world_ranks[static_cast<std::size_t>(rank)], kLeftTag,
               (world == nullptr ? *this : *world).control.get(), &flag, MPI_STATUS_IGNORE);
    return flag != 0;
  }

  Communicator::Identity identity;
  CommOptions options;
  MpiComm data;                     // copying collectives, send and recv
  MpiComm control;                  // checks; pieces of reductions
  std::shared_ptr<MpiGroup> world;  // null: this is it
  std::vector<int> world_ranks;     // of the group's ranks
  std::vector<MpiOperation*> under_way;
  std::string error;                                         // once set, the group can't be used any more
  std::optional<PollingWait::Clock::time_point> abandon_by;  // set when an exception ends the calls under way
  std::uint64_t num_events = 0;
};

class MpiOperation : public Operation {
 public:
  MpiOperation(std::shared_ptr<MpiGroup> group, const Call& call) : group_(std::move(group)), call_(call) {
    group_->under_way.push_back(this);
  }
  ~MpiOperation() override { std::erase(group_->under_way, this); }
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;

  /// Posts the check. Every rank does so for every collective, in order of calls.
  void start_check() {
    if (!group_->options.check_calls) return;
    const std::uint64_t hash = fingerprint(call_);
    check_sent_[0] = hash;
    check_sent_[1] = ~hash;
    check_mpi(MPI_Iallreduce(check_sent_, check_received_, 2, MPI_UINT64_T, MPI_MIN, group_->control.get(),
                             check_.add()),
              "MPI_Iallreduce");
    is_checked_ = false;
  }

  bool test() override {
    group_->progress_all();
    return is_complete();
  }

  bool wait_until(Time until) override {
    PollingWait wait;
    std::uint64_t events = group_->num_events;
    for (;;) {
      group_->progress_all();
      if (is_complete()) return true;
      if (until != Time::max() && PollingWait::Clock::now() >= until) return false;
      if (events != group_->num_events) {
        events = group_->num_events;
        wait.progress_was_made();
      }
      if (wait.elapsed() > kLookForLeavers) check_for_leavers(wait.elapsed());
      if (wait.elapsed() > group_->options.timeout) {
        fail(fmt::format("waited for {} s; a peer does not answer (this rank's part: {})",
                         group_->options.timeout.count() / 1000.0,
                         is_checked_ ? "data is missing" : "not all ranks have made the call"));
      }
      wait.pause();
    }
  }

  void abandon() noexcept override {
    // MPI takes no collective back, and peers that are in the call may be reading this rank's buffers right
    // now, from memory that is about to be freed: they would crash before the cause is told. So let them
    // finish, but not for long: those who are not in the call are ended by the job before they come.
    if (cancel()) return;
    if (group_->error.empty()) {
      if (!group_->abandon_by) group_->abandon_by = PollingWait::Clock::now() + kAbandonTime;
      try {
        for (PollingWait wait; !is_complete() && PollingWait::Clock::now() < *group_->abandon_by;
             wait.pause()) {
          group_->progress_all();
        }
      } catch (...) {  // the cause of the exception under way is the one to tell
      }
    }
    if (!is_complete()) group_->error = "a rank failed while a call was under way";
  }

  /// One look at what has arrived.
  void poll() {
    if (is_complete()) return;
    try {
      if (!is_checked_ && check_.test()) {
        is_checked_ = true;
        ++group_->num_events;
        if (check_received_[0] != ~check_received_[1]) report_mismatch();
      }
      if (!is_done_ && progress()) {
        is_done_ = true;
        ++group_->num_events;
      }
    } catch (const CommError& error) {
      if (!group_->error.empty()) throw;
      // MPI's own error may be the consequence of a mismatch: the check knows more.
      if (!is_checked_) {
        PollingWait wait;
        while (!check_.test() && wait.elapsed() < std::chrono::seconds(5)) wait.pause();
        if (wait.elapsed() < std::chrono::seconds(5) && check_received_[0] != ~check_received_[1])
          report_mismatch();
      }
      fail(error.what());
    }
  }

  [[nodiscard]] bool is_complete() const noexcept { return is_done_ && is_checked_; }

 protected:
  /// Does what can be done now; true once all data has arrived. May be called again after that.
  virtual bool progress() = 0;
  /// Takes the call back, if it is of a kind that MPI can take back.
  virtual bool cancel() noexcept { return false; }

  [[nodiscard]] MpiGroup& group() const noexcept { return *group_; }
  [[nodiscard]] const Call& call() const noexcept { return call_; }
  [[nodiscard]] bool is_checked() const noexcept { return is_checked_; }
  void count_event() noexcept { ++group_->num_events; }

  [[noreturn]] void fail(const std::string& what) {
    group_->error = fmt::format("{}, rank {} of {} in group {}, call {}: {}", describe(call_), group_->rank(),
                                group_->size(), group_->identity.name, call_.sequence, what);
    throw CommError(group_->error, call_.where);
  }

 private:
  /// Fails if a rank that this call needs has left the program. Of a checked call in the world the check
  /// itself says so, and better: with both calls.
  void check_for_leavers(PollingWait::Clock::duration elapsed) {
    const bool is_message = call_.op == Collective::kSend || call_.op == Collective::kRecv;
    const bool is_checked_in_world = group_->options.check_calls && group_->world == nullptr;
    if (call_.op == Collective::kFinish || (!is_message && (is_checked_in_world || is_checked_))) return;
    for (int peer = is_message ? call_.peer : 0; peer < (is_message ? call_.peer + 1 : group_->size());
         ++peer) {
      if (peer == group_->rank() || !group_->has_left(peer)) continue;
      if (!leaver_seen_) leaver_seen_ = elapsed;
      if (elapsed - *leaver_seen_ > kLeaverGrace) {
        fail(fmt::format("rank {} has left the program and will not come", peer));
      }
      return;
    }
  }

  /// All ranks of the group come here, for all have the same result of the check.
  [[noreturn]] void report_mismatch() {
    const auto size = static_cast<std::size_t>(group_->size());
    std::string mine = describe(call_);
    mine.resize(kDescriptionBytes);
    std::string all(size * kDescriptionBytes, '\0');
    Requests requests;
    check_mpi(MPI_Iallgather(mine.data(), kDescriptionBytes, MPI_BYTE, all.data(), kDescriptionBytes,
                             MPI_BYTE, group_->control.get(), requests.add()),
              "MPI_Iallgather");
    PollingWait wait;
    while (!requests.test() && wait.elapsed() < std::chrono::seconds(10)) wait.pause();
    // Rank 0's call and the first that differs.
    const std::string first = all.c_str();
    std::size_t other = size - 1;
    for (std::size_t r = size; r-- > 1;) {
      if (std::strcmp(all.c_str() + r * kDescriptionBytes, first.c_str()) != 0) other = r;
    }
    group_->error = fmt::format(
        "ranks make different calls: rank 0 calls {}, rank {} calls {} (group {}, call {}); every rank of a "
        "group must make the same calls in the same order",
        first, other, all.c_str() + other * kDescriptionBytes, group_->identity.name, call_.sequence);
    throw CommError(group_->error, call_.where);
  }

  std::shared_ptr<MpiGroup> group_;
  Call call_;
  bool is_done_ = false;
  bool is_checked_ = true;
  std::optional<PollingWait::Clock::duration> leaver_seen_;  // when the wait found that a rank has left
  Requests check_;
  std::uint64_t check_sent_[2] = {};
  std::uint64_t check_received_[2] = {};
};

void MpiGroup::progress_all() {
  if (!error.empty()) throw CommError(error);
  // By index: an operation is not removed while it is polled, and none is added.
  for (std::size_t i = 0; i < under_way.size(); ++i) under_way[i]->poll();
}

// --- Copies ------------------------------------------------------------------------------------------------

/// One call of MPI.
class CopyOperation final : public MpiOperation {
 public:
  CopyOperation(std::shared_ptr<MpiGroup> mpi_group, const Call& the_call)
      : MpiOperation(std::move(mpi_group), the_call) {
    const bool is_message = call().op == Collective::kSend || call().op == Collective::kRecv;
    if (!is_message) start_check();
    const MPI_Comm comm = group().data.get();
    switch (call().op) {
      case Collective::kAllGather:
      case Collective::kSplit: {
        const MessageType part(call().in.size_bytes());
        check_mpi(MPI_Iallgather(own_part_of_output() == call().in.data ? MPI_IN_PLACE : call().in.data,
                                 part.count(), part.type(), call().out.data, part.count(), part.type(), comm,
                                 requests_.add()),
                  "MPI_Iallgather");
        return;
      }
      case Collective::kBroadcast: {
        const MessageType whole(call().in.size_bytes());
        check_mpi(
            MPI_Ibcast(call().out.data, whole.count(), whole.type(), call().peer, comm, requests_.add()),
            "MPI_Ibcast");
        return;
      }
      case Collective::kAllToAll: {
        const MessageType part(call().in.size_bytes() / group().size());
        check_mpi(MPI_Ialltoall(call().in.data, part.count(), part.type(), call().out.data, part.count(),
                                part.type(), comm, requests_.add()),
                  "MPI_Ialltoall");
        return;
      }
      case Collective::kSend: {
        const MessageType whole(call().in.size_bytes());
        check_mpi(MPI_Isend(call().in.data, whole.count(), whole.type(), call().peer, call().tag, comm,
                            requests_.add()),
                  "MPI_Isend");
        return;
      }
      case Collective::kRecv: {
        const MessageType whole(call().out.size_bytes());
        check_mpi(
            MPI_Irecv(call().out.data, whole.count(), whole.type(), call().peer, call().tag, comm, &message_),
            "MPI_Irecv");
        return;
      }
      case Collective::kFinish:
        for (int peer = 0; peer < group().size(); ++peer) {
          if (peer == group().rank()) continue;
          const MPI_Comm control = group().control.get();
          check_mpi(MPI_Isend(nullptr, 0, MPI_BYTE, peer, kLeftTag, control, requests_.add()), "MPI_Isend");
          check_mpi(MPI_Irecv(nullptr, 0, MPI_BYTE, peer, kLeftTag, control, requests_.add()), "MPI_Irecv");
        }
        [[fallthrough]];
      case Collective::kBarrier:
        check_mpi(MPI_Ibarrier(comm, requests_.add()), "MPI_Ibarrier");
        return;
      case Collective::kAllReduce:
      case Collective::kReduceScatter:
        return;  // ReduceOperation
    }
  }

 protected:
  bool progress() override {
    if (message_ == MPI_REQUEST_NULL) return requests_.test();
    int done = 0;
    MPI_Status status;
    const int code = MPI_Test(&message_, &done, &status);
    MPI_Count num_bytes = call().out.size_bytes();
    if (code == MPI_SUCCESS && done != 0) MPI_Get_elements_x(&status, MPI_BYTE, &num_bytes);
    if (code != MPI_SUCCESS || num_bytes != call().out.size_bytes()) {
      fail(code != MPI_SUCCESS ? fmt::format("the sender's message does not fit: {}", mpi_error_text(code))
                               : fmt::format("expected {} bytes, the sender sent {}", call().out.size_bytes(),
                                             static_cast<std::int64_t>(num_bytes)));
    }
    return done != 0;
  }

  bool cancel() noexcept override {
    if (message_ == MPI_REQUEST_NULL) return false;
    MPI_Cancel(&message_);
    MPI_Request_free(&message_);
    return true;
  }

 private:
  [[nodiscard]] const void* own_part_of_output() const {
    return static_cast<const char*>(call().out.data) + group().rank() * call().in.size_bytes();
  }

  Requests requests_;
  MPI_Request message_ = MPI_REQUEST_NULL;  // of a recv, whose length is checked
};

// --- Reductions --------------------------------------------------------------------------------------------

/// Everything to everyone, then reduced by everyone. One step; for tiny calls.
class TinyReduction final : public MpiOperation {
 public:
  TinyReduction(std::shared_ptr<MpiGroup> mpi_group, const Call& the_call)
      : MpiOperation(std::move(mpi_group), the_call),
        part_bytes_(call().out.size_bytes()),
        gathered_(part_bytes_ * group().size()) {
    start_check();
    const int count = static_cast<int>(part_bytes_);
    if (call().op == Collective::kAllReduce) {
      check_mpi(MPI_Iallgather(call().in.data, count, MPI_BYTE, gathered_.data(), count, MPI_BYTE,
                               group().data.get(), requests_.add()),
                "MPI_Iallgather");
    } else {
      check_mpi(MPI_Ialltoall(call().in.data, count, MPI_BYTE, gathered_.data(), count, MPI_BYTE,
                              group().data.get(), requests_.add()),
                "MPI_Ialltoall");
    }
  }

 protected:
  bool progress() override {
    if (!requests_.test()) return false;
    std::vector<const void*> inputs;
    for (int r = 0; r < group().size(); ++r) inputs.push_back(gathered_.data() + r * part_bytes_);
    void* const output = call().out.data;
    reduce(inputs, {&output, 1}, call().out.count, call().in.dtype, call().reduce);
    return true;
  }

 private:
  std::int64_t part_bytes_;
  CommunicationBuffer gathered_;
  Requests requests_;
};

/// Each rank owns a slice: it receives the others' contributions to it piece by piece, reduces them, and
/// (all_reduce) sends the result to all.
class SlicedReduction final : public MpiOperation {
 public:
  SlicedReduction(std::shared_ptr<MpiGroup> mpi_group, const Call& the_call)
      : MpiOperation(std::move(mpi_group), the_call),
        element_bytes_(static_cast<std::int64_t>(size_bytes(call().in.dtype))),
        piece_(kPieceBytes / element_bytes_) {
    const std::int64_t R = group().size();
    const bool scatters = call().op == Collective::kReduceScatter;
    // Slices of an all-reduce start on cache lines; the last ones may be shorter.
    slice_ = scatters ? call().out.count : ((call().in.count + R - 1) / R + 63) / 64 * 64;
    num_pieces_ = (slice_ + piece_ - 1) / piece_;
    const std::int64_t window = std::min<std::int64_t>(kPiecesUnderWay, num_pieces_);
    received_ =
        std::make_unique<CommunicationBuffer>(window * (R - 1) * std::min(piece_, slice_) * element_bytes_);
    slots_.resize(static_cast<std::size_t>(window));
    start_check();
    if (is_checked()) start();
  }

 protected:
  bool progress() override {
    // No piece is on its way before all ranks are known to make this call: a mismatch ends a rank and frees
    // its buffers, and a peer that was just reading them would be killed by its transport.
    if (!is_checked()) return false;
    if (next_ == 0) start();
    // Oldest piece first: results are sent in order of pieces, as their receivers expect.
    while (oldest_ < num_pieces_) {
      bool moved = false;
      for (std::int64_t piece = oldest_; piece < next_; ++piece) {
        Slot& slot = slots_[static_cast<std::size_t>(piece) % slots_.size()];
        if (slot.state == State::kCollecting && piece == next_to_reduce_ && slot.requests.test()) {
          reduce_piece(slot);
          ++next_to_reduce_;
          moved = true;
        }
        if (slot.state == State::kReturning && slot.requests.test()) {
          slot.state = State::kDone;
          moved = true;
        }
      }
      while (oldest_ < next_ &&
             slots_[static_cast<std::size_t>(oldest_) % slots_.size()].state == State::kDone) {
        Slot& slot = slots_[static_cast<std::size_t>(oldest_) % slots_.size()];
        ++oldest_;
        if (next_ < num_pieces_) start_piece(slot);
      }
      if (!moved) return false;
      count_event();
    }
    return true;
  }

 private:
  enum class State { kCollecting, kReturning, kDone };
  struct Slot {
    std::int64_t piece = 0;
    State state = State::kDone;
    Requests requests;
  };
  struct Range {
    std::int64_t begin, count;
  };

  void start() {
    for (Slot& slot : slots_) start_piece(slot);
  }

  /// Elements of the input that are piece `piece` of rank `owner`'s slice.
  [[nodiscard]] Range range_of(std::int64_t piece, int owner) const {
    const std::int64_t slice_end = std::min(call().in.count, (owner + 1) * slice_);
    const std::int64_t begin = std::min(slice_end, owner * slice_ + piece * piece_);
    const std::int64_t end = std::min({slice_end, begin + piece_, owner * slice_ + (piece + 1) * piece_});
    return {begin, std::max<std::int64_t>(0, end - begin)};
  }
  [[nodiscard]] char* received(const Slot& slot, int from) const {
    const std::int64_t R = group().size();
    const std::int64_t index = slot.piece % static_cast<std::int64_t>(slots_.size()) * (R - 1) +
                               (from < group().rank() ? from : from - 1);
    return received_->data() + index * std::min(piece_, slice_) * element_bytes_;
  }
  [[nodiscard]] int tag(bool returning) const {
    return static_cast<int>(call().sequence % 16383) * 2 + (returning ? 1 : 0);
  }
  void send(Slot& slot, const void* data, std::int64_t count, int to, bool returning) {
    if (count == 0) return;
    check_mpi(MPI_Isend(data, static_cast<int>(count * element_bytes_), MPI_BYTE, to, tag(returning),
                        group().control.get(), slot.requests.add()),
              "MPI_Isend");
  }
  void receive(Slot& slot, void* data, std::int64_t count, int from, bool returning) {
    if (count == 0) return;
    check_mpi(MPI_Irecv(data, static_cast<int>(count * element_bytes_), MPI_BYTE, from, tag(returning),
                        group().control.get(), slot.requests.add()),
              "MPI_Irecv");
  }

  void start_piece(Slot& slot) {
    slot.piece = next_++;
    slot.state = State::kCollecting;
    const int R = group().size(), me = group().rank();
    const auto* input = static_cast<const char*>(call().in.data);
    for (int i = 1; i < R; ++i) {  // starting behind oneself: not everybody to rank 0 first
      const int from = (me - i + R) % R;
      receive(slot, received(slot, from), range_of(slot.piece, me).count, from, false);
    }
    for (int i = 1; i < R; ++i) {
      const int to = (me + i) % R;
      const Range range = range_of(slot.piece, to);
      send(slot, input + range.begin * element_bytes_, range.count, to, false);
    }
  }

  void reduce_piece(Slot& slot) {
    const int R = group().size(), me = group().rank();
    const bool scatters = call().op == Collective::kReduceScatter;
    const Range mine = range_of(slot.piece, me);
    const auto* input = static_cast<const char*>(call().in.data);
    auto* output = static_cast<char*>(call().out.data);
    if (mine.count > 0) {
      std::vector<const void*> inputs;
      for (int r = 0; r < R; ++r) {
        inputs.push_back(r == me ? input + mine.begin * element_bytes_ : received(slot, r));
      }
      void* const target = output + (mine.begin - (scatters ? me * slice_ : 0)) * element_bytes_;
      reduce(inputs, {&target, 1}, mine.count, call().in.dtype, call().reduce);
    }
    slot.state = scatters ? State::kDone : State::kReturning;
    if (scatters) return;
    for (int i = 1; i < R; ++i) {
      const int from = (me - i + R) % R;
      const Range theirs = range_of(slot.piece, from);
      receive(slot, output + theirs.begin * element_bytes_, theirs.count, from, true);
    }
    for (int i = 1; i < R; ++i)
      send(slot, output + mine.begin * element_bytes_, mine.count, (me + i) % R, true);
  }

  std::int64_t element_bytes_;
  std::int64_t piece_;  // elements
  std::int64_t slice_ = 0;
  std::int64_t num_pieces_ = 0;
  std::int64_t next_ = 0;            // piece to start
  std::int64_t next_to_reduce_ = 0;  // piece
  std::int64_t oldest_ = 0;          // piece under way
  std::unique_ptr<CommunicationBuffer> received_;
  std::vector<Slot> slots_;
};

// --- Communicator ------------------------------------------------------------------------------------------

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiGroup> group, std::shared_ptr<Tape> tape)
      : Communicator(group->identity, std::move(tape), group->options), group_(std::move(group)) {}

  [[nodiscard]] const char* backend() const noexcept override { return "mpi"; }
  void abort(const std::string& /*cause*/) noexcept override {}

 protected:
  [[nodiscard]] std::unique_ptr<Operation> start(const Call& call) override {
    group_->progress_all();  // earlier calls move on whenever a new one is made
    if (call.op != Collective::kAllReduce && call.op != Collective::kReduceScatter) {
      return std::make_unique<CopyOperation>(group_, call);
    }
    if (call.out.size_bytes() <= kTinyBytes) return std::make_unique<TinyReduction>(group_, call);
    return std::make_unique<SlicedReduction>(group_, call);
  }

  [[nodiscard]] std::shared_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                                         int new_rank, const Call& /*call*/,
                                                         const std::string& name) override {
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(group_->data.get(), color < 0 ? MPI_UNDEFINED : color, new_rank, &comm),
              "MPI_Comm_split");
    if (color < 0) return nullptr;
    return std::make_shared<MpiCommunicator>(
        std::make_shared<MpiGroup>(Identity{new_rank, static_cast<int>(members.size()), name}, comm,
                                   options(), group_, members),
        shared_tape());
  }

 private:
  std::shared_ptr<MpiGroup> group_;
};

}  // namespace

std::shared_ptr<Communicator> make_mpi_world(std::shared_ptr<Tape> tape, const CommOptions& options) {
  Communicator::Identity identity{.rank = 0, .size = 1, .name = "world"};
  MPI_Comm_rank(MPI_COMM_WORLD, &identity.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &identity.size);
  std::vector<int> all(static_cast<std::size_t>(identity.size));
  std::iota(all.begin(), all.end(), 0);
  return std::make_shared<MpiCommunicator>(
      std::make_shared<MpiGroup>(identity, MpiComm::duplicate(MPI_COMM_WORLD), options, nullptr, all),
      std::move(tape));
}

}  // namespace tessera::dist::detail
