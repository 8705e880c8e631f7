#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "kernels/random_key.h"
#include "tests/kernels/host_array.h"

namespace tessera::kernels::test {
namespace {

const DType kFloats[] = {kF64, kF32, kF16, kBF16};
const RandomKey kKey{.seed = 3, .stream = stream_id("attention"), .step = 2};

struct AttentionCase {
  const char* name;
  std::int64_t batch, queries, keys, heads, groups, width;
  bool causal = true;
  double dropout_p = 0.0;
  std::int64_t first_index = 0;
  std::int64_t key_step = 1;  ///< between the global indices of two keys; other strides are that of row-major
};
const AttentionCase kCases[] = {
    {"one of everything", 1, 1, 1, 1, 1, 1},
    {"small", 2, 5, 5, 2, 2, 8},
    {"a tile", 1, 64, 64, 1, 1, 16},
    {"a tile and one", 1, 65, 65, 2, 2, 20},
    {"several tiles, odd sizes", 1, 131, 131, 1, 1, 7},
    {"several blocks", 1, 300, 300, 1, 1, 4},
    {"without mask", 2, 70, 70, 2, 2, 12, false},
    {"without mask, more keys", 1, 10, 150, 1, 1, 8, false},
    {"queries are the last of the keys", 1, 20, 90, 2, 2, 8},
    {"one query over a cache", 2, 1, 77, 2, 2, 16},
    {"queries that see no key", 1, 80, 9, 1, 1, 8},
    {"no keys", 1, 3, 0, 1, 1, 4},
    {"no queries", 1, 0, 3, 1, 1, 4},
    {"grouped heads", 1, 70, 70, 6, 2, 8},
    {"one key head", 2, 12, 12, 4, 1, 8},
    {"dropout", 2, 70, 70, 2, 1, 8, true, 0.25},
    {"dropout, global index", 1, 9, 130, 2, 2, 8, false, 0.5, 123456789},
    {"dropout, every third key of the whole", 2, 9, 70, 2, 2, 8, false, 0.5, 5, 3},
};

/// Tensors of one case, in memory orders that are not all row-major. Outputs begin as noise: all of it must
/// be written.
struct Problem {
  const AttentionCase& test;
  DType dtype;
  HostArray q, k, v, o, lse, d_o, dq, dk, dv;
  AttentionOptions options;

  Problem(const AttentionCase& with, DType type) : test(with), dtype(type) {
    const Sizes query_shape = {test.batch, test.queries, test.heads, test.width};
    const Sizes key_shape = {test.batch, test.keys, test.groups, test.width};
    // Heads before time in memory for q and dk, time before heads for the others.
    const std::vector<int> heads_first = {0, 2, 1, 3}, time_first = {0, 1, 2, 3};
    q = HostArray(dtype, query_shape, heads_first, 1).fill_random(1);
    k = HostArray(dtype, key_shape, time_first, 1).fill_random(2);
    v = HostArray(dtype, key_shape, heads_first, 1).fill_random(3);
    o = HostArray(dtype, query_shape, time_first, 1).fill_random(4);
    d_o = HostArray(dtype, query_shape, time_first, 1).fill_random(5);
    lse = HostArray(accumulation_dtype(dtype), {test.batch, test.heads, test.queries}).fill_random(6);
    dq = HostArray(dtype, query_shape, heads_first, 1).fill_random(7);
    dk = HostArray(dtype, key_shape, heads_first, 1).fill_random(8);
    dv = HostArray(dtype, key_shape, time_first, 1).fill_random(9);
    options.scale = 1.0 / std::sqrt(static_cast<double>(test.width));
    options.causal = test.causal;
    options.dropout_p = test.dropout_p;
    options.key = kKey;
    const std::int64_t keys = test.keys * test.key_step, queries = test.queries;
    options.index = {test.first_index, {test.heads * queries * keys, queries * keys, keys, test.key_step}};
  }
  void forward(const Attention& kernels) {
    kernels.attention(q.view(), k.view(), v.view(), options, o.view(), lse.view());
  }
  void backward(const Attention& kernels) {
    kernels.attention_backward(d_o.view(), q.view(), k.view(), v.view(), o.view(), lse.view(), options,
                               dq.view(), dk.view(), dv.view());
  }
};

/// The definition, in f64, score by score.
struct Reference {
  const Problem& p;
  std::vector<double> o, lse, dq, dk, dv;

