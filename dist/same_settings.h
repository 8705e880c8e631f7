#pragma once

#include <map>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "dist/config.h"

namespace tessera::dist {

/// Settings by the name that their user knows, as text.
using Settings = std::map<std::string, std::string>;

/// All of a configuration, by its keys: "optimizer.params.lr" → "0.001".
[[nodiscard]] Settings settings_of(const Config& config);

/// Every rank has the same settings. Ranks that train with different ones (two parts of an mpiexec with
/// different flags, a config file that differs between hosts) would go on without a word and learn something
/// that no layout explains.
///
/// Calling   A collective: every rank of the group calls it.
/// Cost      One all-gather of 8 bytes a rank; the settings themselves are sent only if they differ.
/// Errors    ConfigError on every rank, with each name that differs and its values by rank.
/// Example   settings differ between ranks: optimizer.params.lr is 0.001 on rank 0, 0.0001 on rank 1; ...
void require_same_settings(const Settings& mine, Communicator& group);

}  // namespace tessera::dist
