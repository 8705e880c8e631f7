"""What the scripts that write *.txt have in common: numbers by a formula, and the format of the file.

A file is lines of text. Lines with # are for people. The others are tensors, in f64, rounded:

    tensor NAME SHAPE EXPONENT F32 F16 BF16
    INTEGER INTEGER ...

An element is its integer times 2^EXPONENT; a scalar's shape is (). F32, F16 and BF16 are how far PyTorch itself is from
the f64 values when it computes in these dtypes, as |a - b| / |b| over the whole tensor with the norm sqrt(sum of
squares); "-" where it was not run.
"""

import numpy as np
import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def hashed(k, n):
    """n numbers of 32 bits, without a pattern that a sum over rows or columns could hide."""
    h = (np.arange(1, n + 1, dtype=np.uint64) * 0x9E3779B9 + (k + 1) * 0x85EBCA6B) % 2**32
    h = (h ^ (h >> np.uint64(16))) * 0x7FEB352D % 2**32
    return h ^ (h >> np.uint64(15))


def noise(k, shape, offset=0.0):
    """Multiples of 1/128 in [-1/2, 1/2), plus offset: with an offset of 1, too, exact in bf16, f16 and f32."""
    values = (hashed(k, int(np.prod(shape))) % 128).astype(np.float64) / 128 - 0.5 + offset
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def whole_numbers(k, shape, count):
    return torch.tensor((hashed(k, int(np.prod(shape))) % count).astype(np.int64)).reshape(shape)


def distance(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item() if exact.norm() else got.double().norm().item()


class Writer:
    def __init__(self, path, bits, comments):
        self.file = open(path, "w")
        self.bits = bits
        for line in comments:
            print("#", line, file=self.file)

    def tensor(self, name, exact, others={}):
        """`others`: the same in some of DTYPES, by their names."""
        exact = exact.detach().double()
        if exact.abs().max() < 1e-12:  # 0 but for the rounding of f64: of the biases of keys
            exact = torch.zeros_like(exact)
        exponent = int(np.frexp(exact.abs().max().item())[1]) - self.bits if exact.any() else 0
        integers = [str(round(v * 2.0**-exponent)) for v in exact.flatten().tolist()]
        errors = [f"{distance(others[d].detach(), exact):.2g}" if d in others else "-" for d in DTYPES]
        shape = "(" + ",".join(map(str, exact.shape)) + ")"
        print("tensor", name, shape, exponent, *errors, file=self.file)
        line = ""
        for text in integers:
            if line and len(line) + 1 + len(text) > 110:
                print(line, file=self.file)
                line = ""
            line += (" " if line else "") + text
        print(line, file=self.file)
