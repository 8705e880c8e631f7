#pragma once

#include <functional>

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

}  // namespace tessera
