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

// One form for all elements, so that points stand below each other: "2.", "2.5000" or "2.5000e-07".
enum class Form { kInteger, kFixed, kScientific };

class Format {
 public:
  explicit Format(DType dtype) : dtype_(dtype) {}

  void look_at(const Tensor& element) {
    if (!is_floating(dtype_)) return;
    const double size = std::fabs(element.item());
    if (!std::isfinite(size) || size == 0.0) return;
    largest_ = std::max(largest_, size);
    smallest_ = std::min(smallest_, size);
    if (size != std::trunc(size)) all_integers_ = false;
  }

  [[nodiscard]] std::string operator()(const Tensor& element) const {
    if (dtype_ == kBool) return element.item<bool>() ? "true" : "false";
    if (!is_floating(dtype_)) return fmt::format("{}", element.item<std::int64_t>());
    const double value = element.item();
    if (!std::isfinite(value)) return fmt::format("{}", value);
    switch (form()) {
      case Form::kInteger:
        return fmt::format("{:.0f}.", value);
      case Form::kFixed:
        return fmt::format("{:.4f}", value);
      case Form::kScientific:
        return fmt::format("{:.4e}", value);
    }
    return {};
  }

 private:
  [[nodiscard]] Form form() const {
    if (largest_ >= 1e6 || smallest_ < 1e-4) return Form::kScientific;
    return all_integers_ ? Form::kInteger : Form::kFixed;
  }

  DType dtype_;
  double largest_ = 0.0;
  double smallest_ = 1.0;
  bool all_integers_ = true;
};

class Printer {
 public:
  explicit Printer(const Tensor& x) : whole_(x.num_elements() <= kShowAll), format_(x.dtype()) {
    for_each_shown(x, [this](const Tensor& element) { format_.look_at(element); });
    for_each_shown(x, [this](const Tensor& element) { width_ = std::max(width_, format_(element).size()); });
    print(x, 0);
  }
  [[nodiscard]] std::string take() { return std::move(text_); }

 private:
  [[nodiscard]] bool skips(const Tensor& x, std::int64_t i) const {
    return !whole_ && x.dim(0) > 2 * kEdge && i >= kEdge && i < x.dim(0) - kEdge;
  }

  template <class F>
  void for_each_shown(const Tensor& x, const F& f) const {
    if (x.num_elements() == 0) return;
    if (x.dims() == 0) return f(x);
    for (std::int64_t i = 0; i < x.dim(0); ++i) {
      if (!skips(x, i)) for_each_shown(x.select(0, i), f);
    }
  }

  void print(const Tensor& x, int depth) {
    if (x.dims() == 0) {
      text_ += fmt::format("{:>{}}", format_(x), width_);
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
  Format format_;
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
