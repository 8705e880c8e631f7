#pragma once

// Collectives that autograd knows: the only operations that move elements of tensors between ranks. Each has
// a dual, which is what its gradient does.
//
// How a tensor lies on the ranks of a group is one of four things:
//   I     invariant       every rank has the same elements, and the same gradient
//   R     replicated      every rank has the same elements; its gradient is a part of a sum over the ranks
//   S(d)  sharded         rank r has the r-th piece along dimension d, as Tensor::chunk cuts: the
//                         first pieces are longer by one where R does not divide
//   P     partial sum     the value is the sum over the ranks; every rank has the same gradient
//
//   all_gather       S(d) → R       reduce_scatter   P → S(d)
//   copy_to_ranks       I → R       all_reduce       P → I
//   all_to_all    S(a) → S(b)       all_to_all       S(b) → S(a)
//
// Each stands opposite to its dual. Two layers, cut by rows and by columns (Shoeybi et al., "Megatron-LM",
// 2019), are
//
//   Tensor h = gelu(linear(copy_to_ranks(x, tp), w1_rows));       // w1 [4D, D] cut into rows, so h is S(-1)
//   Tensor y = all_reduce(linear(h, w2_columns), tp) + b2;        // w2 [D, 4D] cut into columns: P, then I
//
// Calling   Every rank of the group calls, in the same order; the backward pass too, as graphs are equal on
//           every rank. A group of one rank moves nothing. Groups outlive the graphs recorded through them.
// Values    Sums are combined in the tree order of dist/reduce.h: every rank gets the same bits.
// Memory    What is sent and received is copied through MemoryCategory::kCommunication where its elements are
//           not in the order of the wire: where d is not 0, x is not contiguous, or R does not divide.
// Bytes     As in Communicator, of pieces of ⌈n/R⌉ along d: where R does not divide, padding travels and is
//           counted.
// Errors    Before any traffic: ShapeError as stated, IndexError for a dimension that is not there,
//           DeviceError on meta, unless the communicator moves no data (the fake one).
// Letters   R ranks, n size of dimension d over all ranks; shard_size, shard_begin: see tensor/shape.h.

#include <cstdint>

#include "dist/communicator.h"
#include "dist/mesh.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// The elements of a contiguous tensor, as a Communicator's calls take them. It borrows.
[[nodiscard]] ConstBuffer const_buffer_of(const Tensor& x);
/// The same to be written; counts as a change in place.
[[nodiscard]] Buffer buffer_of(Tensor& x);

/// DeviceError unless `group` can send x: it lies in this machine's memory, or, on meta, the group's
/// communicator moves no data.
void check_device(const char* operation, const Tensor& x, const Communicator& group);

/// LayoutError unless x is I on every axis: for what moves elements within a group and does not know which
/// axis of a mesh that is.
void refuse_laid_out(const char* operation, const Tensor& x);

/// S(d) → R: the pieces of all ranks, joined along dimension `dim`.
///
/// Shapes    x [..., shard_size(n), ...] → [..., n, ...]; n = `size`, or R times x's where that is left at
///           -1.
/// Gradient  reduce_scatter of dy.
/// Errors    ShapeError if x's size along `dim` is not this rank's piece of `size`.
/// Example   R = 2, dim 0; {1, 2} and {3}, size 3  →  {1, 2, 3} on both
[[nodiscard]] Tensor all_gather(const Tensor& x, int dim, Communicator& group, std::int64_t size = -1);

/// P → S(d): this rank's piece of the sum over all ranks.
///
/// Shapes    x [..., n, ...], the same on every rank → [..., shard_size(n), ...]
/// Gradient  all_gather of dy: every rank's whole x went into the sum.
/// Example   R = 2, dim 0; {1, 2, 3} and {10, 20, 30}  →  {11, 22} and {33}
[[nodiscard]] Tensor reduce_scatter(const Tensor& x, int dim, Communicator& group);

/// P → I: the sum over all ranks.
///
/// Gradient  dy as it is: it is the same on every rank, and each rank's x went into the sum once.
[[nodiscard]] Tensor all_reduce(const Tensor& x, Communicator& group);

/// I → R: x as it is; from here on ranks may do different things with it. Without this before a sharded
/// weight each rank would keep its own part of x's gradient and take it for the whole.
///
/// Gradient  all_reduce of dy: the sum of what the ranks did with x.
[[nodiscard]] Tensor copy_to_ranks(const Tensor& x, Communicator& group);

/// S(concat_dim) → S(split_dim): cuts x along `split_dim`, sends piece p to rank p, and joins what comes
/// along `concat_dim`. How attention goes from pieces of the sequence to whole sequences of some heads and
/// back (Jacobs et al., "DeepSpeed Ulysses", 2023).
///
/// Shapes    x [..., a, ..., shard_size(b), ...] → [..., shard_size(a), ..., b, ...]; b = `concat_size`, or R
///           times x's where that is left at -1
/// Gradient  all_to_all of dy with the two dimensions exchanged.
/// Errors    ShapeError if the dimensions are one, or x's size along concat_dim is not this rank's piece of
///           concat_size.
[[nodiscard]] Tensor all_to_all(const Tensor& x, int split_dim, int concat_dim, Communicator& group,
                                std::int64_t concat_size = -1);

// --- The same along an axis of a mesh, with layout types ---------------------------------------------------
//
// These ask for the layout that stands on the left of the table above, give that on the right, and leave
// other axes alone. LayoutError for another one, before any traffic: a sum that is reduced twice is as wrong
// as one that is not reduced. On an axis of size 1 they return x. The forms with a group, above, know no
// axis: they are for programs that have no mesh, and refuse (LayoutError) what is not I on every axis.

[[nodiscard]] Tensor all_gather(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis,
                                std::int64_t size = -1);
[[nodiscard]] Tensor reduce_scatter(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis);
[[nodiscard]] Tensor all_reduce(const Tensor& x, const Mesh& mesh, MeshAxis axis);
[[nodiscard]] Tensor copy_to_ranks(const Tensor& x, const Mesh& mesh, MeshAxis axis);
[[nodiscard]] Tensor all_to_all(const Tensor& x, int split_dim, int concat_dim, const Mesh& mesh,
                                MeshAxis axis, std::int64_t concat_size = -1);

/// R → S(d): this rank's piece of what it has whole. Moves nothing; the gradient is that piece in a tensor of
/// zeros, a part of the sum that R stands for.
///
/// Shapes    x [..., n, ...] → [..., shard_size(n), ...]
[[nodiscard]] Tensor own_piece(const Tensor& x, int dim, const Mesh& mesh, MeshAxis axis);

}  // namespace tessera::dist
