#include "autograd/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "autograd/graph.h"
#include "autograd/kernel_layouts.h"
#include "autograd/layout_rules.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/create.h"

namespace tessera {
namespace {

using detail::with_unit_stride;  // the kernels want stride 1 in K; everything else may be strided

const kernels::Attention& attention_kernels(const Tensor& x) {
  return kernels::of(x.device().type).attention;
}

struct Forward {
  Tensor o, lse;
  Forward(const Tensor& q, const Tensor& k, const Tensor& v, const kernels::AttentionOptions& options)
      : o(empty_like(q)),
        lse(empty({q.dim(0), q.dim(2), q.dim(1)},
                  {.dtype = accumulation_dtype(q.dtype()), .device = q.device()})) {
    attention_kernels(q).attention(q.view(), k.view(), v.view(), options, o.mutable_view(),
                                   lse.mutable_view());
  }
};

}  // namespace

void detail::check_attention(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v) {
  const bool four = q.dims() == 4 && k.dims() == 4 && v.dims() == 4;
  // No heads at all are a rank's share when there are fewer heads than ranks.
  const auto divides = [](std::int64_t groups, std::int64_t heads) {
    return groups == 0 ? heads == 0 : heads % groups == 0;
  };
  if (!four || k.shape() != v.shape() || q.dim(0) != k.dim(0) || q.dim(3) != k.dim(3) ||
      !divides(k.dim(2), q.dim(2))) {
    throw ShapeError(
        fmt::format("{}: q [B, T, H, K] and k, v [B, S, G, K] with G dividing H are needed, but came {}, {} "
                    "and {}",
                    operation, to_string(q.shape()), to_string(k.shape()), to_string(v.shape())));
  }
  if (!is_floating(q.dtype()) || k.dtype() != q.dtype() || v.dtype() != q.dtype()) {
    throw DTypeError(fmt::format("{}: q, k and v must have one floating dtype, but they are {}, {} and {}",
                                 operation, name(q.dtype()), name(k.dtype()), name(v.dtype())));
  }
}

kernels::AttentionOptions detail::attention_options(const AttentionConfig& config, const Tensor& q,
                                                    const Tensor& k) {
  kernels::AttentionOptions options;
  options.scale = config.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.dim(3))));
  options.causal = config.causal;
  options.dropout_p = config.dropout;
  options.key = config.key;
  // Probability (b, h, t, s) of the whole problem is number ((b·H + h)·T + t)·S + s of its mask.
  const std::int64_t heads = config.num_heads == 0 ? q.dim(2) : config.num_heads;
  const std::int64_t queries = config.sequence_length == 0 ? q.dim(1) : config.sequence_length;
  const std::int64_t keys = config.sequence_length == 0 ? k.dim(1) : config.sequence_length;
  const std::int64_t strides[] = {heads * queries * keys, queries * keys, keys, 1};
  const std::int64_t first[] = {config.first_sample, config.first_head, config.first_query, config.first_key};
  for (int d = 0; d < 4; ++d) {
    options.index.strides[d] = strides[d];
    options.index.base += first[d] * strides[d];
  }
  return options;
}

// With P = softmax(S), S = q·kᵀ·scale and D_t = Σ_k do·o (the row sums of dP∘P):
//   dv = Pᵀ·do,   dS = P∘(do·vᵀ − D),   dq = dS·k·scale,   dk = dSᵀ·q·scale
// P is made again tile by tile from the saved log-sum-exp.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionConfig& config) {
  detail::check_attention("attention", q, k, v);
  const Layout layout = layout_rules::attention("attention", q, k, v);
  const kernels::AttentionOptions options = detail::attention_options(config, q, k);
  const Forward forward(with_unit_stride(q), with_unit_stride(k), with_unit_stride(v), options);
  return record("attention", laid_out(forward.o, layout), {q, k, v},
                [q = saved(q), k = saved(k), v = saved(v), o = saved_output(forward.o), lse = forward.lse,
                 options](const Tensor& dy, Needs) -> Grads {
                  const Tensor q1 = with_unit_stride(q.get());
                  const Tensor k1 = with_unit_stride(k.get());
                  const Tensor v1 = with_unit_stride(v.get());
                  Tensor dq = empty_like(q1), dk = empty_like(k1), dv = empty_like(v1);
                  attention_kernels(dy).attention_backward(
                      with_unit_stride(dy).view(), q1.view(), k1.view(), v1.view(), o.get().view(),
                      lse.view(), options, dq.mutable_view(), dk.mutable_view(), dv.mutable_view());
                  return {dq, dk, dv};
                });
}

namespace {

// The three parts of a packed [B, T, (H + 2G)·K] tensor as views [B, T, heads, K].
struct Unpacked {
  Tensor q, k, v;
  Unpacked(const Tensor& qkv, std::int64_t query_heads, std::int64_t key_heads) {
    const Tensor heads = qkv.detach().set_layout({}).reshape(
        {qkv.dim(0), qkv.dim(1), query_heads + 2 * key_heads, qkv.dim(2) / (query_heads + 2 * key_heads)});
    q = heads.slice(2, 0, query_heads);
    k = heads.slice(2, query_heads, query_heads + key_heads);
    v = heads.slice(2, query_heads + key_heads, query_heads + 2 * key_heads);
  }
};

}  // namespace

Tensor attention_packed(const Tensor& qkv, std::int64_t query_heads, std::int64_t key_heads,
                        const AttentionConfig& config) {
  if (qkv.dims() != 3 || query_heads < 1 || key_heads < 1 ||
      qkv.dim(2) % (query_heads + 2 * key_heads) != 0) {
    throw ShapeError(
        fmt::format("attention_packed: qkv must be [B, T, (H + 2G)·K] with H = {} and G = {}, but it is {}",
                    query_heads, key_heads, describe(qkv)));
  }
  const Layout layout = layout_rules::attention("attention", qkv, {}, {});
  const Unpacked parts(qkv.detach().contiguous(), query_heads, key_heads);
  detail::check_attention("attention_packed", parts.q, parts.k, parts.v);
  const kernels::AttentionOptions options = detail::attention_options(config, parts.q, parts.k);
  const Forward forward(parts.q, parts.k, parts.v, options);
  const Tensor y = forward.o.reshape({qkv.dim(0), qkv.dim(1), query_heads * parts.q.dim(3)});
  return record("attention", laid_out(y, layout), {qkv},
                [qkv = saved(qkv), o = saved_output(forward.o), lse = forward.lse, options, query_heads,
                 key_heads](const Tensor& dy, Needs) -> Grads {
                  const Unpacked in(qkv.get().detach().contiguous(), query_heads, key_heads);
                  Tensor dqkv = empty_like(qkv.get());
                  Unpacked out(dqkv, query_heads, key_heads);
                  attention_kernels(dy).attention_backward(
                      dy.contiguous().reshape(o.get().shape()).view(), in.q.view(), in.k.view(), in.v.view(),
                      o.get().view(), lse.view(), options, out.q.mutable_view(), out.k.mutable_view(),
                      out.v.mutable_view());
                  return {dqkv};
                });
}

}  // namespace tessera
