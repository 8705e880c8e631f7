// How a global batch is cut into micro-batches.

#include <fmt/format.h>

#include <algorithm>

#include "dist/config.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

// Sequences: no run has more, and products of two such numbers and any number of ranks do not overflow.
constexpr std::int64_t kLargestSize = std::int64_t{1} << 25;

void check_positive_or_unset(const char* key, std::int64_t value) {
  if (value < 0 || value > kLargestSize) {
    throw ConfigError(fmt::format("config: {} must be from 1 to 2^25, but it is {}", key, value));
  }
}

// "train_batch_size 10 is --batch, micro_batch 4 is --micro-batch, accumulation 2 follows, dp 1 is the number
// of ranks"
std::string describe_sources(const BatchSizes& given, const BatchSizes& sizes, const std::string& dp) {
  const auto from = [](std::int64_t size, const std::string& source, const char* key) -> std::string {
    if (size == 0) return "follows";
    return source.empty() ? fmt::format("is \"{}\"", key) : fmt::format("is {}", source);
  };
  return fmt::format("train_batch_size {} {}, micro_batch {} {}, accumulation {} {}, {}", sizes.global,
                     from(given.global, given.global_from, "train_batch_size"), sizes.micro_batch,
                     from(given.micro_batch, given.micro_batch_from, "train_micro_batch_size_per_gpu"),
                     sizes.accumulation, from(given.accumulation, "", "gradient_accumulation_steps"), dp);
}

// `dp_source` says where dp comes from.
BatchSizes resolve(const BatchSizes& given, std::int64_t dp, const std::string& dp_source,
                   std::int64_t largest_micro_batch) {
  check_positive_or_unset("train_batch_size", given.global);
  check_positive_or_unset("train_micro_batch_size_per_gpu", given.micro_batch);
  check_positive_or_unset("gradient_accumulation_steps", given.accumulation);
  BatchSizes sizes = given;
  if (sizes.global == 0) {
    sizes.micro_batch = std::max<std::int64_t>(sizes.micro_batch, 1);
    sizes.accumulation = std::max<std::int64_t>(sizes.accumulation, 1);
    sizes.global = sizes.micro_batch * sizes.accumulation * dp;
    return sizes;
  }
  if (sizes.global < dp) {
    throw ConfigError(fmt::format(
        "config: dp {} needs at least {} sequences in a batch, one for each data-parallel rank, but "
        "train_batch_size is {}; use fewer ranks, more tp or cp, or a larger batch ({}, {})",
        dp, dp, sizes.global, given.global_from.empty() ? "\"train_batch_size\"" : given.global_from,
        dp_source));
  }
  const std::int64_t share = sizes.global / dp;
  if (sizes.micro_batch == 0 && sizes.accumulation == 0) {
    sizes.micro_batch = std::min(share, largest_micro_batch);
    while (share % sizes.micro_batch != 0) --sizes.micro_batch;
  }
  if (sizes.micro_batch == 0) sizes.micro_batch = share / sizes.accumulation;
  if (sizes.accumulation == 0) sizes.accumulation = share / sizes.micro_batch;
  const std::int64_t product = sizes.micro_batch * sizes.accumulation * dp;
  if (product != sizes.global || product == 0) {
    // A batch must be a multiple of what is fixed.
    const std::int64_t unit =
        std::max<std::int64_t>(given.micro_batch, 1) * std::max<std::int64_t>(given.accumulation, 1) * dp;
    const std::int64_t below = sizes.global / unit * unit;
    std::string works = std::to_string(unit);  // all is given: there is one answer
    if (given.micro_batch == 0 || given.accumulation == 0) {
      works = below > 0 ? fmt::format("{} or {}", below, below + unit) : std::to_string(unit);
    }
    throw ConfigError(fmt::format(
        "config: train_batch_size = micro_batch x accumulation x dp does not hold: {} != {} x {} x "
        "{} = {}; a batch of {} works ({})",
        sizes.global, sizes.micro_batch, sizes.accumulation, dp, product, works,
        describe_sources(given, sizes, dp_source)));
  }
  return sizes;
}

}  // namespace

BatchSizes resolve_batch_sizes(const BatchSizes& given, std::int64_t dp, std::int64_t largest_micro_batch) {
  return resolve(given, dp, fmt::format("dp {} are the data-parallel ranks", dp), largest_micro_batch);
}

BatchSizes resolve_batch_sizes(const BatchSizes& given, const MeshShape& mesh,
                               std::int64_t largest_micro_batch) {
  const std::int64_t dp = mesh[MeshAxis::kDp], pp = mesh[MeshAxis::kPp];
  if (pp > 1)
    largest_micro_batch = std::clamp<std::int64_t>(given.global / (dp * 2 * pp), 1, largest_micro_batch);
  const int ranks = mesh.num_ranks();
  const std::string source =
      ranks == dp ? fmt::format("dp {} is the number of ranks", dp)
                  : fmt::format("dp {} is that of mesh {} on {} ranks", dp, mesh.to_string(), ranks);
  return resolve(given, dp, source, largest_micro_batch);
}

}  // namespace tessera::dist
