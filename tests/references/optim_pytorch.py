"""Writes tests/optim/pytorch_values.h: parameters after 20 steps of PyTorch's optimizers, in f64.

    pip install torch
    python tests/references/optim_pytorch.py > tests/optim/pytorch_values.h

Parameters and gradients are dyadic fractions, exact in f32, that the test makes by the same formulas:
    p_0[i]  = ((37 i) mod 19 - 9) / 8
    g_t[i]  = ((31 i + 17 t) mod 23 - 11) / 16        t = 0 .. 19
    lr_t    = lr (20 - t) / 20
"""

import torch

STEPS = 20
SIZES = [1, 5, 33]
CASES = [  # name, optimizer, lr, settings
    ("sgd", "SGD", 0.125, {}),
    ("sgd_decay", "SGD", 0.125, {"weight_decay": 0.1}),
    ("sgd_momentum", "SGD", 0.0625, {"momentum": 0.9}),
    ("sgd_dampening", "SGD", 0.0625, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    ("sgd_nesterov", "SGD", 0.0625, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("adam", "Adam", 0.0625, {}),
    ("adam_l2", "Adam", 0.03125, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("adamw_defaults", "AdamW", 0.0625, {}),
    ("adamw_gpt", "AdamW", 0.03125, {"betas": (0.9, 0.95), "weight_decay": 0.1}),
]


def parameter(n):
    return torch.tensor([((37 * i) % 19 - 9) / 8 for i in range(n)], dtype=torch.float64)


def gradient(n, t):
    return torch.tensor([((31 * i + 17 * t) % 23 - 11) / 16 for i in range(n)], dtype=torch.float64)


def run(optimizer, lr, settings, n):
    p = torch.nn.Parameter(parameter(n))
    opt = getattr(torch.optim, optimizer)([p], lr=lr, **settings)
    for t in range(STEPS):
        opt.param_groups[0]["lr"] = lr * (STEPS - t) / STEPS
        p.grad = gradient(n, t)
        opt.step()
    return p.tolist()


print("#pragma once\n")
print(f"// Written by tests/references/optim_pytorch.py with PyTorch {torch.__version__}; its text says what they are.")
print("// clang-format off\n\n#include <vector>\n\nnamespace tessera::optim::reference {\n")
print("struct PyTorchValues {\n  const char* name;\n  std::vector<std::vector<double>> after_20_steps;  // for each size\n};\n")
print(f"inline const std::vector<int> kPyTorchSizes{{{', '.join(map(str, SIZES))}}};\n")
print("inline const std::vector<PyTorchValues> kPyTorchValues{")
for name, optimizer, lr, settings in CASES:
    print(f'    {{"{name}", {{')
    for n in SIZES:
        values = [repr(v) for v in run(optimizer, lr, settings, n)]
        rows = [", ".join(values[i:i + 5]) for i in range(0, len(values), 5)]
        print("        {" + ",\n         ".join(rows) + "},")
    print("    }},")
print("};\n\n}  // namespace tessera::optim::reference")
