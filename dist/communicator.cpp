// What all backends share: checks of a call, its line on the tape, groups of one rank.

#include "dist/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <set>
#include <utility>

#include "kernels/random_key.h"

namespace tessera::dist {
namespace detail {

std::string describe(const Call& call) {
  if (call.op == Collective::kFinish) return "nothing more (it has left the program)";
  std::string arguments;
  const bool moves_data = call.in.data != nullptr || call.in.count > 0 || call.out.count > 0;
  if (moves_data) {
    const ConstBuffer buffer = call.op == Collective::kRecv ? ConstBuffer(call.out) : call.in;
    arguments = fmt::format("{} {}", buffer.count, name(buffer.dtype));
  }
  if (call.op == Collective::kAllReduce || call.op == Collective::kReduceScatter) {
    arguments += fmt::format(", {}", name(call.reduce));
  }
  if (call.op == Collective::kBroadcast) arguments += fmt::format(", root {}", call.peer);
  if (call.op == Collective::kSend) arguments += fmt::format(", to rank {}, tag {}", call.peer, call.tag);
  if (call.op == Collective::kRecv) arguments += fmt::format(", from rank {}, tag {}", call.peer, call.tag);
  return fmt::format("{}({}) at {}:{}", name(call.op), arguments, call.where.file_name(), call.where.line());
}

std::uint64_t fingerprint(const Call& call) noexcept {
  const bool reduces = call.op == Collective::kAllReduce || call.op == Collective::kReduceScatter;
  const std::uint64_t fields[] = {
      static_cast<std::uint64_t>(call.op),       static_cast<std::uint64_t>(call.in.count),
      static_cast<std::uint64_t>(call.in.dtype), reduces ? static_cast<std::uint64_t>(call.reduce) : 0,
      static_cast<std::uint64_t>(call.peer + 1), call.sequence};
  std::uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (const std::uint64_t field : fields) hash = kernels::random_key_bits({.seed = hash, .stream = field});
  return hash;
}

}  // namespace detail

// --- Work --------------------------------------------------------------------------------------------------

Work::Work(std::unique_ptr<detail::Operation> operation, std::shared_ptr<Tape> tape, std::uint64_t ticket)
    : operation_(std::move(operation)), tape_(std::move(tape)), ticket_(ticket) {}

Work::Work(Work&& other) noexcept
    : operation_(std::move(other.operation_)),
      tape_(std::move(other.tape_)),
      ticket_(other.ticket_),
      owner_(std::move(other.owner_)) {}

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    settle();
    operation_ = std::move(other.operation_);
    tape_ = std::move(other.tape_);
    ticket_ = other.ticket_;
    owner_ = std::move(other.owner_);
  }
  return *this;
}

Work::~Work() { settle(); }

void Work::wait() { static_cast<void>(wait_until(detail::Operation::Time::max())); }

bool Work::wait_for(std::chrono::milliseconds limit) {
  return wait_until(std::chrono::steady_clock::now() + limit);
}

bool Work::wait_until(detail::Operation::Time until) {
  if (operation_ == nullptr) return true;
  const double start = steady_seconds();
  bool done = false;
  try {
    done = operation_->wait_until(until);
  } catch (...) {
    finish();
    throw;
  }
  tape_->waited(ticket_, steady_seconds() - start);
  if (done) finish();
  return done;
}

bool Work::test() {
  if (operation_ == nullptr) return true;
  const double start = steady_seconds();
  bool done = false;
  try {
    done = operation_->test();
  } catch (...) {
    finish();
    throw;
  }
  tape_->was_inside(ticket_, steady_seconds() - start);
  if (done) finish();
  return done;
}

void Work::finish() noexcept {
  operation_.reset();
  if (tape_ != nullptr) tape_->end(ticket_);
  tape_.reset();
  owner_.reset();
}

void Work::settle() noexcept {
  if (operation_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    operation_->abandon();
  } else {
    try {
      wait();
    } catch (...) {  // the group has failed: its next call says so
    }
  }
  finish();
}