  explicit Reference(const Problem& problem) : p(problem) {
    const AttentionCase& c = p.test;
    o.assign(static_cast<std::size_t>(c.batch * c.queries * c.heads * c.width), 0.0);
    dq = o;
    dk.assign(static_cast<std::size_t>(c.batch * c.keys * c.groups * c.width), 0.0);
    dv = dk;
    for (std::int64_t b = 0; b < c.batch; ++b) {
      for (std::int64_t h = 0; h < c.heads; ++h) {
        for (std::int64_t t = 0; t < c.queries; ++t) row(b, h, t);
      }
    }
  }
  [[nodiscard]] std::size_t at(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d,
                               bool key) const {
    const AttentionCase& c = p.test;
    return static_cast<std::size_t>(
        ((b * (key ? c.keys : c.queries) + t) * (key ? c.groups : c.heads) + h) * c.width + d);
  }
  void row(std::int64_t b, std::int64_t h, std::int64_t t) {
    const AttentionCase& c = p.test;
    const std::int64_t g = h / (c.heads / c.groups);
    const std::int64_t seen =
        c.causal ? std::clamp<std::int64_t>(t + c.keys - c.queries + 1, 0, c.keys) : c.keys;
    std::vector<double> weight(static_cast<std::size_t>(seen)), kept(weight), gradient(weight);
    double total = 0, delta = 0;
    for (std::int64_t s = 0; s < seen; ++s) {
      double score = 0, dp = 0;
      for (std::int64_t d = 0; d < c.width; ++d) {
        score += p.q({b, t, h, d}) * p.k({b, s, g, d});
        dp += p.d_o({b, t, h, d}) * p.v({b, s, g, d});
      }
      const auto i = static_cast<std::size_t>(s);
      weight[i] = std::exp(score * p.options.scale);
      total += weight[i];
      const std::int64_t index =
          c.first_index + (((b * c.heads + h) * c.queries + t) * c.keys + s) * c.key_step;
      const bool keep =
          dropout_keeps(random_word(kKey, static_cast<std::uint64_t>(index)), dropout_threshold(c.dropout_p));
      kept[i] = keep ? 1.0 / (1.0 - c.dropout_p) : 0.0;
      gradient[i] = dp * kept[i];
    }
    lse.push_back(seen == 0 ? -std::numeric_limits<double>::infinity() : std::log(total));
    for (std::size_t i = 0; i < weight.size(); ++i) {
      weight[i] /= total;
      delta += weight[i] * gradient[i];
    }
    for (std::int64_t s = 0; s < seen; ++s) {
      const auto i = static_cast<std::size_t>(s);
      const double ds = weight[i] * (gradient[i] - delta) * p.options.scale;
      for (std::int64_t d = 0; d < c.width; ++d) {
        o[at(b, t, h, d, false)] += weight[i] * kept[i] * p.v({b, s, g, d});
        dq[at(b, t, h, d, false)] += ds * p.k({b, s, g, d});
        dk[at(b, s, g, d, true)] += ds * p.q({b, t, h, d});
        dv[at(b, s, g, d, true)] += weight[i] * kept[i] * p.d_o({b, t, h, d});
      }
    }
  }
};

/// Each element within `bound` and a rounding of its own.
void expect_close(const HostArray& actual, const std::vector<double>& expected, double bound,
                  const char* what) {
  std::size_t n = 0;
  int wrong = 0;
  double worst = 0;
  actual.for_each([&](const Sizes& i) {
    const double wanted = expected[n++], got = actual(i);
    if (got == wanted) return;  // also −∞
    const double error = std::abs(got - wanted);
    worst = std::max(worst, error);
    if (!(error <= bound + 1.01 * unit_roundoff(actual.dtype()) * std::abs(wanted))) ++wrong;
  });
  EXPECT_EQ(wrong, 0) << what << ": of " << n << ", largest error " << worst << ", bound " << bound;
  EXPECT_TRUE(actual.guards_intact()) << what;
}

template <class F>
void for_each_case(const F& f) {
  for (const InstructionSet set : supported_sets()) {
    for (const DType dtype : kFloats) {
      for (const AttentionCase& test : kCases) {
        SCOPED_TRACE(std::string(test.name) + ", " + name(set) + ", " + name(dtype));
        Problem problem(test, dtype);
        f(cpu_kernels(set).attention, problem);
      }
    }
  }
}

TEST(Attention, ForwardAndBackwardEqualTheirDefinition) {
  for_each_case([](const Attention& kernels, Problem& p) {
    p.forward(kernels);
    p.backward(kernels);
    const Reference expected(p);
    // Sums of K and of S (or T) terms of size ~ 10, each with a rounding of the compute type. The backward
    // pass takes δ from the rounded o: an error of a rounding of the dtype times Σ|dO|, spread over dK by up
    // to T queries.
    const double terms = static_cast<double>(p.test.width + std::max(p.test.keys, p.test.queries) + 16);
    const double compute = 10.0 * terms * unit_roundoff(accumulation_dtype(p.dtype));
    const double stored = p.dtype == kF64 || p.dtype == kF32
                              ? 0.0
                              : 4.0 * unit_roundoff(p.dtype) * std::sqrt(static_cast<double>(p.test.width));
    expect_close(p.o, expected.o, compute, "o");
    expect_close(p.lse, expected.lse, compute, "lse");
    expect_close(p.dq, expected.dq, compute + stored, "dq");
    expect_close(p.dk, expected.dk, compute + 4 * stored, "dk");
    expect_close(p.dv, expected.dv, compute, "dv");
  });
}

TEST(Attention, BackwardMatchesFiniteDifferences) {
  const AttentionCase test{"", 1, 6, 8, 4, 2, 3, true, 0.3};
  for (const InstructionSet set : supported_sets()) {
    const Attention& kernels = cpu_kernels(set).attention;
    Problem p(test, kF64);
    p.forward(kernels);
    p.backward(kernels);
    const auto loss = [&] {
      p.forward(kernels);
      double sum = 0;
      p.o.for_each([&](const Sizes& i) { sum += p.o(i) * p.d_o(i); });
      return sum;
    };
    const auto check = [&](HostArray* input, const HostArray& gradient, const char* what) {
      gradient.for_each([&](const Sizes& i) {
        // Truncation h² and rounding 1e-16 · 10 / h, both ~ 1e-10, for h = 1e-5.
        const double h = 1e-5, value = (*input)(i);
        input->set(i, value + h);
        const double above = loss();
        input->set(i, value - h);
        const double below = loss();
        input->set(i, value);
        EXPECT_NEAR(gradient(i), (above - below) / (2 * h), 1e-8) << what << ", " << name(set);
      });
    };
    check(&p.q, p.dq, "dq");
    check(&p.k, p.dk, "dk");
    check(&p.v, p.dv, "dv");
  }
}

TEST(Attention, QueriesThatSeeNoKeyGiveZeroAndHaveNoGradient) {
  for (const InstructionSet set : supported_sets()) {
    const AttentionCase test{"", 1, 80, 9, 1, 1, 8};
    Problem p(test, kF32);
    p.forward(cpu_kernels(set).attention);
    p.backward(cpu_kernels(set).attention);
    for (std::int64_t t = 0; t < 71; ++t) {
      EXPECT_EQ(p.lse({0, 0, t}), -std::numeric_limits<double>::infinity());
      for (std::int64_t d = 0; d < 8; ++d) {
        EXPECT_EQ(p.o({0, t, 0, d}), 0.0);
        EXPECT_EQ(p.dq({0, t, 0, d}), 0.0);
      }
    }
  }
}

TEST(Attention, DoesNotDependOnTheNumberOfThreads) {
  for_each_case([](const Attention& kernels, Problem& p) {
    p.forward(kernels);
    p.backward(kernels);
    for (const int threads : {2, 3}) {
      const WithThreads with(threads);
      Problem again(p.test, p.dtype);
      again.forward(kernels);
      again.backward(kernels);
      EXPECT_TRUE(again.o.bitwise_equal(p.o));
      EXPECT_TRUE(again.lse.bitwise_equal(p.lse));
      EXPECT_TRUE(again.dq.bitwise_equal(p.dq));
      EXPECT_TRUE(again.dk.bitwise_equal(p.dk));
      EXPECT_TRUE(again.dv.bitwise_equal(p.dv));
    }
  });
}

TEST(Attention, OfASampleIsThatSampleOfTheBatchWithDropoutToo) {
  // Data-parallel ranks hold samples of a batch; the first index tells which.
  for (const InstructionSet set : supported_sets()) {
    const AttentionCase both{"", 2, 70, 70, 2, 2, 8, true, 0.25},
        one{"", 1, 70, 70, 2, 2, 8, true, 0.25, 2 * 70 * 70};
    Problem batch(both, kF32), second(one, kF32);
    const auto take = [](HostArray* to, const HostArray& from) {
      to->for_each([&](const Sizes& i) { to->set(i, from({1, i[1], i[2], i[3]})); });
    };
    take(&second.q, batch.q);
    take(&second.k, batch.k);
    take(&second.v, batch.v);
    take(&second.d_o, batch.d_o);
    for (Problem* p : {&batch, &second}) {
      p->forward(cpu_kernels(set).attention);
      p->backward(cpu_kernels(set).attention);
    }
    const auto same = [](const HostArray& part, const HostArray& whole) {
      part.for_each([&](const Sizes& i) { EXPECT_EQ(part(i), whole({1, i[1], i[2], i[3]})); });
    };
    same(second.o, batch.o);
    same(second.dq, batch.dq);
    same(second.dk, batch.dk);
    same(second.dv, batch.dv);
  }
}

}  // namespace
}  // namespace tessera::kernels::test
