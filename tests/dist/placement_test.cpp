#include "dist/placement.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

std::vector<std::int64_t> rows_of(const Placement& place) {
  const Tensor whole =
      arange(0, static_cast<double>(place.whole_shape.num_elements())).reshape(place.whole_shape);
  return place.own_part(whole).to_vector<std::int64_t>();
}

TEST(Placement, GivesARankItsHeadsOfEveryBlock) {
  const Placement place{.whole_shape = {12}, .is_cut = true, .cut = {0, 3, 2}, .num_ranks = 2, .rank = 1};
  EXPECT_EQ(rows_of(place), (std::vector<std::int64_t>{2, 3, 6, 7, 10, 11}));
  EXPECT_EQ(place.own_shape(), Shape{6});
}

TEST(Placement, CutsByUnitsThatDoNotDivide) {
  Placement place{.whole_shape = {2, 6}, .is_cut = true, .cut = {1, 1, 3}, .num_ranks = 2, .rank = 0};
  EXPECT_EQ(rows_of(place), (std::vector<std::int64_t>{0, 1, 2, 3, 6, 7, 8, 9}));
  place.rank = 1;
  EXPECT_EQ(rows_of(place), (std::vector<std::int64_t>{4, 5, 10, 11}));
}

TEST(Placement, LeavesRanksWithoutUnitsEmpty) {
  const Placement place{.whole_shape = {4, 3}, .is_cut = true, .cut = {0, 1, 2}, .num_ranks = 3, .rank = 2};
  EXPECT_EQ(place.own_shape(), (Shape{0, 3}));
}

TEST(Placement, PutsTogetherAgainWhatItCut) {
  const Tensor whole = normal({12, 5}, 0, 1, "w");
  Tensor joined = zeros({12, 5});
  for (int r = 0; r < 3; ++r) {
    const Placement place{
        .whole_shape = {12, 5}, .is_cut = true, .cut = {0, 2, 3}, .num_ranks = 3, .rank = r};
    place.put_part(joined, place.own_part(whole), r);
  }
  EXPECT_EQ(joined.to_vector<float>(), whole.to_vector<float>());
}

// Trap 1: the values of a part are those of the whole parameter there.
TEST(Placement, FillsPartsWithTheInitialValuesOfTheWhole) {
  for (const int dim : {0, 1}) {
    nn::ParameterRecord record{"w", {}, nn::Init::normal(0.5), "h.0.w"};
    Tensor whole = empty({12, 6});
    record.init.fill(whole, record.stream);
    for (int r = 0; r < 4; ++r) {
      const Placement place{.whole_shape = {12, 6},
                            .is_cut = true,
                            .cut = {dim, dim == 0 ? 3 : 1, 0},
                            .num_ranks = 4,
                            .rank = r};
      Tensor part = empty(place.own_shape());
      place.fill_initial(record, part);
      EXPECT_EQ(part.to_vector<float>(), place.own_part(whole).to_vector<float>());
    }
  }
}

TEST(Placement, RefusesBlocksThatDoNotDivide) {
  EXPECT_THROW(static_cast<void>(own_indices({0, 3, 2}, 13, 2, 0)), ShapeError);
}

}  // namespace
}  // namespace tessera::dist
