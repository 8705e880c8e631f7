#pragma once

#include <functional>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

/// Activation checkpointing (Chen et al., "Training deep nets with sublinear memory cost", 2016): runs
/// `function` without keeping anything but its inputs, and runs it again in the backward pass.
///
/// Gradients are the same bits as without: random numbers are functions of (seed, stream, step, index), and
/// the step and sample offset of the first run are put back for the second. `function` must be a pure
/// function of its inputs and of parameters; what it captures by reference must live until the backward pass.
///
/// Example   Tensor y = checkpoint([&](const Tensor& x) { return block(x); }, x);
[[nodiscard]] Tensor checkpoint(std::function<Tensor(const Tensor&)> function, const Tensor& input);
[[nodiscard]] Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function,
                                std::span<const Tensor> inputs);

}  // namespace tessera
