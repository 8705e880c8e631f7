#include "dist/invariant.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp, kCp = MeshAxis::kCp;

[[noreturn]] void refuse(const std::string& reason) { throw ConfigError("numerics = invariant: " + reason); }

}  // namespace

void check_invariant(const nn::LanguageModel& model, const Config& config, const Mesh& mesh) {
  static_cast<void>(model);
  if (mesh.size(MeshAxis::kPp) > 1)
    refuse("pipelines are not supported yet; give those ranks to dp, tp or cp");
  if (mesh.size(kTp) > 1 || mesh.size(kCp) > 1)
    refuse("tp and cp are not supported yet; give those ranks to dp");
  if (config.zero.hpz_partition_size > 1 || config.zero.mics_shard_size > 0) {
    refuse(
        "shard groups (zero_hpz_partition_size, mics_shard_size) sum gradients in two steps, whose order "
        "depends on the groups; stage 3 without them works");
  }
  const bool cuts_parameters = mesh.size(kTp) > 1 || (config.zero.stage > 0 && mesh.shape().num_ranks() > 1);
  if (config.optimizer.type == "Lamb" && cuts_parameters) {
    refuse(
        "LAMB's norms are sums over the pieces of a parameter, whose order depends on the cut; AdamW and "
        "Muon "
        "work, and LAMB with ZeRO stage 0 and tp = 1");
  }
}

InvariantProducts::InvariantProducts()
    : context_(RankContext::current()), previous_(context_.kernels.invariant_products) {
  context_.kernels.invariant_products = true;
}

InvariantProducts::~InvariantProducts() { context_.kernels.invariant_products = previous_; }

}  // namespace tessera::dist
