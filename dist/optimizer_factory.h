#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dist/config.h"
#include "optim/optimizer.h"
#include "optim/piece_exchange.h"

namespace tessera::dist {

/// The optimizer that a configuration names, over this rank's pieces of the parameters. `exchange` outlives
/// it; those that need whole tensors (LAMB, Muon) ask it. Null: the pieces are whole.
[[nodiscard]] std::unique_ptr<optim::Optimizer> make_optimizer(
    const Config::Optimizer& config, const NamedTensors& pieces,
    const std::vector<optim::ParameterGroup>& groups, optim::PieceExchange* exchange);

/// Bytes of its state for each element of a parameter in `dtype`: moments and, for 16 bits, the master copy,
/// or what a bf16 state has of it. Muon keeps one moment of hidden matrices and two of the rest: counted as
/// two, the most.
[[nodiscard]] std::int64_t optimizer_bytes_per_element(const Config::Optimizer& config, DType dtype);

}  // namespace tessera::dist
