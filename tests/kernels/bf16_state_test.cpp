// State of optimizers in 16-bit numbers: masters in two halves that lose nothing, and rounding at random
// whose mean is what was rounded. All of it is integers, the same in each instruction set.

#include "kernels/bf16_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "tests/kernels/layouts.h"

namespace tessera::kernels::test {
namespace {

using Bits16 = std::vector<std::uint16_t>;
using Lows = std::vector<std::int16_t>;

template <class T>
View view_of(std::vector<T>& values, DType dtype) {
  View view;
  view.data = values.data();
  view.dtype = dtype;
  view.dims = 1;
  view.shape[0] = static_cast<std::int64_t>(values.size() * sizeof(T) / size_bytes(dtype));
  view.strides[0] = 1;
  return view;
}

float number(std::uint32_t bits) { return std::bit_cast<float>(bits); }
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

// What the halves promise, of one number, by other means than split_f32's: "" if they keep it.
std::string broken_promise(float x, std::uint16_t high, std::int16_t low, float joined) {
  const float weight = f32_from_bf16_bits(high);
  if (std::signbit(weight) != std::signbit(x)) return "the weight has another sign";
  if (std::isnan(x)) return std::isnan(weight) && std::isnan(joined) && low == 0 ? "" : "NaN is lost";
  if (bits_of(joined) != bits_of(x)) return "joined, the halves are another number";
  if ((bits_of(x) & 0xFFFFu) != 0x8000u) return high == bf16_bits_from_f32(x) ? "" : "not the nearest weight";
  // Half-way: the neighbour towards 0 is the number cut off.
  return high == (bits_of(x) >> 16) + 1 ? "" : "half-way, not the weight farther from 0";
}

// Every exponent and sign with every leading digit of bf16, and about each the edges of what is cut off; and
// every 251st of all numbers there are.
std::vector<float> numbers() {
  std::vector<float> all;
  for (std::uint32_t high = 0; high < 0x10000u; ++high) {
    for (const std::uint32_t low : {0u, 1u, 2u, 0x7FFEu, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFEu, 0xFFFFu})
      all.push_back(number((high << 16) + low));
  }
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 251)
    all.push_back(number(static_cast<std::uint32_t>(bits)));
  return all;
}

TEST(Bf16State, HalvesOfAMasterGiveItBackAndTheHighOneIsItsWeight) {
  std::vector<float> masters = numbers();
  const std::size_t n = masters.size();
  for (const InstructionSet set : supported_sets()) {
    const WithThreads with(2);
    Bits16 high(n);
    Lows low(n);
    std::vector<float> joined(n);
    const Updates& updates = cpu_kernels(set).updates;
    updates.split_masters(view_of(masters, kF32), view_of(high, kBF16), view_of(low, kU8));
    updates.join_masters(view_of(high, kBF16), view_of(low, kU8), view_of(joined, kF32));
    int broken = 0;
    for (std::size_t i = 0; i < n && broken < 10; ++i) {
      const std::string promise = broken_promise(masters[i], high[i], low[i], joined[i]);
      EXPECT_EQ(promise, "") << name(set) << ", bits " << std::hex << bits_of(masters[i]);
      broken += promise.empty() ? 0 : 1;
    }
  }
}

// Of the 2¹⁶ noises as many round away from 0 as x has of the way behind it: low 16 bits of 2¹⁶. Their mean
// is x to the last bit.
TEST(Bf16State, RoundingHasTheNumberItselfAsItsMean) {
  for (const std::uint32_t bits :
       {0x3F800001u, 0x3F80FFFFu, 0xBF81ABCDu, 0x00000001u, 0x807F1234u, 0x7F7F7FFFu, 0xC1238000u}) {
    const std::uint32_t down = bits >> 16;
    std::uint32_t ups = 0;
    for (std::uint32_t noise = 0; noise < 0x10000u; ++noise) {
      const std::uint32_t rounded = round_with_noise(number(bits), noise);
      ASSERT_TRUE(rounded == down || rounded == down + 1) << std::hex << bits;
      ups += rounded - down;
    }
    EXPECT_EQ(ups, bits & 0xFFFFu) << std::hex << bits;
  }
}

TEST(Bf16State, RoundingLeavesExactNumbersAlone) {
  for (std::uint32_t high = 0; high < 0x10000u; ++high) {
    for (const std::uint32_t noise : {0u, 0x8000u, 0xFFFFu}) {
      const float x = number(high << 16);
      const float rounded = f32_from_bf16_bits(round_with_noise(x, noise));
      if (std::isnan(x)) {
        ASSERT_TRUE(std::isnan(rounded)) << high;
      } else {
        ASSERT_EQ(bits_of(rounded), bits_of(x)) << high;
      }
    }
  }
  // NaNs whose payload a sum would carry into the sign.
  for (const std::uint32_t bits : {0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FC00001u, 0xFFFF8000u}) {
    for (const std::uint32_t noise : {0u, 0xFFFFu})
      EXPECT_TRUE(std::isnan(f32_from_bf16_bits(round_with_noise(number(bits), noise)))) << std::hex << bits;
  }
}

// --- Noise

// n numbers that should be uniform in [0, 2¹⁶) and independent: their mean has a standard deviation of
// 2¹⁶ / √(12 n), the correlation of two such rows 1/√n, and χ² over 256 bins is 255 ± √510. Five of these
// deviations are allowed, which one in two million rows of true random numbers leaves.
double deviations_of_mean(const std::vector<double>& x) {
  double sum = 0;
  for (const double value : x) sum += value;
  const auto n = static_cast<double>(x.size());
  return (sum / n - 32767.5) / (65536.0 / std::sqrt(12 * n));
}
double deviations_of_bins(const std::vector<double>& x) {
  std::vector<double> counts(256, 0.0);
  for (const double value : x) ++counts[static_cast<std::size_t>(value / 256)];
  const double expected = static_cast<double>(x.size()) / 256;
  double chi2 = 0;
  for (const double count : counts) chi2 += (count - expected) * (count - expected) / expected;
  return (chi2 - 255) / std::sqrt(510.0);
}
double deviations_of_correlation(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - 32767.5) * (y[i] - 32767.5);
  return sum / (65536.0 * 65536.0 / 12) / std::sqrt(static_cast<double>(x.size()));
}

