#pragma once

// What each kind of operation makes of the layouts of its inputs (tensor/layout.h), and what it refuses. An
// operation asks before it computes, and gives its result the layout:
//
//   Tensor add(const Tensor& a, const Tensor& b) {
//     const Layout layout = layout_rules::sum("add", {a, b});
//     return record("add", laid_out(..., layout), {a, b}, ...);
//   }
//
// On each axis of the mesh by itself, with R ranks along it:
//
//   what goes in                       sum a + b     product a · b    non-linear f(a, b)
//   I, I                               I             I                I
//   R, R; R with a constant I          R             R                R
//   S(d), S(d); S(d) with R            S(d)          S(d)             S(d)
//   S(d) with a constant I that is     S(d)          S(d)             S(d)
//     broadcast along d
//   P, P                               P             refused          refused
//   P with R or a constant I           refused       P                refused
//   I that wants a gradient with R     refused: each rank would get its own part of the gradient and take it
//     or S(d)                          for the whole; dist::copy_to_ranks is missing
//   S(d) with S(d) in another order    refused: index i of one is not index i of the other
//   S(d) with what has dimension d     refused: as long as a part, it is a part too, and its layout must say
//     whole                            so; only length 1 is broadcast
//
// A constant is a tensor that wants no gradient. A product that contracts a dimension which both factors have
// cut gives P; so does a sum over a cut dimension. What is refused throws LayoutError before anything is
// computed, on whatever ranks: wrong programs end on their first step, on one laptop.
//
// Cost      Tensors that are I everywhere cost a comparison for each input. The rules run in forward passes
//           alone, the second one of recomputation included: gradients carry no layouts, they follow from
//           those of what they are gradients of (RankContext::check_layouts is false inside of a backward
//           pass; a program may switch it off itself to see what the checks cost).

#include <initializer_list>
#include <span>

#include "autograd/reductions.h"
#include "tensor/tensor.h"

namespace tessera::layout_rules {

/// An input by the name that messages use.
struct Input {
  const char* name;
  const Tensor& tensor;
};
/// They borrow: for the call that they are arguments of.
class Inputs : public std::span<const Input> {
 public:
  Inputs(std::initializer_list<Input> inputs) : std::span<const Input>(inputs.begin(), inputs.size()) {}
  template <std::size_t N>
  // NOLINTNEXTLINE(google-explicit-constructor): as {...} is
  Inputs(const Input (&inputs)[N]) : std::span<const Input>(inputs) {}
  explicit Inputs(std::span<const Input> inputs) : std::span<const Input>(inputs) {}
};

/// Element by element with broadcasting, linear in all inputs taken together: add, subtract, where.
[[nodiscard]] Layout sum(const char* operation, Inputs inputs);
/// Element by element with broadcasting, linear in each of two inputs: multiply.
[[nodiscard]] Layout product(const char* operation, Inputs inputs);
/// Linear in the first of two inputs alone: divide.
[[nodiscard]] Layout quotient(const char* operation, Inputs inputs);
/// Element by element with broadcasting: gelu, maximum, compare.
[[nodiscard]] Layout nonlinear(const char* operation, Inputs inputs);
/// The layout of x itself: scaling, conversions.
[[nodiscard]] Layout linear(const Tensor& x);
/// a [..., M, K] · b [..., K, N], or with `b_transposed` a [..., M, K] · b [N, K]ᵀ.
[[nodiscard]] Layout contraction(const char* operation, Input a, Input b, bool b_transposed);
/// The same and a bias [N] added.
[[nodiscard]] Layout linear_layer(const char* operation, Input x, Input weight, const Tensor& bias);

enum class Reduced { kSum, kMean, kOther };
/// `over` as for the reduction; kOther: maximum, any, ...
[[nodiscard]] Layout reduction(const char* operation, const Tensor& x, const Over& over, Reduced how);
/// Works along dimension `dim`, which must be whole on every rank: softmax, cumsum, sort. `is_linear` admits
/// partial sums.
[[nodiscard]] Layout along(const char* operation, const Tensor& x, int dim, bool is_linear);
/// Tensors joined along dimension `dim`, which must be whole in each; otherwise as a sum of all of them.
[[nodiscard]] Layout concat(std::span<const Tensor> tensors, int dim);
/// x[..., index[...], ...] along `dim`, in which x must be whole. `index` may be cut there.
[[nodiscard]] Layout gather(const Tensor& x, int dim, const Tensor& index);
/// x and src added at index along `dim`, in which all three must be whole.
[[nodiscard]] Layout scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src);
/// Rows of x's last dimension, with parameters of that size: layer_norm, rms_norm.
[[nodiscard]] Layout rows(const char* operation, Inputs x_and_parameters);
/// The first input [..., H, W] may be cut along the dimensions before `whole_from`, parameters beside it
/// along none: convolution, pooling.
[[nodiscard]] Layout pictures(const char* operation, Inputs x_and_parameters, int whole_from);
/// table [V, D], ids [...]: cut along V, a table gives partial sums of rows, and ids must be P: those of
/// other ranks masked (dist::mask_foreign_ids).
[[nodiscard]] Layout embedding(const Tensor& table, const Tensor& ids);
/// q [B, T, H, K], k, v [B, S, G, K], or all packed in q as [B, T, (H + 2G)·K].
[[nodiscard]] Layout attention(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v);
/// The same by something that brings together sequences which are cut along `sequence_axis`, as all three
/// must be: dist::ring_attention.
[[nodiscard]] Layout attention_over_ranks(const char* operation, const Tensor& q, const Tensor& k,
                                          const Tensor& v, MeshAxis sequence_axis);
/// logits [..., V], targets [...] → the layout of the losses [...].
[[nodiscard]] Layout row_losses(const char* operation, const Tensor& logits, const Tensor& targets);

}  // namespace tessera::layout_rules

namespace tessera {

/// y as a part of what `layout` says.
[[nodiscard]] inline Tensor laid_out(Tensor y, const Layout& layout) {
  if (!layout.is_invariant()) y.set_layout(layout);
  return y;
}

}  // namespace tessera
