// What a graph keeps, when it lets go, and what is not computed at all.

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera {
namespace {

class SavedMemory : public testing::Test {
 protected:
  [[nodiscard]] std::int64_t activations() const {
    return context_.pool(cpu)->report().of(MemoryCategory::kActivation).current;
  }

  static Tensor leaf(const Shape& shape, Device device = cpu) {
    Tensor x = full(shape, 0.5, {.device = device});
    x.set_requires_grad();
    return x;
  }

  RankContext context_;
  RankContext::Scope scope_{context_};
};

constexpr std::int64_t kBytes = 1000 * 4;

TEST_F(SavedMemory, IsFreedAsThePassProceeds) {
  Tensor x = leaf({1000});
  const std::int64_t before = activations();
  constexpr int kLayers = 8;
  std::vector<std::int64_t> held;  // by graph, seen from within the pass
  {
    Tensor y = x;
    for (int i = 0; i < kLayers; ++i) {
      y = tanh(y);  // saves its input
      register_hook(y, [&](const Tensor&) {
        held.push_back(activations() - before);
        return Tensor();
      });
    }
    EXPECT_EQ(activations() - before, kLayers * kBytes);
    const Tensor dy = ones({1000});
    const Tensor root = std::move(y);
    backward(root, dy);
    // The root is held here, and so is dy. Layer i has just got its gradient, when i inputs are left; its own
    // gradient is dy itself at the top, and another tensor below.
    ASSERT_EQ(held.size(), static_cast<std::size_t>(kLayers));
    for (int i = 0; i < kLayers; ++i) {
      const int inputs = kLayers - 1 - i;
      EXPECT_EQ(held[static_cast<std::size_t>(i)], (inputs + 1 + 1 + (i == 0 ? 0 : 1)) * kBytes) << i;
    }
    EXPECT_EQ(activations() - before, 2 * kBytes) << "root and dy";
  }
  EXPECT_EQ(activations(), before);
}

TEST_F(SavedMemory, StaysWithRetainGraph) {
  Tensor x = leaf({1000});
  const Tensor y = tanh(tanh(x));
  const std::int64_t before = activations();
  backward(sum(y), {}, {.retain_graph = true});
  EXPECT_EQ(activations(), before);
  sum(y).backward();
  EXPECT_EQ(activations(), before - kBytes) << "the inner result is gone, y is held here";
}

TEST_F(SavedMemory, AnUnusedGraphDiesWithItsLastHandle) {
  Tensor x = leaf({1000});
  const std::int64_t before = activations();
  { const Tensor y = sum(exp(x * 2.0) * x); }
  EXPECT_EQ(activations(), before);
}

TEST_F(SavedMemory, GradientsAreCountedAsGradientsAndTakeOverTheirMemory) {
  Tensor x = leaf({1000});
  context_.pool(cpu)->reset_peak();
  sum(x * 2.0).backward();
  const MemoryReport report = context_.pool(cpu)->report();
  EXPECT_EQ(report.of(MemoryCategory::kGradient).current, kBytes);
  EXPECT_EQ(report.of(MemoryCategory::kGradient).peak, kBytes);
}

TEST_F(SavedMemory, OperationsKeepOnlyWhatANeededGradientUses) {
  struct Case {
    const char* name;
    std::function<Tensor(const Tensor& with, const Tensor& without)> run;
    std::int64_t kept;  // tensors, beside the result
  };
  // `with` requires a gradient, `without` does not; both are results that nobody else holds.
  for (const Case& c : {Case{"add", [](const Tensor&a, const Tensor&b) { return a + b; }, 0},
                        {"multiply keeps the other", [](const Tensor&a, const Tensor&b) { return a * b; }, 1},
                        {"multiply of two", [](const Tensor&a, const Tensor&) { return a * (a * 1.0); }, 2},
                        {"divide keeps the divisor", [](const Tensor&a, const Tensor&b) { return a / b; }, 1},
                        {"by a number", [](const Tensor&a, const Tensor&) { return a / 3.0; }, 0},
                        {"exp", [](const Tensor&a, const Tensor&) { return exp(a); }, 1},
                        {"where keeps the condition (a quarter)",
                         [](const Tensor&a, const Tensor&b) { return where(less(b, 0.0), a, b); }, 0},
                        {"sum", [](const Tensor&a, const Tensor&) { return sum(a); }, 0},
                        {"dropout", [](const Tensor&a, const Tensor&) { return dropout(a, 0.5, {}); }, 0}}) {
    Tensor x = leaf({1000});
    const std::int64_t before = activations();
    const Tensor y = c.run(x * 1.0, full({1000}, 2));
    const std::int64_t condition = std::string(c.name).starts_with("where") ? 1000 : 0;
    EXPECT_EQ(activations() - before - y.size_bytes() - condition, c.kept * kBytes) << c.name;
  }
}

// On meta, where operations are counted: which products run in a backward pass.
TEST_F(SavedMemory, ClosuresComputeNothingThatNobodyAskedFor) {
  const std::int64_t n = 16, in = 32, out = 64, product = 2 * n * in * out;
  struct Case {
    const char* name;
    bool x, w, b;
    std::int64_t flops;
  };
  for (const Case& c : {Case{"all", true, true, true, 2 * product + n * out},
                        {"dx", true, false, false, product},
                        {"dW", false, true, false, product},
                        {"db", false, false, true, n * out}}) {
    Tensor x = empty({n, in}, {.device = meta}), w = empty({out, in}, {.device = meta});
    Tensor b = empty({out}, {.device = meta});
    if (c.x) x.set_requires_grad();
    if (c.w) w.set_requires_grad();
    if (c.b) b.set_requires_grad();
    const Tensor y = linear(x, w, b);
    const Tensor dy = empty({n, out}, {.device = meta});
    const std::uint64_t before = context_.kernels.counts.flops;
    backward(y, dy);
    EXPECT_EQ(static_cast<std::int64_t>(context_.kernels.counts.flops - before), c.flops) << c.name;
  }
  // A matrix product, with one and with two gradients.
  for (const bool both : {false, true}) {
    Tensor a = leaf({n, in}, meta), b = empty({in, out}, {.device = meta});
    if (both) b.set_requires_grad();
    const Tensor y = matmul(a, b);
    const std::uint64_t before = context_.kernels.counts.flops;
    backward(y, empty({n, out}, {.device = meta}));
    EXPECT_EQ(static_cast<std::int64_t>(context_.kernels.counts.flops - before), (both ? 2 : 1) * product);
  }
  // gradients(): only what leads to the wanted tensor, though every leaf could have one.
  Tensor x = leaf({n, in}, meta), w = leaf({out, in}, meta);
  const Tensor y = linear(x, w);
  const Tensor dy = empty({n, out}, {.device = meta});
  const std::uint64_t before = context_.kernels.counts.flops;
  static_cast<void>(gradients(std::span(&y, 1), std::span(&dy, 1), std::span(&x, 1)));
  EXPECT_EQ(static_cast<std::int64_t>(context_.kernels.counts.flops - before), product);
}

// A part of a larger gradient would keep all of it, and look like a bucket that several share.
TEST_F(SavedMemory, AGradientHoldsNoMoreThanItsOwnMemory) {
  Tensor a = ones({3}, {.dtype = kF64});
  a.set_requires_grad();
  const Tensor parts[] = {a, ones({1000}, {.dtype = kF64})};
  sum(square(concat(parts, 0))).backward();
  EXPECT_EQ(a.grad().storage().size_bytes(), static_cast<std::size_t>(a.size_bytes()));
}

}  // namespace
}  // namespace tessera
