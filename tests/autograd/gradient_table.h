#pragma once

// The table of gradient checks: one row for each operation and case. It is cut into families, like autograd/.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tessera::gradient_table {

/// How the values of one input are chosen.
struct Input {
  Shape shape;
  double low = -1.0;
  double high = 1.0;
  /// All values at least 0.1 apart and none nearer to 0 than 0.05, in scrambled order: for operations that
  /// have a kink where two values, or a value and 0, are equal.
  bool spread = false;
  /// If given, the input is i64 with these values.
  std::vector<std::int64_t> indices = {};
};

using Function = std::function<Tensor(std::span<const Tensor>)>;

struct Row {
  std::string operation;  ///< as the header spells it
  std::string name;       ///< of the case; letters, digits and _
  std::vector<Input> inputs;
  Function function;
};

/// The families, each in a file of its own.
void add_elementwise_rows(std::vector<Row>& rows);
void add_view_rows(std::vector<Row>& rows);
void add_reduction_and_indexing_rows(std::vector<Row>& rows);
void add_layer_rows(std::vector<Row>& rows);
void add_picture_rows(std::vector<Row>& rows);

/// All rows.
[[nodiscard]] const std::vector<Row>& rows();

}  // namespace tessera::gradient_table