struct State {
  std::uint16_t weight, moment1, moment2;
};
struct NoiseRow {
  const char* name;
  State (*state)(std::uint32_t i);
  std::int64_t (*step)(std::uint32_t i);
};

// Each row is what an optimizer asks for in one way or another; neighbours in it are alike.
const NoiseRow kNoiseRows[] = {
    {"steps of one element",
     [](std::uint32_t) {
       return State{0x3D12, 0x3A55, 0x3601};
     },
     [](std::uint32_t i) { return static_cast<std::int64_t>(i) + 1; }},
    {"steps of an element that is 0",
     [](std::uint32_t) {
       return State{0, 0, 0};
     },
     [](std::uint32_t i) { return static_cast<std::int64_t>(i) + 1; }},
    {"weights one apart, at the first step",
     [](std::uint32_t i) {
       return State{static_cast<std::uint16_t>(i), 0, 0};
     },
     [](std::uint32_t) { return std::int64_t{1}; }},
    {"first moments one apart",
     [](std::uint32_t i) {
       return State{0x3F80, static_cast<std::uint16_t>(i), 0x3601};
     },
     [](std::uint32_t) { return std::int64_t{7}; }},
    {"second moments one apart",
     [](std::uint32_t i) {
       return State{0x3F80, 0x3A55, static_cast<std::uint16_t>(i)};
     },
     [](std::uint32_t) { return std::int64_t{1000}; }},
};

TEST(Bf16State, NoiseIsUniformAndWithoutMemory) {
  constexpr std::uint32_t kCount = 65536;
  constexpr double kMost = 5.0;
  for (const NoiseRow& row : kNoiseRows) {
    SCOPED_TRACE(row.name);
    std::vector<double> first, second;
    for (std::uint32_t i = 0; i < kCount; ++i) {
      const State s = row.state(i);
      const std::uint32_t bits = UpdateNoise(row.step(i)).bits(s.weight, s.moment1, s.moment2);
      first.push_back(bits >> 16);
      second.push_back(bits & 0xFFFFu);
    }
    for (const std::vector<double>* half : {&first, &second}) {
      EXPECT_LE(std::abs(deviations_of_mean(*half)), kMost);
      EXPECT_LE(std::abs(deviations_of_bins(*half)), kMost);
      for (const std::ptrdiff_t apart : {1, 2, 256}) {
        std::vector<double> moved = *half;
        std::rotate(moved.begin(), moved.begin() + apart, moved.end());
        EXPECT_LE(std::abs(deviations_of_correlation(*half, moved)), kMost) << apart;
      }
    }
    EXPECT_LE(std::abs(deviations_of_correlation(first, second)), kMost);
  }
}

