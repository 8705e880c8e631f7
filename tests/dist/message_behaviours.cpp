// send and recv: matched by sender, receiver and tag, in order of posting. Of one rank there is nothing to
// send to.

#include <chrono>

#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

std::vector<float> message_of(int rank, int number, std::int64_t count) {
  return sample_vector<float>(static_cast<std::uint64_t>(100 + number), rank, count);
}

// Both neighbours at once, in both directions: nobody may need the other to come first.
void neighbours_exchange_both_ways(Job& job) {
  const int R = job.size(), me = job.rank(), next = (me + 1) % R, previous = (me + R - 1) % R;
  if (R == 1) return;
  for (const std::int64_t count : {0, 1, 1000, 100003}) {  // the last beyond what MPI sends without asking
    std::vector<float> from_next(static_cast<std::size_t>(count)), from_previous(from_next.size());
    const std::vector<float> forth = message_of(me, 0, count), back = message_of(me, 1, count);
    std::vector<Work> works;
    works.push_back(job.world().send_async(buffer_of(forth), next, 0));
    works.push_back(job.world().send_async(buffer_of(back), previous, 1));
    works.push_back(job.world().recv_async(buffer_of(from_previous), previous, 0));
    works.push_back(job.world().recv_async(buffer_of(from_next), next, 1));
    for (Work& work : works) work.wait();
    require_equal(from_previous, message_of(previous, 0, count), "from the previous rank");
    require_equal(from_next, message_of(next, 1, count), "from the next rank");
  }
}

// A wait with a limit ends at it, changes nothing, and the call goes on.
void a_wait_with_a_limit_returns_at_it(Job& job) {
  using namespace std::chrono_literals;
  const int R = job.size(), me = job.rank();
  require(Work().wait_for(0ms), "of nothing: complete");
  if (R == 1) return;
  std::vector<float> sum{1.0f}, received{0.0f};
  const std::vector<float> sent{7.0f};
  if (me == 0) {
    Work reduction = job.world().all_reduce_async(buffer_of(sum));
    Work message = job.world().recv_async(buffer_of(received), 1);
    const auto start = std::chrono::steady_clock::now();
    require(!reduction.wait_for(20ms), "the others have not come");
    require(!message.wait_for(20ms), "rank 1 has not sent");
    require(!reduction.wait_for(-1ms), "a limit that is over");
    const auto waited = std::chrono::steady_clock::now() - start;
    require(waited >= 40ms, "it returned before its limit");
    for (int other = 1; other < R; ++other) job.world().send(buffer_of(sent), other, 1);  // now they may come
    require(message.wait_for(60s), "rank 1 has sent");
    require(reduction.wait_for(60s), "all have come");
    require(reduction.wait_for(0ms), "a call that has completed");
    require(received[0] == 8.0f, "what was received");
  } else {
    std::vector<float> go{0.0f};
    job.world().recv(buffer_of(go), 0, 1);
    const std::vector<float> reply{8.0f};
    if (me == 1) job.world().send(buffer_of(reply), 0);
    job.world().all_reduce(buffer_of(sum));
  }
  require(sum[0] == static_cast<float>(R), "the sum");
}

void blocking_calls_pass_a_token_round(Job& job) {
  const int R = job.size(), me = job.rank();
  if (R == 1) return;
  std::int64_t token[1] = {0};
  if (me > 0) job.world().recv(buffer_of(token), me - 1);
  ++token[0];
  job.world().send(buffer_of(token), (me + 1) % R);
  if (me == 0) {
    job.world().recv(buffer_of(token), R - 1);
    require(token[0] == R, fmt::format("the token counts {} ranks", token[0]));
  }
}

// Receivers that ask in reverse order of tags get each its own.
void tags_keep_messages_apart(Job& job) {
  constexpr int kMessages = 6;
  const int R = job.size(), me = job.rank();
  if (R == 1) return;
  for (const bool receives_first : {false, true}) {
    std::vector<std::vector<float>> sent, received;
    std::vector<Work> works;
    const auto post_sends = [&] {
      for (int tag = 0; tag < kMessages; ++tag) sent.push_back(message_of(me, tag, 50 * tag));
      for (int tag = 0; tag < kMessages; ++tag) {
        works.push_back(job.world().send_async(buffer_of(std::as_const(sent[static_cast<std::size_t>(tag)])),
                                               (me + 1) % R, tag * 6553));
      }
    };
    const auto post_receives = [&] {
      for (int tag = 0; tag < kMessages; ++tag) received.emplace_back(static_cast<std::size_t>(50 * tag));
      for (int tag = kMessages - 1; tag >= 0; --tag) {
        works.push_back(job.world().recv_async(buffer_of(received[static_cast<std::size_t>(tag)]),
                                               (me + R - 1) % R, tag * 6553));
      }
    };
    if (receives_first) post_receives();
    post_sends();
    if (!receives_first) post_receives();
    for (std::size_t i = works.size(); i-- > 0;) works[i].wait();
    for (int tag = 0; tag < kMessages; ++tag) {
      require_equal(received[static_cast<std::size_t>(tag)], message_of((me + R - 1) % R, tag, 50 * tag),
                    fmt::format("message {}", tag));
    }
  }
}

