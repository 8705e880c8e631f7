#pragma once

#include "autograd/checkpoint.h"
#include "dist/mesh.h"

namespace tessera::dist {

/// Each rank along `axis`, which is tp, keeps its part of the inputs of recomputed blocks, which are the same
/// on all of them (Rajbhandari et al., "ZeRO", 2020, section 6.1): 1/t of the bytes, for one all-gather a
/// block in the backward pass.
///
/// Kept      Of an input of n elements, seen flat, rank r keeps [r·p, (r+1)·p) with p = ⌈n/t⌉; where t does
///           not divide n, the last parts are filled up with zeros. An input that is cut over tp already,
///           as under sequence parallelism, is kept as it is: every rank has its own part of it.
/// Sends     p elements from each rank to each other: (t−1)/t · bytes(x) for every recomputed block.
/// Calling   All ranks along `axis` recompute the same blocks in the same order, as they do where each runs
///           the same model. The mesh lives until the backward pass has ended.
/// Errors    LayoutError if an input is a partial sum on `axis`; DeviceError as for collectives.
/// Example   model.set_recompute({.mode = nn::RecomputeConfig::Mode::kFull,
///                                .saved_inputs = dist::partitioned_over(mesh, MeshAxis::kTp)});
///           ... .saved_inputs = kept_in_host_memory(dist::partitioned_over(mesh, axis))  // and on the host
[[nodiscard]] CheckpointOptions partitioned_over(const Mesh& mesh, MeshAxis axis);

}  // namespace tessera::dist
