// B batch, n tokens of this rank, H query heads, G key/value heads, K head width, R ranks.

#include "dist/ring_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/kernel_layouts.h"
#include "autograd/math.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

using tessera::detail::attention_options;
using tessera::detail::with_unit_stride;

// Tags, because in the backward pass neighbours do not send and receive in one order. A rank sends gradients
// at the end of step s, then the next keys at the beginning of step s + 1; its receiver posts its buffers at
// the beginning of its own step s + 1, those for keys first. From 4 ranks on both happen in one step, and
// without tags gradients would land in the buffer for keys.
constexpr int kKeysAndValues = 1, kTheirGradients = 2;

// A call on one rank: what both passes need besides tensors.
struct Ring {
  AttentionConfig config;
  SequenceCut cut;
  Communicator* group;

  [[nodiscard]] int rank() const { return group->rank(); }
  [[nodiscard]] int size() const { return group->size(); }
  [[nodiscard]] int next() const { return (rank() + 1) % size(); }
  [[nodiscard]] int previous() const { return (rank() + size() - 1) % size(); }
  /// Whose keys and values are here in step `step`.
  [[nodiscard]] int source(int step) const { return (rank() + size() - step) % size(); }
};

// A chunk of this rank's queries meets a chunk of `source`'s keys.
struct Block {
  std::int64_t query_at, queries, key_at, keys;  // in the tensors of the two ranks
  AttentionConfig config;

  [[nodiscard]] Tensor of_queries(const Tensor& x) const { return x.slice(1, query_at, query_at + queries); }
  [[nodiscard]] Tensor of_keys(const Tensor& x) const { return x.slice(1, key_at, key_at + keys); }
  /// Of [B, H, n].
  [[nodiscard]] Tensor of_rows(const Tensor& x) const { return x.slice(2, query_at, query_at + queries); }
};

// Chunks are the same or lie one behind the other: under a causal mask a block is cut by the diagonal, whole,
// or not there at all.
std::vector<Block> blocks(const Ring& ring, int source) {
  std::vector<Block> result;
  std::int64_t query_at = 0;
  for (const SequenceCut::Chunk& of_queries : ring.cut.chunks(ring.rank())) {
    std::int64_t key_at = 0;
    for (const SequenceCut::Chunk& of_keys : ring.cut.chunks(source)) {
      AttentionConfig config = ring.config;
      config.causal = ring.config.causal && of_queries == of_keys;
      config.first_query = of_queries.begin;
      config.first_key = of_keys.begin;
      config.sequence_length = ring.cut.length();
      if (!ring.config.causal || of_keys.begin <= of_queries.begin)
        result.push_back({query_at, of_queries.size, key_at, of_keys.size, config});
      key_at += of_keys.size;
    }
    query_at += of_queries.size;
  }
  return result;
}

// --- What travels ------------------------------------------------------------------------------------------

// Memory for keys and values, or their gradients, of whichever rank has most tokens; taken when needed.
class Packet {
 public:
  Packet(const Ring& ring, const Tensor& k, DType dtype)
      : shape_(k.shape()), options_{.dtype = dtype, .device = k.device()} {
    for (int r = 0; r < ring.size(); ++r) most_tokens_ = std::max(most_tokens_, ring.cut.size(r));
  }
  /// As [2, B, tokens, G, K], in one piece.
  [[nodiscard]] Tensor of(std::int64_t tokens) {
    const std::int64_t token = 2 * shape_[0] * shape_[2] * shape_[3];
    const CategoryScope category(MemoryCategory::kCommunication);
    if (!memory_.defined()) memory_ = empty({most_tokens_ * token}, options_);
    return memory_.slice(0, 0, tokens * token).reshape({2, shape_[0], tokens, shape_[2], shape_[3]});
  }

 private:
  Shape shape_;
  TensorOptions options_;
  std::int64_t most_tokens_ = 0;
  Tensor memory_;
};

Work send(const Ring& ring, const Tensor& x, int tag) {
  return ring.group->send_async(const_buffer_of(x), ring.next(), tag);
}

Work receive(const Ring& ring, Tensor x, int tag) {
  return ring.group->recv_async(buffer_of(x), ring.previous(), tag);
}

