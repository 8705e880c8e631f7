#include "kernels/cpu/vector/elementwise.h"

#include "kernels/cpu/vector/families.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

class CpuElementwise final : public Elementwise {
 public:
  void copy(const ConstView& x, const View& y) const override { copy_elements(x, y); }
  void fill(const View& y, double value) const override { fill_elements(y, value); }
  void arange(const View& y, double start, double step) const override { arange_elements(y, start, step); }
  void unary(UnaryOp op, const ConstView& x, const View& y) const override { unary_elements(op, x, y); }
  void unary_backward(UnaryOp op, const ConstView& x, const ConstView& dy, const View& dx) const override {
    unary_backward_elements(op, x, dy, dx);
  }
  void binary(BinaryOp op, const ConstView& a, const ConstView& b, const View& y) const override {
    binary_elements(op, a, b, y);
  }
  void binary_scalar(BinaryOp op, const ConstView& a, double scalar, bool scalar_first,
                     const View& y) const override {
    binary_scalar_elements(op, a, scalar, scalar_first, y);
  }
  void compare(CompareOp op, const ConstView& a, const ConstView& b, const View& y) const override {
    compare_elements(op, a, b, y);
  }
  void compare_scalar(CompareOp op, const ConstView& a, double scalar, const View& y) const override {
    compare_scalar_elements(op, a, scalar, y);
  }
  void where(const ConstView& condition, const ConstView& a, const ConstView& b,
             const View& y) const override {
    select_elements(condition, a, b, y);
  }
  void add_scaled(const View& y, const ConstView& x, double alpha) const override {
    add_scaled_elements(y, x, alpha);
  }
};

constinit const CpuElementwise instance{};

}  // namespace

const Elementwise& elementwise() noexcept { return instance; }

}  // namespace tessera::kernels::TESSERA_ISA
