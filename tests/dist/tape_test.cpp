// The tape by itself. What communicators write on it stands in tape_behaviours.cpp.

#include "dist/tape.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "dist/job.h"

namespace tessera::dist {
namespace {

TapeEntry entry(std::uint64_t sequence, const std::string& group = "world", std::int64_t bytes = 10) {
  return {.sequence = sequence,
          .op = Collective::kAllReduce,
          .group = group,
          .elements = 5,
          .dtype = kF32,
          .peer = -1,
          .sent_bytes = bytes};
}

TEST(Tape, BytesFollowTheFormulas) {
  struct Row {
    Collective op;
    std::int64_t elements;
    DType dtype;
    int num_ranks, rank, root;
    std::int64_t bytes;
  };
  // By hand. 10 elements over 4 ranks are slices of 3, 3, 2, 2.
  const Row rows[] = {{Collective::kAllReduce, 10, kF32, 4, 0, -1, (7 + 9) * 4},
                      {Collective::kAllReduce, 10, kF32, 4, 3, -1, (8 + 6) * 4},
                      {Collective::kAllReduce, 8, kBF16, 4, 1, -1, 24},  // 2 · 3/4 · 16
                      {Collective::kAllReduce, 8, kF32, 1, 0, -1, 0},
                      {Collective::kReduceScatter, 10, kF64, 4, 2, -1, 240},
                      {Collective::kAllGather, 10, kU8, 4, 2, -1, 30},
                      {Collective::kAllToAll, 10, kI64, 3, 1, -1, 160},
                      {Collective::kBroadcast, 10, kF32, 4, 1, 1, 40},  // the root
                      {Collective::kBroadcast, 10, kF32, 4, 0, 1, 0},   // the end of the ring
                      {Collective::kBroadcast, 10, kF32, 4, 3, 1, 40},
                      {Collective::kSend, 10, kF16, 4, 3, 1, 20},
                      {Collective::kRecv, 10, kF16, 4, 3, 1, 0},
                      {Collective::kBarrier, 0, kU8, 4, 3, -1, 0}};
  for (const Row& row : rows) {
    EXPECT_EQ(sent_bytes(row.op, row.elements, row.dtype, row.num_ranks, row.rank, row.root), row.bytes)
        << name(row.op) << " of rank " << row.rank;
  }
}

TEST(Tape, KeepsTheLatestEntriesAndAllTotals) {
  Tape tape(3);
  for (std::uint64_t i = 0; i < 5; ++i) tape.end(tape.begin(entry(i)));
  const std::vector<TapeEntry> recent = tape.recent();
  ASSERT_EQ(recent.size(), 3u);
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(recent[i].sequence, i + 2);
  EXPECT_EQ(tape.total_sent_bytes(), 50);
  ASSERT_EQ(tape.totals().size(), 1u);
  EXPECT_EQ(tape.totals()[0].calls, 5);
  EXPECT_EQ(tape.totals()[0].elements, 25);
}

TEST(Tape, KeepsGroupsAndKindsApart) {
  Tape tape;
  tape.begin(entry(0, "dp", 1));
  tape.begin(entry(0, "tp", 10));
  TapeEntry other = entry(1, "dp", 100);
  other.op = Collective::kBroadcast;
  tape.begin(other);
  EXPECT_EQ(tape.total_sent_bytes(), 111);
  EXPECT_EQ(tape.total_sent_bytes("dp"), 101);
  EXPECT_EQ(tape.total_sent_bytes("dp", Collective::kAllReduce), 1);
  EXPECT_EQ(tape.total_sent_bytes("pp"), 0);
  ASSERT_EQ(tape.totals().size(), 3u);
  tape.reset_totals();
  EXPECT_EQ(tape.total_sent_bytes(), 0);
  EXPECT_EQ(tape.recent().size(), 3u) << "entries stay";
}

TEST(Tape, EndsCallsInAnyOrderAndIgnoresThoseThatAreGone) {
  Tape tape(2);
  const std::uint64_t lost = tape.begin(entry(0));
  const std::uint64_t first = tape.begin(entry(1));
  const std::uint64_t second = tape.begin(entry(2));
  tape.end(second);
  EXPECT_LT(tape.recent()[0].end_seconds, 0);
  EXPECT_GE(tape.recent()[1].end_seconds, tape.recent()[1].start_seconds);
  tape.end(lost);  // its place has been taken
  EXPECT_LT(tape.recent()[0].end_seconds, 0);
  tape.end(first);
  EXPECT_GE(tape.recent()[0].end_seconds, 0);
}

TEST(Tape, KeepsHowLongAndUntilWhenARankStoodStill) {
  Tape tape;
  const std::uint64_t ticket = tape.begin(entry(0));
  tape.was_inside(ticket, 0.25);
  tape.was_inside(ticket, 0.5);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  tape.waited(ticket, 1.0);
  tape.end(ticket);
  const TapeEntry kept = tape.recent().at(0);
  EXPECT_EQ(kept.inside_seconds, 0.75);
  EXPECT_EQ(kept.wait_seconds, 1.0);
  EXPECT_GE(kept.wait_end_seconds, kept.start_seconds + 0.002);
  EXPECT_LE(kept.wait_end_seconds, kept.end_seconds);
  EXPECT_EQ(tape.totals().at(0).wait_seconds, 1.75);
  EXPECT_LE(tape.origin_seconds() + kept.end_seconds, steady_seconds());
}

TEST(Tape, DumpShowsWhatARankWasDoing) {
  Tape tape;
  TapeEntry broadcast = entry(7, "dp", 640);
  broadcast.op = Collective::kBroadcast;
  broadcast.peer = 2;
  broadcast.where = std::source_location::current();
  const unsigned line = broadcast.where.line();
  tape.end(tape.begin(entry(6)));
  tape.begin(broadcast);
  const std::string text = tape.dump();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
  for (const std::string part : {"world #6 all_reduce 5 f32, sends 10 bytes",
                                 "dp #7 broadcast (rank 2) 5 f32", "under way", "tape_test.cpp:"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  EXPECT_NE(text.find(":" + std::to_string(line)), std::string::npos) << text;
  const std::string last = tape.dump(1);
  EXPECT_EQ(last.find("#6"), std::string::npos) << last;
}

// A rank's tape may be read by another thread while it is written (a monitor, say): no entry is torn or lost.
TEST(Tape, MayBeReadWhileItIsWritten) {
  Tape tape(16);
  std::thread reader([&] {
    for (int i = 0; i < 200; ++i) {
      for (const TapeEntry& e : tape.recent()) EXPECT_EQ(e.group, "world");
      EXPECT_EQ(tape.total_sent_bytes() % 10, 0);
    }
  });
  for (std::uint64_t i = 0; i < 5000; ++i) tape.end(tape.begin(entry(i)));
  reader.join();
  EXPECT_EQ(tape.total_sent_bytes(), 50000);
}

// What a rank stands still for is told apart from what is under way while it computes.
TEST(Tape, CountsTheTimeThatARankWaits) {
  using namespace std::chrono_literals;
  run_thread_ranks(2, [](Job& job) {
    std::vector<float> x(4, 1.0f);
    job.world().barrier();
    job.tape().reset_totals();
    if (job.rank() == 1) std::this_thread::sleep_for(100ms);
    job.world().all_reduce(buffer_of(x));  // rank 0 waits for rank 1
    const auto waited = [&job] {
      double seconds = 0.0;
      for (const TapeTotal& total : job.tape().totals()) seconds += total.wait_seconds;
      return seconds;
    };
    if (job.rank() == 0) {
      EXPECT_GE(waited(), 0.01);  // of 100 ms: a busy machine may wake rank 0 late
    }

    job.world().barrier();
    job.tape().reset_totals();
    Work work = job.world().all_reduce_async(buffer_of(x));
    std::this_thread::sleep_for(100ms);  // hides it
    work.wait();
    const TapeTotal total = job.tape().totals().front();
    EXPECT_GE(total.seconds, 0.09);
    EXPECT_LT(total.wait_seconds, total.seconds - 0.05);

    job.world().barrier();
    job.tape().reset_totals();
    {
      if (job.rank() == 1) std::this_thread::sleep_for(100ms);
      const Work unwaited = job.world().all_reduce_async(buffer_of(x));
    }  // its destructor waits
    if (job.rank() == 0) {
      EXPECT_GE(waited(), 0.01);
    }
  });
}

}  // namespace
}  // namespace tessera::dist
