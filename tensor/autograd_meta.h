#pragma once

#include <functional>
#include <memory>

namespace tessera {

class Tensor;

/// What autograd hangs on a tensor. `tensor/` only knows that it is there; `autograd/graph.h` has the real
/// one.
class AutogradMeta {
 public:
  virtual ~AutogradMeta() = default;

  /// True if a backward pass would compute a gradient for this tensor.
  [[nodiscard]] virtual bool requires_grad() const noexcept = 0;

  /// Records that `output` was made from `input`, the tensor that this belongs to; `backward` takes the
  /// gradient of the output to that of the input. Called only while gradients are enabled.
  virtual void record(const char* operation, const Tensor& input, Tensor& output,
                      std::function<Tensor(const Tensor&)> backward) const = 0;
};

/// Told of every tensor in a graph that an operation reads while gradients are disabled. Recomputation needs
/// it: its first forward pass records nothing, and yet must know which parameters the function uses.
class LeafTracker {
 public:
  virtual ~LeafTracker() = default;
  virtual void touch(const std::shared_ptr<AutogradMeta>& meta) = 0;
};

}  // namespace tessera
