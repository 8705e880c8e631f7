"""Writes tests/nn/pytorch_values.h: losses, logits and gradients of PyTorch, in f64.

README.md beside this file has the command.

The models are written here from PyTorch's own layers, after the papers. Their parameters, in the order of the lists
below, are dyadic fractions that the test makes by the same formula:
    parameter k, element i:   ((37 i + 11 k) mod 19 - 9) / 64,   plus 1 for the gains of norms
Of each gradient g two numbers are kept: sum_i g[i] ((13 i) mod 7 - 2.5) and sum_i g[i]^2.
"""

import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def pattern(k, shape, gain=False):
    n = math.prod(shape)
    values = [((37 * i + 11 * k) % 19 - 9) / 64 + (1 if gain else 0) for i in range(n)]
    return torch.tensor(values).reshape(shape).requires_grad_()


def make_parameters(shapes):
    return {name: pattern(k, shape, "ln_" in name and name.endswith("weight") or "norm" in name)
            for k, (name, shape) in enumerate(shapes)}


def ids(batch, time, vocab, shift=0):
    return torch.tensor([[(5 * b + 3 * t + t * t + shift) % vocab for t in range(time)] for b in range(batch)])


# --- GPT-2: vocabulary 11, context 6, 2 layers, 2 heads, width 8

def gpt2_shapes(vocab, context, layers, width):
    shapes = [("wte.weight", (vocab, width)), ("wpe.weight", (context, width))]
    for i in range(layers):
        shapes += [(f"h.{i}.ln_1.weight", (width,)), (f"h.{i}.ln_1.bias", (width,)),
                   (f"h.{i}.attn.c_attn.weight", (3 * width, width)), (f"h.{i}.attn.c_attn.bias", (3 * width,)),
                   (f"h.{i}.attn.c_proj.weight", (width, width)), (f"h.{i}.attn.c_proj.bias", (width,)),
                   (f"h.{i}.ln_2.weight", (width,)), (f"h.{i}.ln_2.bias", (width,)),
                   (f"h.{i}.mlp.c_fc.weight", (4 * width, width)), (f"h.{i}.mlp.c_fc.bias", (4 * width,)),
                   (f"h.{i}.mlp.c_proj.weight", (width, 4 * width)), (f"h.{i}.mlp.c_proj.bias", (width,))]
    return shapes + [("ln_f.weight", (width,)), ("ln_f.bias", (width,))]


def gpt2(p, x, layers, heads):
    width = p["wte.weight"].shape[1]
    norm = lambda name, h: F.layer_norm(h, (width,), p[name + ".weight"], p[name + ".bias"], 1e-5)
    linear = lambda name, h: F.linear(h, p[name + ".weight"], p[name + ".bias"])
    h = p["wte.weight"][x] + p["wpe.weight"][: x.shape[1]]
    for i in range(layers):
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2)
                   for part in linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", h)).chunk(3, 2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + linear(f"h.{i}.attn.c_proj", a)
        m = F.gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", h)), approximate="tanh")
        h = h + linear(f"h.{i}.mlp.c_proj", m)
    return F.linear(norm("ln_f", h), p["wte.weight"])


# --- Llama: vocabulary 11, context 6, 2 layers, 4 heads, 2 of keys and values, width 16, hidden 24, base 100

def llama_shapes(vocab, layers, width, kv_width, hidden):
    shapes = [("embed_tokens.weight", (vocab, width))]
    for i in range(layers):
        shapes += [(f"layers.{i}.input_layernorm.weight", (width,)),
                   (f"layers.{i}.self_attn.q_proj.weight", (width, width)),
                   (f"layers.{i}.self_attn.k_proj.weight", (kv_width, width)),
                   (f"layers.{i}.self_attn.v_proj.weight", (kv_width, width)),
                   (f"layers.{i}.self_attn.o_proj.weight", (width, width)),
                   (f"layers.{i}.post_attention_layernorm.weight", (width,)),
                   (f"layers.{i}.mlp.gate_proj.weight", (hidden, width)),
                   (f"layers.{i}.mlp.up_proj.weight", (hidden, width)),
                   (f"layers.{i}.mlp.down_proj.weight", (width, hidden))]
    return shapes + [("norm.weight", (width,)), ("lm_head.weight", (vocab, width))]