// --- The update

/// State in 16 bits and the same in f32, of n elements.
struct Both {
  explicit Both(std::size_t n, DType grad_dtype, unsigned seed = 1)
      : weight(n), m(n), v(n), low(n), master(n), m32(n), v32(n) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < n; ++i) {
      const SplitF32 halves = split_f32(normal(generator));
      weight[i] = halves.high;
      low[i] = halves.low;
      m[i] = bf16_bits_from_f32(0.1F * normal(generator));
      v[i] = bf16_bits_from_f32(0.01F * std::abs(normal(generator)));
    }
    widen_state();
    grad = HostArray::random(grad_dtype, {static_cast<std::int64_t>(n)}, seed + 1);
  }

  void widen_state() {
    for (std::size_t i = 0; i < weight.size(); ++i) {
      master[i] = join_f32(weight[i], low[i]);
      m32[i] = f32_from_bf16_bits(m[i]);
      v32[i] = f32_from_bf16_bits(v[i]);
    }
  }
  // What an update of the f32 state must leave of the 16-bit state before it.
  void round_state(std::int64_t step) {
    const UpdateNoise noise(step);
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const std::uint32_t bits = noise.bits(weight[i], m[i], v[i]);
      m[i] = round_with_noise(m32[i], bits >> 16);
      v[i] = round_with_noise(v32[i], bits & 0xFFFFu);
      const SplitF32 halves = split_f32(master[i]);
      weight[i] = halves.high;
      low[i] = halves.low;
    }
  }

  UpdateItem in_16_bits() {
    return {view_of(weight, kBF16), grad.view(), view_of(m, kBF16), view_of(v, kBF16), {}, view_of(low, kU8)};
  }
  UpdateItem in_f32() {
    return {view_of(master, kF32), grad.view(), view_of(m32, kF32), view_of(v32, kF32), {}, {}};
  }

  Bits16 weight, m, v;
  Lows low;
  std::vector<float> master, m32, v32;
  HostArray grad;
};

const std::size_t kSizes[] = {7, 0, 150, 40000, 1};

// The scalar functions around the kernel that f32 state goes through, built for the same instructions.
TEST(Bf16State, AnUpdateIsThatOfF32StateRounded) {
  for (const InstructionSet set : supported_sets()) {
    for (const DType grad_dtype : {kF32, kBF16}) {
      for (const bool decoupled : {true, false}) {
        for (const int threads : {1, 2}) {
          SCOPED_TRACE(std::string(name(set)) + (decoupled ? " AdamW" : " Adam"));
          const WithThreads with(threads);
          std::vector<Both> own, expected;
          std::vector<UpdateItem> items;
          for (const std::size_t size : kSizes) {
            own.emplace_back(size, grad_dtype);
            expected.emplace_back(size, grad_dtype);
          }
          for (Both& each : own) items.push_back(each.in_16_bits());
          AdamOptions o{.lr = 0.01, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .decoupled = decoupled};
          o.grad_scale = 0.5;
          for (o.step = 1; o.step <= 4; ++o.step) {
            cpu_kernels(set).updates.adam(items, o);
            for (std::size_t k = 0; k < own.size(); ++k) {
              expected[k].widen_state();
              const UpdateItem item = expected[k].in_f32();
              cpu_kernels(set).updates.adam({&item, 1}, o);
              expected[k].round_state(o.step);
              EXPECT_TRUE(own[k].weight == expected[k].weight && own[k].low == expected[k].low) << k;
              EXPECT_TRUE(own[k].m == expected[k].m && own[k].v == expected[k].v) << k;
            }
          }
        }
      }
    }
  }
}

// Where the arithmetic of a step is exact, fused products or not, all instruction sets leave the same bits:
// with halves for betas and gradients of few digits, and lr 0.
TEST(Bf16State, InstructionSetsLeaveTheSameBits) {
  constexpr std::size_t kCount = 40003;
  const AdamOptions o{.lr = 0.0, .beta1 = 0.5, .beta2 = 0.5, .step = 3};
  Both first(kCount, kF32);
  bool is_first = true;
  for (const InstructionSet set : supported_sets()) {
    Both both(kCount, kF32);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto index = static_cast<std::int64_t>(i);
      both.grad.set({index}, static_cast<double>(index % 127 - 63) / 32.0);
    }
    const Bits16 weight = both.weight, m = both.m;
    const Lows low = both.low;
    const UpdateItem item = both.in_16_bits();
    cpu_kernels(set).updates.adam({&item, 1}, o);
    EXPECT_TRUE(both.weight == weight && both.low == low) << name(set) << ": lr is 0";
    EXPECT_NE(both.m, m);
    if (is_first) first = both;
    is_first = false;
    EXPECT_TRUE(both.m == first.m && both.v == first.v) << name(set);
  }
}

