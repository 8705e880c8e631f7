// Views: the same memory under another geometry. Each row of the first table is one case, with its elements
// written out.

#include <gtest/gtest.h>

#include <functional>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

// 0 ... 11 as [3, 4].
Tensor matrix() { return arange(0, 12).reshape({3, 4}); }
// 0 ... 23 as [2, 3, 4].
Tensor cube() { return arange(0, 24).reshape({2, 3, 4}); }

using Values = std::vector<std::int64_t>;

struct ViewCase {
  const char* name;
  std::function<Tensor(const Tensor&)> view;
  Tensor x;
  Shape shape;
  Values values;
};

std::vector<ViewCase> view_cases() {
  const auto of = [](auto f) { return std::function<Tensor(const Tensor&)>(f); };
  return {
      {"reshape",
       of([](const Tensor& x) {
         return x.reshape({2, 6});
       }),
       matrix(),
       {2, 6},
       {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {"reshape, size left out",
       of([](const Tensor& x) {
         return x.reshape({-1, 6});
       }),
       matrix(),
       {2, 6},
       {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {"reshape to no dimensions", of([](const Tensor& x) { return x.reshape({}); }), arange(5, 6), {}, {5}},
      {"reshape without dimensions",
       of([](const Tensor& x) {
         return x.reshape({1, 1});
       }),
       arange(5, 6).reshape({}),
       {1, 1},
       {5}},
      {"reshape of nothing",
       of([](const Tensor& x) {
         return x.reshape({4, 0});
       }),
       zeros({0, 3}, {.dtype = kI64}),
       {4, 0},
       {}},
      {"reshape splits a stepped dimension",
       of([](const Tensor& x) {
         return x.slice(0, 0, 12, 2).reshape({2, 3});
       }),
       arange(0, 12),
       {2, 3},
       {0, 2, 4, 6, 8, 10}},
      {"reshape merges dimensions at one step",
       of([](const Tensor& x) { return x.slice(2, 1, 2).reshape({6}); }),
       cube(),
       {6},
       {1, 5, 9, 13, 17, 21}},
      {"flatten",
       of([](const Tensor& x) { return x.flatten(); }),
       matrix(),
       {12},
       {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
      {"flatten from the second on",
       of([](const Tensor& x) { return x.flatten(1).select(0, 1); }),
       cube(),
       {12},
       {12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}},
      {"flatten with negative dimensions",
       of([](const Tensor& x) { return x.flatten(-3, -2).select(1, 0); }),
       cube(),
       {6},
       {0, 4, 8, 12, 16, 20}},
      {"unflatten",
       of([](const Tensor& x) {
         return x.unflatten(1, {3, -1}).transpose(0, 1);
       }),
       arange(0, 12).reshape({2, 6}),
       {3, 2, 2},
       {0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11}},
      {"unflatten of columns",
       of([](const Tensor& x) {
         return x.transpose(0, 1).unflatten(-1, {2, 1});
       }),
       arange(0, 6).reshape({2, 3}),
       {3, 2, 1},
       {0, 3, 1, 4, 2, 5}},
      {"flatten without dimensions",
       of([](const Tensor& x) { return x.flatten(); }),
       arange(3, 4).reshape({}),
       {1},
       {3}},
      {"permute",
       of([](const Tensor& x) {
         return x.permute({2, 0, 1});
       }),
       cube(),
       {4, 2, 3},
       {0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19, 23}},
      {"permute with negative dimensions",
       of([](const Tensor& x) {
         return x.permute({-1, 0});
       }),
       matrix(),
       {4, 3},
       {0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}},
      {"transpose",
       of([](const Tensor& x) { return x.transpose(0, -1); }),
       matrix(),
       {4, 3},
       {0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}},
      {"transpose of nothing",
       of([](const Tensor& x) { return x.transpose(0, 1); }),
       zeros({0, 3}, {.dtype = kI64}),
       {3, 0},
       {}},
      {"slice", of([](const Tensor& x) { return x.slice(1, 1, 3); }), matrix(), {3, 2}, {1, 2, 5, 6, 9, 10}},
      {"slice in steps",
       of([](const Tensor& x) { return x.slice(0, 1, 10, 4); }),
       arange(0, 12),
       {3},
       {1, 5, 9}},
      {"slice in steps, end on a step",
       of([](const Tensor& x) { return x.slice(0, 1, 9, 4); }),
       arange(0, 12),
       {2},
       {1, 5}},
      {"slice of a stepped slice",
       of([](const Tensor& x) { return x.slice(0, 1, 12, 2).slice(0, 1, 6, 2); }),
       arange(0, 12),
       {3},
       {3, 7, 11}},
      {"slice from the end",
       of([](const Tensor& x) { return x.slice(-1, -3, -1); }),
       arange(0, 6),
       {2},
       {3, 4}},
      {"slice beyond both ends",
       of([](const Tensor& x) { return x.slice(0, -100, 100); }),
       arange(0, 3),
       {3},
       {0, 1, 2}},
      {"slice that is empty", of([](const Tensor& x) { return x.slice(0, 2, 2); }), matrix(), {0, 4}, {}},
      {"slice whose end lies before its begin",
       of([](const Tensor& x) { return x.slice(0, 2, 1); }),
       matrix(),
       {0, 4},
       {}},
      {"select", of([](const Tensor& x) { return x.select(0, 1); }), matrix(), {4}, {4, 5, 6, 7}},
      {"select from the end",
       of([](const Tensor& x) { return x.select(-1, -1); }),
       matrix(),
       {3},
       {3, 7, 11}},
      {"select the last dimension away",
       of([](const Tensor& x) { return x.select(0, 2); }),
       arange(0, 3),
       {},
       {2}},
      {"expand",
       of([](const Tensor& x) {
         return x.expand({3, 2});
       }),
       arange(0, 2),
       {3, 2},
       {0, 1, 0, 1, 0, 1}},
      {"expand a dimension of 1",
       of([](const Tensor& x) {
         return x.expand({2, 3});
       }),
       arange(0, 2).reshape({2, 1}),
       {2, 3},
       {0, 0, 0, 1, 1, 1}},
      {"expand keeps what is -1",
       of([](const Tensor& x) {
         return x.expand({2, -1, 2});
       }),
       arange(0, 2).reshape({2, 1}),
       {2, 2, 2},
       {0, 0, 1, 1, 0, 0, 1, 1}},
      {"expand to nothing",
       of([](const Tensor& x) {
         return x.expand({0, 2});
       }),
       arange(0, 2),
       {0, 2},
       {}},
      {"expand without dimensions",
       of([](const Tensor& x) {
         return x.expand({2, 2});
       }),
       arange(7, 8).reshape({}),
       {2, 2},
       {7, 7, 7, 7}},
      {"squeeze",
       of([](const Tensor& x) { return x.squeeze(-1); }),
       arange(0, 3).reshape({3, 1}),
       {3},
       {0, 1, 2}},
      {"unsqueeze at the front",
       of([](const Tensor& x) { return x.unsqueeze(0); }),
       arange(0, 3),
       {1, 3},
       {0, 1, 2}},
      {"unsqueeze at the end",
       of([](const Tensor& x) { return x.unsqueeze(-1); }),
       arange(0, 3),
       {3, 1},
       {0, 1, 2}},
      {"unsqueeze without dimensions",
       of([](const Tensor& x) { return x.unsqueeze(-1); }),
       arange(4, 5).reshape({}),
       {1},
       {4}},
      {"as_strided: the diagonal",
       of([](const Tensor& x) { return x.as_strided({3}, {5}, 0); }),
       matrix(),
       {3},
       {0, 5, 10}},
      {"as_strided: windows that overlap",
       of([](const Tensor& x) {
         return x.as_strided({3, 3}, {1, 1}, 1);
       }),
       arange(0, 6),
       {3, 3},
       {1, 2, 3, 2, 3, 4, 3, 4, 5}},
      {"as_strided: backwards",
       of([](const Tensor& x) { return x.as_strided({4}, {-1}, 3); }),
       arange(0, 4),
       {4},
       {3, 2, 1, 0}},
  };
}

TEST(View, ShowsTheRightElementsWithoutACopy) {
  for (const ViewCase& c : view_cases()) {
    SCOPED_TRACE(c.name);
    const Tensor y = c.view(c.x);
    EXPECT_EQ(y.shape(), c.shape);
    EXPECT_EQ(y.to_vector<std::int64_t>(), c.values);
    EXPECT_EQ(y.storage(), c.x.storage());
    EXPECT_EQ(y.dtype(), kI64);
  }
}

TEST(View, WritesReachTheTensorBelow) {
  Tensor x = matrix();
  x.transpose(0, 1).slice(0, 1, 4, 2).select(1, 2).fill(-1);
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Values{0, 1, 2, 3, 4, 5, 6, 7, 8, -1, 10, -1}));
}

TEST(View, ReshapeCopiesOnlyWhereStridesForceIt) {
  const Tensor x = matrix().transpose(0, 1);
  const Tensor y = x.reshape({12});
  EXPECT_FALSE(y.storage() == x.storage());
  EXPECT_EQ(y.to_vector<std::int64_t>(), (Values{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}));
  EXPECT_EQ(x.reshape({2, 2, 3}).storage(), x.storage());  // splits the outer dimension: no copy
  EXPECT_TRUE(matrix().reshape({3, 4}).is_contiguous());
}

// Against the definition, over all shapes of 12 elements and all strided sources: reshape keeps row-major
// order.
TEST(View, ReshapeKeepsTheOrderOfElementsInEveryLayout) {
  const Tensor base = arange(0, 2 * 24).reshape({2, 4, 6});
  const std::vector<Tensor> sources{base.slice(0, 0, 1).slice(1, 0, 2),
                                    base.slice(2, 0, 6, 3).slice(1, 0, 3),
                                    base.permute({2, 0, 1}).slice(0, 0, 3).slice(2, 0, 2),
                                    base.select(0, 1).slice(1, 2, 5),
                                    base.slice(1, 1, 2).expand({2, 1, 6}),
                                    base.select(1, 0).transpose(0, 1)};
  const Shape targets[] = {{12},      {2, 6},    {6, 2},     {3, 4},      {4, 3},
                           {2, 2, 3}, {3, 2, 2}, {1, 12, 1}, {2, 1, 3, 2}};
  for (const Tensor& source : sources) {
    ASSERT_EQ(source.num_elements(), 12) << to_string(source.shape());
    for (const Shape& target : targets) {
      EXPECT_EQ(source.reshape(target).to_vector<std::int64_t>(), source.to_vector<std::int64_t>())
          << to_string(source.shape()) << " to " << to_string(target);
    }
  }
}

TEST(View, ChunksDivideADimensionFirstOnesLonger) {
  const std::vector<Tensor> chunks = arange(0, 10).chunk(4, -1);
  ASSERT_EQ(chunks.size(), 4u);
  EXPECT_EQ(chunks[0].to_vector<std::int64_t>(), (Values{0, 1, 2}));
  EXPECT_EQ(chunks[1].to_vector<std::int64_t>(), (Values{3, 4, 5}));
  EXPECT_EQ(chunks[2].to_vector<std::int64_t>(), (Values{6, 7}));
  EXPECT_EQ(chunks[3].to_vector<std::int64_t>(), (Values{8, 9}));
  const std::vector<Tensor> more = arange(0, 2).chunk(3, 0);
  ASSERT_EQ(more.size(), 3u);
  EXPECT_EQ(more[2].shape(), (Shape{0}));
  EXPECT_EQ(matrix().chunk(2, 1)[1].to_vector<std::int64_t>(), (Values{2, 3, 6, 7, 10, 11}));
}

TEST(View, ContiguousIsItselfOrACopyAndCloneAlwaysACopy) {
  const Tensor x = matrix();
  EXPECT_TRUE(x.contiguous().is_same(x));
  const Tensor y = x.transpose(0, 1);
  EXPECT_FALSE(y.is_contiguous());
  EXPECT_TRUE(y.contiguous().is_contiguous());
  EXPECT_EQ(y.contiguous().to_vector<std::int64_t>(), y.to_vector<std::int64_t>());
  EXPECT_FALSE(x.clone().storage() == x.storage());
  EXPECT_EQ(x.clone().to_vector<std::int64_t>(), x.to_vector<std::int64_t>());
  EXPECT_TRUE(
      x.slice(1, 0, 1).reshape({3}).slice(0, 1, 2).is_contiguous());  // one element, whatever its stride
}

TEST(View, ACopyOfAHandleIsTheSameTensorAndDetachIsNot) {
  Tensor x = arange(0, 3);
  const Tensor same = x;
  EXPECT_TRUE(same.is_same(x));
  EXPECT_FALSE(x.detach().is_same(x));
  x.fill(5);
  EXPECT_EQ(same.at({1}), 5);
  EXPECT_EQ(x.detach().storage(), x.storage());
}

TEST(View, RebindMovesEveryHandleButNoEarlierView) {
  Tensor x = arange(0, 3);
  const Tensor handle = x;
  const Tensor view = x.slice(0, 0, 2);
  x.rebind(full({2, 2}, 9, {.dtype = kF32}));
  EXPECT_EQ(handle.shape(), (Shape{2, 2}));
  EXPECT_EQ(handle.dtype(), kF32);
  EXPECT_EQ(handle.at({1, 1}), 9);
  EXPECT_EQ(view.to_vector<std::int64_t>(), (Values{0, 1}));
  expect_error<ShapeError>([&] { x.rebind(Tensor()); }, {"rebind", "undefined"});
}

TEST(View, ErrorsShowWhatWasAskedAndWhatThereIs) {
  struct Case {
    const char* name;
    std::function<Tensor()> run;
    std::vector<std::string> parts;
  };
  const Tensor x = matrix();
  const std::vector<Case> shape_errors{
      {"reshape",
       [&] {
         return x.reshape({5, 2});
       },
       {"reshape: i64 [3, 4] has 12 elements", "[5, 2]"}},
      {"reshape, does not divide",
       [&] {
         return x.reshape({-1, 5});
       },
       {"[3, 4]", "[-1, 5]"}},
      {"reshape, two unknown",
       [&] {
         return x.reshape({-1, -1});
       },
       {"[-1, -1]"}},
      {"reshape, negative",
       [&] {
         return x.reshape({-2, 6});
       },
       {"[-2, 6]"}},
      {"reshape, ambiguous",
       [&] {
         return zeros({0}).reshape({-1, 0});
       },
       {"[0]", "[-1, 0]"}},
      {"reshape, too large to count",
       [&] {
         return x.reshape({std::int64_t{1} << 62, 4});
       },
       {"[3, 4]"}},
      {"permute, too few", [&] { return x.permute({0}); }, {"permute: 1 dimensions", "[3, 4]"}},
      {"permute, twice",
       [&] {
         return x.permute({1, -1});
       },
       {"dimension 1", "[3, 4]", "twice"}},
      {"expand",
       [&] {
         return x.expand({2, 4});
       },
       {"expand: i64 [3, 4] does not expand to [2, 4]"}},
      {"expand to fewer", [&] { return x.expand({4}); }, {"[3, 4]", "[4]"}},
      {"expand, unknown new size",
       [&] {
         return x.expand({-1, 3, 4});
       },
       {"[-1, 3, 4]", "[3, 4]"}},
      {"squeeze", [&] { return x.squeeze(0); }, {"squeeze: dimension 0 of i64 [3, 4] is not 1"}},
      {"chunk", [&] { return x.chunk(0, 0)[0]; }, {"chunk", "0"}},
      {"as_strided beyond the end",
       [&] {
         return x.as_strided({3, 5}, {4, 1}, 0);
       },
       {"[3, 5]", "[4, 1]", "of 12"}},
      {"unflatten into other sizes",
       [&] {
         return x.unflatten(1, {3, -1});
       },
       {"unflatten", "4 elements", "[3, -1]"}},
      {"unflatten into nothing", [&] { return x.unflatten(1, {}); }, {"unflatten", "4 elements", "[]"}},
      {"as_strided before the start", [&] { return x.as_strided({3}, {-1}, 1); }, {"elements -1 to 1"}},
      {"as_strided, strides missing",
       [&] {
         return x.as_strided({3, 4}, {1}, 0);
       },
       {"[3, 4]", "[1]"}},
  };
  for (const Case& c : shape_errors) {
    SCOPED_TRACE(c.name);
    for (const std::string& part : c.parts)
      expect_error<ShapeError>([&] { static_cast<void>(c.run()); }, {part});
  }
  const std::vector<Case> index_errors{
      {"dim", [&] { return zeros({x.dim(2)}); }, {"[3, 4]", "dimension 2", "[-2, 2)"}},
      {"transpose", [&] { return x.transpose(0, -3); }, {"[3, 4]", "dimension -3"}},
      {"select", [&] { return x.select(1, 4); }, {"select: index 4", "dimension 1 of i64 [3, 4]"}},
      {"select, negative", [&] { return x.select(0, -4); }, {"index -4"}},
      {"select without dimensions", [&] { return scalar(1).select(0, 0); }, {"dimension 0"}},
      {"slice, step 0", [&] { return x.slice(0, 0, 2, 0); }, {"slice: the step must be positive", "0"}},
      {"unsqueeze", [&] { return x.unsqueeze(4); }, {"dimension 4", "[-3, 3)"}},
      {"flatten, backwards", [&] { return x.flatten(1, 0); }, {"flatten", "1", "0"}},
  };
  for (const Case& c : index_errors) {
    SCOPED_TRACE(c.name);
    for (const std::string& part : c.parts)
      expect_error<IndexError>([&] { static_cast<void>(c.run()); }, {part});
  }
}

}  // namespace
}  // namespace tessera
