// Who is to blame for a loss that is NaN.

#include "nn/non_finite.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include "autograd/graph.h"
#include "nn/nn.h"
#include "tests/nn/check.h"

namespace tessera::nn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class NonFiniteTest : public ::testing::Test {
 protected:
  void poison(const std::string& path, std::initializer_list<std::int64_t> element, double value) {
    const NoGrad no_grad;
    Tensor parameter = model_->find_parameter(path);
    parameter.set(element, value);
  }
  std::optional<NonFinite> find() {
    return find_first_non_finite(*model_, [this] { model_->loss(ids_, ids_).backward(); });
  }

  std::unique_ptr<LanguageModel> model_ = make_language_model("layers=3,heads=2,width=8,context=6", 11);
  Tensor ids_ = from_vector<std::int64_t>({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1}, Shape{2, 6});
};

TEST_F(NonFiniteTest, NothingIsFoundWhereAllIsFinite) { EXPECT_FALSE(find().has_value()); }

TEST_F(NonFiniteTest, AParameterIsNamedWithElementAndValue) {
  poison("h.1.mlp.c_fc.weight", {3, 5}, std::nan(""));
  poison("h.2.mlp.c_fc.weight", {0, 0}, std::nan(""));
  const auto found = find();
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->module, "h.1.mlp.c_fc");
  EXPECT_EQ(found->what, "parameter 'weight'");
  EXPECT_EQ(
      found->message,
      "the first value that is not finite is in the parameter 'weight' of 'h.1.mlp.c_fc': nan at element "
      "[3, 5] of f32 [32, 8]");
}

// 1e30 is finite; its products with weights of order 1e30 are not.
TEST_F(NonFiniteTest, TheInnermostModuleThatOverflowsComesFirst) {
  poison("h.1.ln_2.bias", {0}, 1e30);
  poison("h.1.mlp.c_fc.weight", {7, 0}, 1e30);
  const auto found = find();
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->module, "h.1.mlp.c_fc");
  EXPECT_EQ(found->what, "output");
  EXPECT_NE(found->message.find("inf at element [0, 0, 7] of f32 [2, 6, 32]"), std::string::npos)
      << found->message;
}

TEST_F(NonFiniteTest, AGradientOfAnOutputIsFoundBeforeThoseOfParameters) {
  Module& middle = model_->find_module("h.1");
  middle.add_forward_hook([](Module&, std::span<Tensor> outputs) {
    register_hook(outputs[0], [](const Tensor& gradient) { return gradient * kInfinity; });
  });
  const auto found = find();
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->what, "gradient of the output") << found->message;
  EXPECT_EQ(found->module, "h.1.mlp") << found->message;  // whose output becomes h.1's
}

TEST_F(NonFiniteTest, AGradientThatOnlyAParameterHasIsFoundLast) {
  // d√w/dw is infinite at 0, and no module's output has a gradient that is.
  class Root final : public UnaryModule {
   public:
    Root() : weight_(add_parameter("weight", {2}, Init::zeros())) {}
    Tensor forward(const Tensor& x) override { return x * sqrt(weight_); }

   private:
    Tensor weight_;
  };
  Root model;
  const auto found = find_first_non_finite(model, [&] { sum(model(ones({2}))).backward(); });
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->what, "gradient of 'weight'");
  EXPECT_EQ(found->module, "");
  EXPECT_NE(found->message.find("of Root: inf at element [0]"), std::string::npos) << found->message;
}

// So that collectives in it match on ranks that find nothing before it.
TEST_F(NonFiniteTest, TheRunIsRunOnceWhateverIsFound) {
  poison("h.1.mlp.c_fc.weight", {0, 0}, std::nan(""));
  int runs = 0;
  const auto found = find_first_non_finite(*model_, [&] { ++runs; });
  EXPECT_EQ(found->what, "parameter 'weight'");
  EXPECT_EQ(found->outputs_before, 0);
  EXPECT_EQ(runs, 1);
}

TEST_F(NonFiniteTest, LeavesNoHookBehindAlsoAfterAnError) {
  EXPECT_THROW((void)find_first_non_finite(*model_, [] { throw std::runtime_error("stop"); }),
               std::runtime_error);
  (void)find();
  poison("h.0.ln_1.bias", {0}, std::nan(""));
  EXPECT_NO_THROW((void)model_->logits(ids_));  // a hook left behind would look into a watch that is gone
  model_->zero_grad();
}

}  // namespace
}  // namespace tessera::nn
