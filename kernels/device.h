#pragma once

#include <cstdint>

namespace tessera {

/// `kMeta` has shapes and no data: its kernels only count operations and bytes.
enum class DeviceType : std::uint8_t { kCpu, kMeta };

[[nodiscard]] constexpr const char* name(DeviceType type) noexcept {
  switch (type) {
    case DeviceType::kCpu:
      return "cpu";
    case DeviceType::kMeta:
      return "meta";
  }
  return "?";
}

}  // namespace tessera
