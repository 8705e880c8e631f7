"""PyTorch's side of scripts/bench; answers to the same words as bench/bench_worker.cpp.

    pytorch_worker.py eager|compiled WORKLOAD... THREADS

bf16 is autocast with f32 weights, as PyTorch's users train; so is bf16state, for AdamW's state has no shorter form there.
AdamW is the fused one. Whatever makes PyTorch faster on this machine is chosen by a measurement before the rounds: f32
products by MKL or by oneDNN, compiled inference with weights that are frozen (packed, converted once) or not. What was
chosen goes to stderr.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
from typing import Optional

import torch
import torch._inductor.config
from torch import nn
from torch.nn import functional as F

SIZES = {"gpt2": (12, 12, 768, 1024, 50257), "char": (6, 6, 384, 256, 65)}


@torch.library.custom_op("bench::onednn_product", mutates_args=())
def onednn_product(x: torch.Tensor, w: torch.Tensor, bias: Optional[torch.Tensor] = None) -> torch.Tensor:
    """x wᵀ + bias by oneDNN, which is in PyTorch; its f32 products go to MKL otherwise."""
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")


@onednn_product.register_fake
def _(x, w, bias=None):
    return x.new_empty(*x.shape[:-1], w.shape[0])


class OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, bias):
        ctx.save_for_backward(x, w)
        ctx.has_bias = bias is not None
        return onednn_product(x, w, bias)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dw = onednn_product(rows.t().contiguous(), x.reshape(-1, x.shape[-1]).t().contiguous())
        return onednn_product(dy, w.t().contiguous()), dw, rows.sum(0) if ctx.has_bias else None


class Linear(nn.Linear):
    by_onednn = False  # of all layers; see choose_product()

    def forward(self, x):
        if Linear.by_onednn:
            return OneDnnLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


def seconds(run, times=5):
    """The least of a few: what the machine does meanwhile only adds."""
    run()
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def choose_product(rows):
    """MKL takes a slow path on processors that are not Intel's: oneDNN then has more than twice its rate."""
    layer, x, dy = Linear(768, 3072), torch.randn(rows, 768, requires_grad=True), torch.randn(rows, 3072)
    times = {}
    for Linear.by_onednn in (False, True):
        times[Linear.by_onednn] = seconds(lambda: layer(x).backward(dy))
    Linear.by_onednn = times[True] < times[False]
    print(f"f32 products by {'oneDNN' if Linear.by_onednn else 'MKL'}: {min(times.values()) / max(times.values()):.2f} of the "
          "other's time", file=sys.stderr)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Linear(width, 3 * width), Linear(width, width)
        self.fc, self.proj = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x, cache=None):
        b, t, width = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(width, 2))
        mask = None
        if cache is not None:
            # Lengths that grow would make compiled code of many shapes: it sees all of the cache, through a mask.
            keys, values, positions, visible = cache
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            if t == 1 and visible is None:
                k, v, mask = keys, values, (torch.arange(keys.shape[2]) <= positions).view(1, 1, 1, -1)
            elif t == 1:
                k, v = keys[:, :, :visible], values[:, :, :visible]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=t > 1)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, width))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, layers, heads, width, context, vocabulary):
        super().__init__()
        self.heads, self.width = heads, width
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f, self.head = nn.LayerNorm(width), Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, ids, caches=None, positions=None, visible=None):
        positions = torch.arange(ids.shape[1]) if positions is None else positions
        x = self.wte(ids) + self.wpe(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else (*caches[i], positions, visible))
        return self.ln_f(x)

    def next_token(self, ids, caches, positions, visible=None):
        return self.head(self.hidden(ids, caches, positions, visible)[:, -1]).argmax(-1, keepdim=True)

    def forward(self, ids, targets):
        return F.cross_entropy(self.head(self.hidden(ids)).flatten(0, 1), targets.flatten())


def tokens(batch, length, vocabulary, offset):
    ids = torch.arange(batch * length) * 7919 + offset
    return (ids % vocabulary).view(batch, length)


