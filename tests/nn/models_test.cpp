// The models that Tessera ships: how large they are and how they begin.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nn/nn.h"
#include "tests/nn/check.h"

namespace tessera::nn {
namespace {

// GPT-2's sizes are those of its released weights. With L layers, width D, V tokens and P positions a GPT-2
// has V·D + P·D + L·(12·D² + 13·D) + 2·D parameters, the output layer being the token embedding.
TEST(Models, HaveExactlyTheParametersOfTheOriginals) {
  const struct {
    const char* name;
    std::int64_t vocab;
    std::int64_t parameters;
  } cases[] = {{"gpt2", 50257, 124439808},       {"gpt2-medium", 50257, 354823168},
               {"gpt2-large", 50257, 774030080}, {"gpt2-xl", 50257, 1557611200},
               {"llama-15m", 32000, 15191712},   {"llama-1b", 128256, 1235814400},
               {"llama-7b", 32000, 6738415616},  {"llama-8b", 128256, 8030261248}};
  for (const auto& c : cases) {
    const MemoryReport before = RankContext::current().pool(cpu)->report();
    const DeviceScope scope(meta);
    const auto model = make_language_model(c.name, c.vocab);
    EXPECT_EQ(model->num_parameters(), c.parameters) << c.name;
    std::int64_t elements = 0;
    for (const Tensor& parameter : model->parameters()) {
      EXPECT_EQ(parameter.device(), meta) << c.name;
      elements += parameter.num_elements();
    }
    EXPECT_EQ(elements, c.parameters) << c.name << ": tied weights must count once";
    EXPECT_EQ(RankContext::current().pool(cpu)->report().total.current, before.total.current)
        << c.name << ": a model on meta must take no memory";
  }
}

TEST(Models, OfEverySizeGiveLogitsOfTheirShapeOnMeta) {
  const DeviceScope scope(meta);
  for (const char* name :
       {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-15m", "llama-1b", "llama-8b"}) {
    const auto model = make_language_model(name, 50257);
    const Tensor ids = zeros({2, 256}, {.dtype = kI64});
    EXPECT_EQ(model->logits(ids).shape(), (Shape{2, 256, 50257})) << name;
    model->loss(ids, ids).backward();
    for (const auto& [path, parameter] : model->named_parameters()) {
      ASSERT_TRUE(parameter.grad().defined()) << name << ' ' << path;
      EXPECT_EQ(parameter.grad().shape(), parameter.shape()) << name << ' ' << path;
    }
  }
}

struct Moments {
  double mean = 0.0, stddev = 0.0, largest = 0.0, beyond_two = 0.0;
  double count = 0.0;
};

Moments moments_of(const Tensor& x) {
  const std::vector<double> values = x.to_vector<double>();
  Moments m;
  m.count = static_cast<double>(values.size());
  for (const double v : values) {
    m.mean += v / m.count;
    m.largest = std::max(m.largest, std::fabs(v));
  }
  for (const double v : values) m.stddev += (v - m.mean) * (v - m.mean) / m.count;
  m.stddev = std::sqrt(m.stddev);
  for (const double v : values) m.beyond_two += (std::fabs(v - m.mean) > 2 * m.stddev ? 1.0 : 0.0) / m.count;
  return m;
}

// n draws of a normal with deviation σ: their mean has deviation σ/√n, their deviation σ/√(2n), and the share
// beyond 2σ, 4.55 %, has √(0.0455·0.9545/n). Five deviations of each are allowed: one chance in 1.7 million
// each.
void expect_normal(const std::string& name, const Tensor& x, double stddev) {
  const Moments m = moments_of(x);
  EXPECT_NEAR(m.mean, 0.0, 5 * stddev / std::sqrt(m.count)) << name;
  EXPECT_NEAR(m.stddev, stddev, 5 * stddev / std::sqrt(2 * m.count)) << name;
  EXPECT_NEAR(m.beyond_two, 0.0455, 5 * std::sqrt(0.0455 * 0.9545 / m.count)) << name;
}

void expect_constant(const std::string& name, const Tensor& x, double value) {
  for (const double v : x.to_vector<double>()) ASSERT_EQ(v, value) << name;
}

TEST(Models, Gpt2BeginsAsGpt2) {
  const Gpt2 model({.vocab = 300, .context = 64, .layers = 8, .heads = 4, .width = 64});
  for (const auto& [name, parameter] : model.named_parameters()) {
    const bool norm = name.find("ln_") != std::string::npos;
    if (name.ends_with(".bias")) {
      expect_constant(name, parameter, 0.0);
    } else if (norm) {
      expect_constant(name, parameter, 1.0);
    } else {
      // What writes to the residual stream: 2 · 8 of them add up to the variance of one.
      expect_normal(name, parameter,
                    name.find("c_proj") != std::string::npos ? 0.02 / std::sqrt(16.0) : 0.02);
    }
  }
}

TEST(Models, LlamaBeginsAsItsHeaderSays) {
  LlamaConfig config = LlamaConfig::llama_15m();
  config.vocab = 300;
  config.layers = 2;
  config.tied = false;
  const Llama model(config);
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (name.find("norm") != std::string::npos) {
      expect_constant(name, parameter, 1.0);
    } else {
      const bool writes =
          name.find("o_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
      expect_normal(name, parameter, writes ? 0.02 / std::sqrt(4.0) : 0.02);
    }
  }
}

// Before training a model knows nothing: every token is as likely as any other.
TEST(Models, BeginWithTheLossOfGuessing) {
  for (const char* sizes :
       {"layers=4,heads=4,width=64,context=32", "family=llama,layers=4,heads=4,width=64,context=32"}) {
    const auto model = make_language_model(sizes, 500);
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < 8 * 32; ++i) ids.push_back((i * i * 7 + i) % 500);
    const Tensor x = from_vector(ids, Shape{8, 32});
    const Tensor y = from_vector(std::vector<std::int64_t>(ids.rbegin(), ids.rend()), Shape{8, 32});
    // Logits are sums of 64 products of a normalised value (deviation 1) and a weight (0.02): deviation
    // s = 0.16. The loss exceeds log V by about s²/2 = 0.013, and 256 targets' own logits average to within
    // 4·0.16/16 = 0.04 of 0.
    EXPECT_NEAR(model->loss(x, y).item(), std::log(500.0) + 0.013, 0.05) << sizes;
  }
}

TEST(Models, Gpt2AddsTheResidualAndNormalisesInOnePass) {
  Gpt2 model({.vocab = 11, .context = 6, .layers = 2, .heads = 2, .width = 8});
  int fused = 0;
  for (const char* path : {"h.0.ln_2", "h.1.ln_2"}) {
    model.find_module(path).add_forward_hook([&fused](Module&, std::span<Tensor> outputs) {
      if (outputs.size() == 2) ++fused;  // the sum and its norm; a norm alone has one output
    });
  }
  (void)model.logits(from_vector<std::int64_t>({1, 2, 3}, Shape{1, 3}));
  EXPECT_EQ(fused, 2);
}

TEST(Models, TieTheOutputLayerToTheEmbedding) {
  Gpt2 gpt2({.vocab = 11, .context = 6, .layers = 1, .heads = 2, .width = 8});
  EXPECT_TRUE(gpt2.find_parameter("lm_head.weight").is_same(gpt2.find_parameter("wte.weight")));
  const Tensor ids = from_vector<std::int64_t>({1, 2, 3}, Shape{1, 3});
  gpt2.loss(ids, ids).backward();
  // Token 9 is neither input nor target: what gradient it has came through the output layer.
  const Tensor gradient = gpt2.find_parameter("wte.weight").grad();
  EXPECT_NE(gradient.at({9, 0}), 0.0);
}

}  // namespace
}  // namespace tessera::nn