// --- Communicator ------------------------------------------------------------------------------------------

using detail::Call;

Communicator::Communicator(Identity identity, std::shared_ptr<Tape> tape, const CommOptions& options)
    : rank_(identity.rank),
      size_(identity.size),
      name_(std::move(identity.name)),
      tape_(tape != nullptr ? std::move(tape) : std::make_shared<Tape>()),
      options_(options) {}

void Communicator::stand_on(std::vector<int> host_of_rank) {
  host_of_rank_ = std::move(host_of_rank);
  num_hosts_ = static_cast<int>(std::set<int>(host_of_rank_.begin(), host_of_rank_.end()).size());
}

std::string Communicator::context(const Call& call) const {
  return fmt::format("(rank {} of {} in group {}, {}:{})", rank_, size_, name_, call.where.file_name(),
                     call.where.line());
}

void Communicator::check_buffer(const Call& call, const char* which, ConstBuffer buffer) const {
  if (buffer.count < 0) {
    throw ShapeError(
        fmt::format("{}: {} has {} elements {}", dist::name(call.op), which, buffer.count, context(call)),
        call.where);
  }
  if (buffer.data == nullptr && buffer.count > 0 && moves_data()) {
    throw DeviceError(fmt::format("{}: {} has {} elements and no data (dropped, or on the meta device) {}",
                                  dist::name(call.op), which, buffer.count, context(call)),
                      call.where);
  }
}

void Communicator::check_layout(const Call& call) const {
  check_buffer(call, "the input", call.in);
  check_buffer(call, "the output", call.out);
  const bool reduces = call.op == Collective::kAllReduce || call.op == Collective::kReduceScatter;
  if (reduces && !is_reducible(call.in.dtype)) {
    throw DTypeError(
        fmt::format("{}: {} of {} is not defined; convert to i32 or f32 first {}", dist::name(call.op),
                    dist::name(call.reduce), tessera::name(call.in.dtype), context(call)),
        call.where);
  }
  if (call.op == Collective::kAllReduce || call.op == Collective::kBroadcast) return;  // in place: one buffer
  if (call.in.dtype != call.out.dtype) {
    throw DTypeError(fmt::format("{}: input is {}, output is {} {}", dist::name(call.op),
                                 tessera::name(call.in.dtype), tessera::name(call.out.dtype), context(call)),
                     call.where);
  }
  std::int64_t expected_in = call.in.count, expected_out = call.out.count;
  const char* rule = "as many elements out as in";
  if (call.op == Collective::kReduceScatter) {
    expected_in = call.out.count * size_;
    rule = "the input R times as long as the output";
  } else if (call.op == Collective::kAllGather) {
    expected_out = call.in.count * size_;
    rule = "the output R times as long as the input";
  } else {
    expected_out = call.in.count;
    if (call.in.count % size_ != 0) {
      throw ShapeError(fmt::format("{}: {} elements can't be cut into R = {} equal parts {}",
                                   dist::name(call.op), call.in.count, size_, context(call)),
                       call.where);
    }
  }
  if (call.in.count != expected_in || call.out.count != expected_out) {
    throw ShapeError(
        fmt::format("{}: expected {}; input has {} elements, output {}, R = {} {}", dist::name(call.op), rule,
                    call.in.count, call.out.count, size_, context(call)),
        call.where);
  }
  // Overlap: none, or exactly the rank's own slice.
  const auto* in = static_cast<const char*>(call.in.data);
  const auto* out = static_cast<const char*>(call.out.data);
  const bool overlap = call.in.count > 0 && call.out.count > 0 && in != nullptr && out != nullptr &&
                       std::less<>()(in, out + call.out.size_bytes()) &&
                       std::less<>()(out, in + call.in.size_bytes());
  const bool own_slice =
      (call.op == Collective::kReduceScatter && out == in + rank_ * call.out.size_bytes()) ||
      (call.op == Collective::kAllGather && in == out + rank_ * call.in.size_bytes());
  if (overlap && !own_slice) {
    throw ShapeError(fmt::format("{}: input and output overlap; only the rank's own slice may be shared {}",
                                 dist::name(call.op), context(call)),
                     call.where);
  }
}

