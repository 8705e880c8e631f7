// Differentiable collectives: what they move, that their gradients are their adjoints, and that a model cut
// with them gives the values and gradients of the whole one.

#include "dist/collectives.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "autograd/ops.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/largest_difference.h"

namespace tessera::dist {
namespace {

Tensor whole(const std::string& stream, const Shape& shape) {
  return normal(shape, 0, 1, stream, {.dtype = kF64});
}

// Rank r's piece of x along `dim`.
Tensor piece(const Tensor& x, int dim, const Communicator& group) {
  const std::int64_t begin = shard_begin(x.dim(dim), group.size(), group.rank());
  return x.slice(dim, begin, begin + shard_size(x.dim(dim), group.size(), group.rank()));
}

// A few sums of products in f64 of numbers about 1: differences beyond this are no rounding.
constexpr double kRounding = 1e-12;

const int kRankCounts[] = {1, 2, 3, 4, 8};

TEST(ShardSize, CutsLikeChunkLongerPiecesFirst) {
  for (const int ranks : kRankCounts) {
    for (std::int64_t size = 0; size < 20; ++size) {
      std::int64_t begin = 0;
      for (int r = 0; r < ranks; ++r) {
        EXPECT_EQ(shard_begin(size, ranks, r), begin);
        begin += shard_size(size, ranks, r);
        EXPECT_LE(shard_size(size, ranks, r), shard_size(size, ranks, std::max(r - 1, 0)));
      }
      EXPECT_EQ(begin, size);
    }
  }
}

// Each way to move the elements of a [5, 7, 4], among them sizes that no number of ranks here divides.
struct Move {
  const char* name;
  std::function<Tensor(const Tensor& all, Communicator&)>
      input;  // what a rank puts in, made from one whole tensor
  std::function<Tensor(const Tensor& x, Communicator&)> run;
  std::function<Tensor(const Tensor& all, Communicator&)> expected;  // what it must get
};

std::vector<Move> moves() {
  std::vector<Move> table;
  for (const int d : {0, 1, 2, -1}) {
    table.push_back({"all_gather", [d](const Tensor& all, Communicator& g) { return piece(all, d, g); },
                     [d](const Tensor& x, Communicator& g) {
                       const std::int64_t sizes[] = {5, 7, 4};
                       return all_gather(x, d, g, sizes[d < 0 ? d + 3 : d]);
                     },
                     [](const Tensor& all, Communicator&) { return all; }});
    table.push_back({"reduce_scatter",
                     [](const Tensor& all, Communicator& g) { return all * (g.rank() + 1.0); },
                     [d](const Tensor& x, Communicator& g) { return reduce_scatter(x, d, g); },
                     [d](const Tensor& all, Communicator& g) {
                       return piece(all, d, g) * (g.size() * (g.size() + 1) / 2.0);
                     }});
  }
  table.push_back(
      {"all_reduce", [](const Tensor& all, Communicator& g) { return all * (g.rank() + 1.0); },
       [](const Tensor& x, Communicator& g) { return all_reduce(x, g); },
       [](const Tensor& all, Communicator& g) { return all * (g.size() * (g.size() + 1) / 2.0); }});
  table.push_back({"copy_to_ranks", [](const Tensor& all, Communicator&) { return all; },
                   [](const Tensor& x, Communicator& g) { return copy_to_ranks(x, g); },
                   [](const Tensor& all, Communicator&) { return all; }});
  for (const auto& [split, concat] : {std::pair{0, 1}, {1, 0}, {2, 1}, {1, 2}, {-1, 0}}) {
    table.push_back({"all_to_all",
                     [c = concat](const Tensor& all, Communicator& g) { return piece(all, c, g); },
                     [s = split, c = concat](const Tensor& x, Communicator& g) {
                       const std::int64_t sizes[] = {5, 7, 4};
                       return all_to_all(x, s, c, g, sizes[c]);
                     },
                     [s = split](const Tensor& all, Communicator& g) { return piece(all, s, g); }});
  }
  return table;
}

TEST(Collectives, MoveEveryElementToItsPlace) {
  for (const int ranks : kRankCounts) {
    run_thread_ranks(ranks, [](Job& job) {
      const Tensor all = whole("elements", {5, 7, 4});
      for (const Move& move : moves()) {
        const Tensor y = move.run(move.input(all, job.world()), job.world());
        EXPECT_LT(largest_difference(y, move.expected(all, job.world())), kRounding)
            << move.name << " on rank " << job.rank() << " of " << job.size();
      }
    });
  }
}

// Counts what lies on every rank alike once, what differs from rank to rank on each.
double total(Tensor product, bool is_invariant, Communicator& group) {
  std::vector<double> value{sum(product).item()};
  if (!is_invariant) group.all_reduce(buffer_of(value));
  return value[0];
}

// For a linear A with gradient Aᵀ: ⟨A x, g⟩ = ⟨x, Aᵀ g⟩, summed over all ranks.
TEST(Collectives, HaveTheirAdjointsAsGradients) {
  for (const int ranks : kRankCounts) {
    run_thread_ranks(ranks, [](Job& job) {
      const std::string own = std::to_string(job.rank());
      for (const Move& move : moves()) {
        const std::string name = move.name;
        const bool from_i = name == "copy_to_ranks", to_i = name == "all_reduce";
        // Any elements do, different on every rank but where a type says that they are the same.
        const Shape shape = move.input(whole("elements", {5, 7, 4}), job.world()).shape();
        Tensor x = whole("x" + (from_i ? "" : own), shape);
        x.set_requires_grad();
        const Tensor y = move.run(x, job.world());
        const Tensor g = whole("g" + (to_i ? "" : own), y.shape());
        sum(y * g).backward();
        const double forward = total(y.detach() * g, to_i, job.world());
        const double backward = total(x.detach() * x.grad(), from_i, job.world());
        EXPECT_NEAR(forward, backward, kRounding * 100)
            << name << " on rank " << job.rank() << " of " << job.size();
      }
    });
  }
}

TEST(Collectives, SendTheBytesOfTheirCommunicatorsCalls) {
  run_thread_ranks(4, [](Job& job) {
    Communicator& world = job.world();
    const Tensor x = zeros({8, 6});  // 192 bytes
    const auto sent_by = [&](const std::function<void()>& call) {
      const std::int64_t before = job.tape().total_sent_bytes();
      call();
      return job.tape().total_sent_bytes() - before;
    };
    EXPECT_EQ(sent_by([&] { static_cast<void>(all_reduce(x, world)); }), 2 * 192 * 3 / 4);
    EXPECT_EQ(sent_by([&] { static_cast<void>(reduce_scatter(x, 0, world)); }), 192 * 3 / 4);
    EXPECT_EQ(sent_by([&] { static_cast<void>(all_gather(x, 0, world)); }), 192 * 3);
    EXPECT_EQ(sent_by([&] { static_cast<void>(all_to_all(x, 0, 1, world)); }), 192 * 3 / 4);
    EXPECT_EQ(sent_by([&] { static_cast<void>(copy_to_ranks(x, world)); }), 0);
    // 6 = 2 + 2 + 1 + 1: padded to pieces of 2.
    EXPECT_EQ(sent_by([&] { static_cast<void>(reduce_scatter(x, 1, world)); }), 3 * 8 * 2 * 4);
  });
}

// y = w2 · gelu(w1 · x + b1) + b2, of odd sizes, and its gradients: whole, and cut over the ranks.
struct MlpResult {
  Tensor y, dx, dw1, db1, dw2, db2;
};

MlpResult run_mlp(Communicator* tp, bool sequence_parallel) {
  const std::int64_t batch = 6, width = 5, hidden = 11;
  Tensor x = whole("x", {batch, width}), w1 = whole("w1", {hidden, width}), b1 = whole("b1", {hidden}),
         w2 = whole("w2", {width, hidden}), b2 = whole("b2", {width});
  if (tp != nullptr) {
    w1 = piece(w1, 0, *tp).contiguous(), b1 = piece(b1, 0, *tp).contiguous(),
    w2 = piece(w2, 1, *tp).contiguous();
    if (sequence_parallel) x = piece(x, 0, *tp).contiguous();
  }
  for (Tensor* t : {&x, &w1, &b1, &w2, &b2}) t->set_requires_grad();
  Tensor y, dy = whole("dy", {batch, width});
  if (tp == nullptr) {
    y = linear(gelu(linear(x, w1, b1)), w2, b2);
  } else if (sequence_parallel) {
    const Tensor h = gelu(linear(all_gather(x, 0, *tp, batch), w1, b1));
    y = reduce_scatter(linear(h, w2, {}), 0, *tp) + b2;
    dy = piece(dy, 0, *tp);
  } else {
    const Tensor h = gelu(linear(copy_to_ranks(x, *tp), w1, b1));
    y = all_reduce(linear(h, w2, {}), *tp) + b2;
  }
  sum(y * dy).backward();
  MlpResult result{y.detach(), x.grad(), w1.grad(), b1.grad(), w2.grad(), b2.grad()};
  if (sequence_parallel) {  // b2 is replicated here, not invariant: its gradient is a partial sum
    result.db2 = all_reduce(result.db2, *tp);
  }
  return result;
}

TEST(Collectives, CutAnMlpOverRanksWithTheWholeOnesValuesAndGradients) {
  const MlpResult one = run_mlp(nullptr, false);
  for (const int ranks : kRankCounts) {
    for (const bool sequence_parallel : {false, true}) {
      run_thread_ranks(ranks, [&](Job& job) {
        Communicator& tp = job.world();
        const MlpResult cut = run_mlp(&tp, sequence_parallel);
        const std::string where =
            fmt::format("rank {} of {}, {}", job.rank(), ranks, sequence_parallel ? "sp" : "tp");
        const auto x_of = [&](const Tensor& t) { return sequence_parallel ? piece(t, 0, tp) : t; };
        EXPECT_LT(largest_difference(cut.y, x_of(one.y)), kRounding) << where;
        EXPECT_LT(largest_difference(cut.dx, x_of(one.dx)), kRounding) << where;
        EXPECT_LT(largest_difference(cut.dw1, piece(one.dw1, 0, tp)), kRounding) << where;
        EXPECT_LT(largest_difference(cut.db1, piece(one.db1, 0, tp)), kRounding) << where;
        EXPECT_LT(largest_difference(cut.dw2, piece(one.dw2, 1, tp)), kRounding) << where;
        EXPECT_LT(largest_difference(cut.db2, one.db2), kRounding) << where;
      });
    }
  }
}

// Ulysses: each rank has some of the tokens, and attends to all of them with some of the heads. 10 tokens, 5
// heads.
TEST(Collectives, CutAttentionOverTheSequenceByExchangingItForHeads) {
  const Shape shape{2, 10, 5, 4};
  const auto leaf = [](Tensor t) { return t.contiguous().set_requires_grad(); };
  Tensor q = leaf(whole("q", shape)), k = leaf(whole("k", shape)), v = leaf(whole("v", shape));
  const Tensor dy = whole("dy", shape);
  const Tensor y = attention(q, k, v, {.causal = true});
  sum(y * dy).backward();

  for (const int ranks : kRankCounts) {
    run_thread_ranks(ranks, [&](Job& job) {
      Communicator& cp = job.world();
      const std::vector<Tensor> all{whole("q", shape), whole("k", shape), whole("v", shape)};
      std::vector<Tensor> own, by_head;
      for (const Tensor& t : all) own.push_back(leaf(piece(t, 1, cp)));
      for (const Tensor& t : own) by_head.push_back(all_to_all(t, 2, 1, cp, 10));
      const Tensor mine =
          all_to_all(attention(by_head[0], by_head[1], by_head[2], {.causal = true}), 1, 2, cp, 5);
      sum(mine * piece(dy, 1, cp)).backward();
      EXPECT_LT(largest_difference(mine.detach(), piece(y.detach(), 1, cp)), kRounding) << job.rank();
      EXPECT_LT(largest_difference(own[0].grad(), piece(q.grad(), 1, cp)), kRounding) << job.rank();
      EXPECT_LT(largest_difference(own[1].grad(), piece(k.grad(), 1, cp)), kRounding) << job.rank();
      EXPECT_LT(largest_difference(own[2].grad(), piece(v.grad(), 1, cp)), kRounding) << job.rank();
    });
  }
}

TEST(Collectives, RefuseWhatDoesNotFitBeforeAnythingIsSent) {
  run_thread_ranks(2, [](Job& job) {
    Communicator& world = job.world();
    const Tensor x = zeros({4, 6});
    EXPECT_THROW(static_cast<void>(all_gather(x, 0, world, 11)), ShapeError);
    EXPECT_THROW(static_cast<void>(all_gather(x, 2, world)), IndexError);
    EXPECT_THROW(static_cast<void>(reduce_scatter(x, -3, world)), IndexError);
    EXPECT_THROW(static_cast<void>(all_to_all(x, 1, -1, world)), ShapeError);
    EXPECT_THROW(static_cast<void>(all_reduce(zeros({2}, {.device = meta}), world)), DeviceError);
    EXPECT_EQ(job.tape().total_sent_bytes(), 0);
  });
}

}  // namespace
}  // namespace tessera::dist
