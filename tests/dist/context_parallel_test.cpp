// Context parallel: attention over sequences that are cut over ranks gives the values and gradients of the
// whole, sends the bytes of its formulas, and needs 1/R of the memory.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "autograd/checkpoint.h"
#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "dist/mesh.h"
#include "dist/ring_attention.h"
#include "dist/sequence_cut.h"
#include "dist/ulysses.h"
#include "kernels/error.h"
#include "nn/nn.h"
#include "tensor/create.h"
#include "tests/expect_error.h"
#include "tests/largest_difference.h"

namespace tessera::dist {
namespace {

const int kRankCounts[] = {1, 2, 3, 4};

// A few dozen products in f64 of numbers about 1, summed in another order: beyond this is no rounding.
constexpr double kRounding = 1e-12;

Tensor leaf(const Tensor& x) { return x.detach().clone().set_requires_grad(); }

// --- Cuts

TEST(SequenceCut, GivesEveryTokenToOneRank) {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (std::int64_t length = 0; length < 40; ++length) {
      for (const SequenceCut& cut :
           {SequenceCut::balanced(length, ranks), SequenceCut::contiguous(length, ranks)}) {
        std::vector<int> owners(static_cast<std::size_t>(length), 0);
        const Tensor whole = arange(0, static_cast<double>(length), 1.0, {.dtype = kI64}).unsqueeze(0);
        for (int r = 0; r < ranks; ++r) {
          const std::vector<std::int64_t> positions = *cut.positions(r);
          EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
          EXPECT_EQ(static_cast<std::int64_t>(positions.size()), cut.size(r));
          EXPECT_EQ(cut.take(whole, 1, r).to_vector<std::int64_t>(), positions);
          for (const std::int64_t t : positions) ++owners[static_cast<std::size_t>(t)];
        }
        EXPECT_EQ(owners, std::vector<int>(owners.size(), 1)) << length << " over " << ranks;
      }
    }
  }
}

TEST(SequenceCut, IsBalancedUnderACausalMask) {
  const auto pairs = [](const SequenceCut& cut, int rank) {
    const auto positions = cut.positions(rank);
    std::int64_t total = 0;
    for (const std::int64_t t : *positions) total += t + 1;
    return total;
  };
  for (const int ranks : {2, 3, 8}) {
    const std::int64_t c = 5, each = (2 * ranks - 1) * c * c + c * (c + 1);
    const SequenceCut balanced = SequenceCut::balanced(2 * ranks * c, ranks);
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(pairs(balanced, r), each);
    const SequenceCut contiguous = SequenceCut::contiguous(2 * ranks * c, ranks);
    EXPECT_GT(pairs(contiguous, ranks - 1), (2 * ranks - 2) * pairs(contiguous, 0) * 9 / 10);
  }
  EXPECT_EQ(*SequenceCut::balanced(7, 2).positions(0), (std::vector<std::int64_t>{0, 1, 6}));
  EXPECT_EQ(*SequenceCut::balanced(7, 2).positions(1), (std::vector<std::int64_t>{2, 3, 4, 5}));
  EXPECT_EQ(*SequenceCut::balanced(3, 4).positions(3), std::vector<std::int64_t>{});
  EXPECT_THROW(static_cast<void>(SequenceCut::balanced(5, 0)), ConfigError);
  EXPECT_THROW(static_cast<void>(SequenceCut::balanced(5, 2).take(zeros({4}), 0, 0)), ShapeError);
}

// --- Equality with one rank

using Attend = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const AttentionConfig&, Communicator&,
                          const SequenceCut&);
using AttendOnMesh = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const AttentionConfig&,
                                const Mesh&, MeshAxis, const SequenceCut&);

struct Technique {
  const char* name;
  Attend attend;
  AttendOnMesh attend_on_mesh;
  SequenceCut (*cut)(std::int64_t length, int num_ranks);
};
const Technique kTechniques[] = {
    {"ring, balanced", ring_attention, ring_attention, SequenceCut::balanced},
    {"ring, contiguous", ring_attention, ring_attention, SequenceCut::contiguous},
    {"ulysses", ulysses_attention, ulysses_attention, SequenceCut::contiguous},
};

