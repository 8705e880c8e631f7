#pragma once

// A sum of squares that has no order: it is exact, so that whatever is added where, by whichever rank, the
// result has the same bits (Kulisch, "Computer Arithmetic and Validity", 2008, chapter 8: a fixed-point
// number as long as the range of a double).
//
// Private to dist/.

#include <array>
#include <cstdint>
#include <span>

#include "dist/communicator.h"
#include "tensor/tensor.h"

namespace tessera::dist {

/// Σ x², exact for elements of f32, f16 and bf16, whose squares are doubles; of f64 elements the sum of their
/// squares, each rounded once.
///
/// Memory    560 bytes.
/// Cost      A few nanoseconds for each element: ten times a sum in f64.
class ExactSumOfSquares {
 public:
  /// Adds the squares of the elements of x, on the rank's kernel threads.
  void add(const Tensor& x);
  void add(const ExactSumOfSquares& other);
  /// The sum over all ranks of the group, on each of them. A collective.
  void all_reduce(Communicator& group) { all_reduce({this, 1}, group); }
  /// The same of several sums, in one collective.
  static void all_reduce(std::span<ExactSumOfSquares> sums, Communicator& group);
  /// Rounded once. NaN if anything that was added is not finite.
  [[nodiscard]] double value() const;

 private:
  // 32 bits each, the lowest of weight 2^-1074, with room above them for carries to wait.
  static constexpr int kNumDigits = 68;
  void add_square(double square) noexcept;
  void carry() noexcept;

  std::array<std::int64_t, kNumDigits + 1> digits_{};  // behind them: how many were not finite
  std::int64_t additions_ = 0;                         // since carries were last passed on
};

}  // namespace tessera::dist
