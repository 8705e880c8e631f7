#pragma once

#include <cstdint>

namespace tessera::dist {

/// Elements or indices [begin, end) of something.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  [[nodiscard]] std::int64_t size() const noexcept { return end - begin; }
  friend bool operator==(const Range&, const Range&) = default;
};

}  // namespace tessera::dist
