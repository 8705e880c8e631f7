#pragma once

#include <memory>
#include <span>
#include <vector>

#include "autograd/graph.h"

namespace tessera {

/// Weight gradients that a backward pass left for later; see BackwardOptions::deferred.
class DeferredGradients {
 public:
  DeferredGradients();
  ~DeferredGradients();
  DeferredGradients(DeferredGradients&&) noexcept;
  DeferredGradients& operator=(DeferredGradients&&) noexcept;

  /// Computes them and accumulates into the leaves, in the order in which the pass met them; frees the graph.
  void run();
  [[nodiscard]] bool empty() const noexcept;

 private:
  friend class BackwardPass;
  struct Task;
  struct PartialSum;
  std::vector<Task> tasks_;
  std::vector<PartialSum> partial_sums_;
};

struct BackwardOptions {
  /// Keeps saved values for another pass over the same graph.
  bool retain_graph = false;
  /// If given, gradients of leaves that belong to an operation which also has other inputs are not computed
  /// now but put here: first the gradients that another pipeline stage waits for, later those of the weights
  /// (Qi et al., "Zero bubble pipeline parallelism", 2023).
  DeferredGradients* deferred = nullptr;
  /// With `deferred`: gradients of all leaves but `now` (which may be undefined) are put there, those of
  /// operations without other inputs (a table of embeddings) as well. So until run() no weight's grad()
  /// changes, however many passes stand in between.
  bool defers_all_leaves = false;
  Tensor now{};
};

/// Computes the gradient of Σ roots[i] · gradients[i] with respect to every leaf that the roots depend on,
/// and adds it to each leaf's grad().
///
/// Shapes    gradients[i] has the shape of roots[i]; an undefined one means 1 for a root with one element.
/// Memory    Saved values are freed as the pass goes on, unless retain_graph.
/// Errors    AutogradError: a root requires no gradient; the graph was freed by an earlier pass; a saved
///           value was changed in place. ShapeError: a gradient of another shape. LayoutError: a root without
///           a given gradient is replicated (R) over ranks, each of which would count it.
/// Threads   On the rank that recorded the graph.
void backward(std::span<const Tensor> roots, std::span<const Tensor> gradients,
              const BackwardOptions& options = {});
void backward(const Tensor& root, const Tensor& gradient = {}, const BackwardOptions& options = {});

/// The same gradients returned for `inputs` (leaves or intermediate results; undefined for one that the roots
/// do not depend on) instead of accumulated anywhere.
[[nodiscard]] std::vector<Tensor> gradients(std::span<const Tensor> roots,
                                            std::span<const Tensor> root_gradients,
                                            std::span<const Tensor> inputs, bool retain_graph = false);

namespace detail {
/// The gradients of `inputs` alone: the pass ends at each of them, even at one that is the result of an
/// operation. Uses of one input through another do not count.
[[nodiscard]] std::vector<Tensor> gradients_up_to(std::span<const Tensor> roots,
                                                  std::span<const Tensor> root_gradients,
                                                  std::span<const Tensor> inputs);
}  // namespace detail

}  // namespace tessera
