#pragma once

// What every backend must do, written as programs of one rank. communicator_test.cpp runs them on one rank
// and on threads, rank_program.cpp under mpiexec. A behaviour throws where it is violated, so that it needs
// no test library and ends all ranks.

#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dist/job.h"
#include "kernels/random_key.h"

namespace tessera::dist::testing {

struct Behaviour {
  const char* name;
  void (*run)(Job& job);
};

[[nodiscard]] std::vector<Behaviour> reduction_behaviours();
[[nodiscard]] std::vector<Behaviour> copy_behaviours();
[[nodiscard]] std::vector<Behaviour> message_behaviours();
[[nodiscard]] std::vector<Behaviour> group_behaviours();
[[nodiscard]] std::vector<Behaviour> misuse_behaviours();
[[nodiscard]] std::vector<Behaviour> tape_behaviours();
/// All of the above, one behind the other.
[[nodiscard]] std::vector<Behaviour> all_behaviours();

inline void require(bool holds, const std::string& what,
                    std::source_location where = std::source_location::current()) {
  if (!holds) throw std::runtime_error(fmt::format("{}:{}: {}", where.file_name(), where.line(), what));
}

/// A number for people; 16-bit floats have no conversion of their own to double.
template <class T>
[[nodiscard]] double as_double(T x) {
  if constexpr (std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>) {
    return static_cast<double>(static_cast<float>(x));
  } else {
    return static_cast<double>(x);
  }
}

/// Equal bits, NaN included.
template <class T>
void require_equal(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what,
                   std::source_location where = std::source_location::current()) {
  require(actual.size() == expected.size(),
          fmt::format("{}: {} elements, expected {}", what, actual.size(), expected.size()), where);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    require(false,
            fmt::format("{}: element {} is {:.17g}, expected {:.17g}", what, i, as_double(actual[i]),
                        as_double(expected[i])),
            where);
  }
}

/// Element `i` of rank `rank`'s input in test `salt`: a hash made into a number. Magnitudes span about six
/// decades with both signs, so that floating sums depend on the order in which they are taken.
template <class T>
[[nodiscard]] T sample_value(std::uint64_t salt, int rank, std::int64_t i) {
  const std::uint64_t bits = kernels::random_key_bits(
      {.seed = salt * 1000 + static_cast<std::uint64_t>(rank), .stream = static_cast<std::uint64_t>(i)});
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits >> (sizeof(T) == 8 ? 8 : 40));  // eight of them do not overflow
  } else {
    const double mantissa = static_cast<double>(bits >> 11) * 0x1p-53 - 0.5;
    const double value = mantissa * static_cast<double>(std::uint64_t{1} << bits % 20) * 0x1p-10;
    if constexpr (std::is_same_v<T, double>) {
      return value;
    } else {
      return static_cast<T>(static_cast<float>(value));
    }
  }
}

template <class T>
[[nodiscard]] std::vector<T> sample_vector(std::uint64_t salt, int rank, std::int64_t count) {
  std::vector<T> values;
  values.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values.push_back(sample_value<T>(salt, rank, i));
  return values;
}

}  // namespace tessera::dist::testing
