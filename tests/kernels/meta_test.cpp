#include "kernels/meta/meta.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/context.h"

namespace tessera::kernels {
namespace {

/// A view of a meta tensor: row-major, no data.
View meta_view(std::vector<std::int64_t> shape, DType dtype = kF32) {
  View view;
  view.dtype = dtype;
  view.dims = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    view.shape[d] = shape[d];
    view.strides[d] = stride;
    stride *= shape[d];
  }
  return view;
}

/// `view` repeated along dimension `dim`.
View broadcast(View view, int dim, std::int64_t size) {
  view.shape[dim] = size;
  view.strides[dim] = 0;
  return view;
}

/// What one call adds to the counts of a rank.
OpCounts counts_of(const std::function<void(const DeviceKernels&)>& call) {
  KernelContext context;
  KernelContext* previous = exchange_kernel_context(&context);
  call(of(DeviceType::kMeta));
  exchange_kernel_context(previous);
  return context.counts;
}

using Kernels = const DeviceKernels&;

struct CountCase {
  const char* name;
  std::function<void(const DeviceKernels&)> call;
  std::uint64_t flops, bytes_read, bytes_written;
};

// The numbers are worked out by hand from the formulas beside the kernels; an f32 has 4 bytes, an i64 8.
std::vector<CountCase> count_cases() {
  const View x = meta_view({3, 8});  // 24 elements, 96 bytes
  const View row = meta_view({8});
  const View stat = meta_view({3});
  const View ids = meta_view({3}, kI64);
  const View flags = meta_view({3, 8}, kBool);
  const View integers = meta_view({3, 8}, kI64);
  const View halves = meta_view({3, 8}, kBF16);
  const View column = broadcast(meta_view({3, 1}), 1, 8);  // 3 elements seen 24 times
  const View empty = meta_view({0, 8});
  const ConstView absent;
  return {
      {"copy to bf16", [=](Kernels k) { k.elementwise.copy(x, halves); }, 0, 96, 48},
      {"fill", [=](Kernels k) { k.elementwise.fill(x, 1.0); }, 0, 0, 96},
      {"arange", [=](Kernels k) { k.elementwise.arange(row, 0, 1); }, 16, 0, 32},
      {"exp", [=](Kernels k) { k.elementwise.unary(UnaryOp::kExp, x, x); }, 24, 96, 96},
      {"gelu", [=](Kernels k) { k.elementwise.unary(UnaryOp::kGeluTanh, x, x); }, 9 * 24, 96, 96},
      {"negation of integers", [=](Kernels k) { k.elementwise.unary(UnaryOp::kNeg, integers, integers); }, 0,
       192, 192},
      {"sigmoid backward", [=](Kernels k) { k.elementwise.unary_backward(UnaryOp::kSigmoid, x, x, x); },
       7 * 24, 192, 96},
      {"sum", [=](Kernels k) { k.elementwise.binary(BinaryOp::kAdd, x, x, x); }, 24, 192, 96},
      {"sum with a column", [=](Kernels k) { k.elementwise.binary(BinaryOp::kAdd, x, column, x); }, 24, 108,
       96},
      {"sum of nothing", [=](Kernels k) { k.elementwise.binary(BinaryOp::kAdd, empty, empty, empty); }, 0, 0,
       0},
      {"and", [=](Kernels k) { k.elementwise.binary(BinaryOp::kAnd, flags, flags, flags); }, 0, 48, 24},
      {"product with a number",
       [=](Kernels k) { k.elementwise.binary_scalar(BinaryOp::kMul, x, 2.0, false, x); }, 24, 96, 96},
      {"comparison", [=](Kernels k) { k.elementwise.compare(CompareOp::kLt, x, x, flags); }, 24, 192, 24},
      {"comparison of integers with a number",
       [=](Kernels k) { k.elementwise.compare_scalar(CompareOp::kLt, integers, 0, flags); }, 0, 192, 24},
      {"where", [=](Kernels k) { k.elementwise.where(flags, x, column, x); }, 0, 24 + 96 + 12, 96},
      {"bf16 gradient into an f32 sum", [=](Kernels k) { k.elementwise.add_scaled(x, halves, 0.5); }, 48, 144,
       96},

      {"reduce to a column",
       [=](Kernels k) {
         k.reductions.reduce(ReduceOp::kSum, x, meta_view({3, 1}));
       },
       24, 96, 12},
      {"mean of rows",
       [=](Kernels k) {
         k.reductions.reduce(ReduceOp::kMean, x, meta_view({1, 8}));
       },
       24 + 8, 96, 32},
      {"any",
       [=](Kernels k) {
         k.reductions.reduce(ReduceOp::kAny, flags, meta_view({1, 1}, kBool));
       },
       0, 24, 1},
      {"argmax",
       [=](Kernels k) {
         k.reductions.arg_reduce(true, x, 1, meta_view({3, 1}, kI64));
       },
       24, 96, 24},
      {"running sum", [=](Kernels k) { k.reductions.cumulative_sum(x, false, x); }, 24, 96, 96},
      {"first non-finite element", [=](Kernels k) { EXPECT_EQ(k.reductions.first_non_finite(x), -1); }, 24,
       96, 0},
      {"sum of squares of two tensors",
       [=](Kernels k) {
         const ConstView both[] = {x, row};
         EXPECT_EQ(k.reductions.sum_of_squares(both), 0.0);
       },
       2 * 32, 128, 0},

      {"matrix product",
       [=](Kernels k) {
         k.matmul.matmul(meta_view({3, 5}), meta_view({5, 8}), x, {});
       },
       2 * 3 * 8 * 5, 60 + 160, 96},
      {"matrix products of a batch with one b",
       [=](Kernels k) {
         const View b = broadcast(meta_view({1, 5, 8}), 0, 4);
         k.matmul.matmul(meta_view({4, 3, 5}), b, meta_view({4, 3, 8}), {});
       },
       4 * 240, 4 * 60 + 160, 4 * 96},
      {"matrix product with bias, added to c",
       [=](Kernels k) {
         const ConstView bias = row;
         k.matmul.matmul(meta_view({3, 5}), meta_view({5, 8}), x, {.bias = &bias, .accumulate = true});
       },
       240 + 24 + 24, 60 + 160 + 32 + 96, 96},
      {"matrix product with nothing between",
       [=](Kernels k) {
         k.matmul.matmul(meta_view({3, 0}), meta_view({0, 8}), x, {});
       },
       0, 0, 96},

      {"LayerNorm",
       [=](Kernels k) { k.normalization.layer_norm(x, nullptr, nullptr, row, row, 1e-5, x, stat, stat); },
       7 * 24 + 5 * 3, 96 + 64, 96 + 24},
      {"LayerNorm without bias",
       [=](Kernels k) { k.normalization.layer_norm(x, nullptr, nullptr, row, absent, 1e-5, x, stat, stat); },
       6 * 24 + 5 * 3, 96 + 32, 96 + 24},
      {"LayerNorm of a sum",
       [=](Kernels k) {
         const ConstView residual = x;
         k.normalization.layer_norm(x, &residual, &x, row, row, 1e-5, x, stat, stat);
       },
       8 * 24 + 5 * 3, 96 + 96 + 64, 96 + 96 + 24},
      {"LayerNorm backward",
       [=](Kernels k) { k.normalization.layer_norm_backward(x, x, row, stat, stat, &x, &row, &row); },
       13 * 24 + 2 * 3, 96 + 96 + 24 + 32, 96 + 32 + 32},
      {"LayerNorm backward for the bias alone",
       [=](Kernels k) { k.normalization.layer_norm_backward(x, x, row, stat, stat, nullptr, nullptr, &row); },
       24, 96, 32},
      {"RMSNorm", [=](Kernels k) { k.normalization.rms_norm(x, row, 1e-5, x, stat); }, 4 * 24 + 4 * 3, 128,
       108},
      {"RMSNorm backward", [=](Kernels k) { k.normalization.rms_norm_backward(x, x, row, stat, &x, &row); },
       9 * 24 + 3, 96 + 96 + 12 + 32, 96 + 32},
      {"softmax", [=](Kernels k) { k.normalization.softmax(x, false, x); }, 5 * 24 + 3, 96, 96},
      {"log softmax", [=](Kernels k) { k.normalization.softmax(x, true, x); }, 5 * 24 + 6, 96, 96},
      {"softmax backward", [=](Kernels k) { k.normalization.softmax_backward(x, x, false, x); }, 96, 192, 96},
      {"dropout", [=](Kernels k) { k.normalization.dropout(x, 0.1, {}, {}, x); }, 24, 96, 96},
      {"rotary",
       [=](Kernels k) {
         const View q = meta_view({1, 3, 2, 4});
         k.normalization.rotary(q, meta_view({3, 2}), meta_view({3, 2}), false, q);
       },
       3 * 24, 96 + 24 + 24, 96},

      {"attention to all, one key head for two query heads",
       [=](Kernels k) {
         const View q = meta_view({2, 3, 2, 4}), kv = meta_view({2, 5, 1, 4});
         k.attention.attention(q, kv, kv, {.causal = false}, q, meta_view({2, 2, 3}));
       },
       2 * 2 * (4 * 3 * 5 * 4), 192 + 160 + 160, 192 + 48},
      {"causal attention",  // 1 + 2 + 3 pairs
       [=](Kernels k) {
         const View q = meta_view({1, 3, 2, 4});
         k.attention.attention(q, q, q, {.causal = true}, q, meta_view({1, 2, 3}));
       },
       2 * (4 * 6 * 4), 3 * 96, 96 + 24},
      {"causal attention backward",
       [=](Kernels k) {
         const View q = meta_view({1, 3, 2, 4});
         k.attention.attention_backward(q, q, q, q, q, meta_view({1, 2, 3}), {.causal = true}, q, q, q);
       },
       2 * (10 * 6 * 4), 5 * 96 + 24, 3 * 96},

      {"cross-entropy", [=](Kernels k) { k.losses.cross_entropy(x, ids, {}, stat, stat); }, 4 * 24 + 9,
       96 + 24, 24},
      {"smoothed cross-entropy",
       [=](Kernels k) { k.losses.cross_entropy(x, ids, {.label_smoothing = 0.1}, stat, stat); }, 5 * 24 + 18,
       120, 24},
      {"cross-entropy backward",
       [=](Kernels k) { k.losses.cross_entropy_backward(stat, x, ids, stat, {}, x); }, 3 * 24 + 3,
       12 + 96 + 24 + 12, 96},

      {"embedding",
       [=](Kernels k) {
         k.indexing.embedding(meta_view({1000, 8}), ids, x);
       },
       0, 96 + 24, 96},
      {"embedding backward",
       [=](Kernels k) {
         k.indexing.embedding_backward(halves, ids, meta_view({1000, 8}));
       },
       24, 48 + 24 + 96, 96},
      {"gather",
       [=](Kernels k) {
         k.indexing.gather(meta_view({3, 100}), 1, integers, x);
       },
       0, 96 + 192, 96},
      {"scatter",
       [=](Kernels k) {
         k.indexing.scatter_add(meta_view({3, 100}), 1, integers, x);
       },
       24, 96 + 192 + 96, 96},
      {"the two largest",
       [=](Kernels k) {
         k.indexing.top_k(x, 2, meta_view({3, 2}), meta_view({3, 2}, kI64));
       },
       24, 96, 24 + 48},
      {"sort", [=](Kernels k) { k.indexing.sort(x, false, x, integers); }, 3 * 24, 96, 96 + 192},
      {"sort of rows of nine",  // four rounds
       [=](Kernels k) { k.indexing.sort(meta_view({9}), false, meta_view({9}), meta_view({9}, kI64)); }, 36,
       36, 36 + 72},

      {"uniform numbers", [=](Kernels k) { k.random.uniform(x, 0, 1, {}, {}); }, 48, 0, 96},
      {"normal numbers", [=](Kernels k) { k.random.normal(x, 0, 1, {}, {}); }, 8 * 24, 0, 96},

      {"AdamW with bf16 gradients and copies",
       [=](Kernels k) {
         const UpdateItem item{x, halves, x, x, halves};
         k.updates.adam({&item, 1}, {.weight_decay = 0.1});
       },
       16 * 24, 3 * 96 + 48, 3 * 96 + 48},
      {"AdamW with bf16 state",  // p in two halves, m and v; of the gradient nothing is written
       [=](Kernels k) {
         const UpdateItem item{halves, x, halves, halves, {}, meta_view({48}, kU8)};
         k.updates.adam({&item, 1}, {.weight_decay = 0.1});
       },
       16 * 24, 96 + 4 * 48, 4 * 48},
      {"masters put together", [=](Kernels k) { k.updates.join_masters(halves, meta_view({48}, kU8), x); }, 0,
       96, 96},
      {"Adam of two parameters, one of them a scalar",
       [=](Kernels k) {
         const View one = meta_view({});
         const UpdateItem items[] = {{x, x, x, x, {}}, {one, one, one, one, {}}};
         k.updates.adam(items, {});
       },
       15 * 25, 4 * 100, 3 * 100},
      {"plain SGD",
       [=](Kernels k) {
         const UpdateItem item{x, x, {}, {}, {}};
         k.updates.sgd({&item, 1}, {});
       },
       3 * 24, 192, 96},
      {"SGD with Nesterov's momentum and weight decay",
       [=](Kernels k) {
         const UpdateItem item{x, x, x, {}, {}};
         k.updates.sgd({&item, 1}, {.momentum = 0.9, .weight_decay = 0.1, .nesterov = true});
       },
       10 * 24, 3 * 96, 2 * 96},
      {"SGD's first step with momentum",  // the velocity is written, not read
       [=](Kernels k) {
         const UpdateItem item{x, x, x, {}, {}};
         k.updates.sgd({&item, 1}, {.momentum = 0.9, .first_step = true});
       },
       3 * 24, 2 * 96, 2 * 96},
      {"Adagrad with weight decay",
       [=](Kernels k) {
         const UpdateItem item{x, x, x, {}, {}};
         k.updates.adagrad({&item, 1}, {.weight_decay = 0.1});
       },
       10 * 24, 3 * 96, 2 * 96},
      {"Lion with bf16 gradients and copies",
       [=](Kernels k) {
         const UpdateItem item{x, halves, x, {}, halves};
         k.updates.lion({&item, 1}, {});
       },
       10 * 24, 2 * 96 + 48, 2 * 96 + 48},
      {"LAMB's moments",  // the rounded copy is left alone
       [=](Kernels k) {
         const UpdateItem item{x, halves, x, x, halves};
         LambSquares squares;
         k.updates.lamb_moments({&item, 1}, {.weight_decay = 0.1}, {&squares, 1});
       },
       19 * 24, 3 * 96 + 48, 2 * 96},
      {"LAMB's update",  // reads no gradient
       [=](Kernels k) {
         const UpdateItem item{x, halves, x, x, halves};
         const double trust = 1.0;
         k.updates.lamb({&item, 1}, {}, {&trust, 1});
       },
       7 * 24, 3 * 96, 96 + 48},
  };
}

TEST(MetaKernels, CountOperationsAndBytesAsByHand) {
  for (const CountCase& c : count_cases()) {
    SCOPED_TRACE(c.name);
    const OpCounts counts = counts_of(c.call);
    EXPECT_EQ(counts.calls, 1u);
    EXPECT_EQ(counts.flops, c.flops);
    EXPECT_EQ(counts.bytes_read, c.bytes_read);
    EXPECT_EQ(counts.bytes_written, c.bytes_written);
  }
}

TEST(MetaKernels, CausalAttentionCountsThePairsThatAMaskLeaves) {
  for (const std::int64_t queries : {0, 1, 3, 8}) {
    for (const std::int64_t keys : {0, 1, 5, 8, 13}) {
      SCOPED_TRACE(testing::Message() << queries << " queries, " << keys << " keys");
      std::uint64_t pairs = 0;
      for (std::int64_t t = 0; t < queries; ++t) {
        for (std::int64_t s = 0; s < keys; ++s) pairs += s <= t + keys - queries ? 1 : 0;
      }
      const View q = meta_view({1, queries, 1, 1}), kv = meta_view({1, keys, 1, 1});
      const OpCounts counts = counts_of([&](const DeviceKernels& k) {
        k.attention.attention(q, kv, kv, {.causal = true}, q, meta_view({1, 1, queries}));
      });
      EXPECT_EQ(counts.flops, 4 * pairs);
    }
  }
}

TEST(MetaKernels, CountsAddUpInTheContextOfTheRank) {
  const View x = meta_view({3, 8});
  const OpCounts counts = counts_of([&](const DeviceKernels& k) {
    k.elementwise.binary(BinaryOp::kAdd, x, x, x);
    k.elementwise.fill(x, 0.0);
  });
  EXPECT_EQ(counts.calls, 2u);
  EXPECT_EQ(counts.flops, 24u);
  EXPECT_EQ(counts.bytes_read, 192u);
  EXPECT_EQ(counts.bytes_written, 192u);
}

// Data pointers are not followed: these point nowhere.
TEST(MetaKernels, TouchNoData) {
  View x = meta_view({3, 8});
  x.data = reinterpret_cast<void*>(std::uintptr_t{64});
  const OpCounts counts = counts_of([&](const DeviceKernels& k) {
    k.elementwise.fill(x, 0.0);
    k.elementwise.unary(UnaryOp::kExp, x, x);
    k.normalization.softmax(x, false, x);
    k.random.normal(x, 0, 1, {}, {});
  });
  EXPECT_EQ(counts.calls, 4u);
}

}  // namespace
}  // namespace tessera::kernels