void Communicator::check_rank(const Call& call, const char* which) const {
  if (call.peer < 0 || call.peer >= size_) {
    throw IndexError(fmt::format("{}: {} is rank {}, but the group has ranks 0 to {} {}", dist::name(call.op),
                                 which, call.peer, size_ - 1, context(call)),
                     call.where);
  }
}

Work Communicator::submit(Call& call, std::int64_t elements) {
  const bool is_message = call.op == Collective::kSend || call.op == Collective::kRecv;
  call.sequence = is_message ? next_message_++ : next_collective_++;
  const std::uint64_t ticket =
      tape_->begin({.sequence = call.sequence,
                    .op = call.op,
                    .group = name_,
                    .group_id = id_,
                    .rank = rank_,
                    .num_ranks = size_,
                    .num_hosts = num_hosts_,
                    .elements = elements,
                    .dtype = call.in.dtype,
                    .peer = call.peer,
                    .tag = call.tag,
                    .sent_bytes = sent_bytes(call.op, elements, call.in.dtype, size_, rank_, call.peer),
                    .where = call.where});
  if (size_ == 1) {
    if (call.in.count > 0 && call.out.data != call.in.data && call.out.data != nullptr &&
        call.in.data != nullptr) {
      std::memcpy(call.out.data, call.in.data, static_cast<std::size_t>(call.in.size_bytes()));
    }
    tape_->end(ticket);
    return {};
  }
  const double begin = steady_seconds();
  Work work(start(call), tape_, ticket);
  tape_->was_inside(ticket, steady_seconds() - begin);  // the last rank to come may do a part of the work
  return work;
}

Work Communicator::all_reduce_async(Buffer x, ReduceOp op, Where where) {
  Call call{.op = Collective::kAllReduce, .reduce = op, .in = x, .out = x, .where = where};
  check_layout(call);
  return submit(call, x.count);
}

Work Communicator::reduce_scatter_async(ConstBuffer x, Buffer y, ReduceOp op, Where where) {
  Call call{.op = Collective::kReduceScatter, .reduce = op, .in = x, .out = y, .where = where};
  check_layout(call);
  return submit(call, y.count);
}

Work Communicator::all_gather_async(ConstBuffer x, Buffer y, Where where) {
  Call call{.op = Collective::kAllGather, .in = x, .out = y, .where = where};
  check_layout(call);
  return submit(call, x.count);
}

Work Communicator::broadcast_async(Buffer x, int root, Where where) {
  Call call{.op = Collective::kBroadcast, .in = x, .out = x, .peer = root, .where = where};
  check_layout(call);
  check_rank(call, "the root");
  return submit(call, x.count);
}

Work Communicator::all_to_all_async(ConstBuffer x, Buffer y, Where where) {
  Call call{.op = Collective::kAllToAll, .in = x, .out = y, .where = where};
  check_layout(call);
  return submit(call, x.count / size_);
}

Work Communicator::send_async(ConstBuffer x, int to, int tag, Where where) {
  Call call{.op = Collective::kSend, .in = x, .peer = to, .tag = tag, .where = where};
  check_buffer(call, "the message", x);
  check_rank(call, "the receiver");
  if (to == rank_)
    throw IndexError(fmt::format("send: a rank can't send to itself {}", context(call)), where);
  if (tag < 0 || tag >= 32768) throw IndexError(fmt::format("send: tag {} is not in [0, 32768)", tag), where);
  return submit(call, x.count);
}

