// Rows of the gradient table: matrix products, normalisation, attention, losses: what layers are made of.
// Shapes by letters: B batch, T queries, S keys, H heads, G key heads, K head width, D width, V vocabulary.

#include <cmath>

#include "autograd/ops.h"
#include "kernels/random_key.h"
#include "tensor/create.h"
#include "tests/autograd/gradient_table.h"

namespace tessera::gradient_table {
namespace {

using In = std::span<const Tensor>;

struct ProductCase {
  const char* name;
  Shape a, b;
};

void add_product_rows(std::vector<Row>& rows) {
  const ProductCase products[] = {
      {"matrices", {3, 4}, {4, 2}},
      {"batched", {2, 3, 4}, {2, 4, 2}},
      {"one_right_matrix", {2, 3, 4}, {4, 2}},
      {"one_left_matrix", {3, 4}, {2, 4, 2}},
      {"batches_broadcast", {2, 1, 3, 4}, {3, 4, 2}},
      {"row_by_matrix", {4}, {4, 2}},
      {"matrix_by_column", {3, 4}, {4}},
      {"dot", {4}, {4}},
      {"row_by_batch", {4}, {2, 4, 3}},
      {"batch_by_column", {2, 3, 4}, {4}},
      {"no_rows", {0, 4}, {4, 2}},
      {"no_columns", {3, 4}, {4, 0}},
      {"inner_size_zero", {3, 0}, {0, 2}},
      {"inner_size_zero_batched", {2, 3, 0}, {0, 2}},
      {"no_batch", {0, 3, 4}, {4, 2}},
  };
  for (const ProductCase& c : products)
    rows.push_back(
        {"matmul", c.name, {{.shape = c.a}, {.shape = c.b}}, [](In in) { return matmul(in[0], in[1]); }});
  rows.push_back({"matmul", "strided_dy", {{.shape = {2, 3, 4}}, {.shape = {4, 2}}}, [](In in) {
                    return matmul(in[0], in[1]).transpose(0, 2) * 1.0;
                  }});
  rows.push_back({"matmul", "of_itself", {{.shape = {3, 3}}}, [](In in) { return matmul(in[0], in[0]); }});

  const ProductCase linears[] = {
      {"matrix", {3, 4}, {2, 4}},      {"row", {4}, {2, 4}},          {"batched", {2, 3, 4}, {5, 4}},
      {"no_rows", {0, 4}, {2, 4}},     {"no_inputs", {3, 0}, {2, 0}}, {"no_outputs", {3, 4}, {0, 4}},
      {"no_batch", {2, 0, 4}, {2, 4}},
  };
  for (const ProductCase& c : linears) {
    rows.push_back({"linear",
                    std::string(c.name) + "_with_bias",
                    {{.shape = c.a}, {.shape = c.b}, {.shape = {c.b[0]}}},
                    [](In in) { return linear(in[0], in[1], in[2]); }});
    rows.push_back(
        {"linear", c.name, {{.shape = c.a}, {.shape = c.b}}, [](In in) { return linear(in[0], in[1]); }});
  }
  rows.push_back(
      {"linear", "strided_dy", {{.shape = {2, 3, 4}}, {.shape = {5, 4}}, {.shape = {5}}}, [](In in) {
         return linear(in[0], in[1], in[2]).transpose(0, 1);
       }});
}

struct RowCase {
  const char* name;
  Shape x;
};

void add_normalization_rows(std::vector<Row>& rows) {
  const RowCase shapes[] = {{"vector", {5}},
                            {"matrix", {3, 5}},
                            {"three_dims", {2, 3, 4}},
                            {"no_rows", {0, 4}},
                            {"no_inner_rows", {2, 0, 4}}};
  for (const RowCase& c : shapes) {
    const Shape width{c.x[-1]};
    for (const int dim : {0, -1}) {
      const std::string name = std::string(c.name) + (dim == 0 ? "_first" : "_last");
      if (c.x[dim] == 0) continue;
      rows.push_back({"softmax", name, {{.shape = c.x, .low = -3, .high = 3}}, [dim](In in) {
                        return softmax(in[0], dim);
                      }});
      rows.push_back({"log_softmax", name, {{.shape = c.x, .low = -3, .high = 3}}, [dim](In in) {
                        return log_softmax(in[0], dim);
                      }});
    }
    rows.push_back({"layer_norm",
                    std::string(c.name) + "_with_bias",
                    {{.shape = c.x}, {.shape = width, .low = 0.5}, {.shape = width}},
                    [](In in) { return layer_norm(in[0], in[1], in[2]); }});
    rows.push_back({"layer_norm", c.name, {{.shape = c.x}, {.shape = width, .low = 0.5}}, [](In in) {
                      return layer_norm(in[0], in[1], {}, 1e-3);
                    }});
    rows.push_back({"rms_norm", c.name, {{.shape = c.x}, {.shape = width, .low = 0.5}}, [](In in) {
                      return rms_norm(in[0], in[1]);
                    }});
    const std::vector<Input> four{
        {.shape = c.x}, {.shape = c.x}, {.shape = width, .low = 0.5}, {.shape = width}};
    rows.push_back({"add_layer_norm", std::string(c.name) + "_both_outputs", four, [](In in) {
                      const ResidualNorm r = add_layer_norm(in[0], in[1], in[2], in[3]);
                      return r.sum * 0.5 + r.normalized;
                    }});
    rows.push_back({"add_layer_norm", std::string(c.name) + "_sum_only", four,
                    [](In in) { return add_layer_norm(in[0], in[1], in[2], in[3]).sum; }});
    rows.push_back({"add_layer_norm", std::string(c.name) + "_norm_only", four,
                    [](In in) { return add_layer_norm(in[0], in[1], in[2], in[3]).normalized; }});
    rows.push_back(
        {"add_layer_norm", std::string(c.name) + "_no_bias", {four[0], four[1], four[2]}, [](In in) {
           const ResidualNorm r = add_layer_norm(in[0], in[1], in[2], {});
           return r.sum * r.normalized;
         }});
    rows.push_back({"dropout", c.name, {{.shape = c.x}}, [](In in) {
                      return dropout(in[0], 0.4, {.seed = 3, .stream = kernels::stream_id("mask"), .step = 5},
                                     1000);
                    }});
  }
  rows.push_back({"add_layer_norm", "of_itself", {{.shape = {3, 4}}, {.shape = {4}, .low = 0.5}}, [](In in) {
                    const ResidualNorm r = add_layer_norm(in[0], in[0], in[1], {});
                    return r.sum + r.normalized;
                  }});
  rows.push_back({"layer_norm",
                  "strided_dy",
                  {{.shape = {2, 3, 4}}, {.shape = {4}, .low = 0.5}, {.shape = {4}}},
                  [](In in) { return layer_norm(in[0], in[1], in[2]).transpose(0, 2); }});
  rows.push_back({"rms_norm", "strided_dy", {{.shape = {2, 3, 4}}, {.shape = {4}, .low = 0.5}}, [](In in) {
                    return rms_norm(in[0], in[1]).transpose(0, 2);
                  }});
  rows.push_back({"softmax", "strided_dy", {{.shape = {2, 3, 4}}}, [](In in) {
                    return softmax(in[0]).transpose(0, 2);
                  }});
  rows.push_back({"dropout", "everything", {{.shape = {7}}}, [](In in) { return dropout(in[0], 1.0, {}); }});
  rows.push_back(
      {"dropout", "some_tokens", {{.shape = {2, 5, 3}}}, [](In in) {
         const TokenIndices tokens{.first_sample = 3, .positions = {8, 2, 3, 4, 0}, .sequence_length = 9};
         return dropout(in[0], 0.5, {.seed = 1}, tokens).transpose(1, 2);
       }});
  rows.push_back({"dropout", "strided_dy", {{.shape = {3, 4}}}, [](In in) {
                    return dropout(in[0], 0.5, {.seed = 1}).transpose(0, 1);
                  }});
  const RowCase rotated[] = {{"plain", {2, 3, 2, 4}}, {"one_head", {1, 5, 1, 2}}, {"no_batch", {0, 3, 2, 4}}};
  for (const RowCase& c : rotated) {
    rows.push_back(
        {"rotary", c.name, {{.shape = c.x}}, [](In in) {
           const Tensor angle = uniform({in[0].dim(1), in[0].dim(3) / 2}, 0, 3, "angles", {.dtype = kF64});
           return rotary(in[0], cos(angle), sin(angle));
         }});
  }
}

struct AttentionCase {
  const char* name;
  Shape q, kv;
  AttentionConfig config = {};
};

void add_attention_rows(std::vector<Row>& rows) {
  const kernels::RandomKey key{.seed = 11, .stream = kernels::stream_id("attention"), .step = 2};
  const AttentionCase cases[] = {
      {"causal", {2, 3, 2, 4}, {2, 3, 2, 4}},
      {"full", {1, 3, 2, 4}, {1, 5, 2, 4}, {.causal = false}},
      {"causal_with_more_keys", {1, 2, 2, 3}, {1, 4, 2, 3}},
      {"grouped", {1, 3, 4, 2}, {1, 3, 2, 2}},
      {"scaled", {1, 3, 2, 4}, {1, 3, 2, 4}, {.scale = 0.3}},
      {"dropout", {2, 4, 2, 3}, {2, 4, 2, 3}, {.dropout = 0.3, .key = key, .first_sample = 7}},
      {"no_batch", {0, 3, 2, 4}, {0, 3, 2, 4}},
      {"no_queries", {1, 0, 2, 4}, {1, 3, 2, 4}, {.causal = false}},
  };
  for (const AttentionCase& c : cases) {
    rows.push_back(
        {"attention", c.name, {{.shape = c.q}, {.shape = c.kv}, {.shape = c.kv}}, [config = c.config](In in) {
           return attention(in[0], in[1], in[2], config);
         }});
  }
  rows.push_back({"attention",
                  "strided_dy",
                  {{.shape = {1, 3, 2, 4}}, {.shape = {1, 3, 2, 4}}, {.shape = {1, 3, 2, 4}}},
                  [](In in) { return attention(in[0], in[1], in[2]).transpose(1, 3); }});
  rows.push_back({"attention_packed", "plain", {{.shape = {2, 3, 24}}}, [](In in) {
                    return attention_packed(in[0], 2, 2);
                  }});
  rows.push_back({"attention_packed", "grouped", {{.shape = {1, 4, 16}}}, [](In in) {
                    return attention_packed(in[0], 4, 2, {.causal = false});
                  }});
  rows.push_back({"attention_packed", "dropout", {{.shape = {2, 3, 12}}}, [key](In in) {
                    return attention_packed(in[0], 2, 2, {.dropout = 0.3, .key = key});
                  }});
  rows.push_back({"attention_packed", "strided_dy", {{.shape = {2, 3, 12}}}, [](In in) {
                    return attention_packed(in[0], 2, 2).transpose(0, 2);
                  }});
  rows.push_back({"attention_packed", "no_batch", {{.shape = {0, 3, 24}}}, [](In in) {
                    return attention_packed(in[0], 2, 2);
                  }});
}

void add_loss_rows(std::vector<Row>& rows) {
  const std::vector<Input> matrix{{.shape = {4, 5}, .low = -2, .high = 2},
                                  {.shape = {4}, .indices = {0, 4, 2, 2}}};
  const std::vector<Input> cube{{.shape = {2, 3, 5}, .low = -2, .high = 2},
                                {.shape = {2, 3}, .indices = {1, 4, -100, 0, 3, -100}}};
  for (const double smoothing : {0.0, 0.1}) {
    for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone}) {
      const std::string name = std::string(reduction == Reduction::kMean  ? "mean"
                                           : reduction == Reduction::kSum ? "sum"
                                                                          : "none") +
                               (smoothing > 0 ? "_smoothed" : "");
      const auto loss = [=](In in) {
        return cross_entropy(in[0] * 1.0, in[1], {.label_smoothing = smoothing, .reduction = reduction});
      };
      rows.push_back({"cross_entropy", name, matrix, loss});
      rows.push_back({"cross_entropy", name + "_ignoring_some", cube, loss});
    }
  }
  rows.push_back({"cross_entropy", "of_a_leaf", matrix, [](In in) { return cross_entropy(in[0], in[1]); }});
  rows.push_back({"cross_entropy", "one_row", {{.shape = {5}}, {.shape = {}, .indices = {3}}}, [](In in) {
                    return cross_entropy(in[0], in[1]);
                  }});
  rows.push_back({"cross_entropy", "no_rows", {{.shape = {0, 5}}, {.shape = {0}, .indices = {}}}, [](In in) {
                    return cross_entropy(in[0], in[1].to(kI64), {.reduction = Reduction::kSum});
                  }});
  struct PairLoss {
    const char* operation;
    Tensor (*function)(const Tensor&, const Tensor&, Reduction);
  };
  for (const PairLoss& loss : {PairLoss{"mse_loss", mse_loss},
                               {"kl_div_loss", kl_div_loss},
                               {"bce_with_logits_loss", bce_with_logits_loss}}) {
    for (const RowCase& c : {RowCase{"matrix", {3, 4}}, {"scalar", {}}, {"empty", {0, 3}}}) {
      for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone}) {
        if (reduction == Reduction::kMean && c.x.num_elements() == 0)
          continue;  // NaN, as the mean of nothing is
        const char* suffix = reduction == Reduction::kMean  ? "_mean"
                             : reduction == Reduction::kSum ? "_sum"
                                                            : "_none";
        rows.push_back({loss.operation,
                        std::string(c.name) + suffix,
                        {{.shape = c.x, .low = -2}, {.shape = c.x, .low = 0.2, .high = 0.9}},
                        [f = loss.function, reduction](In in) { return f(in[0], in[1], reduction); }});
      }
    }
  }
}

}  // namespace

void add_layer_rows(std::vector<Row>& rows) {
  add_product_rows(rows);
  add_normalization_rows(rows);
  add_attention_rows(rows);
  add_loss_rows(rows);
}

}  // namespace tessera::gradient_table
