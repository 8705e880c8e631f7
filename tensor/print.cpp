// Printing: nested brackets with aligned columns. Long dimensions show their first and last three elements.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>

#include "tensor/tensor.h"

namespace tessera {
namespace {

constexpr std::int64_t kEdge = 3;        // elements shown at each end of a long dimension
constexpr std::int64_t kShowAll = 1000;  // tensors up to this many elements are shown whole

std::string format_element(const Tensor& x) {
  if (x.dtype() == kBool) return x.item<bool>() ? "true" : "false";
  if (!is_floating(x.dtype())) return fmt::format("{}", x.item<std::int64_t>());
  const double value = x.item();
  if (std::isfinite(value) && value == std::trunc(value) && std::fabs(value) < 1e6)
    return fmt::format("{:.0f}.", value);
  return fmt::format("{:.5g}", value);
}

class Printer {
 public:
  explicit Printer(const Tensor& x) : whole_(x.num_elements() <= kShowAll) {
    measure(x);
    print(x, 0);
  }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  [[nodiscard]] bool skips(const Tensor& x, std::int64_t i) const {
    return !whole_ && x.dim(0) > 2 * kEdge && i >= kEdge && i < x.dim(0) - kEdge;
  }

  void measure(const Tensor& x) {
    if (x.num_elements() == 0) return;
    if (x.dims() == 0) {
      width_ = std::max(width_, format_element(x).size());
      return;
    }
    for (std::int64_t i = 0; i < x.dim(0); ++i) {
      if (!skips(x, i)) measure(x.select(0, i));
    }
  }

  void print(const Tensor& x, int depth) {
    if (x.dims() == 0) {
      text_ += fmt::format("{:>{}}", format_element(x), width_);
      return;
    }
    if (x.num_elements() == 0) {  // however many empty rows there are
      text_ += "[]";
      return;
    }
    const bool innermost = x.dims() == 1;
    const std::string separator =
        innermost ? ", " : ",\n" + std::string(static_cast<std::size_t>(depth) + 1, ' ');
    text_ += '[';
    bool first = true;
    bool skipped = false;
    for (std::int64_t i = 0; i < x.dim(0); ++i) {
      if (skips(x, i)) {
        if (!skipped) text_ += separator + "...";
        skipped = true;
        continue;
      }
      if (!first) text_ += separator;
      first = false;
      print(x.select(0, i), depth + 1);
    }
    text_ += ']';
  }

  bool whole_;
  std::size_t width_ = 0;
  std::string text_;
};

}  // namespace

std::string to_string(const Tensor& x) {
  if (!x.defined()) return "undefined tensor";
  if (x.device() == meta) return fmt::format("{} on meta", describe(x));
  if (x.storage().is_dropped()) return fmt::format("{}, dropped", describe(x));
  return fmt::format("{}  {}", Printer(x.detach()).take(), describe(x));
}

std::ostream& operator<<(std::ostream& out, const Tensor& x) { return out << to_string(x); }

}  // namespace tessera
