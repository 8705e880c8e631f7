#include "dist/time_split.h"

#include <gtest/gtest.h>

#include "dist/job.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

struct Expected {
  double waiting, transfer;
};

// By hand. A step from 10 s to 20 s on three ranks, of which rank 2 is the last to come to call 1, and rank 0
// to call 2, at which nobody waits before it has come.
//
//   call 1   arrived 11, 12, 15; rank 0 waits 11.5 to 16, rank 1 14 to 16, rank 2 15 to 16
//   call 2   arrived 17, 16.5, 16.5 (rank 2 was inside for 0.25 s); rank 1 waits 18 to 18.5
TEST(TimeSplit, TellsWaitingForARankFromTransfer) {
  const std::vector<TimedRank> ranks{
      {.begin = 10,
       .end = 20,
       .calls = {{.match = 1, .arrived = 11, .wait_begin = 11.5, .wait_end = 16},
                 {.match = 2, .arrived = 17}}},
      {.begin = 10,
       .end = 20,
       .calls = {{.match = 1, .arrived = 12, .wait_begin = 14, .wait_end = 16},
                 {.match = 2, .arrived = 16.5, .wait_begin = 18, .wait_end = 18.5}}},
      {.begin = 10,
       .end = 19,
       .calls = {{.match = 1, .arrived = 15, .wait_begin = 15, .wait_end = 16},
                 {.match = 2, .arrived = 16.5, .inside = 0.25}}},
  };
  const std::vector<TimeSplit> splits = split_times(ranks);
  const Expected expected[] = {{3.5, 1.0}, {1.0, 1.5}, {0.0, 1.25}};
  ASSERT_EQ(splits.size(), 3u);
  for (std::size_t r = 0; r < 3; ++r) {
    EXPECT_DOUBLE_EQ(splits[r].waiting, expected[r].waiting) << r;
    EXPECT_DOUBLE_EQ(splits[r].transfer, expected[r].transfer) << r;
    EXPECT_DOUBLE_EQ(splits[r].exposed(), expected[r].waiting + expected[r].transfer) << r;
    EXPECT_DOUBLE_EQ(splits[r].compute(), (r == 2 ? 9.0 : 10.0) - splits[r].exposed()) << r;
  }
}

// A rank that gave up waiting before the last one came has waited all the time, and no longer.
TEST(TimeSplit, CountsNoMoreThanTheWait) {
  const std::vector<TimedRank> ranks{
      {.begin = 0, .end = 9, .calls = {{.match = 1, .arrived = 1, .wait_begin = 2, .wait_end = 5}}},
      {.begin = 0, .end = 9, .calls = {{.match = 1, .arrived = 8}}},
  };
  const auto splits = split_times(ranks);
  EXPECT_DOUBLE_EQ(splits[0].waiting, 3.0);
  EXPECT_DOUBLE_EQ(splits[0].transfer, 0.0);
}

// Messages are not numbered alike on both sides: they match by sender, receiver and tag, in their order.
TEST(TimeSplit, MatchesMessagesByTagAndOrder) {
  run_thread_ranks(2, [](Job& job) {
    std::vector<float> x(4);
    const double begin = steady_seconds();
    const bool sends = job.rank() == 0;
    std::vector<Work> works;
    for (const int tag : sends ? std::vector{1, 2, 1} : std::vector{2, 1, 1}) {
      works.push_back(sends ? job.world().send_async(buffer_of(x), 1, tag)
                            : job.world().recv_async(buffer_of(x), 0, tag));
    }
    for (Work& work : works) work.wait();
    const TimedRank mine = timed_calls(job.tape(), begin, steady_seconds());
    ASSERT_EQ(mine.calls.size(), 3u);
    std::vector<std::int64_t> own, all(6);
    for (const TimedCall& call : mine.calls) own.push_back(static_cast<std::int64_t>(call.match));
    job.world().all_gather(buffer_of(std::as_const(own)), buffer_of(all));
    EXPECT_EQ(all[0], all[4]);  // the first with tag 1
    EXPECT_EQ(all[1], all[3]);  // tag 2
    EXPECT_EQ(all[2], all[5]);  // the second with tag 1
    EXPECT_NE(all[0], all[2]);
    EXPECT_NE(all[0], all[1]);
  });
}

TEST(TimeSplit, RefusesATapeThatHasLostCalls) {
  JobOptions options;
  options.tape_capacity = 4;
  run_thread_ranks(
      2,
      [](Job& job) {
        const double begin = steady_seconds();
        for (int i = 0; i < 3; ++i) job.world().barrier();
        EXPECT_EQ(timed_calls(job.tape(), begin, steady_seconds()).calls.size(), 3u);
        for (int i = 0; i < 3; ++i) job.world().barrier();
        EXPECT_THROW(static_cast<void>(timed_calls(job.tape(), begin, steady_seconds())), CommError);
      },
      options);
}

}  // namespace
}  // namespace tessera::dist
