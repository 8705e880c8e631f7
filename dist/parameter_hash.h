#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dist/engine.h"

namespace tessera::dist {

/// A hash (FNV-1a, 64 bits) of the bits of each tensor of the model, whole: equal for equal bits in every
/// layout. A collective of all ranks, each of which gets the result.
///
/// Cost      Every parameter is gathered once, one at a time.
[[nodiscard]] std::vector<std::pair<std::string, std::uint64_t>> parameter_hashes(Engine& engine);

/// One of all of them, names included.
[[nodiscard]] std::uint64_t parameter_hash(Engine& engine);

}  // namespace tessera::dist
