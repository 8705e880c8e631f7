#include "dist/invariant.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "dist/invariant_linear.h"
#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp, kCp = MeshAxis::kCp;

[[noreturn]] void refuse(const std::string& reason) { throw ConfigError("numerics = invariant: " + reason); }

}  // namespace

void check_invariant(const Config& config, const Mesh& mesh) {
  if (std::ranges::find(kLeafRanks, mesh.size(kTp)) == kLeafRanks.end()) {
    refuse(fmt::format(
        "sums are made of pieces that {} tensor-parallel ranks can share out, and tp is {}; tp = {} works",
        fmt::join(kLeafRanks, ", "), mesh.size(kTp), largest_leaf_ranks(mesh.size(kTp))));
  }
  // Ulysses' attention sees whole sequences of some heads, as one rank's does.
  if (mesh.size(kCp) > 1 && config.context_parallel == Config::ContextParallel::kRing) {
    refuse(
        "ring attention adds up in the order in which keys come round, which is another on each rank; "
        "\"context_parallel\": {\"method\": \"ulysses\"} works, and so does cp = 1");
  }
}

InvariantProducts::InvariantProducts()
    : context_(RankContext::current()), previous_(context_.kernels.invariant_products) {
  context_.kernels.invariant_products = true;
}

InvariantProducts::~InvariantProducts() { context_.kernels.invariant_products = previous_; }

}  // namespace tessera::dist
