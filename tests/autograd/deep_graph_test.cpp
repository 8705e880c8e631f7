// Graphs as deep as a recurrent net over a long text: neither the pass nor the end of a graph may recurse.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/ops.h"
#include "tensor/create.h"

namespace tessera {
namespace {

constexpr int kDepth = 100000;

struct Form {
  const char* name;
  Tensor (*step)(const Tensor& x);  // leaves 1 where it is, with slope 1
};

// Chains of every form in which a node can hold its input: once, twice, by two nodes, through a view.
const Form kForms[] = {
    {"chain", [](const Tensor& x) { return x * 1.0; }},
    {"operands_alike", [](const Tensor& x) { return maximum(x, x); }},
    {"residual_branch", [](const Tensor& x) { return x + (x * 0.0); }},
    {"branch_from_branch", [](const Tensor& x) { return where(equal(x, 0.0), x, x * 1.0); }},
    {"views", [](const Tensor& x) { return x.unsqueeze(0).squeeze(0); }},
};

class DeepGraph : public testing::TestWithParam<Form> {
 protected:
  // 1, after kDepth steps that leave it there.
  [[nodiscard]] static Tensor climb(const Tensor& x) {
    Tensor y = x;
    for (int i = 0; i < kDepth; ++i) y = GetParam().step(y);
    return y;
  }

  Tensor x_ = full({1}, 1, {.dtype = kF64}).set_requires_grad();
};

TEST_P(DeepGraph, BackwardDoesNotOverflowTheStack) {
  climb(x_).backward();
  EXPECT_EQ(x_.grad().item(), 1.0);
}

TEST_P(DeepGraph, IsDestroyedWithoutRecursionEvenIfNoPassRan) {
  { EXPECT_TRUE(climb(x_).requires_grad()); }
  EXPECT_TRUE(x_.is_unshared()) << "the graph is gone";
}

INSTANTIATE_TEST_SUITE_P(Of, DeepGraph, testing::ValuesIn(kForms),
                         [](const testing::TestParamInfo<Form>& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace tessera