struct Case {
  const char* name;
  std::int64_t batch, tokens, heads, key_heads, width;
  AttentionConfig config = {};
};
const kernels::RandomKey kKey{.seed = 5, .stream = kernels::stream_id("mask"), .step = 7};
const Case kCases[] = {
    {"even", 2, 24, 4, 4, 3},
    {"odd length", 2, 13, 4, 4, 3},
    {"one sample", 1, 17, 2, 2, 4},
    {"fewer tokens than chunks", 2, 5, 4, 4, 3},
    {"fewer tokens than ranks", 2, 2, 4, 4, 3},
    {"several tiles", 1, 299, 4, 2, 2},
    {"grouped heads", 2, 13, 4, 2, 3},
    {"one key head", 2, 13, 4, 1, 3},
    {"three queries to a key head", 1, 14, 6, 2, 3},
    {"odd heads", 2, 13, 5, 5, 3},
    {"odd heads, grouped", 1, 13, 9, 3, 2},
    {"fewer heads than ranks", 2, 13, 2, 1, 3},
    {"no heads", 2, 13, 0, 0, 3},
    {"no mask", 2, 13, 4, 2, 3, {.causal = false}},
    {"no mask, few tokens", 1, 3, 2, 2, 3, {.causal = false}},
    {"scaled", 2, 13, 4, 2, 3, {.scale = 0.9}},
    {"large scores", 1, 13, 2, 2, 3, {.scale = 300.0}},
    {"dropout", 2, 13, 4, 2, 3, {.dropout = 0.4, .key = kKey, .first_sample = 3}},
    {"dropout, no mask", 2, 12, 4, 4, 3, {.causal = false, .dropout = 0.4, .key = kKey}},
    {"dropout of some of the heads",
     1,
     14,
     4,
     2,
     3,
     {.dropout = 0.4, .key = kKey, .first_sample = 1, .first_head = 2, .num_heads = 8}},
    {"everything dropped", 1, 9, 2, 2, 3, {.dropout = 1.0, .key = kKey}},
};

struct Result {
  Tensor o, dq, dk, dv;
};

// Gradients of Σ o·dy.
Result differentiate(const std::function<Tensor(const Tensor&, const Tensor&, const Tensor&)>& f,
                     const std::vector<Tensor>& qkv_dy) {
  Tensor q = leaf(qkv_dy[0]), k = leaf(qkv_dy[1]), v = leaf(qkv_dy[2]);
  const Tensor o = f(q, k, v);
  sum(o * qkv_dy[3]).backward();
  return {o.detach(), q.grad(), k.grad(), v.grad()};
}

std::vector<Tensor> elements_of(const Case& test, DType dtype) {
  const Shape queries{test.batch, test.tokens, test.heads, test.width},
      keys{test.batch, test.tokens, test.key_heads, test.width};
  std::vector<Tensor> result;
  for (const auto& [stream, shape] : {std::pair{"q", queries}, {"k", keys}, {"v", keys}, {"dy", queries}})
    result.push_back(normal(shape, 0, 1, stream, {.dtype = kF64}).to(dtype));
  return result;
}

void expect_equal_to_one_rank(const Technique& technique, const Case& test, Job& job, DType dtype,
                              double bound) {
  const std::vector<Tensor> whole = elements_of(test, dtype);
  const Result one = differentiate(
      [&](const Tensor& q, const Tensor& k, const Tensor& v) { return attention(q, k, v, test.config); },
      whole);
  const SequenceCut cut = technique.cut(test.tokens, job.size());
  const auto part = [&](const Tensor& x) { return cut.take(x, 1, job.rank()); };
  std::vector<Tensor> own;
  for (const Tensor& x : whole) own.push_back(part(x));
  const Result cut_up =
      differentiate([&](const Tensor& q, const Tensor& k,
                        const Tensor& v) { return technique.attend(q, k, v, test.config, job.world(), cut); },
                    own);
  const std::string where = fmt::format("{}: {}, rank {} of {}, {}", technique.name, test.name, job.rank(),
                                        job.size(), name(dtype));
  EXPECT_LE(largest_difference(cut_up.o, part(one.o)), bound) << "o, " << where;
  EXPECT_LE(largest_difference(cut_up.dq, part(one.dq)), bound) << "dq, " << where;
  EXPECT_LE(largest_difference(cut_up.dk, part(one.dk)), bound) << "dk, " << where;
  EXPECT_LE(largest_difference(cut_up.dv, part(one.dv)), bound) << "dv, " << where;
}

