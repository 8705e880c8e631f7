#pragma once

// Private to dist/: what ranks tell each other in words.

#include <string>
#include <vector>

#include "dist/communicator.h"

namespace tessera::dist {

/// The text of every rank, by rank.
///
/// Calling   A collective: every rank of the group calls it.
/// Cost      Two all-gathers: of the lengths, and of as many bytes a rank as the longest text has.
[[nodiscard]] std::vector<std::string> gather_texts(const std::string& text, Communicator& group);

}  // namespace tessera::dist
