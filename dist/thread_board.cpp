#include "dist/thread_board.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace tessera::dist::detail {
namespace {

// A call that moves fewer bytes than this is done by one rank: waking others would take longer.
constexpr std::int64_t kSmallBytes = 128 * 1024;
// Portion of a rank's slice that is handed out at a time.
constexpr std::int64_t kPieceBytes = 512 * 1024;
constexpr int kMaxPieces = 8;

/// First element of piece `i` of `pieces` pieces of [0, count), on multiples of 64 elements: no cache line is
/// shared.
std::int64_t cut(std::int64_t count, int pieces, int i) {
  const std::int64_t length = ((count + pieces - 1) / pieces + 63) / 64 * 64;
  return std::min(count, length * i);
}

const char* at(const ConstBuffer& buffer, std::int64_t element) {
  return static_cast<const char*>(buffer.data) +
         element * static_cast<std::int64_t>(size_bytes(buffer.dtype));
}
char* at(const Buffer& buffer, std::int64_t element) {
  return static_cast<char*>(buffer.data) + element * static_cast<std::int64_t>(size_bytes(buffer.dtype));
}

void copy_elements(const char* from, char* to, std::int64_t count, DType dtype) {
  if (from != to && count > 0) std::memcpy(to, from, static_cast<std::size_t>(count) * size_bytes(dtype));
}

}  // namespace

// --- Family ------------------------------------------------------------------------------------------------

void Family::add(const std::shared_ptr<Board>& board) {
  const std::lock_guard lock(mutex_);
  boards_.push_back(board);
}

void Family::fail(const std::string& cause) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (failed()) return;
    cause_ = cause;
    failed_.store(true, std::memory_order_release);
  }
  wake_all();
}

void Family::leave(int world_rank) noexcept {
  left_[static_cast<std::size_t>(world_rank)] = true;
  wake_all();
}

std::string Family::cause() const {
  const std::lock_guard lock(mutex_);
  return cause_;
}

void Family::wake_all() noexcept {
  std::vector<std::weak_ptr<Board>> boards;
  {
    const std::lock_guard lock(mutex_);
    boards = boards_;
  }
  for (const auto& weak : boards) {
    if (const auto board = weak.lock()) board->wake_all();
  }
}

// --- Board: collectives ------------------------------------------------------------------------------------

Board::Board(std::string name, std::vector<int> world_ranks, std::shared_ptr<Family> family,
             std::chrono::milliseconds timeout)
    : name_(std::move(name)),
      world_ranks_(std::move(world_ranks)),
      family_(std::move(family)),
      timeout_(timeout) {}

