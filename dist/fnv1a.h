#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

// Private to dist/.
namespace tessera::dist {

/// 64-bit FNV-1a of what is added, the same on every host. It finds what differs by accident.
class Fnv1a {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) state_ = (state_ ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3u;
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325u;
};

}  // namespace tessera::dist
