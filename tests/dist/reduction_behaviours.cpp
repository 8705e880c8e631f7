// all_reduce and reduce_scatter: the bits of the promised order, for every type, size and number of ranks. As
// every backend is compared with the same serial reference, they are equal to each other.

#include <limits>
#include <thread>

#include "tests/dist/behaviours.h"
#include "tests/dist/tree_reference.h"

namespace tessera::dist::testing {
namespace {

constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin};
// None divides by 2, 3, 4 and 8 alike; below, at and above the sizes at which backends change their ways
// (4096 bytes for mpi, 128 KiB over all ranks for threads; slices on multiples of 64 elements).
constexpr std::int64_t kSizes[] = {0, 1, 2, 5, 63, 64, 67, 511, 513, 1024, 1025, 5003, 20011};

template <class T>
std::vector<T> reduced(std::uint64_t salt, int num_ranks, std::int64_t begin, std::int64_t count,
                       ReduceOp op) {
  std::vector<T> result;
  std::vector<T> summands(static_cast<std::size_t>(num_ranks));
  for (std::int64_t i = begin; i < begin + count; ++i) {
    for (int rank = 0; rank < num_ranks; ++rank) {
      summands[static_cast<std::size_t>(rank)] = sample_value<T>(salt, rank, i);
    }
    result.push_back(tree_reference(summands, op));
  }
  return result;
}

template <class T>
void check_all_reduce(Job& job, std::int64_t count, ReduceOp op) {
  const auto salt = static_cast<std::uint64_t>(count);
  std::vector<T> x = sample_vector<T>(salt, job.rank(), count);
  job.world().all_reduce(buffer_of(x), op);
  require_equal(x, reduced<T>(salt, job.size(), 0, count, op),
                fmt::format("{} {} of {} elements", name(dtype_of<T>), name(op), count));
}

template <class T>
void all_reduce(Job& job) {
  for (const std::int64_t count : kSizes) {
    for (const ReduceOp op : kOps) check_all_reduce<T>(job, count, op);
  }
}

// More pieces of a slice than can be under way at a time (512 KiB each), the last one short.
// One element in 997 is compared, and the ends.
void all_reduce_of_many_pieces(Job& job) {
  constexpr std::int64_t kCount = 131072 * 7 + 5;
  const auto value = [](int rank, std::int64_t i) {
    return static_cast<float>((i * 31 + rank * 17) % 1009) * 0.001f + 1000.0f * static_cast<float>(rank == 0);
  };
  std::vector<float> x(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) x[static_cast<std::size_t>(i)] = value(job.rank(), i);
  job.world().all_reduce(buffer_of(x));
  std::vector<float> summands(static_cast<std::size_t>(job.size()));
  for (std::int64_t i = 0; i < kCount; i += i < 200 || i > kCount - 1200 ? 1 : 997) {
    for (int rank = 0; rank < job.size(); ++rank) summands[static_cast<std::size_t>(rank)] = value(rank, i);
    require(x[static_cast<std::size_t>(i)] == tree_reference(summands, ReduceOp::kSum),
            fmt::format("element {}", i));
  }
}

template <class T>
void reduce_scatter(Job& job) {
  for (const std::int64_t part : {0, 1, 5, 513, 1025, 5003}) {
    const auto salt = static_cast<std::uint64_t>(part);
    const std::int64_t count = part * job.size();
    const std::vector<T> x = sample_vector<T>(salt, job.rank(), count);
    std::vector<T> y(static_cast<std::size_t>(part));
    for (const ReduceOp op : kOps) {
      job.world().reduce_scatter(buffer_of(x), buffer_of(y), op);
      require_equal(y, reduced<T>(salt, job.size(), job.rank() * part, part, op),
                    fmt::format("{} {} to {} elements", name(dtype_of<T>), name(op), part));
    }
    require_equal(x, sample_vector<T>(salt, job.rank(), count), "the input");
  }
}

void reduce_scatter_in_place(Job& job) {
  for (const std::int64_t part : {3, 700, 20011}) {
    std::vector<float> x = sample_vector<float>(9, job.rank(), part * job.size());
    float* const mine = x.data() + job.rank() * part;
    job.world().reduce_scatter(buffer_of(x), {mine, part, kF32});
    require_equal(std::vector<float>(mine, mine + part),
                  reduced<float>(9, job.size(), job.rank() * part, part, ReduceOp::kSum), "own slice");
  }
}

// A NaN on any one rank comes through, in either direction of comparison; infinities are ordered.
void extremes_of_nan_and_infinity(Job& job) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int culprit = 0; culprit < job.size(); ++culprit) {
    for (const ReduceOp op : kOps) {
      std::vector<float> x{job.rank() == culprit ? kNan : 1.0f, job.rank() == culprit ? kInfinity : 2.0f,
                           job.rank() == culprit ? -kInfinity : 3.0f};
      job.world().all_reduce(buffer_of(x), op);
      require(std::isnan(x[0]), fmt::format("{}: NaN of rank {} is lost", name(op), culprit));
      const bool alone = job.size() == 1;
      const float largest = alone || op != ReduceOp::kMin ? kInfinity : 2.0f;
      const float smallest = alone || op != ReduceOp::kMax ? -kInfinity : 3.0f;
      require(x[1] == largest && x[2] == smallest, fmt::format("{}: infinities", name(op)));
    }
  }
}