TEST(ContextParallel, AttentionHasTheValuesAndGradientsOfOneRank) {
  for (const int ranks : kRankCounts) {
    run_thread_ranks(ranks, [](Job& job) {
      for (const Technique& technique : kTechniques) {
        for (const Case& test : kCases) {
          // Scores of some hundreds are off by their own rounding, 300 · 10 · 2⁻⁵³.
          const double bound = test.config.scale.value_or(1.0) > 100.0 ? 1e-9 : kRounding;
          expect_equal_to_one_rank(technique, test, job, kF64, bound);
        }
      }
    });
  }
}

TEST(ContextParallel, AttentionIsWithinRoundingInShorterTypes) {
  run_thread_ranks(3, [](Job& job) {
    for (const Technique& technique : kTechniques) {
      const Case test{"grouped", 2, 13, 4, 2, 3, {.dropout = 0.2, .key = kKey}};
      // Sums of 13 terms of at most about 3 · 1.25. A 16-bit block is rounded, 2⁻⁹ of up to 8, before it is
      // merged or added to three others; so is what it is compared with.
      expect_equal_to_one_rank(technique, test, job, kF32, 1e-5);
      expect_equal_to_one_rank(technique, test, job, kBF16, 5 * 8.0 / 512);
    }
  });
}

TEST(ContextParallel, TakesViewsAndUsesOfOneTensorSeveralTimes) {
  // Queries, keys and values side by side in one tensor, as CausalSelfAttention has them, used twice.
  const auto twice = [](const Tensor& qkv,
                        const std::function<Tensor(const Tensor&, const Tensor&, const Tensor&)>& attend) {
    const Tensor o = attend(qkv.slice(2, 0, 2), qkv.slice(2, 2, 4), qkv.slice(2, 4, 6));
    return attend(o, o, o).transpose(1, 2).contiguous().transpose(1, 2);
  };
  for (const Technique& technique : kTechniques) {
    run_thread_ranks(3, [&](Job& job) {
      const SequenceCut cut = technique.cut(11, job.size());
      const Tensor whole = normal({2, 11, 6, 3}, 0, 1, "qkv", {.dtype = kF64});
      Tensor all = leaf(whole), own = leaf(cut.take(whole, 1, job.rank()));
      const Tensor one = twice(all, [](auto& q, auto& k, auto& v) { return attention(q, k, v); });
      sum(one * one).backward();
      const Tensor mine = checkpoint(
          [&](const Tensor& in) {
            return twice(in, [&](auto& q, auto& k, auto& v) {
              return technique.attend(q, k, v, {}, job.world(), cut);
            });
          },
          own);
      sum(mine * mine).backward();
      EXPECT_LE(largest_difference(mine.detach(), cut.take(one.detach(), 1, job.rank())), kRounding);
      EXPECT_LE(largest_difference(own.grad(), cut.take(all.grad(), 1, job.rank())), kRounding);
    });
  }
}

TEST(ContextParallel, ResultsAreLaidOutAsQueriesAre) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("cp=2"), job.shared_world());
    for (const Technique& technique : kTechniques) {
      const SequenceCut cut = technique.cut(8, 2);
      const Layout layout =
          Layout().with(MeshAxis::kDp, AxisLayout::sharded(0)).with(MeshAxis::kCp, cut.layout(1));
      Tensor x = normal({1, 4, 2, 3}, 0, 1, "x").set_layout(layout);
      EXPECT_EQ(technique.attend_on_mesh(x, x, x, {}, mesh, MeshAxis::kCp, cut).layout(), layout)
          << technique.name;
    }
  });
}