Work Communicator::recv_async(Buffer y, int from, int tag, Where where) {
  Call call{.op = Collective::kRecv, .in = y, .out = y, .peer = from, .tag = tag, .where = where};
  check_buffer(call, "the message", y);
  check_rank(call, "the sender");
  if (from == rank_)
    throw IndexError(fmt::format("recv: a rank can't receive from itself {}", context(call)), where);
  if (tag < 0 || tag >= 32768) throw IndexError(fmt::format("recv: tag {} is not in [0, 32768)", tag), where);
  return submit(call, y.count);
}

Work Communicator::barrier_async(Where where) {
  Call call{.op = Collective::kBarrier, .where = where};
  return submit(call, 0);
}

void Communicator::all_reduce(Buffer x, ReduceOp op, Where where) { all_reduce_async(x, op, where).wait(); }
void Communicator::reduce_scatter(ConstBuffer x, Buffer y, ReduceOp op, Where where) {
  reduce_scatter_async(x, y, op, where).wait();
}
void Communicator::all_gather(ConstBuffer x, Buffer y, Where where) { all_gather_async(x, y, where).wait(); }
void Communicator::broadcast(Buffer x, int root, Where where) { broadcast_async(x, root, where).wait(); }
void Communicator::all_to_all(ConstBuffer x, Buffer y, Where where) { all_to_all_async(x, y, where).wait(); }
void Communicator::send(ConstBuffer x, int to, int tag, Where where) { send_async(x, to, tag, where).wait(); }
void Communicator::recv(Buffer y, int from, int tag, Where where) { recv_async(y, from, tag, where).wait(); }
void Communicator::barrier(Where where) { barrier_async(where).wait(); }
void Communicator::finish(Where where) {
  Call call{.op = Collective::kFinish, .where = where};
  submit(call, 0).wait();
}

std::shared_ptr<Communicator> Communicator::split(int color, int key, const std::string& name, Where where) {
  // Every rank learns every rank's color and key, and works out the same groups.
  const std::int64_t mine[2] = {color, key};
  std::vector<std::int64_t> all(2 * static_cast<std::size_t>(size_));
  Call call{.op = Collective::kSplit, .in = buffer_of(mine), .out = buffer_of(all), .where = where};
  submit(call, 2).wait();
  std::vector<int> members;
  for (int r = 0; r < size_; ++r) {
    if (color >= 0 && all[2 * static_cast<std::size_t>(r)] == color) members.push_back(r);
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return all[2 * static_cast<std::size_t>(a) + 1] < all[2 * static_cast<std::size_t>(b) + 1];
  });
  const auto me = std::find(members.begin(), members.end(), rank_);
  const int new_rank = me == members.end() ? -1 : static_cast<int>(me - members.begin());
  std::shared_ptr<Communicator> group = make_group(color, members, new_rank, call, name);
  // All members come to the same, without a word.
  if (group != nullptr) {
    for (const std::uint64_t field : {call.sequence, static_cast<std::uint64_t>(color)})
      group->id_ = kernels::random_key_bits({.seed = group->id_ + id_, .stream = field});
    if (!host_of_rank_.empty()) {
      std::vector<int> hosts;
      for (const int member : members) hosts.push_back(host_of_rank_[static_cast<std::size_t>(member)]);
      group->stand_on(std::move(hosts));
    }
  }
  return group;
}

std::shared_ptr<Communicator> Communicator::group_of(const std::vector<int>& members, const std::string& name,
                                                     Where where) {
  return split(members.front(), place_among(members, name, where), name, where);
}

int Communicator::place_among(const std::vector<int>& members, const std::string& name, Where where) const {
  const auto me = std::find(members.begin(), members.end(), rank_);
  if (me == members.end())
    throw IndexError(fmt::format("group_of: rank {} is not a member of its own group '{}'", rank_, name),
                     where);
  return static_cast<int>(me - members.begin());
}

std::shared_ptr<Communicator> Communicator::alone(const std::string& name) const {
  return make_self_communicator(tape_, options_, name);
}

}  // namespace tessera::dist
