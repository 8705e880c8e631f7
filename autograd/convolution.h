#pragma once

#include <array>
#include <cstdint>

#include "tensor/tensor.h"

// Windows that move over pictures.   N pictures, C channels, H, W rows and columns; kernel [KH, KW]
//
// With padding p, a window of size k whose elements are d apart and that moves by s, a side of length L gives
//
//   (L + 2p − d·(k − 1) − 1) / s + 1     places, rounded down.

namespace tessera {

/// Rows and columns. One number counts for both: {.stride = 2}.
struct Size2 {
  std::int64_t rows = 0, columns = 0;
  // NOLINTNEXTLINE(google-explicit-constructor): 3 is {3, 3}
  constexpr Size2(std::int64_t both) : rows(both), columns(both) {}
  constexpr Size2(std::int64_t r, std::int64_t c) : rows(r), columns(c) {}
  friend bool operator==(const Size2&, const Size2&) = default;
};

struct Conv2dConfig {
  Size2 stride = 1;
  Size2 padding = 0;   ///< zeros around the picture
  Size2 dilation = 1;  ///< from one element of the window to the next
  /// Channels are cut into this many parts, and each part of the result sees one of them.
  std::int64_t groups = 1;
};

/// y[n, o, i, j] = Σ_{c,a,b} x[n, c, i·stride + a·dilation − padding, j·...] · weight[o, c, a, b] + bias[o]:
/// what is called convolution, without turning the kernel over.
///
/// Shapes    x [N, C, H, W], weight [O, C/groups, KH, KW], bias [O] or undefined → [N, O, OH, OW]
/// Gradient  As for `linear`: that of weight and bias in f32 for 16-bit weights.
/// Layouts   Pictures may be cut over ranks, S(0), beside a weight that is R; nothing else may.
/// Cost      The windows of all places lie side by side in memory while it runs (Chellapilla et al., 2006):
///           KH·KW times the size of x, for one product of matrices. They are made again in the backward
///           pass.
/// Errors    ShapeError if channels do not fit, or a window is larger than the padded picture.
[[nodiscard]] Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
                            const Conv2dConfig& config = {});

struct Pool2dConfig {
  Size2 window = 2;
  Size2 stride = 0;    ///< 0: that of the window
  Size2 padding = 0;   ///< at most half of the window
  Size2 dilation = 1;  ///< of max_pool2d alone
};

/// The largest element of each window; what lies in the padding never is. Of equal ones the first has the
/// gradient, as in PyTorch; NaN is larger than everything.
///
/// Shapes    x [..., H, W] → [..., OH, OW]
/// Layouts   Any dimension may be cut over ranks but the last two.
/// Errors    ShapeError for a window that is larger than the padded picture; DTypeError if x is not floating.
[[nodiscard]] Tensor max_pool2d(const Tensor& x, const Pool2dConfig& config = {});

/// The mean of each window, accumulated in f32 (f64 for f64); what lies in the padding counts as 0, as by
/// default in PyTorch. Shapes, layouts and errors as for max_pool2d.
[[nodiscard]] Tensor avg_pool2d(const Tensor& x, const Pool2dConfig& config = {});

}  // namespace tessera
