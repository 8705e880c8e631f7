// Exposed communication, told apart by what a rank stood there for: another rank, or the data.
//
//     rank 0   compute ──┤ all_reduce  waiting  │ transfer ├── compute
//     rank 1   compute ──────────── late ───────┤ transfer ├── compute
//                                               t: the last rank comes

#include "dist/time_split.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>

#include "kernels/random_key.h"

namespace tessera::dist {
namespace {

std::uint64_t hash_of(std::initializer_list<std::uint64_t> fields) {
  std::uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (const std::uint64_t field : fields) hash = kernels::random_key_bits({.seed = hash, .stream = field});
  return hash;
}

// Collectives have one number on all ranks of a group. Messages are matched as they are delivered: the n-th
// that a rank sends to another with a tag is the n-th that the other receives.
class Matcher {
 public:
  std::uint64_t match(const TapeEntry& entry) {
    if (entry.op != Collective::kSend && entry.op != Collective::kRecv)
      return hash_of({0, entry.group_id, entry.sequence});
    const bool sends = entry.op == Collective::kSend;
    const int from = sends ? entry.rank : entry.peer, to = sends ? entry.peer : entry.rank;
    const std::uint64_t nth = messages_[{entry.group_id, from, to, entry.tag}]++;
    return hash_of({1, entry.group_id, static_cast<std::uint64_t>(from), static_cast<std::uint64_t>(to),
                    static_cast<std::uint64_t>(entry.tag), nth});
  }

 private:
  std::map<std::tuple<std::uint64_t, int, int, int>, std::uint64_t> messages_;
};

}  // namespace

TimedRank timed_calls(const Tape& tape, double begin, double end) {
  TimedRank rank{.begin = begin, .end = end, .calls = {}};
  const double origin = tape.origin_seconds();
  const std::vector<TapeEntry> entries = tape.recent();
  if (entries.size() == tape.capacity() && origin + entries.front().start_seconds >= begin) {
    throw CommError(fmt::format(
        "time split: the tape has kept {} calls, and there were more; raise JobOptions::tape_capacity",
        tape.capacity()));
  }
  Matcher matcher;
  for (const TapeEntry& entry : entries) {
    const double arrived = origin + entry.start_seconds;
    if (entry.num_ranks < 2 || arrived < begin || arrived > end) continue;
    rank.calls.push_back({.match = matcher.match(entry),
                          .arrived = arrived,
                          .inside = entry.inside_seconds,
                          .wait_begin = origin + entry.wait_end_seconds - entry.wait_seconds,
                          .wait_end = origin + entry.wait_end_seconds});
  }
  return rank;
}

std::vector<TimeSplit> split_times(std::span<const TimedRank> ranks) {
  std::map<std::uint64_t, double> last_arrival;
  for (const TimedRank& rank : ranks) {
    for (const TimedCall& call : rank.calls) {
      double& last = last_arrival.try_emplace(call.match, call.arrived).first->second;
      last = std::max(last, call.arrived);
    }
  }
  std::vector<TimeSplit> splits;
  for (const TimedRank& rank : ranks) {
    TimeSplit split{.seconds = rank.end - rank.begin};
    for (const TimedCall& call : rank.calls) {
      const double waited = call.wait_end - call.wait_begin;
      const double waiting = std::clamp(last_arrival.at(call.match) - call.wait_begin, 0.0, waited);
      split.waiting += waiting;
      split.transfer += waited - waiting + call.inside;
    }
    splits.push_back(split);
  }
  return splits;
}

std::vector<TimeSplit> gather_time_splits(Communicator& world, double begin, double end) {
  const TimedRank mine = timed_calls(world.tape(), begin, end);
  const auto num_ranks = static_cast<std::size_t>(world.size());
  const double header[] = {begin, end, static_cast<double>(mine.calls.size())};
  std::vector<double> headers(3 * num_ranks);
  world.all_gather(buffer_of(header), buffer_of(headers));
  std::size_t most = 0;
  for (std::size_t r = 0; r < num_ranks; ++r)
    most = std::max(most, static_cast<std::size_t>(headers[3 * r + 2]));

  constexpr std::size_t kFields = 5;
  std::vector<std::int64_t> own(kFields * most), all(own.size() * num_ranks);
  for (std::size_t i = 0; i < mine.calls.size(); ++i) {
    const TimedCall& call = mine.calls[i];
    std::int64_t* const fields = own.data() + kFields * i;
    fields[0] = std::bit_cast<std::int64_t>(call.match);
    const double times[] = {call.arrived, call.inside, call.wait_begin, call.wait_end};
    for (std::size_t t = 0; t < 4; ++t) fields[1 + t] = std::bit_cast<std::int64_t>(times[t]);
  }
  world.all_gather(buffer_of(std::as_const(own)), buffer_of(all));

  std::vector<TimedRank> ranks(num_ranks);
  for (std::size_t r = 0; r < num_ranks; ++r) {
    ranks[r] = {.begin = headers[3 * r], .end = headers[3 * r + 1], .calls = {}};
    for (std::size_t i = 0; i < static_cast<std::size_t>(headers[3 * r + 2]); ++i) {
      const std::int64_t* const fields = all.data() + r * own.size() + kFields * i;
      const auto time = [fields](std::size_t t) { return std::bit_cast<double>(fields[1 + t]); };
      ranks[r].calls.push_back({.match = std::bit_cast<std::uint64_t>(fields[0]),
                                .arrived = time(0),
                                .inside = time(1),
                                .wait_begin = time(2),
                                .wait_end = time(3)});
    }
  }
  return split_times(ranks);
}

}  // namespace tessera::dist