// bf16 has 8 bits: adding 1 to 256 eight times, rounding each time, stays at 256. Sums are held in f32 and
// rounded once.
void sums_in_16_bits_round_once(Job& job) {
  std::vector<BFloat16> x(1500, BFloat16(job.rank() == 0 ? 256.0f : 1.0f));
  std::vector<Float16> half(x.size(), Float16(job.rank() == 0 ? 2048.0f : 1.0f));
  job.world().all_reduce(buffer_of(x));
  job.world().all_reduce(buffer_of(half));
  const auto others = static_cast<float>(job.size() - 1);
  require_equal(x, std::vector<BFloat16>(x.size(), BFloat16(256.0f + others)), "256 + 1 + ... in bf16");
  require_equal(half, std::vector<Float16>(x.size(), Float16(2048.0f + others)), "2048 + 1 + ... in f16");
}

void repeated_runs_give_the_same_bits(Job& job) {
  std::vector<float> first;
  for (int run = 0; run < 5; ++run) {
    std::vector<float> x = sample_vector<float>(3, job.rank(), 20011);
    job.world().all_reduce(buffer_of(x));
    if (run == 0) first = x;
    require_equal(x, first, fmt::format("run {}", run));
  }
}

void every_rank_gets_the_same_bits(Job& job) {
  std::vector<double> x = sample_vector<double>(4, job.rank(), 3001);
  job.world().all_reduce(buffer_of(x));
  std::vector<double> all(x.size() * static_cast<std::size_t>(job.size()));
  job.world().all_gather(buffer_of(std::as_const(x)), buffer_of(all));
  for (int rank = 0; rank < job.size(); ++rank) {
    const auto begin = all.begin() + rank * static_cast<std::ptrdiff_t>(x.size());
    require_equal(std::vector<double>(begin, begin + static_cast<std::ptrdiff_t>(x.size())), x,
                  fmt::format("result of rank {}", rank));
  }
}

// Ranks wait for the calls in different orders, some by polling; small calls overtake large ones.
void many_calls_under_way_complete_in_any_order(Job& job) {
  constexpr int kCalls = 12;
  for (int round = 0; round < 3; ++round) {
    std::vector<std::vector<float>> x;
    std::vector<Work> works;
    for (int call = 0; call < kCalls; ++call) {
      x.push_back(
          sample_vector<float>(static_cast<std::uint64_t>(call), job.rank(), call % 3 == 0 ? 20021 : 17));
      works.push_back(
          job.world().all_reduce_async(buffer_of(x.back()), call % 2 == 0 ? ReduceOp::kSum : ReduceOp::kMax));
    }
    for (int i = 0; i < kCalls; ++i) {
      const int call = (job.rank() % 2 == 0 ? kCalls - 1 - i : i * 5 % kCalls);
      Work& work = works[static_cast<std::size_t>(call)];
      if (i % 2 == 0) {
        while (!work.test()) std::this_thread::yield();
      }
      work.wait();
      work.wait();  // a second wait returns at once
      require(work.test(), "complete after wait");
      const std::vector<float>& result = x[static_cast<std::size_t>(call)];
      require_equal(result,
                    reduced<float>(static_cast<std::uint64_t>(call), job.size(), 0,
                                   static_cast<std::int64_t>(result.size()),
                                   call % 2 == 0 ? ReduceOp::kSum : ReduceOp::kMax),
                    fmt::format("call {}", call));
    }
  }
}

void destroying_or_replacing_work_waits_for_it(Job& job) {
  std::vector<std::int64_t> x(3000, 1), y(3000, 2), z(3000, 3);
  { Work work = job.world().all_reduce_async(buffer_of(x)); }
  Work work = job.world().all_reduce_async(buffer_of(y));
  work = job.world().all_reduce_async(buffer_of(z));
  require_equal(x, std::vector<std::int64_t>(x.size(), job.size()), "destroyed");
  require_equal(y, std::vector<std::int64_t>(y.size(), 2 * job.size()), "replaced");
  Work moved = std::move(work);
  moved.wait();
  require_equal(z, std::vector<std::int64_t>(z.size(), 3 * job.size()), "moved");
  require(Work().test(), "a work of nothing is complete");
}

}  // namespace

std::vector<Behaviour> reduction_behaviours() {
  return {{"all_reduce_f64", all_reduce<double>},
          {"all_reduce_f32", all_reduce<float>},
          {"all_reduce_bf16", all_reduce<BFloat16>},
          {"all_reduce_f16", all_reduce<Float16>},
          {"all_reduce_i64", all_reduce<std::int64_t>},
          {"all_reduce_i32", all_reduce<std::int32_t>},
          {"all_reduce_of_many_pieces", all_reduce_of_many_pieces},
          {"reduce_scatter_f64", reduce_scatter<double>},
          {"reduce_scatter_f32", reduce_scatter<float>},
          {"reduce_scatter_bf16", reduce_scatter<BFloat16>},
          {"reduce_scatter_i64", reduce_scatter<std::int64_t>},
          {"reduce_scatter_in_place", reduce_scatter_in_place},
          {"extremes_of_nan_and_infinity", extremes_of_nan_and_infinity},
          {"sums_in_16_bits_round_once", sums_in_16_bits_round_once},
          {"repeated_runs_give_the_same_bits", repeated_runs_give_the_same_bits},
          {"every_rank_gets_the_same_bits", every_rank_gets_the_same_bits},
          {"many_calls_under_way_complete_in_any_order", many_calls_under_way_complete_in_any_order},
          {"destroying_or_replacing_work_waits_for_it", destroying_or_replacing_work_waits_for_it}};
}

}  // namespace tessera::dist::testing
