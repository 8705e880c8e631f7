// Every differentiable operation against central differences, in f64: the rows of the gradient table, each
// with its inputs laid out in memory in four ways. A test below reads the headers and misses operations
// without a row.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <regex>
#include <set>
#include <sstream>

#include "autograd/backward.h"
#include "autograd/grad_check.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {

const std::vector<Row>& rows() {
  static const std::vector<Row> all = [] {
    std::vector<Row> rows;
    add_elementwise_rows(rows);
    add_view_rows(rows);
    add_reduction_and_indexing_rows(rows);
    add_layer_rows(rows);
    add_picture_rows(rows);
    return rows;
  }();
  return all;
}

namespace {

enum class Layout { kContiguous, kTransposed, kSliced, kStepped };

const char* name(Layout layout) {
  switch (layout) {
    case Layout::kContiguous:
      return "contiguous";
    case Layout::kTransposed:
      return "transposed";
    case Layout::kSliced:
      return "sliced";
    case Layout::kStepped:
      return "stepped";
  }
  return "?";
}

// A view of the given shape and layout. What lies between its elements is NaN (for integers, out of every
// range): an operation that reads it is found out.
Tensor strided(const Shape& shape, Layout layout, DType dtype) {
  const double poison = is_floating(dtype) ? std::numeric_limits<double>::quiet_NaN() : -1000000.0;
  Shape outer = shape;
  switch (layout) {
    case Layout::kContiguous:
      return full(shape, poison, {.dtype = dtype});
    case Layout::kTransposed: {
      for (int d = 0; d < shape.dims(); ++d) outer[d] = shape[-1 - d];
      Tensor x = full(outer, poison, {.dtype = dtype});
      for (int d = 0; d < shape.dims() / 2; ++d) x = x.transpose(d, -1 - d);
      return x;
    }
    case Layout::kSliced: {
      for (std::int64_t& size : std::span(&outer[0], static_cast<std::size_t>(shape.dims()))) size += 3;
      Tensor x = full(outer, poison, {.dtype = dtype});
      for (int d = 0; d < shape.dims(); ++d) x = x.slice(d, 1, 1 + shape[d]);
      return x;
    }
    case Layout::kStepped: {
      for (std::int64_t& size : std::span(&outer[0], static_cast<std::size_t>(shape.dims()))) size *= 2;
      Tensor x = full(outer, poison, {.dtype = dtype});
      for (int d = 0; d < shape.dims(); ++d) x = x.slice(d, 1, 2 * shape[d], 2);
      return x;
    }
  }
  return {};
}

Tensor make(const Input& input, Layout layout, std::size_t number) {
  if (input.shape.dims() == 0) layout = Layout::kContiguous;
  const bool is_index = !input.indices.empty();
  Tensor x = strided(input.shape, layout, is_index ? kI64 : kF64);
  const std::int64_t n = input.shape.num_elements();
  if (is_index) {
    x.copy_from(from_vector<std::int64_t>(input.indices, input.shape));
  } else if (input.spread) {
    // 7 is prime to every n here that is not a multiple of it; 11 to those that are.
    const std::int64_t stride = n % 7 == 0 ? 11 : 7;
    std::vector<double> values;
    for (std::int64_t i = 0; i < n; ++i)
      values.push_back(
          0.1 * static_cast<double>((i * stride + static_cast<std::int64_t>(number)) % n - n / 2) + 0.05);
    x.copy_from(from_vector<double>(values, input.shape));
  } else {
    x.copy_from(
        uniform(input.shape, input.low, input.high, "input " + std::to_string(number), {.dtype = kF64}));
  }
  return x;
}

// One test for each operation; a failure names the row.
class Gradient : public testing::TestWithParam<std::string> {
 protected:
  static std::vector<Row> rows_of_operation() {
    std::vector<Row> found;
    for (const Row& row : rows()) {
      if (row.operation == GetParam()) found.push_back(row);
    }
    return found;
  }
};

std::set<std::string> operations_in_table() {
  std::set<std::string> operations;
  for (const Row& row : rows()) operations.insert(row.operation);
  return operations;
}

// Central differences with step h = 1e-5 err by h²/6·f''' + ε·|f|/h, with ε = 1e-16. Results here are sums of
// up to 50 terms of order 1 and third derivatives stay below 100: 2e-9 + 5e-10. 1e-6 leaves room for steep
// corners.
TEST_P(Gradient, MatchesCentralDifferencesInEveryLayout) {
  for (const Row& row : rows_of_operation()) {
    for (const Layout layout :
         {Layout::kContiguous, Layout::kTransposed, Layout::kSliced, Layout::kStepped}) {
      SCOPED_TRACE(row.name + ", " + name(layout));
      std::vector<Tensor> inputs;
      for (const Input& input : row.inputs) inputs.push_back(make(input, layout, inputs.size()));
      EXPECT_EQ("", grad_check(row.function, inputs));
    }
  }
}

// The gradients of `row` when only input number `only` needs one, or all of them if there is no such input.
std::vector<Tensor> gradients(const Row& row, std::span<const Tensor> inputs, std::size_t only) {
  std::vector<Tensor> leaves;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].detach());
    if (is_floating(inputs[i].dtype()) && (only == i || only == inputs.size())) leaves[i].set_requires_grad();
  }
  const Tensor y = row.function(leaves);
  if (y.requires_grad()) backward(y, uniform(y.shape(), 0.5, 1.5, "dy", {.dtype = kF64}));
  std::vector<Tensor> grads;
  for (const Tensor& leaf : leaves) grads.push_back(leaf.grad());
  return grads;
}

