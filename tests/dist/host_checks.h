#pragma once

#include <string_view>

#include "dist/job.h"

namespace tessera::dist::testing {

/// What a job on several hosts, with equally many ranks on each, must see of them: who shares a host in which
/// groups of a mesh, threads of a rank, sums over all. Throws what behaviours.h's require() throws.
///
/// `hosts_of_ranks` is the host of each rank, in order: "alpha,beta,alpha,beta".
void check_hosts(Job& job, std::string_view hosts_of_ranks);

}  // namespace tessera::dist::testing