def precision(dtype):
    return torch.autocast("cpu", torch.bfloat16) if dtype.startswith("bf16") else contextlib.nullcontext()


def train(mode, name, dtype, shape):
    model = Gpt2(*SIZES[name])
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=1e-4, fused=True)
    step = torch.compile(model) if mode == "compiled" else model
    ids, targets = (tokens(*shape, SIZES[name][4], offset) for offset in (0, 7919))

    def run():
        with precision(dtype):
            loss = step(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def best_inference(make_run):
    """`make_run()` with the faster of two settings of the compiler. Each compiles anew."""
    runs = {}
    for freezing in (False, True):
        torch._dynamo.reset()
        torch._inductor.config.freezing = freezing
        run = make_run()
        runs[freezing] = seconds(run, 3), run
    freezing = min(runs, key=lambda each: runs[each][0])
    print(f"compiled with{'' if freezing else 'out'} freezing: {runs[freezing][0] / runs[not freezing][0]:.2f} of the "
          "other's time", file=sys.stderr)
    return runs[freezing][1]


def forward(mode, name, dtype, shape):
    model = Gpt2(*SIZES[name]).eval()
    ids, targets = (tokens(*shape, SIZES[name][4], offset) for offset in (0, 7919))

    def make_run():
        step = torch.compile(model) if mode == "compiled" else model

        def run():
            with torch.no_grad(), precision(dtype):
                step(ids, targets).item()

        return run

    return best_inference(make_run) if mode == "compiled" else make_run()


def generate(mode, name, dtype, batch):
    model = Gpt2(*SIZES[name]).eval()
    element = torch.bfloat16 if dtype == "bf16" else torch.float32
    model.to(element)  # nothing is trained: weights themselves are short
    prompt, new = 32, 32
    ids = tokens(batch, prompt, SIZES[name][4], 0)
    places = [torch.arange(prompt), *(torch.tensor([past]) for past in range(prompt, prompt + new - 1))]

    def make_run():
        next_token = torch.compile(model.next_token, dynamic=False) if mode == "compiled" else model.next_token

        def run():
            with torch.no_grad():
                caches = [[torch.zeros(batch, model.heads, prompt + new, model.width // model.heads, dtype=element)
                           for _ in range(2)] for _ in model.blocks]
                last, made = ids, []
                for place in places:
                    visible = None if mode == "compiled" else int(place[-1]) + 1
                    last = next_token(last, caches, place, visible)
                    made.append(last)
                return torch.cat(made, 1).tolist()

        return run

    return best_inference(make_run) if mode == "compiled" else make_run()


def adamw(mode):
    model = Gpt2(*SIZES["gpt2"])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return optimizer.step


def tiny(mode):
    x, y = torch.randn(16, requires_grad=True), torch.randn(16)

    def run():
        for _ in range(10_000):
            x * y

    return run


def tokenize(mode, file):
    import tiktoken

    with open(os.path.join(file + ".tokenizer", "tokenizer.json"), encoding="utf-8") as stream:
        vocabulary = json.load(stream)["model"]["vocab"]
    # The usual way to write bytes as characters (Radford et al., 2019): printable ones stand for themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(b): b for b in printable}
    byte_of.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in printable)})
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocabulary.items() if all(c in byte_of for c in token)}
    # GPT-2's rules: on this text they cut as ours do, and give the same ids.
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    with open(file, encoding="utf-8") as stream:
        text = stream.read()
    return lambda: encoding.encode_ordinary(text)


def main():
    mode, *words, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    kind, *rest = words
    if kind in ("train", "forward", "generate") and rest[1] == "f32":
        choose_product(8 if kind == "generate" else 1024)
    if kind in ("train", "forward"):
        run = {"train": train, "forward": forward}[kind](mode, rest[0], rest[1], tuple(map(int, rest[2].split("x"))))
    elif kind == "generate":
        run = generate(mode, rest[0], rest[1], int(rest[2]))
    else:
        run = {"adamw": adamw, "tiny": tiny, "tokenize": tokenize}[kind](mode, *rest)
    run()
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        if line != "go\n":
            break
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
