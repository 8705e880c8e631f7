// Rows of the gradient table: convolution and pooling. N pictures, C channels, H, W rows and columns.

#include "autograd/ops.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {
namespace {

using In = std::span<const Tensor>;

struct ConvolutionCase {
  const char* name;
  Shape x, weight;
  Conv2dConfig config = {};
};

void add_convolution_rows(std::vector<Row>& rows) {
  const ConvolutionCase cases[] = {
      {"plain", {2, 2, 4, 5}, {3, 2, 3, 2}},
      {"of_one_element", {2, 2, 3, 3}, {3, 2, 1, 1}},
      {"as_large_as_the_picture", {1, 2, 3, 4}, {2, 2, 3, 4}},
      {"padded", {1, 2, 3, 3}, {2, 2, 3, 3}, {.padding = 1}},
      {"stride_leaves_a_rest", {1, 1, 6, 5}, {2, 1, 2, 3}, {.stride = {3, 2}}},
      {"stride_padding_dilation",
       {1, 2, 6, 7},
       {2, 2, 2, 3},
       {.stride = {2, 3}, .padding = {1, 2}, .dilation = {3, 2}}},
      {"groups", {2, 4, 3, 3}, {6, 2, 2, 2}, {.groups = 2}},
      {"a_group_a_channel", {1, 3, 3, 3}, {3, 1, 2, 2}, {.padding = 1, .groups = 3}},
      {"no_pictures", {0, 2, 3, 3}, {3, 2, 2, 2}},
      {"no_channels", {2, 0, 3, 3}, {3, 0, 2, 2}},
      {"no_outputs", {2, 2, 3, 3}, {0, 2, 2, 2}},
  };
  for (const ConvolutionCase& c : cases) {
    const auto config = c.config;
    rows.push_back({"conv2d", c.name, {{.shape = c.x}, {.shape = c.weight}}, [config](In in) {
                      return conv2d(in[0], in[1], {}, config);
                    }});
    rows.push_back({"conv2d",
                    std::string(c.name) + "_with_bias",
                    {{.shape = c.x}, {.shape = c.weight}, {.shape = {c.weight[0]}}},
                    [config](In in) { return conv2d(in[0], in[1], in[2], config); }});
  }
}

struct PoolCase {
  const char* name;
  Shape x;
  Pool2dConfig config = {};
};

void add_pool_rows(std::vector<Row>& rows) {
  const PoolCase cases[] = {
      {"plain", {2, 2, 4, 4}},
      {"picture_alone", {5, 4}},
      {"rest_at_the_border", {1, 2, 5, 3}},
      {"windows_overlap", {1, 5, 5}, {.window = 3, .stride = {1, 2}}},
      {"padded", {2, 3, 4}, {.window = {2, 3}, .stride = 1, .padding = 1}},
      {"no_pictures", {0, 3, 4, 4}},
  };
  for (const PoolCase& c : cases) {
    const auto config = c.config;
    rows.push_back({"max_pool2d", c.name, {{.shape = c.x, .spread = true}}, [config](In in) {
                      return max_pool2d(in[0], config);
                    }});
    rows.push_back(
        {"avg_pool2d", c.name, {{.shape = c.x}}, [config](In in) { return avg_pool2d(in[0], config); }});
  }
  rows.push_back({"max_pool2d", "dilated", {{.shape = {2, 5, 6}, .spread = true}}, [](In in) {
                    return max_pool2d(in[0], {.window = 2, .stride = 1, .padding = 1, .dilation = {3, 2}});
                  }});
}

}  // namespace

void add_picture_rows(std::vector<Row>& rows) {
  add_convolution_rows(rows);
  add_pool_rows(rows);
}

}  // namespace tessera::gradient_table
