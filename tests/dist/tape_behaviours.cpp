// The tape as byte ledger: each call of each rank against the formulas of dist/tape.h, written as the steps
// of a ring.

#include <chrono>
#include <functional>
#include <thread>

#include "dist/time_split.h"
#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

/// Elements of `n` that fall to rank `r` of `R`: the first n mod R ranks have one more.
std::int64_t slice(std::int64_t n, int R, int r) {
  std::int64_t count = 0;
  for (std::int64_t i = r; i < n; i += R) ++count;
  return count;
}

/// What rank `r` sends in an all-reduce: each slice but its own goes to its owner, its own reduced slice to
/// all others.
std::int64_t all_reduce_elements(std::int64_t n, int R, int r) {
  std::int64_t sent = 0;
  for (int other = 0; other < R; ++other) {
    if (other != r) sent += slice(n, R, other) + slice(n, R, r);
  }
  return sent;
}

std::int64_t sum_over_ranks(Job& job, std::int64_t value) {
  std::int64_t sum[1] = {value};
  job.world().all_reduce(buffer_of(sum));
  return sum[0];
}

void every_call_is_on_the_tape_with_its_bytes(Job& job) {
  Communicator& world = job.world();
  const int R = job.size(), me = job.rank();
  for (const std::int64_t n : {0, 1, 24, 1003}) {
    const auto size = static_cast<std::size_t>(n);
    std::vector<float> x(size), many(size * static_cast<std::size_t>(R));
    std::vector<BFloat16> half(size);
    std::vector<double> wide(many.size()), wide_part(size);
    std::vector<std::uint8_t> bytes(size);
    const std::vector<float> source(many.size());
    std::vector<float> target(many.size());
    struct Row {
      Collective op;
      DType dtype;
      std::int64_t sent_bytes;
      std::int64_t sum;  // over ranks
      std::function<void()> call;
    };
    const int root = R - 1;
    const std::int64_t all = std::int64_t{R - 1} * R;
    const std::vector<Row> rows{
        {Collective::kAllReduce, kF32, 4 * all_reduce_elements(n, R, me), 2 * (R - 1) * n * 4,
         [&] { world.all_reduce(buffer_of(x)); }},
        {Collective::kAllReduce, kBF16, 2 * all_reduce_elements(n, R, me), 2 * (R - 1) * n * 2,
         [&] { world.all_reduce(buffer_of(half)); }},
        {Collective::kReduceScatter, kF64, (R - 1) * n * 8, all * n * 8,
         [&] { world.reduce_scatter(buffer_of(std::as_const(wide)), buffer_of(wide_part)); }},
        {Collective::kAllGather, kF32, (R - 1) * n * 4, all * n * 4,
         [&] { world.all_gather(buffer_of(std::as_const(x)), buffer_of(many)); }},
        {Collective::kAllToAll, kF32, (R - 1) * n * 4, all * n * 4,
         [&] { world.all_to_all(buffer_of(source), buffer_of(target)); }},
        // Passed on from the root along the ring: the rank before the root is its end.
        {Collective::kBroadcast, kU8, (me + 1) % R == root ? 0 : n, (R - 1) * n,
         [&] { world.broadcast(buffer_of(bytes), root); }},
        {Collective::kBarrier, kU8, 0, 0, [&] { world.barrier(); }}};
    for (const Row& row : rows) {
      const std::int64_t before = job.tape().total_sent_bytes();
      row.call();
      const TapeEntry entry = job.tape().recent().back();
      const std::string what = fmt::format("{} of {} {}", name(row.op), n, name(row.dtype));
      require(entry.op == row.op && entry.group == "world", what + ": kind and group");
      if (row.op != Collective::kBarrier) {
        require(entry.elements == n && entry.dtype == row.dtype, what + ": elements and type");
      }
      require(entry.sent_bytes == row.sent_bytes,
              fmt::format("{}: {} bytes, expected {}", what, entry.sent_bytes, row.sent_bytes));
      require(job.tape().total_sent_bytes() - before == row.sent_bytes, what + ": total");
      require(entry.end_seconds >= entry.start_seconds && entry.start_seconds >= 0, what + ": times");
      require(std::string(entry.where.file_name()).ends_with("tape_behaviours.cpp"),
              what + ": the caller's place");
      const std::int64_t sum = sum_over_ranks(job, entry.sent_bytes);
      require(sum == row.sum, fmt::format("{}: {} bytes over all ranks, expected {}", what, sum, row.sum));
    }
    // A ring: 2(N-1)/N of the bytes where N divides the elements (docs/dist.md, "Calls").
    if (n % R == 0) require(rows[0].sent_bytes == 2 * (R - 1) * (n * 4) / R, "the ring's 2(N-1)/N");
  }
}

void messages_count_where_they_are_sent(Job& job) {
  if (job.size() == 1) return;
  const int next = (job.rank() + 1) % job.size(), previous = (job.rank() + job.size() - 1) % job.size();
  const std::vector<BFloat16> x(333);
  std::vector<BFloat16> y(333);
  const std::int64_t before = job.tape().total_sent_bytes();
  Work work = job.world().send_async(buffer_of(x), next);
  job.world().recv(buffer_of(y), previous);
  work.wait();
  require(job.tape().total_sent_bytes() - before == 666, "one message sent");
  const std::vector<TapeEntry> entries = job.tape().recent();
  const TapeEntry& received = entries.back();
  const TapeEntry& sent = entries[entries.size() - 2];
  require(sent.op == Collective::kSend && sent.peer == next && sent.sent_bytes == 666, "the send");
  require(received.op == Collective::kRecv && received.peer == previous && received.sent_bytes == 0,
          "the recv");
}

