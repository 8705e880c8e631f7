#pragma once

#include <string>

#include "kernels/device.h"

namespace tessera {

/// Where a tensor's data lies.
struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device cpu{DeviceType::kCpu, 0};
/// Shapes without data: models built here cost no memory and can be laid out, counted or materialised later.
inline constexpr Device meta{DeviceType::kMeta, 0};

[[nodiscard]] inline std::string to_string(Device device) { return name(device.type); }

}  // namespace tessera
