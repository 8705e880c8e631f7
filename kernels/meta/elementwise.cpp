#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

/// Operations per element of op(x), and of dy · op'(x).
struct UnaryCost {
  std::int64_t forward;
  std::int64_t backward;
};

UnaryCost unary_cost(UnaryOp op) {
  switch (op) {
    case UnaryOp::kNeg:  // −dy
      return {1, 1};
    case UnaryOp::kAbs:  // sign(x) · dy
      return {1, 2};
    case UnaryOp::kSign:  // zeros
      return {1, 0};
    case UnaryOp::kSquare:  // 2 · x · dy
      return {1, 2};
    case UnaryOp::kSqrt:  // dy · ½ / √x
      return {1, 3};
    case UnaryOp::kRsqrt:  // 1/√x;  dy · −½ · (1/√x) / x
      return {2, 5};
    case UnaryOp::kReciprocal:  // −dy / x²
      return {1, 3};
    case UnaryOp::kExp:  // eˣ · dy
      return {1, 2};
    case UnaryOp::kLog:  // dy / x
      return {1, 1};
    case UnaryOp::kSin:  // cos x · dy
      return {1, 2};
    case UnaryOp::kCos:  // −sin x · dy
      return {1, 3};
    case UnaryOp::kTanh:  // (1 − tanh² x) · dy
      return {1, 4};
    case UnaryOp::kSigmoid:  // s = 1 / (1 + e⁻ˣ);  s · (1 − s) · dy
      return {4, 7};
    case UnaryOp::kErf:  // 2/√π · e^(−x²) · dy
      return {1, 5};
    case UnaryOp::kRelu:
      return {1, 1};
    case UnaryOp::kGeluTanh:
      // t = tanh(c · (x + a·x²·x));  ½ · x · (1 + t);
      // (½ · (1 + t) + ½ · x · (1 − t²) · c · (1 + 3a · x²)) · dy
      return {9, 18};
    case UnaryOp::kGeluErf:  // Φ = ½ · (1 + erf(x/√2));  x · Φ;  (Φ + x · e^(−½·x²) / √2π) · dy
      return {5, 11};
    case UnaryOp::kSilu:  // x · s;  s · (1 + x · (1 − s)) · dy
      return {5, 9};
    case UnaryOp::kSoftplus:  // max(x, 0) + log(1 + e^(−|x|));  s · dy
      return {6, 5};
    case UnaryOp::kNot:
      return {0, 0};
  }
  return {0, 0};
}

class MetaElementwise final : public Elementwise {
 public:
  // 0: a conversion is not arithmetic.
  void copy(const ConstView& x, const View& y) const override { Count().reads(x).writes(y); }

  void fill(const View& y, double /*value*/) const override { Count().writes(y); }

  // 2 per element.
  void arange(const View& y, double /*start*/, double /*step*/) const override {
    Count().flops(float_operations(y.dtype, 2 * y.num_elements())).writes(y);
  }

  void unary(UnaryOp op, const ConstView& x, const View& y) const override {
    Count().flops(float_operations(y.dtype, unary_cost(op).forward * y.num_elements())).reads(x).writes(y);
  }

  void unary_backward(UnaryOp op, const ConstView& x, const ConstView& dy, const View& dx) const override {
    Count().flops(unary_cost(op).backward * dx.num_elements()).reads(x).reads(dy).writes(dx);
  }

  // 1 per element of y, whatever the operation.
  void binary(BinaryOp /*op*/, const ConstView& a, const ConstView& b, const View& y) const override {
    Count().flops(float_operations(y.dtype, y.num_elements())).reads(a).reads(b).writes(y);
  }

  void binary_scalar(BinaryOp /*op*/, const ConstView& a, double /*scalar*/, bool /*scalar_first*/,
                     const View& y) const override {
    Count().flops(float_operations(y.dtype, y.num_elements())).reads(a).writes(y);
  }

  void compare(CompareOp /*op*/, const ConstView& a, const ConstView& b, const View& y) const override {
    Count().flops(float_operations(a.dtype, y.num_elements())).reads(a).reads(b).writes(y);
  }

  void compare_scalar(CompareOp /*op*/, const ConstView& a, double /*scalar*/, const View& y) const override {
    Count().flops(float_operations(a.dtype, y.num_elements())).reads(a).writes(y);
  }

  // 0. Both branches are read, as a vectorised selection does.
  void where(const ConstView& condition, const ConstView& a, const ConstView& b,
             const View& y) const override {
    Count().reads(condition).reads(a).reads(b).writes(y);
  }

  // 2 per element.
  void add_scaled(const View& y, const ConstView& x, double /*alpha*/) const override {
    Count().flops(float_operations(y.dtype, 2 * y.num_elements())).reads(x).updates(y);
  }
};

}  // namespace

const Elementwise& elementwise() noexcept {
  static const MetaElementwise family;
  return family;
}

}  // namespace tessera::kernels::meta_device
