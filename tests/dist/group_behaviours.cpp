// split: which ranks meet in a group, in which order, and that groups do not hear each other.

#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

/// World ranks of a group's members, in its order.
std::vector<std::int64_t> members(Communicator& group, int world_rank) {
  const std::int64_t mine[1] = {world_rank};
  std::vector<std::int64_t> all(static_cast<std::size_t>(group.size()));
  group.all_gather(buffer_of(mine), buffer_of(all));
  return all;
}

void colors_part_ranks(Job& job) {
  const auto group = job.world().split(job.rank() % 2, job.rank(), "parity");
  std::vector<std::int64_t> expected;
  for (int rank = job.rank() % 2; rank < job.size(); rank += 2) expected.push_back(rank);
  require_equal(members(*group, job.rank()), expected, "members");
  require(group->rank() == job.rank() / 2 && group->size() == static_cast<int>(expected.size()),
          "rank and size");
  require(group->name() == "parity" && std::string(group->backend()) == job.backend(), "name and backend");
  require(&group->tape() == &job.tape(), "one tape for all groups of a rank");
}

void keys_order_ranks_and_ties_go_by_rank(Job& job) {
  const int R = job.size();
  const auto reversed = job.world().split(0, -job.rank(), "reversed");
  std::vector<std::int64_t> expected;
  for (int rank = R; rank-- > 0;) expected.push_back(rank);
  require_equal(members(*reversed, job.rank()), expected, "reversed");

  // Key 1 for the first half, 0 for the second: the halves change places, each in its old order.
  const auto rotated = job.world().split(5, job.rank() < R / 2 ? 1 : 0, "rotated");
  expected.clear();
  for (int i = 0; i < R; ++i) expected.push_back((i + R / 2) % R);
  require_equal(members(*rotated, job.rank()), expected, "rotated");
}

void a_negative_color_gets_no_group(Job& job) {
  const auto group = job.world().split(job.rank() == 0 ? -1 : 3, 0, "all but rank 0");
  require((group == nullptr) == (job.rank() == 0), "rank 0 alone has none");
  if (group != nullptr)
    require(group->size() == job.size() - 1 && group->rank() == job.rank() - 1, "the rest");
  require(job.world().split(-1, 0, "nobody") == nullptr, "a group of nobody");
}

void groups_split_again(Job& job) {
  const auto half = job.world().split(job.rank() / 2, 0, "pair");
  const auto single = half->split(half->rank(), 0, "single");
  require(single->size() == 1, "a group of one");
  std::vector<float> x{2.0f};
  single->all_reduce(buffer_of(x));
  require(x[0] == 2.0f, "a sum of one");
  const auto whole = job.world().split(0, 0, "whole");
  std::vector<std::int64_t> sum{1};
  whole->all_reduce(buffer_of(sum));
  require(sum[0] == job.size(), "all ranks");
}

// The same calls with the same tags in a group, its mirror image and the world, all under way at once.
void traffic_of_groups_does_not_mix(Job& job) {
  const int R = job.size(), me = job.rank();
  const auto rows = job.world().split(me / 2, me, "row");
  const auto columns = job.world().split(me % 2, me, "column");
  std::vector<std::int64_t> row{me}, column{me}, world{me};
  std::vector<Work> works;
  works.push_back(columns->all_reduce_async(buffer_of(column)));
  works.push_back(job.world().all_reduce_async(buffer_of(world)));
  works.push_back(rows->all_reduce_async(buffer_of(row)));
  for (std::size_t i = 0; i < 3; ++i) works[(i + static_cast<std::size_t>(me)) % 3].wait();
  std::int64_t row_sum = 0, column_sum = 0;
  for (int rank = 0; rank < R; ++rank) {
    if (rank / 2 == me / 2) row_sum += rank;
    if (rank % 2 == me % 2) column_sum += rank;
  }
  require(row[0] == row_sum && column[0] == column_sum && world[0] == R * (R - 1) / 2, "three sums");

  // Two messages from rank to rank with one tag, in the world and in the row; received in the other order.
  if (rows->size() == 2) {
    const int peer = 1 - rows->rank(), world_peer = me ^ 1;
    const std::int64_t in_row[1] = {1000 + me}, in_world[1] = {2000 + me};
    std::int64_t from_row[1] = {0}, from_world[1] = {0};
    Work first = rows->send_async(buffer_of(in_row), peer);
    Work second = job.world().send_async(buffer_of(in_world), world_peer);
    job.world().recv(buffer_of(from_world), world_peer);
    rows->recv(buffer_of(from_row), peer);
    require(from_row[0] == 1000 + world_peer && from_world[0] == 2000 + world_peer, "messages by group");
  }
}

// Ranks let go of groups in different orders, and use the others on.
void groups_end_in_any_order(Job& job) {
  std::vector<std::shared_ptr<Communicator>> groups;
  for (int i = 0; i < 4; ++i) groups.push_back(job.world().split(0, 0, fmt::format("group {}", i)));
  groups[static_cast<std::size_t>(job.rank() % 3)] = nullptr;
  std::vector<float> x{1.0f};
  groups[3]->all_reduce(buffer_of(x));
  require(x[0] == static_cast<float>(job.size()), "the last group");
}

// Every rank learns whether any was asked to stop, and what only rank 0 does is done when on_root returns.
void agreements_are_the_same_on_every_rank(Job& job) {
  require(!job.agree_to_stop(), "nobody was asked to stop");
  int calls = 0;
  job.on_root([&] { ++calls; });
  require(calls == (job.is_root() ? 1 : 0), "once, on rank 0");
}

}  // namespace

std::vector<Behaviour> group_behaviours() {
  return {{"colors_part_ranks", colors_part_ranks},
          {"keys_order_ranks_and_ties_go_by_rank", keys_order_ranks_and_ties_go_by_rank},
          {"a_negative_color_gets_no_group", a_negative_color_gets_no_group},
          {"groups_split_again", groups_split_again},
          {"traffic_of_groups_does_not_mix", traffic_of_groups_does_not_mix},
          {"groups_end_in_any_order", groups_end_in_any_order},
          {"agreements_are_the_same_on_every_rank", agreements_are_the_same_on_every_rank}};
}

std::vector<Behaviour> all_behaviours() {
  std::vector<Behaviour> all;
  for (const auto& some : {reduction_behaviours(), copy_behaviours(), message_behaviours(),
                           group_behaviours(), misuse_behaviours(), tape_behaviours()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace tessera::dist::testing
