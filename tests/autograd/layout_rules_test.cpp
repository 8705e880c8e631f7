// What each operation makes of the layouts of its inputs, and what it refuses: a table. On one rank, without
// data of other ranks: that is the point of layout types.

#include "autograd/layout_rules.h"

#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp, kDp = MeshAxis::kDp;
constexpr AxisLayout I = AxisLayout::invariant(), R = AxisLayout::replicated(), P = AxisLayout::partial();
constexpr AxisLayout S(int dim) { return AxisLayout::sharded(dim); }
constexpr AxisLayout balanced(int dim) { return AxisLayout::sharded(dim, AxisLayout::Order::kBalanced); }
constexpr AxisLayout packed(int dim) { return AxisLayout::sharded(dim, AxisLayout::Order::kPacked); }

Tensor on_tp(const Shape& shape, AxisLayout tp, bool grad = true) {
  Tensor x = full(shape, 0.5);
  x.set_layout(Layout().with(kTp, tp));
  return grad ? x.set_requires_grad() : x;
}

Tensor ids(const Shape& shape, AxisLayout tp) {
  return zeros(shape, {.dtype = kI64}).set_layout(Layout().with(kTp, tp));
}

// What comes of an operation: a layout, or a refusal that says `missing`.
struct Case {
  const char* name;
  std::function<Tensor()> run;
  std::optional<AxisLayout> expected;
  const char* missing = "";
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class LayoutRules : public ::testing::TestWithParam<Case> {};

TEST_P(LayoutRules, GiveTheLayoutOrRefuse) {
  const Case& c = GetParam();
  if (c.expected) {
    EXPECT_EQ(to_string(c.run().layout()), to_string(Layout().with(kTp, *c.expected)));
    return;
  }
  try {
    const Tensor y = c.run();
    FAIL() << "not refused: " << to_string(y.layout());
  } catch (const LayoutError& error) {
    EXPECT_NE(std::string(error.what()).find(c.missing), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("tp"), std::string::npos) << error.what();
  }
}

const Shape kX{2, 4, 8};

INSTANTIATE_TEST_SUITE_P(
    Elementwise, LayoutRules,
    ::testing::Values(
        Case{"I+I", [] { return on_tp(kX, I) + on_tp(kX, I); }, I},
        Case{"R+R", [] { return on_tp(kX, R) + on_tp(kX, R); }, R},
        Case{"P+P", [] { return on_tp(kX, P) + on_tp(kX, P); }, P},
        Case{"S+S", [] { return on_tp(kX, S(1)) + on_tp(kX, S(1)); }, S(1)},
        Case{"S(1)+S(0) of a row",
             [] {
               return on_tp(kX, S(1)) + on_tp({4, 8}, S(0));
             },
             S(1)},
        Case{"S+R", [] { return on_tp(kX, S(1)) + on_tp({8}, R); }, S(1)},
        Case{"S+constant", [] { return on_tp(kX, S(1)) + on_tp({8}, I, false); }, S(1)},
        Case{"R+constant", [] { return on_tp(kX, R) + on_tp(kX, I, false); }, R},
        Case{"R+I", [] { return on_tp(kX, R) + on_tp(kX, I); }, std::nullopt, "copy_to_ranks"},
        Case{"S+I", [] { return on_tp(kX, S(1)) + on_tp({8}, I); }, std::nullopt, "copy_to_ranks"},
        Case{"S(0)+S(1)", [] { return on_tp(kX, S(0)) + on_tp(kX, S(1)); }, std::nullopt, "all_to_all"},
        Case{"S of two orders", [] { return on_tp(kX, S(1)) + on_tp(kX, balanced(1)); }, std::nullopt,
             "different indices"},
        Case{"balanced+balanced", [] { return on_tp(kX, balanced(1)) + on_tp(kX, balanced(1)); },
             balanced(1)},
        Case{"merged and not",
             [] {
               return on_tp({8, 8}, S(1).merged_into(0)) * on_tp({8, 8}, S(0));
             },
             std::nullopt, "different indices"},
        Case{"S beside a whole constant of its length", [] { return on_tp(kX, S(1)) + on_tp(kX, I, false); },
             std::nullopt, "own_piece"},
        Case{"S beside what is replicated",
             [] {
               return on_tp(kX, S(1)) * on_tp({4, 8}, R);
             },
             std::nullopt, "set_layout"},
        Case{"S of one beside a whole length",
             [] {
               return on_tp({2, 1, 8}, S(1)) + on_tp({2, 4, 8}, R);
             },
             std::nullopt, "own_piece"},
        Case{"S beside what is broadcast",
             [] {
               return on_tp(kX, S(1)) + on_tp({2, 1, 8}, R);
             },
             S(1)},
        Case{"P+bias", [] { return on_tp(kX, P) + on_tp({8}, I); }, std::nullopt, "once on every rank"},
        Case{"P+R", [] { return on_tp(kX, P) + on_tp({8}, R); }, std::nullopt, "all_reduce"},
        Case{"P+number", [] { return on_tp(kX, P) + 1.0; }, std::nullopt, "all_reduce"},
        Case{"P*number", [] { return on_tp(kX, P) * 3.0; }, P},
        Case{"P*constant", [] { return on_tp(kX, P) * on_tp(kX, I, false); }, P},
        Case{"P*R", [] { return on_tp(kX, P) * on_tp(kX, R); }, P},
        Case{"P*I", [] { return on_tp(kX, P) * on_tp(kX, I); }, std::nullopt, "copy_to_ranks"},
        Case{"P*P", [] { return on_tp(kX, P) * on_tp(kX, P); }, std::nullopt, "all_reduce"},
        Case{"P/R", [] { return on_tp(kX, P) / on_tp(kX, R); }, P},
        Case{"R/P", [] { return on_tp(kX, R) / on_tp(kX, P); }, std::nullopt, "all_reduce"},
        Case{"gelu(P)", [] { return gelu(on_tp(kX, P)); }, std::nullopt, "gelu of a part"},
        Case{"gelu(S)", [] { return gelu(on_tp(kX, S(2))); }, S(2)},
        Case{"maximum(P)", [] { return maximum(on_tp(kX, P), on_tp(kX, P)); }, std::nullopt, "all_reduce"}));

INSTANTIATE_TEST_SUITE_P(
    Matrices, LayoutRules,
    ::testing::Values(
        Case{"column-parallel",
             [] {
               return linear(on_tp(kX, R), on_tp({6, 8}, S(0)), on_tp({6}, S(0)));
             },
             S(2)},
        Case{"column-parallel of I",
             [] {
               return linear(on_tp(kX, I), on_tp({6, 8}, S(0)));
             },
             std::nullopt, "copy_to_ranks"},
        Case{"column-parallel of a constant",
             [] {
               return linear(on_tp(kX, I, false), on_tp({6, 8}, S(0)));
             },
             S(2)},
        Case{"row-parallel",
             [] {
               return linear(on_tp(kX, S(2)), on_tp({6, 8}, S(1)));
             },
             P},
        Case{"row-parallel in two orders",
             [] {
               return linear(on_tp(kX, packed(2)), on_tp({6, 8}, S(1)));
             },
             std::nullopt, "different indices"},
        Case{"batches cut in one factor",
             [] {
               return matmul(on_tp({2, 4, 8}, S(0)), on_tp({2, 8, 4}, R));
             },
             std::nullopt, "own_piece"},
        Case{"batches cut in both",
             [] {
               return matmul(on_tp({2, 4, 8}, S(0)), on_tp({2, 8, 4}, S(0)));
             },
             S(0)},
        Case{"row-parallel with bias",
             [] {
               return linear(on_tp(kX, S(2)), on_tp({6, 8}, S(1)), on_tp({6}, I));
             },
             std::nullopt, "bias would be added once on every rank"},
        Case{"row-parallel of whole rows",
             [] {
               return linear(on_tp(kX, R), on_tp({6, 8}, S(1)));
             },
             std::nullopt, "cut in weight alone"},
        // Whose sizes differ, too: the collective is what is missing.
        Case{"a part of the rows and a whole weight",
             [] {
               return linear(on_tp(kX, S(2)), on_tp({6, 16}, I));
             },
             std::nullopt,
             "linear: on tp, the dimension over which the product sums is cut in x alone: dist::all_gather"},
        Case{"whole rows and a part of the weight",
             [] {
               return linear(on_tp(kX, I), on_tp({6, 4}, S(1)));
             },
             std::nullopt, "cut in weight alone: dist::all_gather"},
        Case{"a part of one factor and the other whole",
             [] {
               return matmul(on_tp({4, 8}, S(1)), on_tp({16, 4}, R));
             },
             std::nullopt,
             "matmul: on tp, the dimension over which the product sums is cut in a alone: dist::all_gather"},
        Case{"whole weight, tokens cut",
             [] {
               return linear(on_tp(kX, S(1)), on_tp({6, 8}, R), on_tp({6}, R));
             },
             S(1)},
        Case{"invariant weight, tokens cut",
             [] {
               return linear(on_tp(kX, S(1)), on_tp({6, 8}, I));
             },
             std::nullopt, "laid out as R"},
        Case{"invariant bias, tokens cut",
             [] {
               return linear(on_tp(kX, S(1)), on_tp({6, 8}, R), on_tp({6}, I));
             },
             std::nullopt, "copy_to_ranks"},
        Case{"weight of a partial sum",
             [] {
               return linear(on_tp(kX, P), on_tp({6, 8}, R));
             },
             P},
        Case{"both cut outside",
             [] {
               return linear(on_tp(kX, S(1)), on_tp({6, 8}, S(0)));
             },
             std::nullopt, "its own rows and its own columns"},
        Case{"matmul, contracted",
             [] {
               return matmul(on_tp({4, 8}, S(1)), on_tp({8, 3}, S(0)));
             },
             P},
        Case{"matmul, rows",
             [] {
               return matmul(on_tp(kX, S(1)), on_tp({8, 3}, R));
             },
             S(1)},
        Case{"matmul, columns",
             [] {
               return matmul(on_tp(kX, R), on_tp({8, 3}, S(1)));
             },
             S(2)},
        Case{"matmul, batches",
             [] {
               return matmul(on_tp(kX, S(0)), on_tp({2, 8, 3}, S(0)));
             },
             S(0)}));

INSTANTIATE_TEST_SUITE_P(
    Dimensions, LayoutRules,
    ::testing::Values(
        Case{"sum of all", [] { return sum(on_tp(kX, S(1))); }, P},
        Case{"sum over the cut", [] { return sum(on_tp(kX, S(1)), {.dims = {1}}); }, P},
        Case{"sum over another", [] { return sum(on_tp(kX, S(1)), {.dims = {0}}); }, S(0)},
        Case{"sum over another, kept", [] { return sum(on_tp(kX, S(1)), {.dims = {0}, .keep_dims = true}); },
             S(1)},
        Case{"mean of means", [] { return mean(on_tp(kX, S(0))); }, std::nullopt, "its own count"},
        Case{"mean over another", [] { return mean(on_tp(kX, S(0)), {.dims = {2}}); }, S(0)},
        Case{"max over the cut", [] { return max(on_tp(kX, S(1)), {.dims = {1}}); }, std::nullopt,
             "all_gather"},
        Case{"max(P)", [] { return max(on_tp(kX, P)); }, std::nullopt, "all_reduce"},
        Case{"softmax over the cut", [] { return softmax(on_tp(kX, S(2)), -1); }, std::nullopt, "all_gather"},
        Case{"softmax over another", [] { return softmax(on_tp(kX, S(2)), 1); }, S(2)},
        Case{"cumsum(P)", [] { return cumsum(on_tp(kX, P), 1); }, P},
        Case{"transpose", [] { return on_tp(kX, S(1)).transpose(1, 2); }, S(2)},
        Case{"permute",
             [] {
               return on_tp(kX, S(1)).permute({1, 2, 0});
             },
             S(0)},
        Case{"split heads",
             [] {
               return on_tp(kX, S(2)).reshape({2, 4, 2, 4});
             },
             S(2)},
        Case{"join heads",
             [] {
               return on_tp({2, 4, 2, 4}, S(2)).flatten(2, 3);
             },
             S(2)},
        Case{"one head",
             [] {
               return on_tp(kX, S(2)).reshape({2, 4, 1, 8});
             },
             std::nullopt, "-1"},
        Case{"one head, said so",
             [] {
               return on_tp(kX, S(2)).reshape({2, 4, -1, 8});
             },
             S(2)},
        Case{"heads of one token", [] { return on_tp({2, 1, 8}, S(1)).unflatten(2, {-1, 4}); }, S(1)},
        Case{"one head, unflattened", [] { return on_tp({2, 1, 4}, S(2)).unflatten(2, {-1, 4}); }, S(2)},
        Case{"what stands behind", [] { return on_tp({4, 2, 1}, S(2)).unflatten(0, {2, 2}); }, S(3)},
        Case{"packed heads, unflattened",
             [] { return on_tp(kX, AxisLayout::sharded(2, AxisLayout::Order::kPacked)).unflatten(2, {2, 4}); },
             AxisLayout::sharded(2, AxisLayout::Order::kPacked)},
        Case{"chunks of a balanced cut, unflattened", [] { return on_tp(kX, balanced(1)).unflatten(1, {2, 2}); },
             std::nullopt, "two chunks"},
        Case{"what was merged, unflattened",
             [] { return on_tp(kX, S(1)).flatten(0, 1).unflatten(0, {2, 4}); }, std::nullopt, "gather"},
        Case{"a row of a cut vector", [] { return on_tp({8}, S(0)).reshape({1, -1}); }, S(1)},
        Case{"one of several rows, packed into one",
             [] {
               return on_tp({1, 3, 4}, S(0)).reshape({1, -1, 4});
             },
             S(1)},
        Case{"one of several rows, split elsewhere",
             [] {
               return on_tp({1, 3, 8}, S(0)).reshape({1, 3, -1, 4});
             },
             S(0)},
        Case{"a row of a cut vector, not said",
             [] {
               return on_tp({8}, S(0)).reshape({1, 8});
             },
             std::nullopt, "-1"},
        Case{"one token, reshaped",
             [] {
               return on_tp({2, 1, 8}, S(1)).reshape({2, 8});
             },
             std::nullopt, "flatten"},
        Case{"one token, flattened",
             [] {
               return on_tp({2, 1, 8}, S(1)).flatten(0, 1);
             },
             S(1).merged_into(0)},
        Case{"what was merged taken apart",
             [] { return on_tp(kX, S(1)).flatten(0, 1).reshape({2, 4, 8}); }, std::nullopt, "gather"},
        Case{"what was merged kept", [] { return on_tp(kX, S(1)).flatten(0, 1).reshape({8, 2, 4}); },
             S(1).merged_into(0)},
        Case{"balanced chunks taken apart",
             [] {
               return on_tp(kX, balanced(1)).reshape({2, 2, 2, 8});
             },
             std::nullopt, "chunks"},
        Case{"join batch and time",
             [] {
               return on_tp(kX, S(1)).reshape({8, 8});
             },
             S(1).merged_into(0)},
        Case{"join cut batch and time",
             [] {
               return on_tp(kX, S(0)).reshape({8, 8});
             },
             S(0)},
        Case{"one sample",
             [] {
               return on_tp({1, 4, 8}, S(0)).reshape({1, 4, 2, 4});
             },
             S(0)},
        Case{"one token",
             [] {
               return on_tp({2, 1, 8}, S(1)).reshape({2, 1, 2, 4});
             },
             S(1)},
        Case{"unsqueeze", [] { return on_tp(kX, S(1)).unsqueeze(0); }, S(2)},
        Case{"squeeze another",
             [] {
               return on_tp({1, 4, 8}, S(1)).squeeze(0);
             },
             S(0)},
        Case{"squeeze the cut",
             [] {
               return on_tp({1, 4, 8}, S(0)).squeeze(0);
             },
             std::nullopt, "other ranks"},
        Case{"slice of the cut", [] { return on_tp(kX, S(1)).slice(1, 0, 2); }, std::nullopt, "gather"},
        Case{"slice of balanced tokens", [] { return on_tp(kX, balanced(1)).slice(1, 0, 2); }, std::nullopt,
             "gather"},
        Case{"slice of another", [] { return on_tp(kX, S(1)).slice(2, 0, 2); }, S(1)},
        Case{"slice of packed heads", [] { return on_tp(kX, packed(2)).slice(2, 0, 2); }, packed(2)},
        Case{"select another", [] { return on_tp(kX, S(2)).select(1, 0); }, S(1)},
        Case{"expand",
             [] {
               return on_tp({4, 8}, S(0)).expand({2, 4, 8});
             },
             S(1)},
        Case{"expand the cut",
             [] {
               return on_tp({1, 8}, S(0)).expand({4, 8});
             },
             std::nullopt, "gather"},
        Case{"clone", [] { return on_tp(kX, S(1)).clone(); }, S(1)},
        Case{"to", [] { return on_tp(kX, P).to(kBF16); }, P},
        Case{"detach", [] { return on_tp(kX, P).detach(); }, P},
        Case{"concat",
             [] {
               return concat(std::array{on_tp(kX, S(1)), on_tp(kX, S(1))}, 2);
             },
             S(1)},
        Case{"concat of I, S and I",
             [] {
               const Tensor i = on_tp(kX, I, false);
               return concat(std::array{i, on_tp(kX, S(1)), i}, 2);
             },
             std::nullopt, "own_piece"},
        Case{"concat of I, P and I",
             [] {
               return concat(std::array{on_tp(kX, I), on_tp(kX, P), on_tp(kX, I)}, 2);
             },
             std::nullopt, "all_reduce"},
        Case{"concat of a broadcast size",
             [] {
               return concat(std::array{on_tp({2, 1, 8}, I, false), on_tp({2, 1, 8}, S(1)),
                                        on_tp({2, 1, 8}, I, false)},
                             2);
             },
             S(1)},
        Case{"gather by cut indices", [] { return gather(on_tp(kX, R), 1, ids({2, 2, 8}, S(1))); }, S(1)},
        Case{"gather of the first rows",
             [] { return gather(on_tp(kX, R), 2, ids({2, 2, 8}, S(1))); }, std::nullopt, "own_piece"},
        Case{"gather by cut indices of what is cut elsewhere",
             [] { return gather(on_tp(kX, S(0)), 1, ids({2, 2, 8}, S(1))); }, std::nullopt, "not whole"},
        Case{"gather by masked indices", [] { return gather(on_tp(kX, R), 1, ids({2, 2, 8}, P)); },
             std::nullopt, "all_reduce"},
        Case{"scatter_add of cut rows",
             [] { return scatter_add(on_tp(kX, R), 1, ids({2, 2, 8}, S(1)), on_tp({2, 2, 8}, S(1))); },
             std::nullopt, "own rows"},
        Case{"scatter_add of cut channels",
             [] { return scatter_add(on_tp(kX, S(2)), 1, ids({2, 2, 8}, S(2)), on_tp({2, 2, 8}, S(2))); },
             S(2)},
        Case{"scatter_add at whole indices",
             [] { return scatter_add(on_tp(kX, S(2)), 1, ids({2, 2, 8}, I), on_tp({2, 2, 8}, S(2))); },
             std::nullopt, "set_layout"},
        Case{"scatter_add of parts",
             [] { return scatter_add(on_tp(kX, P), 1, ids({2, 2, 8}, I), on_tp({2, 2, 8}, P)); }, P},
        Case{"concat along the cut",
             [] {
               return concat(std::array{on_tp(kX, S(1)), on_tp(kX, S(1))}, 1);
             },
             std::nullopt, "all_gather"}));

INSTANTIATE_TEST_SUITE_P(
    Layers, LayoutRules,
    ::testing::Values(
        Case{"norm of invariant rows", [] { return layer_norm(on_tp(kX, I), on_tp({8}, I), on_tp({8}, I)); },
             I},
        Case{"norm of cut tokens", [] { return layer_norm(on_tp(kX, S(1)), on_tp({8}, R), on_tp({8}, R)); },
             S(1)},
        Case{"norm of cut tokens, gain I", [] { return layer_norm(on_tp(kX, S(1)), on_tp({8}, I), {}); },
             std::nullopt, "laid out as R"},
        Case{"norm of cut rows", [] { return rms_norm(on_tp(kX, S(2)), on_tp({8}, R)); }, std::nullopt,
             "whole"},
        Case{"norm of parts", [] { return rms_norm(on_tp(kX, P), on_tp({8}, R)); }, std::nullopt,
             "all_reduce"},
        Case{"sum and norm",
             [] { return add_layer_norm(on_tp(kX, S(1)), on_tp(kX, S(1)), on_tp({8}, R), {}).sum; }, S(1)},
        Case{"residual beside a part",
             [] { return add_layer_norm(on_tp(kX, I), on_tp(kX, P), on_tp({8}, I), {}).sum; }, std::nullopt,
             "all_reduce"},
        Case{"embedding",
             [] {
               return embedding(on_tp({5, 8}, I), ids({2, 4}, I));
             },
             I},
        Case{"embedding of cut ids",
             [] {
               return embedding(on_tp({5, 8}, R), ids({2, 4}, S(1)));
             },
             S(1)},
        Case{"embedding of cut ids, table I",
             [] {
               return embedding(on_tp({5, 8}, I), ids({2, 4}, S(1)));
             },
             std::nullopt, "laid out as R"},
        Case{"vocabulary cut",
             [] {
               return embedding(on_tp({5, 8}, S(0)), ids({2, 4}, P));
             },
             P},
        Case{"vocabulary cut, ids whole",
             [] {
               return embedding(on_tp({5, 8}, S(0)), ids({2, 4}, I));
             },
             std::nullopt, "mask_foreign_ids"},
        Case{"channels cut",
             [] {
               return embedding(on_tp({5, 8}, S(1)), ids({2, 4}, I));
             },
             S(2)},
        Case{"attention of cut heads",
             [] {
               const auto x = [] { return on_tp({2, 4, 2, 4}, S(2)); };
               return attention(x(), x(), x());
             },
             S(2)},
        Case{"attention of whole keys",
             [] {
               const auto k = [] { return on_tp({2, 4, 2, 4}, R); };
               return attention(on_tp({2, 4, 2, 4}, S(2)), k(), k());
             },
             std::nullopt, "own_piece"},
        Case{"attention of one whole key head",
             [] {
               const auto k = [] { return on_tp({2, 4, 1, 4}, R); };
               return attention(on_tp({2, 4, 2, 4}, S(2)), k(), k());
             },
             S(2)},
        Case{"attention of chosen key heads",
             [] {
               const auto k = [] { return on_tp({2, 4, 1, 4}, packed(2)); };
               return attention(on_tp({2, 4, 2, 4}, S(2)), k(), k());
             },
             S(2)},
        Case{"packed attention of one piece after the other",
             [] {
               return attention_packed(on_tp({2, 4, 24}, S(2)), 2, 2);
             },
             std::nullopt, "queries alone"},
        Case{"attention of a cut sequence",
             [] {
               const auto x = [] { return on_tp({2, 4, 2, 4}, S(1)); };
               return attention(x(), x(), x());
             },
             std::nullopt, "ring_attention"},
        Case{"packed attention",
             [] {
               return attention_packed(on_tp({2, 4, 24}, packed(2)), 2, 2);
             },
             S(2)},
        Case{"losses of cut tokens",
             [] {
               return cross_entropy(on_tp(kX, S(1)), ids({2, 4}, S(1)), {.reduction = Reduction::kNone});
             },
             S(1)},
        Case{"losses beside unlabelled targets",
             [] {
               return cross_entropy(on_tp(kX, S(1)), ids({2, 4}, I), {.reduction = Reduction::kSum});
             },
             std::nullopt, "the layouts of both"},
        Case{
            "losses beside targets in another order",
            [] {
              return cross_entropy(on_tp(kX, S(1)), ids({2, 4}, balanced(1)), {.reduction = Reduction::kSum});
            },
            std::nullopt, "in the same way"},
        Case{
            "losses of one token",
            [] {
              return cross_entropy(on_tp({1, 1, 8}, S(1)), ids({1, 1}, S(1)), {.reduction = Reduction::kSum});
            },
            P},
        Case{"sum of losses of cut tokens",
             [] {
               return cross_entropy(on_tp(kX, S(1)), ids({2, 4}, S(1)), {.reduction = Reduction::kSum});
             },
             P},
        Case{"mean of losses of cut tokens",
             [] {
               return cross_entropy(on_tp(kX, S(1)), ids({2, 4}, S(1)));
             },
             std::nullopt, "its own count"},
        Case{"losses of a cut vocabulary",
             [] {
               return cross_entropy(on_tp(kX, S(2)), ids({2, 4}, I));
             },
             std::nullopt, "vocab_parallel_cross_entropy"},
        Case{"losses of parts",
             [] {
               return cross_entropy(on_tp(kX, P), ids({2, 4}, I));
             },
             std::nullopt, "all_reduce"}));

// Pictures [N, C, H, W]: N may be cut, for pools C too. Weights may not, of a convolution.
Tensor pictures(AxisLayout layout, bool grad = true) { return on_tp({2, 3, 4, 4}, layout, grad); }
Tensor kernels_of(AxisLayout layout) { return on_tp({2, 3, 2, 2}, layout); }

INSTANTIATE_TEST_SUITE_P(
    Pictures, LayoutRules,
    ::testing::Values(
        Case{"convolution of I", [] { return conv2d(pictures(I), kernels_of(I)); }, I},
        Case{"convolution of R", [] { return conv2d(pictures(R), kernels_of(R)); }, R},
        Case{"convolution of cut pictures", [] { return conv2d(pictures(S(0)), kernels_of(R)); }, S(0)},
        Case{"convolution of cut constants", [] { return conv2d(pictures(S(0), false), kernels_of(R)); },
             S(0)},
        Case{"convolution beside an invariant weight", [] { return conv2d(pictures(S(0)), kernels_of(I)); },
             std::nullopt, "copy_to_ranks"},
        Case{"convolution with an invariant bias",
             [] { return conv2d(pictures(S(0)), kernels_of(R), on_tp({2}, I)); }, std::nullopt,
             "gradient of bias"},
        Case{"convolution of cut channels", [] { return conv2d(pictures(S(1)), kernels_of(R)); },
             std::nullopt, "x is cut along dimension 1"},
        Case{"convolution of cut rows", [] { return conv2d(pictures(S(2)), kernels_of(R)); }, std::nullopt,
             "x is cut along dimension 2"},
        Case{"convolution with cut outputs", [] { return conv2d(pictures(R), kernels_of(S(0))); },
             std::nullopt, "weight is cut along dimension 0"},
        Case{"convolution with cut channels of the weight",
             [] { return conv2d(pictures(R), kernels_of(S(1))); }, std::nullopt,
             "weight is cut along dimension 1"},
        Case{"convolution of a partial sum", [] { return conv2d(pictures(P), kernels_of(R)); }, std::nullopt,
             "partial sum"},
        Case{"largest of cut pictures", [] { return max_pool2d(pictures(S(0))); }, S(0)},
        Case{"largest of cut channels", [] { return max_pool2d(pictures(S(1))); }, S(1)},
        Case{"largest of R", [] { return max_pool2d(pictures(R)); }, R},
        Case{"largest of cut rows", [] { return max_pool2d(pictures(S(2))); }, std::nullopt, "dimension 2"},
        Case{"largest of a partial sum", [] { return max_pool2d(pictures(P)); }, std::nullopt, "partial sum"},
        Case{"mean of cut channels", [] { return avg_pool2d(pictures(S(1))); }, S(1)},
        Case{"mean of cut columns", [] { return avg_pool2d(pictures(S(3))); }, std::nullopt, "dimension 3"}),
    [](const auto& info) { return std::to_string(info.index); });

TEST(LayoutTypes, AxesAreIndependent) {
  Tensor x = full({2, 4}, 1.0).set_layout(Layout().with(kDp, S(0)).with(kTp, P));
  EXPECT_EQ(to_string((x * 2.0).layout()), "dp S(0), tp P");
  EXPECT_EQ(to_string(sum(x).layout()), "dp P, tp P");
}

TEST(LayoutTypes, AMessageNamesOperationLayoutsAndWhatIsMissing) {
  try {
    static_cast<void>(gelu(on_tp({4, 8}, P)));
    FAIL();
  } catch (const LayoutError& error) {
    EXPECT_STREQ(
        error.what(),
        "gelu: on tp, x is a partial sum (P), and gelu of a part is not a part of gelu: dist::all_reduce (P "
        "to I) or dist::reduce_scatter (P to S) must come first; came x [4, 8] (tp P)");
  }
}

TEST(LayoutTypes, ConstantsUnderNoGradPassWhereGradientsWouldGoWrong) {
  const NoGrad no_grad;
  EXPECT_EQ(to_string((on_tp({4, 8}, R) + on_tp({4, 8}, I)).layout()), "tp R");
}

TEST(LayoutTypes, BackwardPassesCheckNothingAndRecomputedForwardsDo) {
  const Tensor x = on_tp({4, 8}, S(0));
  sum(square(x) * x).backward();
  EXPECT_TRUE(x.grad().layout().is_invariant());
  EXPECT_TRUE(RankContext::current().check_layouts);

  int runs = 0;
  const Tensor y = checkpoint(
      [&runs](const Tensor& input) {
        ++runs;
        EXPECT_EQ(to_string(input.layout()), "tp S(0)");
        return square(input);
      },
      x);
  EXPECT_EQ(to_string(y.layout()), "tp S(0)");
  sum(y).backward();
  EXPECT_EQ(runs, 2);
}

TEST(LayoutTypes, ABackwardPassBeginsAtNothingThatEveryRankWouldCount) {
  const Tensor x = on_tp({4}, R);
  try {
    sum(x).backward();
    FAIL() << "not refused";
  } catch (const LayoutError& error) {
    EXPECT_NE(std::string(error.what()).find("1/R on each"), std::string::npos) << error.what();
  }
  EXPECT_FALSE(x.grad().defined());
  backward(sum(x), full({}, 0.25));
  EXPECT_EQ(x.grad().to_vector<float>(), std::vector<float>(4, 0.25f));
  // A partial sum and an invariant value have the same gradient on every rank.
  for (const AxisLayout on_axis : {I, P}) EXPECT_NO_THROW(sum(on_tp({4}, on_axis)).backward());
}

TEST(LayoutTypes, CanBeSwitchedOff) {
  const LayoutChecks off(false);
  EXPECT_TRUE(gelu(on_tp({4, 8}, P)).layout().is_invariant());
}

TEST(LayoutTypes, ADimensionThatIsNotThereCannotBeCut) {
  EXPECT_THROW(full({4}, 1.0).set_layout(Layout().with(kTp, S(1))), IndexError);
}

}  // namespace
}  // namespace tessera