TEST(ContextParallel, RefusesWhatLayoutsSayDoesNotFit) {
  run_thread_ranks(2, [](Job& job) {
    const Mesh mesh(MeshShape::parse("cp=2"), job.shared_world());
    const MeshAxis cp = MeshAxis::kCp, tp = MeshAxis::kTp;
    for (const Technique& technique : kTechniques) {
      const SequenceCut cut = technique.cut(8, 2);
      const auto laid_out = [](const Layout& layout) {
        return Tensor(normal({1, 4, 2, 3}, 0, 1, "x")).set_layout(layout);
      };
      const Layout fits = Layout().with(cp, cut.layout(1));
      const SequenceCut other =
          cut.is_balanced() ? SequenceCut::contiguous(8, 2) : SequenceCut::balanced(8, 2);
      const struct {
        const char* why;
        Layout q, k, v;
      } cases[] = {
          {"must be cut along the sequence", {}, {}, {}},
          {"must be cut along the sequence", fits, fits, Layout()},
          {"must be cut along the sequence", fits, Layout().with(cp, AxisLayout::sharded(2)), fits},
          {"different indices", fits, Layout().with(cp, other.layout(1)), fits},
          {"the sequence is cut as", Layout().with(cp, other.layout(1)), Layout().with(cp, other.layout(1)),
           Layout().with(cp, other.layout(1))},
          {"partial sum", fits, fits, fits.with(tp, AxisLayout::partial())},
          {"on tp", fits.with(tp, AxisLayout::sharded(2)), fits, fits},
          {"cut along the sequence", fits.with(tp, AxisLayout::sharded(1)), fits, fits},
      };
      const std::int64_t sent = job.tape().total_sent_bytes();
      for (const auto& [why, q, k, v] : cases) {
        expect_error<LayoutError>(
            [&, q = q, k = k, v = v] {
              static_cast<void>(
                  technique.attend_on_mesh(laid_out(q), laid_out(k), laid_out(v), {}, mesh, cp, cut));
            },
            {why});
      }
      expect_error<LayoutError>(
          [&] {
            const Tensor x = laid_out(fits);
            static_cast<void>(technique.attend(x, x, x, {}, job.world(), cut));
          },
          {"the form with the mesh"});
      EXPECT_EQ(job.tape().total_sent_bytes(), sent);
    }
  });
}

// --- Models

// Loss (the sum over all tokens) and gradients of a model on this rank's part of the tokens of each sequence.
struct Trained {
  double loss = 0.0;
  std::vector<Tensor> gradients;
};

Trained train(const std::string& description, const Mesh& mesh, const Technique& technique, bool recompute) {
  Communicator& group = mesh.group(MeshAxis::kCp);
  RankContext::current().num_root_modules = 0;  // so that every model begins alike
  const auto model = nn::make_language_model(description, 23);
  model->to(kF64);
  model->set_recompute(recompute);
  std::vector<std::int64_t> values;
  for (int i = 0; i < 2 * 13; ++i) values.push_back(i * i % 23);
  const Tensor ids = from_vector(values, Shape{2, 13});
  const Tensor targets = from_vector(std::vector<std::int64_t>(values.rbegin(), values.rend()), Shape{2, 13});
  const SequenceCut cut = technique.cut(13, group.size());
  const AxisLayout by_tokens = cut.layout(1);
  const auto part = [&](const Tensor& x) {
    Tensor own = cut.take(x, 1, group.rank());
    return group.size() == 1 ? own : own.set_layout(Layout().with(MeshAxis::kCp, by_tokens));
  };
  RankContext& context = RankContext::current();
  if (group.size() > 1) {
    for (Tensor parameter : model->parameters())
      parameter.set_layout(Layout().with(MeshAxis::kCp, AxisLayout::replicated()));
    for (nn::Module* module : model->modules()) {
      const auto attend = [&mesh, cut, f = technique.attend_on_mesh](const Tensor& q, const Tensor& k,
                                                                     const Tensor& v,
                                                                     const AttentionConfig& config) {
        return f(q, k, v, config, mesh, MeshAxis::kCp, cut);
      };
      if (auto* core = dynamic_cast<nn::AttentionCore*>(module)) core->set_attention(attend);
    }
    context.token_positions = cut.positions(group.rank());
    context.sequence_length = 13;
  }
  const Tensor loss = model->loss(part(ids), part(targets), Reduction::kSum);
  EXPECT_EQ(loss.layout()[MeshAxis::kCp].is_partial(), group.size() > 1);
  loss.backward();
  context.token_positions = nullptr;
  context.sequence_length = 0;
  Trained result;
  std::vector<double> total{loss.item()};
  group.all_reduce(buffer_of(total));
  result.loss = total[0];
  for (const Tensor& parameter : model->parameters())
    result.gradients.push_back(all_reduce(parameter.grad().clone().set_layout({}), group));
  return result;
}

TEST(ContextParallel, ModelsHaveTheLossAndGradientsOfOneRankWithDropoutOn) {
  const char* const models[] = {
      "layers=2,heads=3,width=12,context=16,dropout=0.2",
      "family=llama,layers=2,heads=4,kv_heads=2,width=16,hidden=20,context=16,dropout=0.2"};
  for (const int ranks : {2, 3, 4}) {
    run_thread_ranks(ranks, [&](Job& job) {
      const Mesh mesh(MeshShape::parse(fmt::format("cp={}", ranks)), job.shared_world());
      const Mesh one_rank(MeshShape::parse("cp=1"), job.world().alone("alone"));
      for (const char* model : models) {
        for (const Technique& technique : kTechniques) {
          const Trained one = train(model, one_rank, technique, false);
          for (const bool recompute : {false, true}) {
            const Trained cut = train(model, mesh, technique, recompute);
            EXPECT_NEAR(cut.loss, one.loss, 1e-10) << technique.name;
            for (std::size_t i = 0; i < one.gradients.size(); ++i)
              EXPECT_LE(largest_difference(cut.gradients[i], one.gradients[i]), 1e-11) << technique.name;
          }
        }
      }
    });
  }
}