// Keys and values on their way round. In step s those of rank `source(s)` are here.
class Carousel {
 public:
  Carousel(const Ring& ring, const Tensor& k, const Tensor& v)
      : ring_(ring), here_(ring, k, k.dtype()), coming_(ring, k, k.dtype()) {
    Tensor own = packet();
    own.select(0, 0).copy_from(k);
    own.select(0, 1).copy_from(v);
    start();
  }
  [[nodiscard]] bool done() const { return step_ == ring_.size(); }
  [[nodiscard]] int step() const { return step_; }
  [[nodiscard]] int source() const { return ring_.source(step_); }
  [[nodiscard]] Tensor keys() { return packet().select(0, 0); }
  [[nodiscard]] Tensor values() { return packet().select(0, 1); }

  /// Lets what is under way go on, between two blocks of computation.
  void progress() {
    static_cast<void>(arriving_.test());
    static_cast<void>(leaving_.test());
  }
  void turn() {
    arriving_.wait();
    leaving_.wait();
    std::swap(here_, coming_);
    if (++step_ < ring_.size()) start();
  }

 private:
  [[nodiscard]] Tensor packet() { return here_.of(ring_.cut.size(source())); }
  void start() {
    if (step_ + 1 == ring_.size()) return;
    arriving_ = receive(ring_, coming_.of(ring_.cut.size(ring_.source(step_ + 1))), kKeysAndValues);
    leaving_ = send(ring_, packet(), kKeysAndValues);
  }

  const Ring& ring_;
  Packet here_, coming_;
  int step_ = 0;
  Work arriving_, leaving_;
};

// --- Forward -----------------------------------------------------------------------------------------------

const kernels::Attention& kernels_of(const Tensor& x) { return kernels::of(x.device().type).attention; }

struct Attended {
  Tensor o, lse;  // [B, n, H, K], [B, H, n], in the accumulation dtype
};

Attended attend(const Block& block, const Tensor& q, const Tensor& k, const Tensor& v) {
  const Tensor queries = block.of_queries(q), keys = block.of_keys(k), values = block.of_keys(v);
  const DType accumulation = accumulation_dtype(q.dtype());
  Tensor o = empty(queries.shape(), {.dtype = q.dtype(), .device = q.device()});
  Tensor lse = empty({q.dim(0), q.dim(2), block.queries}, {.dtype = accumulation, .device = q.device()});
  kernels_of(q).attention(queries.view(), keys.view(), values.view(),
                          attention_options(block.config, queries, keys), o.mutable_view(),
                          lse.mutable_view());
  return {o.to(accumulation), lse};
}

// o ← what queries see in their keys so far and in `more`. With d = lse_more − lse:
//   o ← o + σ(d)·(o_more − o),   lse ← lse + log(1 + e^d)
// σ(d) = e^lse_more / (e^lse + e^lse_more) is the share of the new keys in all; nothing overflows.
void merge(Tensor o, Tensor lse, const Attended& more) {
  const Tensor d = more.lse - lse;
  const Tensor share = sigmoid(d).transpose(1, 2).unsqueeze(3);  // [B, n, H, 1]
  o.add_scaled((more.o - o) * share);
  lse.add_scaled(softplus(d));
}

Attended forward(const Ring& ring, const Tensor& q, const Tensor& k, const Tensor& v) {
  const TensorOptions options{.dtype = accumulation_dtype(q.dtype()), .device = q.device()};
  Attended all{empty(q.shape(), options), empty({q.dim(0), q.dim(2), q.dim(1)}, options)};
  std::int64_t begun = 0;  // queries before this one have met keys
  for (Carousel carousel(ring, k, v); !carousel.done(); carousel.turn()) {
    for (const Block& block : blocks(ring, carousel.source())) {
      const Attended some = attend(block, q, carousel.keys(), carousel.values());
      if (block.query_at >= begun) {  // every chunk meets its own rank's keys first, in order
        block.of_queries(all.o).copy_from(some.o);
        block.of_rows(all.lse).copy_from(some.lse);
        begun = block.query_at + block.queries;
      } else {
        merge(block.of_queries(all.o), block.of_rows(all.lse), some);
      }
      carousel.progress();
    }
  }
  return {all.o.to(q.dtype()), all.lse};
}

// --- Backward ----------------------------------------------------------------------------------------------

struct Operands {
  Tensor dy, q, o, lse;
};

struct Gradients {
  Tensor dq, dk, dv;
};

