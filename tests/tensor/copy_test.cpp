// In-place copies, fills and sums; above all those that read what they write.

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/expect_error.h"

namespace tessera {
namespace {

using Values = std::vector<std::int64_t>;

TEST(CopyFrom, ConvertsAndBroadcasts) {
  Tensor x = zeros({2, 3}, {.dtype = kI32});
  x.copy_from(from_vector<float>({1.9f, -2.9f, 3}));
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Values{1, -2, 3, 1, -2, 3}));
  x.copy_from(scalar(7));
  EXPECT_EQ(x.to_vector<std::int64_t>(), Values(6, 7));
  x.transpose(0, 1).copy_from(arange(0, 6).reshape({3, 2}));
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Values{0, 2, 4, 1, 3, 5}));
}

TEST(CopyFrom, AShapeThatDoesNotFitIsAnErrorWithBoth) {
  Tensor x = zeros({2, 3});
  expect_error<ShapeError>([&] { x.copy_from(zeros({2})); }, {"[2]", "[2, 3]"});
  expect_error<ShapeError>([&] { x.copy_from(zeros({1, 2, 3})); }, {"[1, 2, 3]", "[2, 3]"});
}

// Long enough for several threads and tiles; a copy without a detour would smear its first element.
TEST(CopyFrom, AnOverlapInEitherDirectionMovesTheOldValues) {
  const std::int64_t n = 100000;
  for (const std::int64_t shift : {1, 7, 4096}) {
    Tensor up = arange(0, static_cast<double>(n));
    up.slice(0, shift, n).copy_from(up.slice(0, 0, n - shift));
    Tensor down = arange(0, static_cast<double>(n));
    down.slice(0, 0, n - shift).copy_from(down.slice(0, shift, n));
    const Values u = up.to_vector<std::int64_t>(), d = down.to_vector<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(i);
      ASSERT_EQ(u[at], i < shift ? i : i - shift) << shift;
      ASSERT_EQ(d[at], i < n - shift ? i + shift : i) << shift;
    }
  }
}

TEST(CopyFrom, ATensorMayBeTransposedOntoItself) {
  Tensor x = arange(0, 9).reshape({3, 3});
  x.copy_from(x.transpose(0, 1));
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Values{0, 3, 6, 1, 4, 7, 2, 5, 8}));
  x.copy_from(x.select(0, 1).clone().expand({3, 3}));
  EXPECT_EQ(x.to_vector<std::int64_t>(), (Values{1, 4, 7, 1, 4, 7, 1, 4, 7}));
  Tensor y = arange(0, 4).reshape({2, 2});
  y.copy_from(y.select(0, 1));  // the row is one of those it is copied to
  EXPECT_EQ(y.to_vector<std::int64_t>(), (Values{2, 3, 2, 3}));
}

TEST(AddScaled, AddsConvertedBroadcastAndOverlappingValues) {
  Tensor x = arange(0, 6, 1, {.dtype = kF32}).reshape({2, 3});
  x.add_scaled(from_vector<double>({10, 20, 30}), 0.5);
  EXPECT_EQ(x.to_vector<float>(), (std::vector<float>{5, 11, 17, 8, 14, 20}));
  x.add_scaled(x.select(0, 0), -1);  // the old first row from both
  EXPECT_EQ(x.to_vector<float>(), (std::vector<float>{0, 0, 0, 3, 3, 3}));
}

TEST(AddScaled, ATargetThatRepeatsAnElementIsRefused) {
  Tensor x = zeros({3, 1}).expand({3, 4});
  expect_error<ShapeError>(
      [&] {
        x.add_scaled(ones({3, 4}));
      },
      {"dimension 1 of f32 [3, 4]", "contiguous()"});
}

TEST(CopyFrom, ATargetThatRepeatsAnElementIsRefused) {
  Tensor x = zeros({1, 4}).expand({3, 4});
  expect_error<ShapeError>(
      [&] {
        x.copy_from(ones({3, 4}));
      },
      {"copy_from: dimension 0 of f32 [3, 4]", "contiguous()"});
}

TEST(InPlace, EveryChangeRaisesTheVersionOfTheStorageAndOfAllViews) {
  Tensor x = zeros({4});
  const Tensor view = x.slice(0, 0, 2);
  std::uint64_t version = view.storage().version();
  const auto expect_change = [&](const char* what) {
    EXPECT_GT(view.storage().version(), version) << what;
    version = view.storage().version();
  };
  x.fill(1);
  expect_change("fill");
  x.zero();
  expect_change("zero");
  x.copy_from(ones({4}));
  expect_change("copy_from");
  x.add_scaled(ones({4}));
  expect_change("add_scaled");
  x.set({0}, 3);
  expect_change("set");
  static_cast<void>(x.mutable_data<float>());
  expect_change("mutable_data");
  static_cast<void>(x.mutable_view());
  expect_change("mutable_view");
  static_cast<void>(x.clone());
  static_cast<void>(x.view());
  static_cast<void>(x.to_vector<float>());
  static_cast<void>(x.storage().data());
  EXPECT_EQ(view.storage().version(), version) << "reading changes nothing";
}

TEST(InPlace, OperandsOnTwoDevicesAreRefusedButMetaTakesAnything) {
  Tensor x = zeros({2});
  Tensor y = zeros({2}, {.device = meta});
  expect_error<DeviceError>([&] { x.copy_from(y); }, {"copy_from", "cpu", "meta"});
  expect_error<DeviceError>([&] { x.add_scaled(y); }, {"add_scaled", "cpu", "meta"});
  EXPECT_NO_THROW(y.copy_from(x));
}

}  // namespace
}  // namespace tessera
