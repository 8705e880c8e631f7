// Rows of the gradient table: arithmetic and functions of one tensor.

#include "autograd/ops.h"
#include "tensor/create.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {
namespace {

using In = std::span<const Tensor>;

struct UnaryCase {
  const char* operation;
  double low, high;
  bool kink;  // at 0
  Tensor (*function)(const Tensor&);
};

struct NamedShape {
  const char* name;
  Shape shape;
};

const NamedShape kShapes[] = {
    {"scalar", {}}, {"vector", {5}}, {"three_dims", {2, 3, 4}}, {"empty", {0}}, {"empty_inside", {3, 0, 2}}};

struct BinaryCase {
  const char* operation;
  double low, high;
  bool kink;  // where both are equal
  Tensor (*function)(const Tensor&, const Tensor&);
};

struct ShapePair {
  const char* name;
  Shape a, b;
};

const ShapePair kPairs[] = {
    {"same", {2, 3}, {2, 3}},
    {"row", {2, 3}, {3}},
    {"row_left", {3}, {2, 3}},
    {"both_ways", {4, 1, 3}, {2, 1}},
    {"scalar", {2, 3}, {}},
    {"scalar_left", {}, {4}},
    {"empty", {0, 3}, {0, 3}},
    {"empty_by_broadcast", {0, 3}, {1, 3}},
    {"four_dims", {2, 1, 3, 2}, {1, 2, 1, 2}},
};

void add_unary_rows(std::vector<Row>& rows) {
  const UnaryCase cases[] = {
      {"abs", 0, 0, true, abs},
      {"square", -2, 2, false, square},
      {"sqrt", 0.3, 2, false, sqrt},
      {"rsqrt", 0.5, 2, false, rsqrt},
      {"reciprocal", 0.5, 2, false, reciprocal},
      {"exp", -2, 2, false, exp},
      {"log", 0.3, 3, false, log},
      {"sin", -3, 3, false, sin},
      {"cos", -3, 3, false, cos},
      {"tanh", -2, 2, false, tanh},
      {"erf", -2, 2, false, erf},
      {"sigmoid", -4, 4, false, sigmoid},
      {"relu", 0, 0, true, relu},
      {"silu", -4, 4, false, silu},
      {"softplus", -4, 4, false, softplus},
      {"softplus", 25, 40, false, softplus},
      {"gelu", -3, 3, false, [](const Tensor& x) { return gelu(x, Gelu::kTanh); }},
      {"gelu", -3, 3, false, [](const Tensor& x) { return gelu(x, Gelu::kErf); }},
      {"add", -1, 1, false, [](const Tensor& x) { return add(x, 2.5); }},
      {"multiply", -1, 1, false, [](const Tensor& x) { return multiply(x, -1.5); }},
      {"divide", 0.5, 2, false, [](const Tensor& x) { return divide(2.0, x); }},
      {"divide", -2, 2, false, [](const Tensor& x) { return x / 3.0; }},
      {"pow", 0.5, 2, false, [](const Tensor& x) { return pow(x, 2.5); }},
      {"pow", -2, 2, false, [](const Tensor& x) { return pow(x, 3.0); }},
      {"pow", -2, 2, false, [](const Tensor& x) { return pow(x, 1.0); }},
      {"pow", -2, 2, false, [](const Tensor& x) { return pow(x, 0.0); }},
      {"pow", 0.5, 2, false, [](const Tensor& x) { return pow(x, -1.0); }},
      {"clamp", 0, 0, true, [](const Tensor& x) { return clamp(x, -0.2, 0.4); }},
      {"operator+", -1, 1, false, [](const Tensor& x) { return (x + 1.0) * (2.0 + x); }},
      {"operator-", -1, 1, false, [](const Tensor& x) { return (x - 1.0) * (2.0 - x) * -x; }},
      {"operator*", -1, 1, false, [](const Tensor& x) { return (x * 3.0) + (2.0 * x); }},
      {"operator/", 0.5, 2, false, [](const Tensor& x) { return (x / 3.0) + (2.0 / x); }},
      {"multiply", -1, 1, false, [](const Tensor& x) { return x * x; }},
      {"divide", 0.5, 1, false, [](const Tensor& x) { return (x + 1.0) / x; }},
  };
  int number = 0;
  for (const UnaryCase& c : cases) {
    ++number;
    for (const NamedShape& s : kShapes) {
      rows.push_back({c.operation,
                      "form" + std::to_string(number) + "_" + s.name,
                      {{.shape = s.shape, .low = c.low, .high = c.high, .spread = c.kink}},
                      [f = c.function](In in) { return f(in[0]); }});
    }
  }
}

void add_binary_rows(std::vector<Row>& rows) {
  const BinaryCase cases[] = {
      {"add", -1, 1, false, [](const Tensor& a, const Tensor& b) { return add(a, b); }},
      {"subtract", -1, 1, false, subtract},
      {"multiply", -1, 1, false, [](const Tensor& a, const Tensor& b) { return multiply(a, b); }},
      {"divide", 0.5, 2, false, [](const Tensor& a, const Tensor& b) { return divide(a, b); }},
      {"maximum", 0, 0, true, maximum},
      {"minimum", 0, 0, true, minimum},
      {"operator+", -1, 1, false, [](const Tensor& a, const Tensor& b) { return a + b; }},
      {"operator-", -1, 1, false, [](const Tensor& a, const Tensor& b) { return a - b; }},
      {"operator*", -1, 1, false, [](const Tensor& a, const Tensor& b) { return a * b; }},
      {"operator/", 0.5, 2, false, [](const Tensor& a, const Tensor& b) { return a / b; }},
  };
  for (const BinaryCase& c : cases) {
    for (const ShapePair& s : kPairs) {
      // Spread values of the two inputs differ too: the second is moved by half a step.
      rows.push_back({c.operation,
                      std::string("pair_") + s.name,
                      {{.shape = s.a, .low = c.low, .high = c.high, .spread = c.kink},
                       {.shape = s.b, .low = c.low, .high = c.high, .spread = c.kink}},
                      [f = c.function, kink = c.kink](In in) {
                        return kink ? f(in[0], in[1] + 0.033) : f(in[0], in[1]);
                      }});
    }
  }
}

void add_where_rows(std::vector<Row>& rows) {
  for (const ShapePair& s : kPairs) {
    rows.push_back({"where", std::string("pair_") + s.name, {{.shape = s.a}, {.shape = s.b}}, [](In in) {
                      const Tensor condition = greater(in[0].detach() + in[1].detach(), 0.0);
                      return where(condition, in[0], in[1]);
                    }});
  }
  rows.push_back({"where", "condition_broadcasts", {{.shape = {3}}, {.shape = {4, 3}}}, [](In in) {
                    const Tensor condition = from_vector<bool>({true, false, true, true}, Shape{4, 1});
                    return where(condition, in[0], in[1]);
                  }});
  rows.push_back(
      {"where", "condition_is_widest", {{.shape = {3}}, {.shape = {}}}, [](In in) {
         const Tensor condition =
             from_vector<bool>({true, false, true, true, false, false}, Shape{3, 2}).transpose(0, 1);
         return where(condition, in[0], in[1]);
       }});
}

}  // namespace

void add_elementwise_rows(std::vector<Row>& rows) {
  add_unary_rows(rows);
  add_binary_rows(rows);
  add_where_rows(rows);
}

}  // namespace tessera::gradient_table
