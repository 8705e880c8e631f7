#include "dist/invariant.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "dist/collectives.h"
#include "dist/invariant_linear.h"
#include "dist/ulysses.h"
#include "kernels/error.h"
#include "nn/llama.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp, kCp = MeshAxis::kCp;

[[noreturn]] void refuse(const std::string& reason) { throw ConfigError("numerics = invariant: " + reason); }

// Ulysses' attention sees whole sequences of some heads, as one rank's does. Copies of key/value heads would
// have a part of the gradient each.
void check_context_parallel(const nn::LanguageModel& model, const Config& config, const Mesh& mesh) {
  if (config.context_parallel == Config::ContextParallel::kRing) {
    refuse(
        "ring attention adds up in the order in which keys come round, which is another on each rank; "
        "\"context_parallel\": {\"method\": \"ulysses\"} works, and so does cp = 1");
  }
  const auto* llama = dynamic_cast<const nn::Llama*>(&model);
  if (llama == nullptr) return;
  const std::int64_t key_heads =
      llama->config().kv_heads == 0 ? llama->config().heads : llama->config().kv_heads;
  const std::int64_t share = llama->config().heads / key_heads;
  const auto needs_copies = [&](int cp) {
    bool needs = false;
    for (int r = 0; r < mesh.size(kTp); ++r) {
      const std::int64_t own = shard_size(key_heads, mesh.size(kTp), r);
      needs = needs || key_head_copies(own * share, own, cp) > 1;
    }
    return needs;
  };
  if (!needs_copies(mesh.size(kCp))) return;
  int works = mesh.size(kCp) - 1;
  while (works > 1 && needs_copies(works)) --works;
  refuse(
      fmt::format("cp = {} would need copies of the {} key/value heads, each with a part of the gradient; "
                  "cp = {} works",
                  mesh.size(kCp), key_heads, works));
}

}  // namespace

void check_invariant(const nn::LanguageModel& model, const Config& config, const Mesh& mesh) {
  if (mesh.size(MeshAxis::kPp) > 1)
    refuse("pipelines are not supported yet; give those ranks to dp, tp or cp");
  if (std::ranges::find(kLeafRanks, mesh.size(kTp)) == kLeafRanks.end()) {
    refuse(fmt::format(
        "sums are made of pieces that {} tensor-parallel ranks can share out, and tp is {}; tp = {} works",
        fmt::join(kLeafRanks, ", "), mesh.size(kTp), largest_leaf_ranks(mesh.size(kTp))));
  }
  if (mesh.size(kCp) > 1) check_context_parallel(model, config, mesh);
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
