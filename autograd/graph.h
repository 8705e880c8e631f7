#pragma once

// The graph behind gradients, and what an operation uses to put itself into it:
//
//   Tensor square_root(const Tensor& x) {
//     Tensor y = empty_like(x);
//     ... compute y ...
//     // dx = dy / (2 y)
//     return record("square_root", y, {x}, [y = saved_output(y)](const Tensor& dy, Needs) -> Grads {
//       return {dy / (2.0 * y.get())};
//     });
//   }
//
// An output refers to the node that made it; a node refers to its inputs. Closures hold inputs by `saved`,
// their own outputs by `saved_output`: the handle of an output would refer to its own node, a cycle that
// never dies.

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace tessera {

class GradInfo;

/// Which inputs' gradients a backward closure must compute now, by position. Others may be left undefined.
class Needs {
 public:
  /// `summed` are the inputs whose gradients are added to the leaves' own and to nothing else: all or none.
  Needs(std::span<const std::uint8_t> wanted, bool may_overwrite_saved,
        std::span<const std::shared_ptr<GradInfo>> summed = {})
      : wanted_(wanted), summed_(summed), may_overwrite_saved_(may_overwrite_saved) {}
  [[nodiscard]] bool operator[](std::size_t input) const noexcept { return wanted_[input] != 0; }
  /// True if the graph is freed after this call: a saved value that nobody else holds may become the
  /// gradient's memory.
  [[nodiscard]] bool may_overwrite_saved() const noexcept { return may_overwrite_saved_; }
  /// What a leaf has of its gradient so far, if the closure's part is to be added to it and seen by nobody
  /// before: a closure that has few rows of it may add them here, and leave its gradient undefined. Undefined
  /// in all other cases.
  [[nodiscard]] Tensor sum_so_far(std::size_t input) const;

 private:
  std::span<const std::uint8_t> wanted_;
  std::span<const std::shared_ptr<GradInfo>> summed_;
  bool may_overwrite_saved_;
};

/// One gradient for each input, in order; undefined where it is not needed or zero.
using Grads = std::vector<Tensor>;
using Backward = std::function<Grads(const Tensor& dy, Needs needs)>;
/// For operations with several outputs; dys of outputs that nobody used are undefined.
using BackwardMany = std::function<Grads(std::span<const Tensor> dys, Needs needs)>;

/// How to make a result again; see recomputed() in autograd/checkpoint.h.
struct Recipe;

/// A value kept for the backward pass, with the version it had; of one that can be made again, its recipe
/// alone. An empty one holds nothing.
class Saved {
 public:
  Saved() = default;
  explicit Saved(Tensor value);
  explicit Saved(const std::shared_ptr<Recipe>& recipe);
  /// The value. One that is made again lives from the first call until all that saved it have been freed.
  ///
  /// Errors   AutogradError if the value was changed in place since it was saved; StorageError if it is
  ///          dropped and used.
  [[nodiscard]] const Tensor& get() const;
  [[nodiscard]] bool defined() const noexcept { return value_.defined() || remade_ != nullptr; }
  [[nodiscard]] bool can_be_remade() const noexcept { return remade_ != nullptr; }
  /// True if nobody else can see the value's memory.
  [[nodiscard]] bool is_sole_owner() const;

 private:
  friend struct Recipe;
  struct Remade;

  Tensor value_;
  std::uint64_t version_ = 0;
  std::shared_ptr<Remade> remade_;  // instead of value_
};

struct Recipe {
  std::function<Tensor()> make;       ///< runs inside of a backward pass
  std::uint64_t version = 0;          ///< of the result: one that was changed in place is not made again so
  std::weak_ptr<Saved::Remade> made;  ///< shared by all that saved the result
};

/// Keeps an input of the operation, or how to make it again.
[[nodiscard]] Saved saved(const Tensor& input);
/// Keeps an input only if `condition`: usually that the gradient which uses it is wanted.
[[nodiscard]] Saved saved_if(bool condition, const Tensor& input);
/// Keeps an output of the operation itself.
[[nodiscard]] Saved saved_output(const Tensor& output);

using Inputs = std::initializer_list<std::reference_wrapper<const Tensor>>;

namespace detail {
[[nodiscard]] bool must_record(std::span<const std::reference_wrapper<const Tensor>> inputs);
void attach(const char* operation, std::span<Tensor> outputs,
            std::span<const std::reference_wrapper<const Tensor>> inputs, BackwardMany backward);
[[nodiscard]] BackwardMany single_output(Backward backward);
}  // namespace detail

/// Makes `y` the result of `operation` on `inputs` if gradients are enabled and wanted; returns y. `backward`
/// must capture values one by one, and never y itself (use saved_output). It runs with gradients disabled.
template <class F>
[[nodiscard]] Tensor record(const char* operation, Tensor y, Inputs inputs, F&& backward) {
  const std::span<const std::reference_wrapper<const Tensor>> span(inputs.begin(), inputs.size());
  if (detail::must_record(span)) {
    detail::attach(operation, std::span(&y, 1), span,
                   detail::single_output(Backward(std::forward<F>(backward))));
  }
  return y;
}

/// The same with several outputs; marks `outputs` in place. Integer outputs never take gradients.
template <class F>
void record_many(const char* operation, std::span<Tensor> outputs, Inputs inputs, F&& backward) {
  const std::span<const std::reference_wrapper<const Tensor>> span(inputs.begin(), inputs.size());
  if (detail::must_record(span))
    detail::attach(operation, outputs, span, BackwardMany(std::forward<F>(backward)));
}

/// The same for a number of inputs that is known only at run time.
template <class F>
void record_many(const char* operation, std::span<Tensor> outputs,
                 std::span<const std::reference_wrapper<const Tensor>> inputs, F&& backward) {
  if (detail::must_record(inputs))
    detail::attach(operation, outputs, inputs, BackwardMany(std::forward<F>(backward)));
}

using GradHook = std::function<Tensor(const Tensor& grad)>;
using AccumulatedHook = std::function<void(const Tensor& leaf_grad)>;

struct Node;

/// What autograd keeps of one tensor.
class GradInfo final : public AutogradMeta {
 public:
  [[nodiscard]] bool requires_grad() const noexcept override { return producer != nullptr || wanted; }
  void record(const char* operation, const Tensor& input, Tensor& output,
              std::function<Tensor(const Tensor&)> backward) const override;
  [[nodiscard]] bool is_leaf() const noexcept { return producer == nullptr; }

  // Of a result: which node made it, as which output.
  std::shared_ptr<Node> producer;
  int output_index = 0;

  // Of a leaf.
  bool wanted = false;
  Tensor grad;
  DType grad_dtype = kF32;  ///< gradients of 16-bit leaves accumulate in f32
  std::vector<GradHook> hooks;
  std::vector<AccumulatedHook> accumulated_hooks;
};

/// One recorded operation.
struct Node {
  struct Output {
    Shape shape;
    DType dtype;
    std::vector<GradHook> hooks;
    std::shared_ptr<Recipe> recipe;  ///< what operations save instead of this output; usually null
  };

  const char* operation = "";
  /// Order of recording on this rank: a node's inputs always have smaller numbers.
  std::uint64_t sequence = 0;
  std::vector<std::shared_ptr<GradInfo>> inputs;  ///< null where no gradient goes
  std::vector<Output> outputs;
  BackwardMany backward;  ///< empty once freed

  /// Lets go of all saved values.
  void free() noexcept;

  Node() = default;
  ~Node();  // without recursion: a graph may be 100,000 operations deep
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
};

/// The graph's data of `x`; null if it is in no graph.
[[nodiscard]] GradInfo* grad_info(const Tensor& x);

/// The dtype in which a gradient of `x` is to be computed: that in which a leaf sums over uses and passes
/// (f32 for 16-bit parameters), for all others x's own.
[[nodiscard]] DType gradient_dtype(const Tensor& x);

/// Calls `hook` with each gradient that a backward pass computes for `x` (of a leaf: the sum over its uses in
/// that pass, before it is added to grad()). A defined result replaces the gradient; another shape is a
/// ShapeError of the pass.
void register_hook(const Tensor& x, GradHook hook);

/// Calls `hook` whenever a backward pass has added its last contribution to the gradient of the leaf `x`:
/// while the pass still runs, so that reduction can start.
void register_accumulated_hook(const Tensor& leaf, AccumulatedHook hook);

}  // namespace tessera