void Board::wake_all() noexcept {
  // Locked, so that a rank between its look at the flags and its wait does not miss the call.
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

std::shared_ptr<Exchange> Board::post(int rank, const Call& call) {
  std::shared_ptr<Exchange> exchange = post_exchange(rank, call);
  // Only now: peers that wait in finish() for this rank must find it there.
  if (call.op == Collective::kFinish) family_->leave(world_ranks_[static_cast<std::size_t>(rank)]);
  return exchange;
}

std::shared_ptr<Exchange> Board::post_exchange(int rank, const Call& call) {
  Lock lock(mutex_);
  if (family_->failed()) throw_failure(rank, call);
  while (first_sequence_ + exchanges_.size() <= call.sequence) {
    exchanges_.push_back(std::make_shared<Exchange>(size()));
  }
  const std::shared_ptr<Exchange> exchange = exchanges_[call.sequence - first_sequence_];
  check_matches(lock, rank, call, *exchange);
  exchange->calls[static_cast<std::size_t>(rank)] = call;
  exchange->posted[static_cast<std::size_t>(rank)] = true;
  if (++exchange->num_posted < size()) return exchange;

  // The last rank to come cuts the work.
  const std::int64_t part_bytes =
      call.op == Collective::kReduceScatter ? call.out.size_bytes() : call.in.size_bytes();
  const std::int64_t parts = call.op == Collective::kReduceScatter ? size() : 1;
  const int pieces = static_cast<int>(std::clamp<std::int64_t>(part_bytes / kPieceBytes, 1, kMaxPieces));
  exchange->num_units = size() * pieces;
  exchange->num_slices = part_bytes * parts * size() < kSmallBytes ? 1 : exchange->num_units;
  if (exchange->num_slices == 1 && exchange == exchanges_.front()) {
    advance(lock, *exchange);
  } else {
    changed_.notify_all();
  }
  return exchange;
}

void Board::check_matches(Lock& lock, int rank, const Call& call, const Exchange& exchange) {
  for (int other = 0; other < size(); ++other) {
    if (!exchange.posted[static_cast<std::size_t>(other)]) continue;
    const Call& theirs = exchange.calls[static_cast<std::size_t>(other)];
    if (fingerprint(theirs) == fingerprint(call)) return;  // equal to one is equal to all that came before
    error_ = fmt::format(
        "ranks make different calls: {} calls {}, {} calls {} (group {}, call {}); every rank of a group "
        "must make the same calls in the same order",
        rank_name(other), describe(theirs), rank_name(rank), describe(call), name_, call.sequence);
    const std::string error = error_;
    lock.unlock();
    family_->fail(error);
    throw CommError(error, call.where);
  }
}

void Board::advance(Lock& lock, const Exchange& target) {
  while (!target.complete && !family_->failed()) {
    const std::shared_ptr<Exchange> front = exchanges_.front();
    if (front->num_posted < size() || front->next_slice == front->num_slices) return;
    const int slice = front->next_slice++;
    ++front->running;
    lock.unlock();
    try {
      run_slice(*front, slice);
    } catch (const std::exception& error) {
      // Out of memory, say: no peer must wait for this slice.
      lock.lock();
      --front->running;
      lock.unlock();
      family_->fail(error.what());
      lock.lock();
      throw;
    }
    lock.lock();
    --front->running;
    if (++front->done == front->num_slices) {
      front->complete = true;
      exchanges_.pop_front();
      ++first_sequence_;
      changed_.notify_all();
    } else if (front->running == 0 && family_->failed()) {
      changed_.notify_all();  // those who wait for us to let go of their buffers
    }
  }
}

void Board::run_slice(const Exchange& exchange, int slice) const {
  const int begin = exchange.num_units * slice / exchange.num_slices;
  const int end = exchange.num_units * (slice + 1) / exchange.num_slices;
  for (int unit = begin; unit < end; ++unit) run_unit(exchange, unit);
}

/// Unit u does piece u mod P of what rank u / P is to receive, P = pieces per rank. In an all-reduce, where
/// all receive the same, it does the u-th part of the whole, for all.
void Board::run_unit(const Exchange& exchange, int unit) const {
  const int pieces = exchange.num_units / size();
  const int rank = unit / pieces, piece = unit % pieces;
  const std::vector<Call>& calls = exchange.calls;
  const Call& receiver = calls[static_cast<std::size_t>(rank)];
  const DType dtype = receiver.in.dtype;
  switch (receiver.op) {
    case Collective::kAllReduce: {
      const std::int64_t begin = cut(receiver.in.count, exchange.num_units, unit);
      const std::int64_t end = cut(receiver.in.count, exchange.num_units, unit + 1);
      if (begin == end) return;
      std::vector<const void*> inputs;
      std::vector<void*> outputs;
      for (const Call& call : calls) {
        inputs.push_back(at(call.in, begin));
        outputs.push_back(at(call.out, begin));
      }
      return reduce(inputs, outputs, end - begin, dtype, receiver.reduce);
    }
    case Collective::kReduceScatter: {
      const std::int64_t n = receiver.out.count;
      const std::int64_t begin = cut(n, pieces, piece), end = cut(n, pieces, piece + 1);
      if (begin == end) return;
      std::vector<const void*> inputs;
      for (const Call& call : calls) inputs.push_back(at(call.in, rank * n + begin));
      void* const output = at(receiver.out, begin);
      return reduce(inputs, {&output, 1}, end - begin, dtype, receiver.reduce);
    }
    case Collective::kAllGather:
    case Collective::kSplit: {
      const std::int64_t n = receiver.in.count;
      const std::int64_t begin = cut(n, pieces, piece), end = cut(n, pieces, piece + 1);
      for (std::size_t sender = 0; sender < calls.size(); ++sender) {
        copy_elements(at(calls[sender].in, begin),
                      at(receiver.out, static_cast<std::int64_t>(sender) * n + begin), end - begin, dtype);
      }
      return;
    }
    case Collective::kBroadcast: {
      const std::int64_t begin = cut(receiver.in.count, pieces, piece),
                         end = cut(receiver.in.count, pieces, piece + 1);
      return copy_elements(at(calls[static_cast<std::size_t>(receiver.peer)].in, begin),
                           at(receiver.out, begin), end - begin, dtype);
    }
    case Collective::kAllToAll: {
      const std::int64_t n = receiver.in.count / size();
      const std::int64_t begin = cut(n, pieces, piece), end = cut(n, pieces, piece + 1);
      for (std::size_t sender = 0; sender < calls.size(); ++sender) {
        copy_elements(at(calls[sender].in, rank * n + begin),
                      at(receiver.out, static_cast<std::int64_t>(sender) * n + begin), end - begin, dtype);
      }
      return;
    }
    case Collective::kSend:
    case Collective::kRecv:
    case Collective::kBarrier:
    case Collective::kFinish:
      return;
  }
}

bool Board::test(int rank, const std::shared_ptr<Exchange>& exchange) {
  Lock lock(mutex_);
  advance(lock, *exchange);
  if (exchange->complete) return true;
  const Call& call = exchange->calls[static_cast<std::size_t>(rank)];
  if (family_->failed()) {
    changed_.wait(lock, [&] { return exchange->running == 0; });
    throw_failure(rank, call);
  }
  return false;
}

bool Board::wait_until(int rank, const std::shared_ptr<Exchange>& exchange, Operation::Time until) {
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  Lock lock(mutex_);
  const Call& call = exchange->calls[static_cast<std::size_t>(rank)];
  for (;;) {
    advance(lock, *exchange);
    if (exchange->complete) return true;
    if (family_->failed()) {
      changed_.wait(lock, [&] { return exchange->running == 0; });
      throw_failure(rank, call);
    }
    if (std::chrono::steady_clock::now() >= until) return false;
    for (int other = 0; other < size(); ++other) {
      const std::size_t r = static_cast<std::size_t>(other);
      if (!exchange->posted[r] && family_->has_left(world_ranks_[r])) {
        fail(lock, rank, call, fmt::format("{} has left the program and will not come", rank_name(other)));
      }
    }
    if (changed_.wait_until(lock, std::min(deadline, until)) == std::cv_status::timeout &&
        deadline <= until && !exchange->complete && exchange->num_posted < size() && !family_->failed()) {
      fail(lock, rank, call,
           fmt::format("waited for {} s; still to come: {}", timeout_.count() / 1000.0, missing(*exchange)));
    }
  }
}

void Board::abandon(int rank, const std::shared_ptr<Exchange>& exchange) noexcept {
  {
    const Lock lock(mutex_);
    if (exchange->complete) return;
  }
  family_->fail(fmt::format("{} failed while its {} was under way", rank_name(rank),
                            describe(exchange->calls[static_cast<std::size_t>(rank)])));
  Lock lock(mutex_);
  changed_.wait(lock, [&] { return exchange->running == 0; });
}

// --- Board: point to point ---------------------------------------------------------------------------------

std::shared_ptr<Message> Board::post_message(int rank, const Call& call) {
  const bool sends = call.op == Collective::kSend;
  auto mine = std::make_shared<Message>();
  mine->call = call;
  mine->from = sends ? rank : call.peer;
  mine->to = sends ? call.peer : rank;
  Lock lock(mutex_);
  if (family_->failed()) throw_failure(rank, call);
  const auto theirs = std::find_if(messages_.begin(), messages_.end(), [&](const auto& other) {
    return other->from == mine->from && other->to == mine->to && other->call.tag == call.tag &&
           other->call.op != call.op;
  });
  if (theirs == messages_.end()) {
    messages_.push_back(mine);
    return mine;
  }
  const std::shared_ptr<Message> other = *theirs;
  messages_.erase(theirs);
  copy_message(lock, mine, other);
  return mine;
}

void Board::copy_message(Lock& lock, const std::shared_ptr<Message>& mine,
                         const std::shared_ptr<Message>& theirs) {
  const bool sends = mine->call.op == Collective::kSend;
  const Call& send = sends ? mine->call : theirs->call;
  const Call& recv = sends ? theirs->call : mine->call;
  if (send.in.count != recv.out.count || send.in.dtype != recv.out.dtype) {
    mine->error = theirs->error =
        fmt::format("send and recv differ: {} calls {}, {} calls {} (group {})", rank_name(mine->from),
                    describe(send), rank_name(mine->to), describe(recv), name_);
    const std::string error = mine->error;
    lock.unlock();
    family_->fail(error);
    throw CommError(error, mine->call.where);
  }
  theirs->copying = true;
  lock.unlock();
  copy_elements(static_cast<const char*>(send.in.data), static_cast<char*>(recv.out.data), send.in.count,
                send.in.dtype);
  lock.lock();
  theirs->copying = false;
  mine->complete = theirs->complete = true;
  changed_.notify_all();
}

bool Board::test(int rank, const std::shared_ptr<Message>& message) {
  Lock lock(mutex_);
  if (message->complete) return true;
  if (family_->failed()) {
    changed_.wait(lock, [&] { return !message->copying; });
    if (!message->error.empty()) throw CommError(message->error, message->call.where);
    throw_failure(rank, message->call);
  }
  return false;
}

bool Board::wait_until(int rank, const std::shared_ptr<Message>& message, Operation::Time until) {
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  while (!test(rank, message)) {
    if (std::chrono::steady_clock::now() >= until) return false;
    Lock lock(mutex_);
    if (message->complete || message->copying || family_->failed()) {
      if (message->copying) changed_.wait(lock, [&] { return !message->copying; });
      continue;
    }
    const auto peer = static_cast<std::size_t>(message->call.peer);
    if (family_->has_left(world_ranks_[peer])) {
      fail(lock, rank, message->call,
           fmt::format("{} has left the program and will not come", rank_name(message->call.peer)));
    }
    if (changed_.wait_until(lock, std::min(deadline, until)) == std::cv_status::timeout &&
        deadline <= until && !message->complete && !message->copying && !family_->failed()) {
      fail(lock, rank, message->call,
           fmt::format("waited for {} s; still to come: {}", timeout_.count() / 1000.0,
                       rank_name(message->call.peer)));
    }
  }
  return true;
}

void Board::abandon(int rank, const std::shared_ptr<Message>& message) noexcept {
  {
    Lock lock(mutex_);
    if (message->complete) return;
    messages_.remove(message);
  }
  family_->fail(
      fmt::format("{} failed while its {} was under way", rank_name(rank), describe(message->call)));
  Lock lock(mutex_);
  changed_.wait(lock, [&] { return !message->copying; });
}

// --- Board: the rest ---------------------------------------------------------------------------------------

std::shared_ptr<Board> Board::child(std::uint64_t sequence, int color, const std::vector<int>& members,
                                    const std::string& name) {
  const Lock lock(mutex_);
  auto& entry = children_[{sequence, color}];
  if (entry.first == nullptr) {
    std::vector<int> world_ranks;
    for (const int member : members) world_ranks.push_back(world_ranks_[static_cast<std::size_t>(member)]);
    entry.first = std::make_shared<Board>(name, world_ranks, family_, timeout_);
    family_->add(entry.first);
  }
  const std::shared_ptr<Board> board = entry.first;
  if (++entry.second == members.size()) children_.erase({sequence, color});
  return board;
}

std::string Board::rank_name(int rank) const {
  const int world_rank = world_ranks_[static_cast<std::size_t>(rank)];
  return world_rank == rank ? fmt::format("rank {}", rank)
                            : fmt::format("rank {} (of the world {})", rank, world_rank);
}

std::string Board::context(int rank, const Call& call) const {
  return fmt::format("{}, rank {} of {} in group {}, call {}", describe(call), rank, size(), name_,
                     call.sequence);
}

std::string Board::missing(const Exchange& exchange) const {
  std::string names;
  for (int rank = 0; rank < size(); ++rank) {
    if (exchange.posted[static_cast<std::size_t>(rank)]) continue;
    if (!names.empty()) names += ", ";
    names += rank_name(rank);
  }
  return names;
}

void Board::throw_failure(int rank, const Call& call) {
  if (!error_.empty()) throw CommError(error_, call.where);
  throw PeerFailure(fmt::format("{}: another rank failed first: {}", context(rank, call), family_->cause()),
                    call.where);
}

void Board::fail(Lock& lock, int rank, const Call& call, const std::string& what) {
  const std::string error = fmt::format("{}: {}", context(rank, call), what);
  lock.unlock();
  family_->fail(error);
  throw CommError(error, call.where);
}

}  // namespace tessera::dist::detail