// --- That moments do not stall

// Gradients of one distribution over 8,000 steps: the second moment is a mean over the last 1,000 or so. A
// change of it by (1 − β₂)(g² − v) is below half of bf16's spacing as soon as v is a third of g², and lost
// for good where the nearest number is taken. At random it is not: a rounding is off by nothing on average,
// with a variance of at most (spacing/2)² ≤ (2⁻⁸ v)², and over the steps that v remembers they add up to (2⁻⁸
// v)² / (1 − β₂²), a standard deviation of 8.7 % for an element. The mean over 4096 elements is off by less
// than five times 8.7 % / √4096 = 0.7 %. (Of a constant gradient it is less by far: v goes between the two
// numbers around g², half a spacing to each side.)
struct StallRow {
  const char* name;
  bool constant;  // the same gradient in each step: nothing but the step tells one rounding from the next
  double least_spread;
};

TEST(Bf16State, SecondMomentsReachTheMeanOfSquaresThatRoundingToTheNearestStaysBelow) {
  constexpr std::size_t kCount = 4096;
  constexpr int kSteps = 8000;
  for (const StallRow& row : {StallRow{"constant", true, 1e-3}, StallRow{"uniform", false, 0.02}}) {
    SCOPED_TRACE(row.name);
    Both both(kCount, kF32);
    std::fill(both.m.begin(), both.m.end(), std::uint16_t{0});
    std::fill(both.v.begin(), both.v.end(), std::uint16_t{0});
    std::vector<double> exact(kCount, 0.0), exact_first(kCount, 0.0);
    Bits16 nearest(kCount, 0);
    std::vector<float> grad(kCount);
    std::mt19937 generator(5);
    std::uniform_real_distribution<float> uniform(0.5F, 1.5F);
    for (float& g : grad) g = 1e-3F * uniform(generator);
    UpdateItem item = both.in_16_bits();
    item.grad = view_of(grad, kF32);
    AdamOptions o{.lr = 0.0, .beta1 = 0.9, .beta2 = 0.999};
    for (o.step = 1; o.step <= kSteps; ++o.step) {
      if (!row.constant) {
        for (float& g : grad) g = 1e-3F * uniform(generator);
      }
      kernels::of(DeviceType::kCpu).updates.adam({&item, 1}, o);
      for (std::size_t i = 0; i < kCount; ++i) {
        const double g = static_cast<double>(grad[i]);
        exact[i] += (1 - o.beta2) * (g * g - exact[i]);
        exact_first[i] += (1 - o.beta1) * (g - exact_first[i]);
        const float v = f32_from_bf16_bits(nearest[i]);
        nearest[i] = bf16_bits_from_f32(0.999F * v + 0.001F * grad[i] * grad[i]);
      }
    }
    double mean = 0, mean_first = 0, mean_nearest = 0, square = 0;
    for (std::size_t i = 0; i < kCount; ++i) {
      const double ratio = static_cast<double>(f32_from_bf16_bits(both.v[i])) / exact[i];
      mean += ratio / kCount;
      square += (ratio - 1) * (ratio - 1) / kCount;
      mean_first += static_cast<double>(f32_from_bf16_bits(both.m[i])) / exact_first[i] / kCount;
      mean_nearest += static_cast<double>(f32_from_bf16_bits(nearest[i])) / exact[i] / kCount;
    }
    const std::string of_row = row.name;
    RecordProperty(of_row + "_mean", std::to_string(mean));
    RecordProperty(of_row + "_spread", std::to_string(std::sqrt(square)));
    RecordProperty(of_row + "_nearest", std::to_string(mean_nearest));
    EXPECT_NEAR(mean, 1.0, 5 * 0.087 / 64);
    EXPECT_LE(std::sqrt(square), 0.087);
    EXPECT_GT(std::sqrt(square), row.least_spread) << "elements are rounded, each by itself";
    // A tenth of a step's gradient is remembered: (2⁻⁸)² / (1 − β₁²), 0.9 %.
    EXPECT_NEAR(mean_first, 1.0, 5 * 0.009 / 64);
    EXPECT_LT(mean_nearest, 0.6) << "what this is for";
  }
}

}  // namespace
}  // namespace tessera::kernels::test
