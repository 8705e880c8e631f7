#pragma once

#include <functional>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

/// What checkpoint() remembers of an input that is packed.
struct PackedInput {
  Shape shape;
  DType dtype = kF32;
  Device device;
  Layout layout;
};

/// How checkpoint() keeps the inputs of a function between the two passes. Both functions are called with
/// gradients and layout checks disabled; where they are collectives, all ranks of the group recompute the
/// same functions in the same order. Undefined ones keep the input itself.
struct CheckpointOptions {
  /// What to keep of an input: a part of it, or a copy somewhere else. A view would keep all of its memory.
  std::function<Tensor(const Tensor& input)> pack = nullptr;
  /// The input again, from what `pack` gave: of the same shape and dtype, on the same device. checkpoint()
  /// puts its layout back.
  std::function<Tensor(const Tensor& packed, const PackedInput& input)> unpack = nullptr;
};

/// Activation checkpointing (Chen et al., "Training deep nets with sublinear memory cost", 2016): runs
/// `function` without keeping anything but its inputs, and runs it again in the backward pass.
///
/// Gradients are the same bits as without: random numbers are functions of (seed, stream, step, index), and
/// the step and sample offset of the first run are put back for the second. `function` must be a pure
/// function of its inputs and of parameters; what it captures by reference must live until the backward pass.
///
/// Errors    AutogradError of the backward pass if an input that is kept as it is was changed in place.
///           ShapeError of the backward pass if unpack() gives another shape or dtype than pack() took.
/// Example   Tensor y = checkpoint([&](const Tensor& x) { return block(x); }, x);
[[nodiscard]] Tensor checkpoint(std::function<Tensor(const Tensor&)> function, const Tensor& input,
                                const CheckpointOptions& options = {});
[[nodiscard]] Tensor checkpoint(std::function<Tensor(std::span<const Tensor>)> function,
                                std::span<const Tensor> inputs, const CheckpointOptions& options = {});

/// Keeps inputs in host memory: pack() copies to the cpu as MemoryCategory::kHostActivation, unpack() copies
/// back to the device that the input came from. `inner`, if given, packs first and unpacks last: each tensor
/// rank may keep its part in host memory (dist/partitioned_activations.h).
///
/// Where tensors lie on the cpu anyway, both memories are one: the copies are made and counted all the same,
/// so the bytes of kActivation and kHostActivation are those that a device and its host would hold.
[[nodiscard]] CheckpointOptions kept_in_host_memory(CheckpointOptions inner = {});

/// Selective recomputation (Korthikanti et al., "Reducing activation recomputation in large transformer
/// models", 2022) of one value: function(inputs), recorded as usual, but operations that save the result for
/// their backward pass save how to make it again. For what is cheap to compute and large to keep: gelu's
/// result, a norm's, a gathered sequence.
///
/// Memory    Instead of the result the inputs are kept, which its own backward pass mostly keeps anyway. They
///           may be such values themselves. Made again, the result lives until everything that saved it is
///           done; with retain_graph, until the graph is freed.
/// Kept      All the same: a result that needs no gradient, and what saves a view of it.
/// Function  As for checkpoint(): pure, random numbers put back. It may be a collective where all ranks run
///           their backward passes in one order.
/// Cost      `function` once more, however many saved its result. A checkpoint() of gelu and the second layer
///           together, below, would keep the same and run the second layer's product again.
/// Example   Tensor h = recomputed([](const Tensor& f) { return gelu(f); }, linear(x, w));
///           Tensor y = linear(h, v);               // keeps linear(x, w) and not h
[[nodiscard]] Tensor recomputed(std::function<Tensor(const Tensor&)> function, const Tensor& input);
[[nodiscard]] Tensor recomputed(std::function<Tensor(std::span<const Tensor>)> function,
                                std::span<const Tensor> inputs);

/// The second half of it, for a result that is there already: operations that save y from now on save how to
/// make it again. function(inputs) must give the bits of y.
void make_recomputable(const Tensor& y, std::function<Tensor(std::span<const Tensor>)> function,
                       std::span<const Tensor> inputs);

/// For an operation whose result `y` is `x` itself with another place in the graph: what saves y saves how to
/// make x again, if x is such a value.
void keep_recomputable(const Tensor& x, const Tensor& y);

}  // namespace tessera