void equal_tags_arrive_in_order_of_posting(Job& job) {
  const int R = job.size(), me = job.rank();
  if (R == 1) return;
  constexpr int kMessages = 20;
  std::vector<std::int64_t> sent(kMessages), received(kMessages);
  std::vector<Work> works;
  for (std::size_t i = 0; i < kMessages; ++i) {
    sent[i] = static_cast<std::int64_t>(i);
    works.push_back(job.world().send_async({&sent[i], 1, kI64}, (me + 1) % R, 7));
  }
  for (std::size_t i = 0; i < kMessages; ++i) {
    works.push_back(job.world().recv_async({&received[i], 1, kI64}, (me + R - 1) % R, 7));
  }
  for (std::size_t i = works.size(); i-- > 0;) works[i].wait();
  require_equal(received, sent, "numbers in order");
}

// A message may be posted on one side of a collective and received on the other.
void messages_need_not_be_in_line_with_collectives(Job& job) {
  const int R = job.size(), me = job.rank();
  if (R == 1) return;
  const std::vector<float> mine = message_of(me, 0, 70001);
  std::vector<float> theirs(mine.size());
  std::vector<float> sum(5000, 1.0f);
  const int next = (me + 1) % R, previous = (me + R - 1) % R;
  if (me % 2 == 0) {
    Work work = job.world().send_async(buffer_of(mine), next);
    job.world().all_reduce(buffer_of(sum));
    job.world().recv(buffer_of(theirs), previous);
    work.wait();
  } else {
    Work reduction = job.world().all_reduce_async(buffer_of(sum));
    Work work = job.world().send_async(buffer_of(mine), next);
    job.world().recv(buffer_of(theirs), previous);
    work.wait();
    reduction.wait();
  }
  require_equal(theirs, message_of(previous, 0, 70001), "message");
  require_equal(sum, std::vector<float>(sum.size(), static_cast<float>(R)), "sum");
}

// Every rank to every other, sizes of their own.
void all_pairs_exchange(Job& job) {
  const int R = job.size(), me = job.rank();
  std::vector<std::vector<float>> sent(static_cast<std::size_t>(R)), received(sent.size());
  std::vector<Work> works;
  for (int peer = 0; peer < R; ++peer) {
    if (peer == me) continue;
    const auto p = static_cast<std::size_t>(peer);
    sent[p] = message_of(me, peer, 100 * me + peer);
    received[p].resize(static_cast<std::size_t>(100 * peer + me));
    works.push_back(job.world().recv_async(buffer_of(received[p]), peer));
    works.push_back(job.world().send_async(buffer_of(std::as_const(sent[p])), peer));
  }
  for (Work& work : works) work.wait();
  for (int peer = 0; peer < R; ++peer) {
    if (peer == me) continue;
    require_equal(received[static_cast<std::size_t>(peer)], message_of(peer, me, 100 * peer + me),
                  fmt::format("from rank {}", peer));
  }
}

}  // namespace

std::vector<Behaviour> message_behaviours() {
  return {{"a_wait_with_a_limit_returns_at_it", a_wait_with_a_limit_returns_at_it},
          {"neighbours_exchange_both_ways", neighbours_exchange_both_ways},
          {"blocking_calls_pass_a_token_round", blocking_calls_pass_a_token_round},
          {"tags_keep_messages_apart", tags_keep_messages_apart},
          {"equal_tags_arrive_in_order_of_posting", equal_tags_arrive_in_order_of_posting},
          {"messages_need_not_be_in_line_with_collectives", messages_need_not_be_in_line_with_collectives},
          {"all_pairs_exchange", all_pairs_exchange}};
}

}  // namespace tessera::dist::testing
