// Collectives that copy: all_gather, broadcast, all_to_all, barrier. Every byte ends where it belongs, and no
// other is touched.

#include <atomic>
#include <thread>

#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

constexpr std::int64_t kSizes[] = {0, 1, 3, 64, 1021, 20011};

template <class T>
std::vector<T> concatenated(std::uint64_t salt, int num_ranks, std::int64_t count) {
  std::vector<T> all;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::vector<T> part = sample_vector<T>(salt, rank, count);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

template <class T>
void all_gather(Job& job) {
  for (const std::int64_t count : kSizes) {
    const std::vector<T> x = sample_vector<T>(1, job.rank(), count);
    std::vector<T> y(static_cast<std::size_t>(count * job.size()));
    job.world().all_gather(buffer_of(x), buffer_of(y));
    require_equal(y, concatenated<T>(1, job.size(), count), fmt::format("{} elements", count));
  }
}

void all_gather_in_place(Job& job) {
  for (const std::int64_t count : kSizes) {
    std::vector<float> y(static_cast<std::size_t>(count * job.size()), -1.0f);
    float* const mine = y.data() + job.rank() * count;
    std::ranges::copy(sample_vector<float>(2, job.rank(), count), mine);
    job.world().all_gather(ConstBuffer{mine, count, kF32}, buffer_of(y));
    require_equal(y, concatenated<float>(2, job.size(), count), fmt::format("{} elements", count));
  }
}

template <class T>
void broadcast(Job& job) {
  for (const std::int64_t count : kSizes) {
    for (int root = 0; root < job.size(); ++root) {
      std::vector<T> x = sample_vector<T>(3, job.rank(), count);
      job.world().broadcast(buffer_of(x), root);
      require_equal(x, sample_vector<T>(3, root, count), fmt::format("{} elements of rank {}", count, root));
    }
  }
}

template <class T>
void all_to_all(Job& job) {
  for (const std::int64_t part : kSizes) {
    const std::vector<T> x = sample_vector<T>(4, job.rank(), part * job.size());
    std::vector<T> y(x.size());
    job.world().all_to_all(buffer_of(x), buffer_of(y));
    std::vector<T> expected;
    for (int peer = 0; peer < job.size(); ++peer) {
      for (std::int64_t i = 0; i < part; ++i)
        expected.push_back(sample_value<T>(4, peer, job.rank() * part + i));
    }
    require_equal(y, expected, fmt::format("{} elements for each", part));
    require_equal(x, sample_vector<T>(4, job.rank(), part * job.size()), "the input");
  }
}

// All that may be done with nothing: null data, no elements.
void calls_without_elements_return(Job& job) {
  Communicator& world = job.world();
  const Buffer nothing{nullptr, 0, kBF16};
  world.all_reduce(nothing);
  world.reduce_scatter(nothing, nothing);
  world.all_gather(nothing, nothing);
  world.broadcast(nothing, job.size() - 1);
  world.all_to_all(nothing, nothing);
}

// Different kinds of calls under way at once, waited for in an order of each rank's own.
void different_calls_under_way_do_not_mix(Job& job) {
  Communicator& world = job.world();
  const auto R = static_cast<std::int64_t>(job.size());
  for (const std::int64_t n : {5, 10007}) {
    const auto of = [&](std::int64_t count) { return sample_vector<std::int64_t>(5, job.rank(), count); };
    std::vector<std::int64_t> sum(static_cast<std::size_t>(n), 1),
        shared = of(n), gathered(static_cast<std::size_t>(R * n)), exchanged(gathered.size()),
        part(static_cast<std::size_t>(n));
    const std::vector<std::int64_t> mine = of(n), many = of(R * n), ones(static_cast<std::size_t>(R * n), 1);
    std::vector<Work> works;
    works.push_back(world.all_reduce_async(buffer_of(sum)));
    works.push_back(world.all_gather_async(buffer_of(mine), buffer_of(gathered)));
    works.push_back(world.broadcast_async(buffer_of(shared), job.size() - 1));
    works.push_back(world.all_to_all_async(buffer_of(many), buffer_of(exchanged)));
    works.push_back(world.reduce_scatter_async(buffer_of(ones), buffer_of(part)));
    works.push_back(world.barrier_async());
    for (std::size_t i = 0; i < works.size(); ++i) {
      works[(i * 5 + static_cast<std::size_t>(job.rank())) % works.size()].wait();
    }
    require_equal(sum, std::vector<std::int64_t>(sum.size(), R), "all_reduce");
    require_equal(gathered, concatenated<std::int64_t>(5, job.size(), n), "all_gather");
    require_equal(shared, sample_vector<std::int64_t>(5, job.size() - 1, n), "broadcast");
    require_equal(part, std::vector<std::int64_t>(part.size(), R), "reduce_scatter");
    for (int peer = 0; peer < job.size(); ++peer) {
      require(exchanged[static_cast<std::size_t>(peer * n)] ==
                  sample_value<std::int64_t>(5, peer, job.rank() * n),
              "all_to_all");
    }
  }
}

// Rank 0 comes late and notes when; nobody leaves before. The clock is the machine's, the same in every
// process.
void barrier_holds_until_the_last_rank_comes(Job& job) {
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  for (int late = 0; late < job.size(); ++late) {
    std::int64_t arrival[1] = {0};
    if (job.rank() == late) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      arrival[0] = now();
    }
    job.world().barrier();
    const std::int64_t departure = now();
    job.world().broadcast(buffer_of(arrival), late);
    require(departure >= arrival[0], fmt::format("left before rank {} came", late));
  }
}

}  // namespace

std::vector<Behaviour> copy_behaviours() {
  return {{"all_gather_u8", all_gather<std::uint8_t>},
          {"all_gather_f32", all_gather<float>},
          {"all_gather_in_place", all_gather_in_place},
          {"broadcast_u8", broadcast<std::uint8_t>},
          {"broadcast_f64", broadcast<double>},
          {"all_to_all_bf16", all_to_all<BFloat16>},
          {"all_to_all_i64", all_to_all<std::int64_t>},
          {"calls_without_elements_return", calls_without_elements_return},
          {"different_calls_under_way_do_not_mix", different_calls_under_way_do_not_mix},
          {"barrier_holds_until_the_last_rank_comes", barrier_holds_until_the_last_rank_comes}};
}

}  // namespace tessera::dist::testing