def rotate(x, base):  # [B, H, T, K]: channels k and k + K/2 are real and imaginary part
    time, width = x.shape[2:]
    angle = torch.arange(time)[:, None] * base ** (-2 * torch.arange(width // 2) / width)
    turned = torch.complex(x[..., : width // 2], x[..., width // 2:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def llama(p, x, layers, heads, kv_heads, base):
    width = p["embed_tokens.weight"].shape[1]
    norm = lambda name, h: F.rms_norm(h, (width,), p[name + ".weight"], 1e-5)
    linear = lambda name, h: F.linear(h, p[name + ".weight"])
    split = lambda h, n: h.unflatten(2, (n, -1)).transpose(1, 2)
    h = p["embed_tokens.weight"][x]
    for i in range(layers):
        n = norm(f"layers.{i}.input_layernorm", h)
        a = f"layers.{i}.self_attn."
        q, k, v = (split(linear(a + "q_proj", n), heads), split(linear(a + "k_proj", n), kv_heads),
                   split(linear(a + "v_proj", n), kv_heads))
        o = F.scaled_dot_product_attention(rotate(q, base), rotate(k, base), v, is_causal=True, enable_gqa=True)
        h = h + linear(a + "o_proj", o.transpose(1, 2).flatten(2))
        n = norm(f"layers.{i}.post_attention_layernorm", h)
        m = f"layers.{i}.mlp."
        h = h + linear(m + "down_proj", F.silu(linear(m + "gate_proj", n)) * linear(m + "up_proj", n))
    return linear("lm_head", norm("norm", h))


# --- Losses

def loss_inputs():
    logits = torch.tensor([[((29 * r + 17 * v) % 23 - 11) / 4 for v in range(5)] for r in range(6)]).requires_grad_()
    return logits, torch.tensor([4, -100, 0, 2, -100, 1])


def loss_cases():
    for smoothing in (0.0, 0.1):
        for reduction in ("mean", "sum", "none"):
            logits, targets = loss_inputs()
            loss = F.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=smoothing, reduction=reduction)
            yield f"cross_entropy {reduction} {smoothing}", logits, loss
    logits, _ = loss_inputs()
    target = torch.softmax(torch.flip(logits.detach(), (0,)), -1)
    for reduction in ("mean", "sum"):
        x = logits.detach().clone().requires_grad_()
        yield f"mse {reduction}", x, F.mse_loss(x, target, reduction=reduction)
        x = logits.detach().clone().requires_grad_()
        yield f"kl {reduction}", x, F.kl_div(torch.log_softmax(x, -1), target, reduction=reduction)
        x = logits.detach().clone().requires_grad_()
        yield f"bce {reduction}", x, F.binary_cross_entropy_with_logits(x, target, reduction=reduction)


# --- Output

def numbers(values, indent):
    text = [repr(float(v)) for v in values]
    rows = [", ".join(text[i : i + 5]) for i in range(0, len(text), 5)]
    return (",\n" + indent).join(rows)


def weights(n):
    return torch.tensor([((13 * i) % 7) - 2.5 for i in range(n)])


def print_model(name, p, logits, targets):
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    print(f"inline const ModelValues {name}{{")
    print(f"    {loss.item()!r},")
    print(f"    {{{numbers(logits.detach().flatten(), '     ')}}},")
    print("    {")
    for key, value in p.items():
        g = value.grad.flatten()
        print(f'        {{"{key}", {(g * weights(len(g))).sum().item()!r}, {(g * g).sum().item()!r}}},')
    print("    }};\n")


print(f"""#pragma once

// Written by tests/references/nn_pytorch.py with PyTorch {torch.__version__}; its text says what they are.
// clang-format off

#include <vector>

namespace tessera::nn::reference {{

struct GradientValues {{
  const char* name;
  double weighted_sum, sum_of_squares;
}};

struct ModelValues {{
  double loss;
  std::vector<double> logits;  // [2, 6, 11]
  std::vector<GradientValues> gradients;
}};

struct LossValues {{
  const char* name;
  std::vector<double> loss;
  std::vector<double> gradient;  // of the sum of all losses
}};
""")
p = make_parameters(gpt2_shapes(11, 6, 2, 8))
print_model("kGpt2", p, gpt2(p, ids(2, 6, 11), 2, 2), ids(2, 6, 11, 4))
p = make_parameters(llama_shapes(11, 2, 16, 8, 24))
print_model("kLlama", p, llama(p, ids(2, 6, 11), 2, 4, 2, 100.0), ids(2, 6, 11, 4))
print("inline const std::vector<LossValues> kLosses{")
for name, x, loss in loss_cases():
    loss.sum().backward()
    print(f'    {{"{name}",\n     {{{numbers(loss.detach().reshape(-1), "      ")}}},')
    print(f'     {{{numbers(x.grad.flatten(), "      ")}}}}},')
print("};\n\n}  // namespace tessera::nn::reference")
