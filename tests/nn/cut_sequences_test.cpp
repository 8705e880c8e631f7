// Layers that have a part of the tokens, or of the heads, of sequences that are cut over ranks: what they
// compute is the matching part of what they compute from the whole.

#include <gtest/gtest.h>

#include "autograd/checkpoint.h"
#include "kernels/error.h"
#include "nn/nn.h"
#include "tests/nn/check.h"
#include "tests/nn/errors.h"

namespace tessera::nn {
namespace {

using Positions = std::vector<std::int64_t>;
using Layer = std::function<Tensor(const Tensor&)>;

// Says for its lifetime which tokens, of how many, and which piece on tp this rank has.
class PartOfTokens {
 public:
  PartOfTokens(const Positions& positions, std::int64_t length, MeshPlace tp = {}) {
    RankContext& context = RankContext::current();
    if (!positions.empty()) context.token_positions = std::make_shared<const Positions>(positions);
    context.sequence_length = length;
    context.mesh[static_cast<std::size_t>(MeshAxis::kTp)] = tp;
  }
  ~PartOfTokens() {
    RankContext& context = RankContext::current();
    context.token_positions = nullptr;
    context.sequence_length = 0;
    context.mesh = {};
  }
  PartOfTokens(const PartOfTokens&) = delete;
  PartOfTokens& operator=(const PartOfTokens&) = delete;
};

Tensor on(MeshAxis axis, const AxisLayout& cut, const Tensor& x) {
  return x.detach().set_layout(Layout().with(axis, cut));
}

// Tokens `positions` of x [B, T, ...].
Tensor pick(const Tensor& x, const Positions& positions) {
  std::vector<Tensor> tokens;
  for (const std::int64_t t : positions) tokens.push_back(x.slice(1, t, t + 1));
  return concat(tokens, 1);
}

struct Cut {
  const char* name;
  Positions positions;
};
const Cut kCuts[] = {
    {"a piece", {3, 4, 5, 6}},
    {"one token", {8}},
    {"two chunks of a balanced cut", {2, 3, 8, 9, 10}},
    {"every third", {1, 4, 7, 10}},
    {"backwards", {10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}},
    {"no order at all", {5, 0, 9, 10, 2, 6, 1}},
};
constexpr std::int64_t kTokens = 11;

TEST(Dropout, ATokenKeepsItsMaskOnWhicheverRankItIs) {
  Dropout layer(0.5);
  for (const Shape& shape : {Shape{3, kTokens, 7}, Shape{3, kTokens, 2, 5}}) {
    const Tensor ones_of_all = ones(shape);
    const Tensor whole = layer(ones_of_all);
    for (const Cut& cut : kCuts) {
      const PartOfTokens part(cut.positions, kTokens);
      Tensor x = pick(ones_of_all, cut.positions).slice(0, 1, 3).clone();
      x.set_requires_grad();
      RankContext::current().sample_offset = 1;
      const Tensor y = layer(x);
      RankContext::current().sample_offset = 0;
      EXPECT_EQ("", difference(y, pick(whole, cut.positions).slice(0, 1, 3), 0.0)) << cut.name;
      sum(y).backward();  // of ones the gradient is the mask too
      EXPECT_EQ("", difference(x.grad(), y.detach(), 0.0)) << cut.name;
    }
  }
}

TEST(Dropout, ATokenKeepsItsMaskUnderSequenceParallel) {
  Dropout layer(0.5);
  const Tensor whole = layer(ones({2, kTokens, 3}));
  for (const Cut& cut : {Cut{"whole sequences", {}}, kCuts[2], kCuts[5]}) {
    const Tensor tokens = cut.positions.empty() ? whole : pick(whole, cut.positions);
    for (const int ranks : {2, 3, 8}) {  // 8: some have nothing
      const std::vector<Tensor> pieces = tokens.chunk(ranks, 1);
      for (int r = 0; r < ranks; ++r) {
        const PartOfTokens part(cut.positions, kTokens, {r, ranks});
        const Tensor& expected = pieces[static_cast<std::size_t>(r)];
        const Tensor x = ones(expected.shape());
        EXPECT_EQ("", difference(layer(on(MeshAxis::kTp, AxisLayout::sharded(1), x)), expected, 0.0))
            << cut.name << ", rank " << r << " of " << ranks;
        RankContext::current().check_layouts = false;  // then the number of tokens tells
        EXPECT_EQ("", difference(layer(x), expected, 0.0)) << cut.name << ", rank " << r << " of " << ranks;
        RankContext::current().check_layouts = true;
      }
    }
  }
}

TEST(Dropout, RefusesCutsWhoseMasksItDoesNotKnow) {
  Dropout layer(0.5);
  const Tensor x = ones({2, 4, 6});
  const auto refuse = [&](MeshAxis axis, const AxisLayout& cut, const Tensor& part, const char* why) {
    expect_error<LayoutError>([&] { static_cast<void>(layer(on(axis, cut, part))); }, why);
  };
  refuse(MeshAxis::kTp, AxisLayout::sharded(2), x, "along its channels");
  refuse(MeshAxis::kTp, AxisLayout::sharded(1), ones({2, 6}), "along its channels");
  refuse(MeshAxis::kCp, AxisLayout::sharded(1), x, "token_positions does not say");
  refuse(MeshAxis::kTp, AxisLayout::sharded(1), x, "sequence_length does not say");
  refuse(MeshAxis::kTp, AxisLayout::sharded(1, AxisLayout::Order::kBalanced), x, "in another order");
  {
    const PartOfTokens part({0, 1, 2}, 6);
    expect_error<ShapeError>([&] { static_cast<void>(layer(x)); }, "has 4 tokens");
  }
  const PartOfTokens part({0, 1, 2, 6}, 6);
  expect_error<ShapeError>([&] { static_cast<void>(layer(x)); }, "position 6 is outside");
  // Samples are known by their offset.
  EXPECT_EQ(layer(on(MeshAxis::kDp, AxisLayout::sharded(0), ones({2, 6}))).dim(0), 2);
}

TEST(Dropout, RecomputesWithThePositionsOfItsFirstPass) {
  Dropout layer(0.5);
  Tensor x = ones({1, 3, 8});
  x.set_requires_grad();
  Tensor y;
  {
    const PartOfTokens part({9, 4, 0}, 10);
    y = checkpoint(Layer([&](const Tensor& in) { return layer(in); }), x);
  }
  const PartOfTokens other({1, 2, 3}, 10);  // the next micro-batch has begun
  sum(y).backward();
  EXPECT_EQ("", difference(x.grad(), y.detach(), 0.0));
  EXPECT_EQ(*RankContext::current().token_positions, (Positions{1, 2, 3}));
}

// --- Positions

TEST(Gpt2, EmbedsTokensAtTheirPositions) {
  Gpt2Config config;
  config.layers = config.heads = 1;
  config.width = 4;
  config.vocab = 13;
  config.context = kTokens;
  config.dropout = 0.3;
  Gpt2 model(config);
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < 2 * kTokens; ++i) values.push_back(i * 5 % 13);
  const Tensor ids = from_vector(values, Shape{2, kTokens});
  const Tensor whole = model.embed(ids, 0);
  for (const Cut& cut : kCuts) {
    const PartOfTokens part(cut.positions, kTokens);
    Tensor own = pick(ids, cut.positions).set_layout(Layout().with(MeshAxis::kCp, AxisLayout::sharded(1)));
    for (Tensor parameter : model.parameters()) {
      parameter.set_layout(Layout().with(MeshAxis::kCp, AxisLayout::replicated()));
    }
    const Tensor y = model.embed(own, 0);
    EXPECT_EQ("", difference(y, pick(whole, cut.positions), 0.0)) << cut.name;
    EXPECT_EQ(y.layout(), own.layout());
  }
  const PartOfTokens part({0, 1}, kTokens + 1);
  expect_error<ShapeError>([&] { static_cast<void>(model.logits(ids.slice(1, 0, 2))); },
                           "a sequence of 12 tokens is longer");
}

TEST(RotaryEmbedding, TurnsTokensByTheirPositions) {
  RotaryEmbedding rotary(6, 100.0);
  const Tensor x = pattern({2, kTokens, 3, 6}, 2);
  const Tensor whole = rotary(x, 0);
  RotaryEmbedding fresh(6, 100.0);
  for (int again = 0; again < 2; ++again) {
    for (const Cut& cut : kCuts) {
      const PartOfTokens part(cut.positions, kTokens);
      EXPECT_EQ("", difference(fresh(pick(x, cut.positions)), pick(whole, cut.positions), 0.0)) << cut.name;
      EXPECT_EQ("", difference(fresh(pick(x, cut.positions)), pick(whole, cut.positions), 0.0)) << cut.name;
    }
  }
}

// --- Attention

TEST(Attention, AProbabilityKeepsItsMaskOnWhicheverRankItIs) {
  // With keys alike all probabilities are 1/S, and with values e_s the result is the mask itself.
  constexpr std::int64_t kSamples = 3, kHeads = 4;
  const kernels::RandomKey key{.seed = 1, .stream = 2, .step = 3};
  const auto mask = [&](const AttentionConfig& where, std::int64_t samples, std::int64_t heads,
                        std::int64_t queries, std::int64_t keys) {
    AttentionConfig config = where;
    config.causal = false;
    config.dropout = 0.5;
    config.key = key;
    const Tensor q = zeros({samples, queries, heads, kTokens}), k = zeros({samples, keys, heads, kTokens});
    Tensor v = zeros(k.shape());
    for (std::int64_t s = 0; s < keys; ++s) {
      v.slice(1, s, s + 1)
          .slice(3, where.first_key + s, where.first_key + s + 1)
          .fill(static_cast<double>(keys));
    }
    return attention(q, k, v, config);  // [B, T, H, S of all]
  };
  const Tensor whole = mask({}, kSamples, kHeads, kTokens, kTokens);
  const auto part_of_whole = [&](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t s) {
    return whole.slice(0, b, kSamples).slice(2, h, kHeads).slice(1, t, kTokens).slice(3, s, kTokens);
  };
  EXPECT_NE("", difference(whole.slice(2, 0, 1), whole.slice(2, 1, 2), 0.0));
  EXPECT_EQ("", difference(mask({.first_sample = 1}, 2, kHeads, kTokens, kTokens), part_of_whole(1, 0, 0, 0),
                           1e-6));
  EXPECT_EQ(
      "", difference(mask({.first_sample = 2, .first_head = 1, .num_heads = kHeads}, 1, 3, kTokens, kTokens),
                     part_of_whole(2, 1, 0, 0), 1e-6));
  EXPECT_EQ("", difference(mask({.first_sample = 1,
                                 .first_head = 3,
                                 .num_heads = kHeads,
                                 .first_query = 4,
                                 .first_key = 6,
                                 .sequence_length = kTokens},
                                2, 1, kTokens - 4, kTokens - 6)
                               .slice(3, 6, kTokens),
                           part_of_whole(1, 3, 4, 6), 1e-6));
}

// Rows [first, first + count) of each third of c_attn, and columns of c_proj: some heads.
void keep_heads(CausalSelfAttention& layer, std::int64_t head_width, std::int64_t first, std::int64_t count) {
  const NoGrad no_grad;
  const auto rows = [&](const Tensor& x) {
    const std::int64_t third = x.dim(0) / 3;
    std::vector<Tensor> parts;
    for (std::int64_t i = 0; i < 3; ++i) {
      parts.push_back(x.slice(0, i * third + first * head_width, i * third + (first + count) * head_width));
    }
    return concat(parts, 0);
  };
  Tensor weight = layer.find_parameter("c_attn.weight"), bias = layer.find_parameter("c_attn.bias"),
         out = layer.find_parameter("c_proj.weight");
  weight.rebind(rows(weight));
  bias.rebind(rows(bias));
  out.rebind(out.slice(1, first * head_width, (first + count) * head_width).clone());
}

TEST(CausalSelfAttention, OfSomeHeadsAddsUpToThatOfAll) {
  // With a product hook each part gives its products alone; the bias of c_proj is added once, by hand.
  constexpr std::int64_t kWidth = 12, kHeads = 4;
  const Tensor x = pattern({2, 5, kWidth}, 3) * 8.0;
  RankContext context;
  const RankContext::Scope scope(context);
  const auto layer_of = [&](std::int64_t first, std::int64_t count) {
    context.num_root_modules = 0;  // all are the same layer
    auto layer = std::make_unique<CausalSelfAttention>(
        CausalSelfAttentionConfig{.width = kWidth, .heads = kHeads, .dropout = 0.4});
    set_pattern(*layer);
    if (count < kHeads) {
      keep_heads(*layer, kWidth / kHeads, first, count);
      layer->set_heads(first, kHeads);
    }
    return layer;
  };
  const auto attended = [&](CausalSelfAttention& layer) {
    Tensor product;
    auto& c_proj = dynamic_cast<Linear&>(layer.find_module("c_proj"));
    c_proj.set_product_hook([&](const Tensor& y) {
      product = y;
      return y;
    });
    static_cast<void>(layer(x));
    c_proj.set_product_hook({});
    return product;
  };
  const Tensor all = attended(*layer_of(0, kHeads));
  Tensor total = zeros(all.shape(), {.dtype = kF64});
  for (const auto& [first, count] : {std::pair{0, 1}, {1, 3}, {4, 0}}) {
    const auto part = layer_of(first, count);
    total = total + attended(*part);
    if (count == 0) {  // a rank without heads still takes part in backward passes
      sum((*part)(x)).backward();
      EXPECT_EQ(part->find_parameter("c_attn.weight").grad().shape(), (Shape{0, kWidth}));
    }
  }
  EXPECT_EQ("", difference(total, all, 1e-13));  // sums of about 10 terms of order 1
}

TEST(Attention, LayersAskWhatWasPutInItsPlace) {
  CausalSelfAttention gpt({.width = 8, .heads = 4, .dropout = 0.25});
  MultiHeadAttention llama({.width = 8, .heads = 4, .kv_heads = 2, .dropout = 0.25});
  const Tensor x = pattern({2, 5, 8}).to(kF32);
  const auto check = [&](auto& layer, std::int64_t kv_heads) {
    const Tensor before = layer(x);
    int calls = 0;
    layer.set_heads(2, 6);
    layer.set_attention(
        [&](const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config) {
          ++calls;
          EXPECT_EQ(q.shape(), (Shape{2, 5, 4, 2}));
          EXPECT_EQ(k.shape(), (Shape{2, 5, kv_heads, 2}));
          EXPECT_EQ(v.shape(), k.shape());
          EXPECT_EQ(config.first_head, 2);
          EXPECT_EQ(config.num_heads, 6);
          EXPECT_EQ(config.dropout, 0.25);
          EXPECT_TRUE(config.causal);
          AttentionConfig of_itself = config;
          of_itself.first_head = of_itself.num_heads = 0;
          return attention(q, k, v, of_itself);
        });
    EXPECT_EQ("", difference(layer(x), before, 1e-6));  // products of other heights
    EXPECT_EQ(calls, 1);
    layer.set_attention({});
    layer.set_heads(0, 0);
    EXPECT_EQ("", difference(layer(x), before, 0.0));
    EXPECT_EQ(calls, 1);
  };
  check(gpt, 4);
  check(llama, 2);
}

// --- Linear and Embedding

TEST(Linear, ShowsItsProductBeforeTheBiasIsAdded) {
  Linear layer(3, 2);
  set_pattern(layer);
  const Tensor x = pattern({4, 3}, 7);
  const Tensor plain = layer(x);
  layer.set_product_hook([](const Tensor& product) { return 3.0 * product; });  // as a sum over three ranks
  EXPECT_EQ("", difference(layer(x), 3.0 * (plain - layer.bias()) + layer.bias(), 1e-14));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, x));
  layer.set_product_hook({});
  EXPECT_EQ("", difference(layer(x), plain, 0.0));
  Linear without(3, 2, LinearOptions{.bias = false});
  set_pattern(without);
  const Tensor product = without(x);
  without.set_product_hook([](const Tensor& y) { return -y; });
  EXPECT_EQ("", difference(without(x), -product, 0.0));
}

TEST(Embedding, OfMinusOneIsZerosWithoutAGradient) {
  Embedding layer(3, 2);
  set_pattern(layer);
  const Tensor ids = from_vector<std::int64_t>({2, -1, 0, -1}, Shape{2, 2});
  const Tensor y = layer(ids);
  EXPECT_EQ("", difference(y.select(0, 0).select(0, 1), zeros({2}, {.dtype = kF64}), 0.0));
  EXPECT_EQ("", difference(y.select(0, 0).select(0, 0), layer.weight().detach().select(0, 2), 0.0));
  EXPECT_EQ("", gradient_errors(
                    layer, [&](const Tensor& in) { return layer(in); }, ids));
}

}  // namespace
}  // namespace tessera::nn