// --- Bytes

TEST(RingAttention, SendsTheBytesOfItsFormula) {
  for (const DType dtype : {kF32, kBF16}) {
    for (const int ranks : {1, 2, 3, 4}) {
      for (const std::int64_t tokens : {24, 13}) {
        run_thread_ranks(ranks, [&](Job& job) {
          const SequenceCut cut = SequenceCut::balanced(tokens, ranks);
          const std::int64_t per_token = 2 * 3 * 2 * 5;  // keys and values, B, G, K
          Tensor q = leaf(normal({3, cut.size(job.rank()), 4, 5}, 0, 1, "q").to(dtype));
          Tensor k = leaf(normal({3, cut.size(job.rank()), 2, 5}, 0, 1, "k").to(dtype));
          const Tensor o = ring_attention(q, k, k, {}, job.world(), cut);
          const std::int64_t forward = job.tape().total_sent_bytes("world");
          const std::int64_t element = static_cast<std::int64_t>(size_bytes(dtype));
          const std::int64_t others = tokens - cut.size((job.rank() + 1) % ranks);
          EXPECT_EQ(forward, others * per_token * element);
          if (tokens % ranks == 0) {
            EXPECT_EQ(forward, (ranks - 1) * (tokens / ranks) * per_token * element);
          }
          sum(o).backward();
          EXPECT_EQ(job.tape().total_sent_bytes("world") - forward,
                    others * per_token * element + (tokens - cut.size(job.rank())) * per_token * 4);
          EXPECT_EQ(job.tape().total_sent_bytes("world", Collective::kSend),
                    job.tape().total_sent_bytes("world"));
        });
      }
    }
  }
}

TEST(Ulysses, SendsTheBytesOfItsFormula) {
  struct Heads {
    std::int64_t queries, keys, copied_keys;
  };
  for (const int ranks : {1, 2, 4}) {
    for (const Heads heads : {Heads{8, 8, 8}, {8, 4, 4}, {8, 2, ranks == 4 ? 4 : 2}}) {
      run_thread_ranks(ranks, [&](Job& job) {
        const std::int64_t tokens = 16, batch = 3, width = 5;
        const SequenceCut cut = SequenceCut::contiguous(tokens, ranks);
        Tensor q = leaf(normal({batch, cut.size(job.rank()), heads.queries, width}, 0, 1, "q"));
        Tensor k = leaf(normal({batch, cut.size(job.rank()), heads.keys, width}, 0, 1, "k"));
        const Tensor o = ulysses_attention(q, k, k, {}, job.world(), cut);
        // To each peer s·h/P² of q and o, and of the heads of keys and values.
        const std::int64_t to_each = tokens / ranks * batch * width * 4;
        const std::int64_t expected =
            (ranks - 1) * 2 * to_each * (heads.queries / ranks + heads.copied_keys / ranks);
        EXPECT_EQ(job.tape().total_sent_bytes("world"), expected);
        sum(o).backward();
        EXPECT_EQ(job.tape().total_sent_bytes("world"), 2 * expected);
        if (ranks > 1) {
          ASSERT_EQ(job.tape().totals().size(), 1u);
          EXPECT_EQ(job.tape().totals()[0].calls, 8);
          EXPECT_EQ(job.tape().totals()[0].op, Collective::kAllToAll);
        }
      });
    }
  }
}

TEST(Ulysses, RepeatsHeadsOfKeysAsFewTimesAsWillDo) {
  struct Expected {
    std::int64_t queries, keys;
    int ranks;
    std::int64_t copies;
  };
  for (const Expected& e : {Expected{8, 8, 4, 1},
                            {8, 4, 2, 1},
                            {8, 2, 4, 2},
                            {6, 2, 4, 3},
                            {8, 1, 4, 4},
                            {9, 3, 3, 1},
                            {9, 3, 2, 3},
                            {4, 2, 3, 2},
                            {0, 0, 2, 1},
                            {32, 8, 16, 2}}) {
    EXPECT_EQ(key_head_copies(e.queries, e.keys, e.ranks), e.copies)
        << e.queries << " and " << e.keys << " heads on " << e.ranks << " ranks";
  }
}

