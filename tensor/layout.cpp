#include "tensor/layout.h"

#include <fmt/format.h>

namespace tessera {

const char* name(MeshAxis axis) noexcept {
  constexpr std::array<const char*, kMeshAxes.size()> kNames{"pp", "dp", "cp", "ep", "tp"};
  return kNames[static_cast<std::size_t>(axis)];
}

std::string to_string(const AxisLayout& on_axis) {
  switch (on_axis.kind()) {
    case AxisLayout::Kind::kInvariant:
      return "I";
    case AxisLayout::Kind::kReplicated:
      return "R";
    case AxisLayout::Kind::kPartial:
      return "P";
    case AxisLayout::Kind::kSharded:
      break;
  }
  constexpr std::array<const char*, 3> kOrders{"", ", balanced", ", packed"};
  return fmt::format("S({}{}{})", on_axis.dim(), kOrders[static_cast<std::size_t>(on_axis.order())],
                     on_axis.is_merged() ? ", merged" : "");
}

std::string to_string(const Layout& layout) {
  std::string text;
  for (const MeshAxis axis : kMeshAxes) {
    if (layout[axis].is_invariant()) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name(axis), to_string(layout[axis]));
  }
  return text.empty() ? "I" : text;
}

}  // namespace tessera