void a_call_under_way_is_on_the_tape_without_end(Job& job) {
  if (job.size() == 1) return;
  std::vector<float> x(10);
  const int peer = job.rank() ^ 1;
  if (peer < job.size()) {
    Work work = job.world().recv_async(buffer_of(x), peer, 3);
    const std::vector<TapeEntry> entries = job.tape().recent();
    require(entries.back().op == Collective::kRecv && entries.back().end_seconds < 0, "no end yet");
    require(job.tape().dump(1).find("under way") != std::string::npos, job.tape().dump(1));
    job.world().barrier();  // after which the peer may send
    const std::vector<float> y(10);
    Work reply = job.world().send_async(buffer_of(y), peer, 3);
    work.wait();
    reply.wait();
  } else {
    job.world().barrier();
  }
  require(job.tape().dump(1).find("under way") == std::string::npos, job.tape().dump(1));
}

// Groups have lines of their own; sequence numbers count a group's collectives, the same on every rank.
void totals_are_kept_by_group_and_kind(Job& job) {
  const auto group = job.world().split(0, job.rank(), "ledger");
  std::vector<float> x(100);
  for (int i = 0; i < 3; ++i) {
    group->all_reduce(buffer_of(x));
    require(job.tape().recent().back().sequence == static_cast<std::uint64_t>(i), "numbered from 0");
  }
  const std::int64_t each = 4 * all_reduce_elements(100, job.size(), job.rank());
  require(job.tape().total_sent_bytes("ledger") == 3 * each, "group");
  require(job.tape().total_sent_bytes("ledger", Collective::kAllReduce) == 3 * each, "group and kind");
  require(job.tape().total_sent_bytes("ledger", Collective::kBroadcast) == 0, "another kind");
  for (const TapeTotal& total : job.tape().totals()) {
    if (total.group != "ledger") continue;
    require(
        total.op == Collective::kAllReduce && total.calls == 3 && total.elements == 300 && total.seconds >= 0,
        "one row");
  }
}

// Two ranks of a pair share a group id and other pairs have another, though all are called the same. In each
// pair the second rank comes late: the first waits for it, and nobody for the other pairs.
void time_is_split_by_who_is_waited_for(Job& job) {
  using namespace std::chrono_literals;
  Communicator& world = job.world();
  const auto pair = world.split(job.rank() / 2, job.rank(), "pair");
  std::vector<float> x(1000, 1.0f), y(1000);
  world.barrier();
  const double begin = steady_seconds();
  const bool is_late = pair->rank() == 1;
  if (is_late) std::this_thread::sleep_for(60ms);
  pair->all_reduce(buffer_of(x));
  if (pair->size() == 2 && is_late) {
    std::this_thread::sleep_for(60ms);
    pair->send(buffer_of(x), 0, 5);
  } else if (pair->size() == 2) {
    pair->recv(buffer_of(y), 1, 5);
  }
  const double end = steady_seconds();
  const std::vector<TimeSplit> splits = gather_time_splits(world, begin, end);
  require(splits.size() == static_cast<std::size_t>(job.size()), "one for each rank");
  const TimeSplit& own = splits[static_cast<std::size_t>(job.rank())];
  require(own.seconds == end - begin, "its own time");

  std::vector<std::int64_t> id(1), ids(static_cast<std::size_t>(job.size()));
  for (const TapeEntry& entry : job.tape().recent())
    if (entry.group == "pair") id[0] = static_cast<std::int64_t>(entry.group_id);
  world.all_gather(buffer_of(std::as_const(id)), buffer_of(ids));
  for (int rank = 0; rank < job.size(); ++rank) {
    require((ids[static_cast<std::size_t>(rank)] == id[0]) == (rank / 2 == job.rank() / 2),
            fmt::format("rank {} and {} have ids {} and {}", job.rank(), rank, id[0],
                        ids[static_cast<std::size_t>(rank)]));
  }
  for (int rank = 0; rank < job.size(); ++rank) {
    const TimeSplit& split = splits[static_cast<std::size_t>(rank)];
    const bool waits = rank % 2 == 0 && rank + 1 < job.size();
    const std::string what = fmt::format("rank {}: {} s, waiting {}, transfer {}", rank, split.seconds,
                                         split.waiting, split.transfer);
    // Twice 60 ms, of which a busy machine may take some: it may let a rank begin its wait late.
    require(waits ? split.waiting > 0.06 : split.waiting < 0.02, what);
    require(split.transfer >= 0.0 && split.exposed() <= split.seconds, what);
  }
}

}  // namespace

std::vector<Behaviour> tape_behaviours() {
  return {{"every_call_is_on_the_tape_with_its_bytes", every_call_is_on_the_tape_with_its_bytes},
          {"messages_count_where_they_are_sent", messages_count_where_they_are_sent},
          {"a_call_under_way_is_on_the_tape_without_end", a_call_under_way_is_on_the_tape_without_end},
          {"totals_are_kept_by_group_and_kind", totals_are_kept_by_group_and_kind},
          {"time_is_split_by_who_is_waited_for", time_is_split_by_who_is_waited_for}};
}

}  // namespace tessera::dist::testing
