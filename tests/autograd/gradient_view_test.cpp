// Rows of the gradient table: views and copies, the members of Tensor.

#include <limits>

#include "autograd/ops.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {
namespace {

using In = std::span<const Tensor>;

struct ViewCase {
  const char* operation;
  const char* name;
  Shape shape;
  Tensor (*function)(const Tensor&);
};

}  // namespace

void add_view_rows(std::vector<Row>& rows) {
  const ViewCase cases[] = {
      {"reshape",
       "merges",
       {2, 3, 4},
       [](const Tensor& x) {
         return x.reshape({6, 4});
       }},
      {"reshape",
       "splits",
       {6, 4},
       [](const Tensor& x) {
         return x.reshape({3, -1, 2, 2});
       }},
      {"reshape", "to_scalar", {1, 1}, [](const Tensor& x) { return x.reshape({}); }},
      {"reshape",
       "empty",
       {0, 3},
       [](const Tensor& x) {
         return x.reshape({3, 0, 5});
       }},
      {"reshape", "copies", {3, 4}, [](const Tensor& x) { return x.transpose(0, 1).reshape({12}); }},
      {"unflatten",
       "the second",
       {2, 6, 2},
       [](const Tensor& x) {
         return x.unflatten(1, {3, -1});
       }},
      {"unflatten",
       "empty",
       {2, 0, 4},
       [](const Tensor& x) {
         return x.unflatten(1, {3, -1});
       }},
      {"flatten", "all", {2, 3, 4}, [](const Tensor& x) { return x.flatten(); }},
      {"flatten", "some", {2, 3, 4}, [](const Tensor& x) { return x.flatten(1, 2); }},
      {"flatten", "scalar", {}, [](const Tensor& x) { return x.flatten(); }},
      {"flatten", "empty", {2, 0, 4}, [](const Tensor& x) { return x.flatten(); }},
      {"permute",
       "cycle",
       {2, 3, 4},
       [](const Tensor& x) {
         return x.permute({2, 0, 1});
       }},
      {"permute",
       "negative",
       {2, 3, 4},
       [](const Tensor& x) {
         return x.permute({-2, -1, -3});
       }},
      {"permute",
       "empty",
       {2, 0},
       [](const Tensor& x) {
         return x.permute({1, 0});
       }},
      {"transpose", "matrix", {2, 3}, [](const Tensor& x) { return x.transpose(0, 1); }},
      {"transpose", "outer", {2, 3, 4}, [](const Tensor& x) { return x.transpose(0, -1); }},
      {"transpose", "empty", {0, 4}, [](const Tensor& x) { return x.transpose(0, 1); }},
      {"slice", "middle", {5, 3}, [](const Tensor& x) { return x.slice(0, 1, 4); }},
      {"slice", "stepped", {3, 7}, [](const Tensor& x) { return x.slice(1, 1, 7, 3); }},
      {"slice", "to_the_end", {6}, [](const Tensor& x) { return x.slice(0, -2, 1000); }},
      {"slice", "nothing", {6}, [](const Tensor& x) { return x.slice(0, 4, 2); }},
      {"slice", "of_empty", {0, 2}, [](const Tensor& x) { return x.slice(0, 0, 5); }},
      {"slice", "twice", {6, 4}, [](const Tensor& x) { return x.slice(0, 1, 6, 2).slice(1, 1, 3); }},
      {"select", "row", {3, 4}, [](const Tensor& x) { return x.select(0, 1); }},
      {"select", "last_column", {3, 4}, [](const Tensor& x) { return x.select(-1, -1); }},
      {"select", "of_empty", {3, 0}, [](const Tensor& x) { return x.select(0, 2); }},
      {"expand",
       "rows",
       {1, 3},
       [](const Tensor& x) {
         return x.expand({4, 3});
       }},
      {"expand",
       "new_dims",
       {3, 1},
       [](const Tensor& x) {
         return x.expand({2, 2, -1, 2});
       }},
      {"expand",
       "scalar",
       {},
       [](const Tensor& x) {
         return x.expand({2, 3});
       }},
      {"expand",
       "to_empty",
       {1, 3},
       [](const Tensor& x) {
         return x.expand({0, 3});
       }},
      {"expand",
       "of_empty",
       {0, 1},
       [](const Tensor& x) {
         return x.expand({0, 3});
       }},
      {"chunk", "of_empty", {0, 2}, [](const Tensor& x) { return x.chunk(2, 0)[0]; }},
      {"squeeze", "first", {1, 3}, [](const Tensor& x) { return x.squeeze(0); }},
      {"squeeze", "empty", {0, 1}, [](const Tensor& x) { return x.squeeze(-1); }},
      {"unsqueeze", "middle", {2, 3}, [](const Tensor& x) { return x.unsqueeze(1); }},
      {"unsqueeze", "end", {2, 3}, [](const Tensor& x) { return x.unsqueeze(-1); }},
      {"unsqueeze", "empty", {0}, [](const Tensor& x) { return x.unsqueeze(0); }},
      {"chunk", "even", {4, 3}, [](const Tensor& x) { return x.chunk(2, 0)[1] * x.chunk(2, 0)[0]; }},
      {"chunk", "uneven", {2, 5}, [](const Tensor& x) { return x.chunk(2, 1)[1] * 2.0; }},
      {"chunk", "more_than_there_are", {2}, [](const Tensor& x) { return x.chunk(3, 0)[2]; }},
      {"contiguous", "of_transposed", {2, 3}, [](const Tensor& x) { return x.transpose(0, 1).contiguous(); }},
      {"contiguous",
       "of_expanded",
       {3},
       [](const Tensor& x) {
         return x.expand({2, 3}).contiguous();
       }},
      {"contiguous", "empty", {0, 3}, [](const Tensor& x) { return x.transpose(0, 1).contiguous(); }},
      {"clone", "plain", {2, 3}, [](const Tensor& x) { return x.clone() * x; }},
      {"clone", "scalar", {}, [](const Tensor& x) { return x.clone(); }},
      {"clone", "empty", {0}, [](const Tensor& x) { return x.clone(); }},
      // A view of a view of a result, used beside the result itself.
      {"slice",
       "chain",
       {4, 6},
       [](const Tensor& x) {
         const Tensor y = x * x;
         return y.slice(0, 1, 3).transpose(0, 1).reshape({3, 4}) + y.slice(1, 0, 3).transpose(0, 1) * 2.0;
       }},
  };
  for (const ViewCase& c : cases)
    rows.push_back({c.operation, c.name, {{.shape = c.shape}}, [f = c.function](In in) { return f(in[0]); }});
}

}  // namespace tessera::gradient_table