// --- Memory

// Most that a rank's tensors and packets take in one pass forward and backward over `tokens` tokens, of which
// it makes its own alone. The kernels' scratch memory (tiles, and the gradients of one head's keys) is aside.
std::int64_t peak_bytes(const Technique& technique, std::int64_t tokens, int ranks) {
  std::atomic<std::int64_t> most = 0;
  run_thread_ranks(ranks, [&](Job& job) {
    const SequenceCut cut = technique.cut(tokens, ranks);
    const Shape own{1, cut.size(job.rank()), 8, 16};
    MemoryPool& pool = *RankContext::current().pool(cpu);
    pool.reset_peak();
    Tensor q = leaf(normal(own, 0, 1, "q")), k = leaf(normal(own, 0, 1, "k")),
           v = leaf(normal(own, 0, 1, "v"));
    sum(technique.attend(q, k, v, {}, job.world(), cut)).backward();
    const MemoryReport report = pool.report();
    const std::int64_t peak = report.of(MemoryCategory::kActivation).peak +
                              report.of(MemoryCategory::kGradient).peak +
                              report.of(MemoryCategory::kCommunication).peak;
    std::int64_t before = most;
    while (before < peak && !most.compare_exchange_weak(before, peak)) {
    }
  });
  return most;
}

TEST(ContextParallel, HoldsSequencesThatOneRankCouldNot) {
  const std::int64_t alone = peak_bytes(kTechniques[0], 1024, 1);
  for (const Technique& technique : kTechniques) {
    const std::int64_t two = peak_bytes(technique, 1024, 2), four = peak_bytes(technique, 1024, 4),
                       eight = peak_bytes(technique, 1024, 8);
    fmt::print("{}: {} / {} / {} / {} KiB on 1, 2, 4, 8 ranks\n", technique.name, alone >> 10, two >> 10,
               four >> 10, eight >> 10);
    // A rank has nothing but parts of its own tokens, or heads: half of them, half of the memory.
    EXPECT_LT(two, alone) << technique.name;
    EXPECT_NEAR(static_cast<double>(four) / static_cast<double>(eight), 2.0, 0.02) << technique.name;
    // With the memory that one rank needs for 1024 tokens, eight ranks attend to three times as many.
    EXPECT_LT(peak_bytes(technique, 3 * 1024, 8), alone) << technique.name;
  }
}

// --- Misuse

TEST(ContextParallel, RefusesWhatDoesNotFitBeforeAnythingIsSent) {
  run_thread_ranks(2, [](Job& job) {
    Communicator& world = job.world();
    const Tensor x = zeros({1, 4, 2, 3});
    const auto cut = SequenceCut::balanced(8, 2), pieces = SequenceCut::contiguous(8, 2);
    for (const Technique& technique : kTechniques) {
      const auto attend = [&](const Tensor& q, const Tensor& k, const SequenceCut& with) {
        static_cast<void>(technique.attend(q, k, k, {}, world, with));
      };
      EXPECT_THROW(attend(x, x, technique.cut(8, 3)), ShapeError);
      EXPECT_THROW(attend(x, x, technique.cut(10, 2)), ShapeError);
      EXPECT_THROW(attend(x, zeros({1, 5, 2, 3}), technique.cut(8, 2)), ShapeError);
      EXPECT_THROW(attend(zeros({1, 4, 3, 3}), x, technique.cut(8, 2)), ShapeError);
      EXPECT_THROW(attend(zeros({1, 4, 2, 3}, {.dtype = kF64}), x, technique.cut(8, 2)), DTypeError);
      const Tensor nowhere = zeros({1, 4, 2, 3}, {.device = meta});
      EXPECT_THROW(attend(nowhere, nowhere, technique.cut(8, 2)), DeviceError);
    }
    EXPECT_THROW(static_cast<void>(ulysses_attention(x, x, x, {}, world, cut)), ConfigError);
    EXPECT_EQ(job.tape().total_sent_bytes(), 0);
    EXPECT_NO_THROW(static_cast<void>(ulysses_attention(x, x, x, {}, world, pieces)));
  });
}

}  // namespace
}  // namespace tessera::dist
