#pragma once

// How an optimizer that needs more than its own elements asks for the rest.
//
// ZeRO gives each rank a *piece* of every parameter: a one-dimensional run of its elements, of any length,
// zero included. Adam, SGD, Adagrad and Lion change each element by itself and never notice. LAMB needs norms
// of whole tensors, Muon whole matrices: they ask a PieceExchange, which is implemented by whoever cut the
// parameters. An optimizer without one takes its parameters as whole.

#include <functional>
#include <span>
#include <string>

#include "tensor/tensor.h"

namespace tessera::optim {

/// Joins what the ranks hold of the same parameters.
///
/// Calling   `sum_over_pieces`, `sum_squares_exactly` and `whole` are collectives: every rank that holds a
///           piece of these parameters, an empty one too, calls them with the same names in the same order.
///           `piece` is local.
/// Threads   Used by the rank that made it.
/// Errors    IndexError for a name that is not one of its parameters; CommError if a peer is lost.
class PieceExchange {
 public:
  PieceExchange() = default;
  PieceExchange(const PieceExchange&) = delete;
  PieceExchange& operator=(const PieceExchange&) = delete;
  virtual ~PieceExchange() = default;

  /// Adds up what each rank computed over its piece, so that every logical element counts once: copies that
  /// several ranks hold (a parameter replicated over tp, or over ZeRO's replicas) count as one, padding as
  /// none.
  ///
  /// Shapes    sums[i], of this rank's piece of names[i] → of the whole parameter, bit-equal on every rank. A
  ///           name may be listed several times, for several sums.
  /// Cost      One all-reduce of all sums together.
  virtual void sum_over_pieces(std::span<const std::string> names, std::span<double> sums) = 0;

  /// Σ x² over whole tensors, of which piece(i) gives this rank's part of one that lies as names[i] does:
  /// exact and then rounded once, so that it has the same bits however parameters are cut, and where they are
  /// not. Returns false, and does nothing, if this exchange does not promise that: whoever asks then adds up
  /// his pieces and calls sum_over_pieces.
  ///
  /// Calling   As sum_over_pieces, if the result is true. piece(i) is called in order, once at most.
  /// Cost      Two all-reduces of 552 bytes a sum.
  [[nodiscard]] virtual bool sum_squares_exactly(std::span<const std::string> /*names*/,
                                                 const std::function<Tensor(std::size_t)>& /*piece*/,
                                                 std::span<double> /*sums*/) {
    return false;
  }

  /// The whole tensor whose part of this rank is `piece`: of a parameter, or of anything that has an element
  /// for each of its elements (gradient, momentum).
  ///
  /// Shapes    piece [n], n the elements of this rank's part → the parameter's shape in the unsharded model,
  ///           without padding, on `piece`'s device and of its dtype, whatever the dtype of the parameter.
  /// Cost      An all-gather of the tensor.
  [[nodiscard]] virtual Tensor whole(const std::string& name, const Tensor& piece) = 0;

  /// This rank's part of a whole tensor: piece(name, whole(name, x)) equals x.
  ///
  /// Shapes    whole, of the parameter's shape in the unsharded model → [n], contiguous.
  [[nodiscard]] virtual Tensor piece(const std::string& name, const Tensor& whole) = 0;
};

}  // namespace tessera::optim