// What one block adds to dq of this rank, and to dk, dv of the keys' rank. lse is that of all keys, so that
// P = e^(scores − lse) are the probabilities of the whole row.
void add_gradients(const Block& block, const Operands& at, const Tensor& k, const Tensor& v,
                   const Gradients& sums) {
  const auto contiguous_like = [](const Tensor& x) {
    return empty(x.shape(), {.dtype = x.dtype(), .device = x.device()});
  };
  const Tensor queries = block.of_queries(at.q), keys = block.of_keys(k), values = block.of_keys(v);
  Tensor dq = contiguous_like(queries), dk = contiguous_like(keys), dv = contiguous_like(values);
  kernels_of(at.q).attention_backward(block.of_queries(at.dy).view(), queries.view(), keys.view(),
                                      values.view(), block.of_queries(at.o).view(),
                                      block.of_rows(at.lse).contiguous().view(),
                                      attention_options(block.config, queries, keys), dq.mutable_view(),
                                      dk.mutable_view(), dv.mutable_view());
  block.of_queries(sums.dq).add_scaled(dq);
  block.of_keys(sums.dk).add_scaled(dk);
  block.of_keys(sums.dv).add_scaled(dv);
}

// Step 0 is at home. From step 1 on, gradients of source(step)'s keys come from the previous rank, which had
// these keys in its own last step; this rank's share is added, and they go on. After R − 1 steps they are
// back.
Gradients backward(const Ring& ring, const Operands& at, const Tensor& k, const Tensor& v) {
  const TensorOptions options{.dtype = accumulation_dtype(k.dtype()), .device = k.device()};
  Gradients own{zeros(at.q.shape(), options), zeros(k.shape(), options), zeros(k.shape(), options)};
  Packet incoming(ring, k, options.dtype), share(ring, k, options.dtype), on_its_way(ring, k, options.dtype);
  Work arriving, leaving;
  for (Carousel carousel(ring, k, v); !carousel.done(); carousel.turn()) {
    const int step = carousel.step();
    const std::int64_t tokens = ring.cut.size(carousel.source());
    if (step > 1) arriving = receive(ring, incoming.of(tokens), kTheirGradients);
    Tensor theirs = share.of(tokens);
    theirs.zero();
    const Gradients sums = step == 0 ? own : Gradients{own.dq, theirs.select(0, 0), theirs.select(0, 1)};
    for (const Block& block : blocks(ring, carousel.source())) {
      add_gradients(block, at, carousel.keys(), carousel.values(), sums);
      carousel.progress();
    }
    if (step == 0) continue;
    if (step > 1) {
      arriving.wait();
      theirs.add_scaled(incoming.of(tokens));
    }
    leaving.wait();
    leaving = send(ring, theirs, kTheirGradients);
    std::swap(share, on_its_way);
  }
  const Tensor home = incoming.of(k.dim(1));
  receive(ring, home, kTheirGradients).wait();
  own.dk.add_scaled(home.select(0, 0));
  own.dv.add_scaled(home.select(0, 1));
  leaving.wait();
  return {own.dq.to(k.dtype()), own.dk.to(k.dtype()), own.dv.to(k.dtype())};
}

// --- The whole ---------------------------------------------------------------------------------------------

// A rank's own elements, of which it may take slices.
Tensor plain(const Tensor& x) { return with_unit_stride(x.detach().set_layout({})); }

Tensor over_group(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                  Communicator& group, const SequenceCut& cut, const Layout& layout) {
  const Ring ring{config, cut, &group};
  Attended result;
  {
    const NoGrad no_grad;
    result = forward(ring, plain(q), plain(k), plain(v));
  }
  return record("ring_attention", result.o.set_layout(layout), {q, k, v},
                [ring, q = saved(q), k = saved(k), v = saved(v), o = saved_output(result.o),
                 lse = result.lse](const Tensor& dy, Needs) -> Grads {
                  const Operands at{plain(dy), plain(q.get()), plain(o.get()), lse};
                  const Gradients gradients = backward(ring, at, plain(k.get()), plain(v.get()));
                  return {gradients.dq, gradients.dk, gradients.dv};
                });
}

}  // namespace

Tensor ring_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                      Communicator& group, const SequenceCut& cut) {
  cut.check("ring_attention", q, k, v, group);
  if (group.size() == 1) return attention(q, k, v, config);
  for (const Tensor* x : {&q, &k, &v}) refuse_laid_out("ring_attention", *x);
  return over_group(q, k, v, config, group, cut, {});
}

Tensor ring_attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config,
                      const Mesh& mesh, MeshAxis axis, const SequenceCut& cut) {
  Communicator& group = mesh.group(axis);
  cut.check("ring_attention", q, k, v, group);
  if (group.size() == 1) return attention(q, k, v, config);
  return over_group(q, k, v, config, group, cut, cut.layout_of_attention("ring_attention", q, k, v, axis));
}

}  // namespace tessera::dist