// A closure that computes only the gradients it is asked for must not mix them up, and must have saved what
// it needs.
TEST_P(Gradient, OfOneInputIsTheSameWhenOthersNeedNone) {
  for (const Row& row : rows_of_operation()) {
    std::vector<Tensor> inputs;
    for (const Input& input : row.inputs) inputs.push_back(make(input, Layout::kContiguous, inputs.size()));
    const std::vector<Tensor> together = gradients(row, inputs, inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      SCOPED_TRACE(row.name + ", input " + std::to_string(i));
      const Tensor alone = gradients(row, inputs, i)[i];
      ASSERT_EQ(alone.defined(), together[i].defined());
      if (!alone.defined()) continue;
      EXPECT_EQ(alone.to_vector<double>(), together[i].to_vector<double>());
    }
  }
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  for (const auto& [symbol, word] : {std::pair{"operator+", "plus"},
                                     {"operator-", "minus"},
                                     {"operator*", "times"},
                                     {"operator/", "over"}}) {
    if (info.param == symbol) return word;
  }
  return info.param;
}

INSTANTIATE_TEST_SUITE_P(Of, Gradient, testing::ValuesIn(operations_in_table()), test_name);

// --- Is every operation in the table?

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void collect(const std::string& text, const std::regex& declaration, std::set<std::string>& names) {
  for (std::sregex_iterator it(text.begin(), text.end(), declaration), end; it != end; ++it)
    names.insert((*it)[1]);
}

std::set<std::string> operations_in_headers() {
  const std::filesystem::path root = TESSERA_SOURCE_DIR;
  std::set<std::string> names;
  const std::regex function(
      R"(\[\[nodiscard\]\]\s+(?:inline\s+)?(?:Tensor|ResidualNorm|ValuesAndIndices|std::vector<Tensor>)\s+(operator.|\w+)\()");
  std::istringstream includes(read(root / "autograd/ops.h"));
  for (std::string line; std::getline(includes, line);) {
    std::smatch match;
    if (std::regex_search(line, match, std::regex("#include \"(autograd/\\w+\\.h)\"")))
      collect(read(root / match[1].str()), function, names);
  }
  collect(read(root / "autograd/checkpoint.h"), function, names);
  // Members of Tensor: views and copies.
  const std::string tensor = read(root / "tensor/tensor.h");
  const std::size_t begin = tensor.find("--- Views"), end = tensor.find("--- In place");
  EXPECT_LT(begin, end);
  EXPECT_NE(end, std::string::npos);
  collect(tensor.substr(begin, end - begin), function, names);
  return names;
}

TEST(GradientTable, HasARowForEveryOperationInTheHeaders) {
  // Results that are no numbers, or not differentiable; see the headers.
  const std::set<std::string> without_gradient{"equal",         "less",        "less_equal",  "greater",
                                               "greater_equal", "logical_not", "logical_and", "logical_or",
                                               "argmax",        "argmin",      "any",         "all"};
  // Not checked in f64 by differences: conversions_test.cpp compares them with what they must be.
  const std::set<std::string> elsewhere{"to"};
  const std::set<std::string> in_table = operations_in_table();
  const std::set<std::string> operations = operations_in_headers();
  EXPECT_GE(operations.size(), 70u) << "the headers could not be read as expected";
  for (const std::string& operation : operations) {
    if (without_gradient.contains(operation) || elsewhere.contains(operation)) continue;
    EXPECT_TRUE(in_table.contains(operation))
        << operation << " has no row in the gradient table (tests/autograd/)";
  }
  for (const std::string& operation : in_table)
    EXPECT_TRUE(operations.contains(operation)) << operation << " is in the table, but in no header";
}

TEST(GradientTable, EveryOperationIsCheckedOnAnEmptyTensor) {
  std::set<std::string> with_empty;
  for (const Row& row : rows()) {
    for (const Input& input : row.inputs) {
      if (input.shape.num_elements() == 0) with_empty.insert(row.operation);
    }
  }
  for (const std::string& operation : operations_in_table())
    EXPECT_TRUE(with_empty.contains(operation)) << operation;
}

// --- Can the check fail?

TEST(GradientCheck, NamesTheElementWhoseGradientIsWrong) {
  const Tensor x = from_vector<double>({1, 2, 3});
  const auto wrong_square = [](std::span<const Tensor> in) {
    return record("wrong_square", in[0].detach() * in[0].detach(), {in[0]},
                  [x = saved(in[0])](const Tensor& dy, Needs) -> Grads {
                    return {dy * x.get() * from_vector<double>({2, 2, 2.01})};
                  });
  };
  const std::string message = grad_check(wrong_square, std::span(&x, 1));
  EXPECT_NE(message.find("input 0, element 2: analytic "), std::string::npos) << message;
}

TEST(GradientCheck, RefusesInputsInF32) {
  const Tensor x = ones({2});
  EXPECT_THROW(
      static_cast<void>(grad_check([](std::span<const Tensor> in) { return in[0] * 2.0; }, std::span(&x, 1))),
      Error);
}

}  // namespace
}  // namespace tessera::gradient_table
