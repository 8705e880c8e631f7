#pragma once

// What the runs of these tests train on: a function of the step, the sample and the place in it, so that it
// does not depend on who asks.

#include <cstdint>
#include <span>

#include "kernels/random_key.h"

namespace tessera::dist::parity {

struct Samples {
  std::int64_t vocab, time, batch;

  [[nodiscard]] std::int64_t token(std::int64_t step, std::int64_t sample, std::int64_t t) const {
    const auto stream = static_cast<std::uint64_t>((step * batch + sample) * (time + 1) + t);
    const std::uint64_t bits = kernels::random_key_bits({.seed = 5, .stream = stream});
    return static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(vocab));
  }

  /// All of a sample's targets count, or three of them, or (one sample of each batch) none.
  [[nodiscard]] std::int64_t num_targets(std::int64_t sample) const {
    return sample == 7 ? 0 : sample % 5 == 0 ? 3 : time;
  }

  /// A SampleSource.
  void fill(std::int64_t step, std::int64_t first, std::int64_t count, std::span<std::int64_t> inputs,
            std::span<std::int64_t> targets) const {
    constexpr std::int64_t kIgnored = -100;
    for (std::int64_t i = 0; i < count * time; ++i) {
      const std::int64_t sample = first + i / time, t = i % time;
      inputs[static_cast<std::size_t>(i)] = token(step, sample, t);
      targets[static_cast<std::size_t>(i)] = t < num_targets(sample) ? token(step, sample, t + 1) : kIgnored;
    }
  }
};

}  // namespace tessera::dist::parity
