#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/random_key.h"
#include "tensor/tensor.h"

namespace tessera::nn {

/// The values that a parameter begins with: a rule, so that a model can be built without memory and each
/// element be computed later, by whichever rank holds it.
///
/// Example   add_parameter("weight", {out, in}, Init::kaiming_uniform(in));
class Init {
 public:
  [[nodiscard]] static Init constant(double value) { return {Kind::kConstant, value, 0.0}; }
  [[nodiscard]] static Init zeros() { return constant(0.0); }
  [[nodiscard]] static Init ones() { return constant(1.0); }
  [[nodiscard]] static Init normal(double stddev, double mean = 0.0) { return {Kind::kNormal, mean, stddev}; }
  /// Uniform in [low, high).
  [[nodiscard]] static Init uniform(double low, double high) { return {Kind::kUniform, low, high}; }
  /// Uniform in ±1/√fan_in: what PyTorch gives a linear layer with `fan_in` inputs, weight and bias (He et
  /// al., 2015, with a gain of 1/√3). ConfigError if fan_in < 1.
  [[nodiscard]] static Init kaiming_uniform(std::int64_t fan_in);

  /// Writes the initial values of (a part of) a parameter into x. Element i of the parameter is a function of
  /// (seed of the rank, stream, i) alone: `index` says where x's elements lie in the whole parameter. Values
  /// are computed in f32 and then converted, so that a model built in f32 and converted equals one made in
  /// its dtype at once. On meta nothing is written.
  void fill(Tensor& x, std::string_view stream, const kernels::GlobalIndex& index) const;
  /// The same for a whole parameter.
  void fill(Tensor& x, std::string_view stream) const;

 private:
  enum class Kind : std::uint8_t { kConstant, kNormal, kUniform };
  Init(Kind kind, double a, double b) : kind_(kind), a_(a), b_(b) {}

  Kind kind_;
  double a_;  // the constant, the mean, or the lower bound
  double b_;  // the standard deviation or the upper bound
};

}  // namespace tessera::nn
