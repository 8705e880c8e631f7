// Rows of the gradient table: reductions, indexing, joining.

#include "autograd/checkpoint.h"
#include "autograd/ops.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {
namespace {

using In = std::span<const Tensor>;

struct ReductionCase {
  const char* name;
  Shape shape;
  Over over;
};

void add_reduction_rows(std::vector<Row>& rows) {
  const auto add = [&rows](const char* operation, const std::string& name, const Shape& shape, bool spread,
                           Tensor (*f)(const Tensor&)) {
    rows.push_back({operation, name, {{.shape = shape, .spread = spread}}, [f](In in) { return f(in[0]); }});
  };
  add("sum", "all", {2, 3, 4}, false, [](const Tensor& x) { return sum(x); });
  add("sum", "of_scalar", {}, false, [](const Tensor& x) { return sum(x); });
  add("sum", "last", {2, 3, 4}, false, [](const Tensor& x) { return sum(x, {.dims = {-1}}); });
  add("sum", "outer_kept", {2, 3, 4}, false, [](const Tensor& x) {
    return sum(x, {.dims = {0, 2}, .keep_dims = true});
  });
  add("sum", "empty", {0, 3}, false, [](const Tensor& x) { return sum(x, {.dims = {0}}); });
  add("sum", "feeds_broadcast", {2, 3}, false,
      [](const Tensor& x) { return x * sum(x, {.dims = {1}, .keep_dims = true}); });
  add("mean", "all", {2, 3, 4}, false, [](const Tensor& x) { return mean(x); });
  add("mean", "middle", {2, 3, 4}, false, [](const Tensor& x) { return mean(x, {.dims = {1}}); });
  add("mean", "first_kept", {2, 3}, false,
      [](const Tensor& x) { return mean(x, {.dims = {0}, .keep_dims = true}); });
  add("mean", "no_rows", {0, 3}, false, [](const Tensor& x) { return mean(x, {.dims = {1}}); });
  add("max", "all", {2, 3, 4}, true, [](const Tensor& x) { return max(x); });
  add("max", "last", {2, 3, 4}, true, [](const Tensor& x) { return max(x, {.dims = {-1}}); });
  add("max", "first_kept", {3, 4}, true,
      [](const Tensor& x) { return max(x, {.dims = {0}, .keep_dims = true}); });
  add("max", "no_rows", {0, 3}, true, [](const Tensor& x) { return max(x, {.dims = {1}}); });
  add("min", "all", {2, 3, 4}, true, [](const Tensor& x) { return min(x); });
  add("min", "two_dims", {2, 3, 4}, true, [](const Tensor& x) { return min(x, {.dims = {0, 1}}); });
  add("min", "no_rows", {0, 3}, true,
      [](const Tensor& x) { return min(x, {.dims = {1}, .keep_dims = true}); });
  add("cumsum", "last", {2, 3, 4}, false, [](const Tensor& x) { return cumsum(x); });
  add("cumsum", "first", {3, 4}, false, [](const Tensor& x) { return cumsum(x, 0); });
  add("cumsum", "no_rows", {0, 3}, false, [](const Tensor& x) { return cumsum(x, 1); });
  add("cumsum", "empty_rows", {3, 0}, false, [](const Tensor& x) { return cumsum(x); });
  add("variance", "all", {2, 3, 4}, false, [](const Tensor& x) { return variance(x); });
  add("variance", "last", {3, 4}, false, [](const Tensor& x) { return variance(x, {.dims = {-1}}); });
  add("variance", "population", {3, 4}, false,
      [](const Tensor& x) { return variance(x, {.dims = {0}, .keep_dims = true}, 0); });
  add("variance", "no_rows", {0, 3}, false, [](const Tensor& x) { return variance(x, {.dims = {1}}); });
}

void add_indexing_rows(std::vector<Row>& rows) {
  rows.push_back({"embedding",
                  "repeated_ids",
                  {{.shape = {5, 3}}, {.shape = {2, 3}, .indices = {4, 0, 4, 1, 4, 2}}},
                  [](In in) { return embedding(in[0], in[1]); }});
  rows.push_back({"embedding", "one_id", {{.shape = {5, 3}}, {.shape = {}, .indices = {3}}}, [](In in) {
                    return embedding(in[0], in[1]);
                  }});
  rows.push_back({"embedding", "no_ids", {{.shape = {5, 3}}, {.shape = {2, 0}, .indices = {}}}, [](In in) {
                    return embedding(in[0], in[1].to(kI64));
                  }});
  rows.push_back(
      {"gather", "rows", {{.shape = {4, 3}}, {.shape = {2, 3}, .indices = {3, 0, 3, 1, 0, 3}}}, [](In in) {
         return gather(in[0], 0, in[1]);
       }});
  rows.push_back({"gather",
                  "smaller_index",
                  {{.shape = {4, 3, 2}}, {.shape = {2, 5, 1}, .indices = {0, 1, 2, 2, 0, 1, 1, 1, 0, 2}}},
                  [](In in) { return gather(in[0], 1, in[1]); }});
  rows.push_back({"gather", "nothing", {{.shape = {4, 3}}, {.shape = {0, 3}, .indices = {}}}, [](In in) {
                    return gather(in[0], 0, in[1].to(kI64));
                  }});
  // The gradient that comes back is a transposed view.
  rows.push_back({"gather",
                  "strided_dy",
                  {{.shape = {4, 3}}, {.shape = {2, 3}, .indices = {3, 0, 3, 1, 0, 3}}},
                  [](In in) { return gather(in[0], 0, in[1]).transpose(0, 1); }});
  rows.push_back({"scatter_add",
                  "rows",
                  {{.shape = {4, 3}}, {.shape = {2, 3}, .indices = {3, 0, 3, 3, 0, 1}}, {.shape = {2, 3}}},
                  [](In in) { return scatter_add(in[0], 0, in[1], in[2]); }});
  rows.push_back(
      {"scatter_add",
       "strided_dy",
       {{.shape = {4, 3}}, {.shape = {4, 2}, .indices = {2, 0, 1, 1, 0, 1, 2, 2}}, {.shape = {4, 2}}},
       [](In in) { return scatter_add(in[0], -1, in[1], in[2]).transpose(0, 1); }});
  rows.push_back({"scatter_add",
                  "nothing",
                  {{.shape = {4, 3}}, {.shape = {0, 3}, .indices = {}}, {.shape = {0, 3}}},
                  [](In in) { return scatter_add(in[0], 0, in[1].to(kI64), in[2]); }});
  for (const int dim : {0, 1, -1}) {
    const std::string suffix = dim < 0 ? "last" : std::to_string(dim);
    rows.push_back({"concat",
                    "along_" + suffix,
                    {{.shape = {2, 3}}, {.shape = {2, 3}}, {.shape = {2, 3}}},
                    [dim](In in) { return concat(in, dim) * 2.0; }});
    rows.push_back({"stack", "along_" + suffix, {{.shape = {2, 3}}, {.shape = {2, 3}}}, [dim](In in) {
                      return stack(in, dim);
                    }});
    rows.push_back({"top_k", "along_" + suffix, {{.shape = {4, 5}, .spread = true}}, [dim](In in) {
                      return top_k(in[0], 3, dim).values;
                    }});
    rows.push_back({"sort", "along_" + suffix, {{.shape = {4, 5}, .spread = true}}, [dim](In in) {
                      return sort(in[0], dim, dim == 0).values;
                    }});
  }
  rows.push_back({"concat",
                  "different_sizes_and_empty",
                  {{.shape = {1, 3}}, {.shape = {0, 3}}, {.shape = {4, 3}}},
                  [](In in) { return concat(in, 0); }});
  rows.push_back({"concat", "one_tensor_twice", {{.shape = {2, 3}}}, [](In in) {
                    const Tensor both[] = {in[0], in[0]};
                    return concat(both, 1);
                  }});
  rows.push_back(
      {"stack", "empty", {{.shape = {0, 2}}, {.shape = {0, 2}}}, [](In in) { return stack(in, 1); }});
  rows.push_back({"stack", "scalars", {{.shape = {}}, {.shape = {}}}, [](In in) { return stack(in, 0); }});
  rows.push_back(
      {"top_k", "none", {{.shape = {3, 4}, .spread = true}}, [](In in) { return top_k(in[0], 0).values; }});
  rows.push_back({"top_k", "no_rows", {{.shape = {0, 4}, .spread = true}}, [](In in) {
                    return top_k(in[0], 2).values;
                  }});
  rows.push_back({"sort", "empty", {{.shape = {3, 0}}}, [](In in) { return sort(in[0]).values; }});
}

void add_checkpoint_rows(std::vector<Row>& rows) {
  rows.push_back({"checkpoint", "one_input", {{.shape = {2, 3}}}, [](In in) {
                    return checkpoint([](const Tensor& x) { return tanh(x) * x; }, in[0]);
                  }});
  rows.push_back({"checkpoint", "several_inputs", {{.shape = {2, 3}}, {.shape = {3}}}, [](In in) {
                    return checkpoint([](In x) { return sin(x[0]) * x[1] + x[0]; }, in);
                  }});
  rows.push_back({"checkpoint", "reads_a_parameter", {{.shape = {2, 3}}, {.shape = {3}}}, [](In in) {
                    return checkpoint([w = in[1]](const Tensor& x) { return x * w * w; }, in[0]);
                  }});
  rows.push_back({"checkpoint", "empty", {{.shape = {0, 3}}}, [](In in) {
                    return checkpoint([](const Tensor& x) { return exp(x); }, in[0]);
                  }});
  rows.push_back({"recomputed", "one_input", {{.shape = {2, 3}}}, [](In in) {
                    return square(recomputed([](const Tensor& x) { return tanh(x); }, in[0]));
                  }});
  rows.push_back({"recomputed", "several_inputs", {{.shape = {2, 3}}, {.shape = {3}}}, [](In in) {
                    const Tensor h = recomputed([](In x) { return sin(x[0]) * x[1]; }, in);
                    return h * h * in[0];
                  }});
  rows.push_back({"recomputed", "empty", {{.shape = {0, 3}}}, [](In in) {
                    return square(recomputed([](const Tensor& x) { return exp(x); }, in[0]));
                  }});
}

}  // namespace

void add_reduction_and_indexing_rows(std::vector<Row>& rows) {
  add_reduction_rows(rows);
  add_indexing_rows(rows);
  add_checkpoint_rows(rows);
}

}  // namespace tessera::gradient_table
