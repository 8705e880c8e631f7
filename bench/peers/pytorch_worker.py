"""PyTorch's side of scripts/bench; answers to the same words as bench/bench_worker.cpp.

    pytorch_worker.py eager|compiled WORKLOAD... THREADS

bf16 is autocast with f32 weights, as PyTorch's users train; so is bf16state. AdamW is the fused one.
"""

import contextlib
import json
import math
import os
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

SIZES = {"gpt2": (12, 12, 768, 1024, 50257), "char": (6, 6, 384, 256, 65)}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, cache=None):
        b, t, width = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(width, 2))
        if cache is not None:
            keys, values, past = cache
            keys[:, :, past:past + t], values[:, :, past:past + t] = k, v
            k, v = keys[:, :, :past + t], values[:, :, :past + t]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, width))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, layers, heads, width, context, vocabulary):
        super().__init__()
        self.heads, self.width = heads, width
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, ids, caches=None, past=0):
        x = self.wte(ids) + self.wpe(torch.arange(past, past + ids.shape[1]))
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else (*caches[i], past))
        return self.ln_f(x)

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


def forward(mode, name, dtype, shape):
    model = Gpt2(*SIZES[name])
    step = torch.compile(model) if mode == "compiled" else model
    ids, targets = (tokens(*shape, SIZES[name][4], offset) for offset in (0, 7919))

    def run():
        with torch.no_grad(), precision(dtype):
            step(ids, targets).item()

    return run


def generate(mode, name, dtype, batch):
    model = Gpt2(*SIZES[name]).eval()
    element = torch.bfloat16 if dtype == "bf16" else torch.float32
    model.to(element)  # nothing is trained: weights themselves are short
    prompt, new = 32, 32
    ids = tokens(batch, prompt, SIZES[name][4], 0)
    hidden = torch.compile(model.hidden, dynamic=True) if mode == "compiled" else model.hidden

    def run():
        with torch.inference_mode():
            caches = [[torch.empty(batch, model.heads, prompt + new, model.width // model.heads, dtype=element)
                       for _ in range(2)] for _ in model.blocks]
            last, past = ids, 0
            for _ in range(new):
                logits = model.head(hidden(last, caches, past)[:, -1])
                past += last.shape[1]
                last = logits.argmax(-1, keepdim=True)
            last.tolist()

    return run


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
