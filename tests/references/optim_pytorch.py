"""Writes tests/optim/pytorch_values.h: parameters after 20 steps of PyTorch's optimizers, in f64; learning rates.

README.md beside this file has the command. Lion and LAMB, which PyTorch lacks, are timm's.

Parameters and gradients are dyadic fractions, exact in f32, that the test makes by the same formulas:
    p_0[i]  = ((37 i) mod 19 - 9) / 8
    g_t[i]  = ((31 i + 17 t) mod 23 - 11) / 16        t = 0 .. 19
    lr_t    = lr (20 - t) / 20

torch.optim.Muon casts each matrix to bf16 before Newton and Schulz's iteration, whatever the parameter's dtype.
Its values here come of its own code with that cast turned into one to f64. How far the code as it is released lies
from them is kept as one number for each shape, in `bf16_distances`.

Learning rates are those that torch.optim.lr_scheduler gives to update number `step` (from 0), as far as the last step
of the cosine: after it, PyTorch's climbs again.
"""

import math
from unittest import mock

import timm.optim
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

STEPS = 20
COSINES = [  # name, max_lr, min_lr, warmup_steps, total_steps
    ("cosine", 0.5, 0.0, 0, 17),
    ("cosine_with_warmup", 6e-4, 6e-5, 5, 23),
    ("cosine_after_one_step", 0.3, 0.1, 1, 8),
]
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
    ("adagrad", "Adagrad", 0.25, {}),
    ("adagrad_lr_decay", "Adagrad", 0.25, {"lr_decay": 0.25, "initial_accumulator_value": 0.5}),
    ("adagrad_l2", "Adagrad", 0.25, {"lr_decay": 0.125, "weight_decay": 0.05, "eps": 1e-2}),
    ("lion_defaults", "Lion", 0.03125, {}),
    ("lion_decay", "Lion", 0.03125, {"betas": (0.95, 0.98), "weight_decay": 0.5}),
    ("lamb", "Lamb", 0.0625, {"weight_decay": 0.0, "always_adapt": True, "max_grad_norm": None}),
    ("lamb_decay", "Lamb", 0.0625, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "max_grad_norm": None}),
    ("lamb_trust_up_to_1", "Lamb", 0.0625, {"weight_decay": 0.1, "trust_clip": True, "max_grad_norm": None}),
]
SHAPES = [(3, 8), (5, 5), (7, 3), (6, 1)]
MUON_CASES = [  # name, lr, settings
    ("muon_defaults", 0.0625, {}),
    ("muon_plain", 0.0625, {"momentum": 0.5, "nesterov": False, "weight_decay": 0.5}),
    ("muon_match_rms_adamw", 0.0625, {"adjust_lr_fn": "match_rms_adamw"}),
    ("muon_spectral_unclamped", 0.0625, {"adjust_lr_fn": "spectral_unclamped"}),
    ("muon_three_iterations", 0.0625, {"momentum": 0.9, "ns_steps": 3, "weight_decay": 0.0}),
]


def parameter(shape):
    values = [((37 * i) % 19 - 9) / 8 for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def gradient(shape, t):
    values = [((31 * i + 17 * t) % 23 - 11) / 16 for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def check_signs(group, state, grad):
    """A Lion whose blend is almost zero would step either way, by its rounding."""
    beta1, _ = group["betas"]
    blend = (beta1 * state.get("exp_avg", torch.zeros_like(grad)) + (1 - beta1) * grad).abs()
    assert ((blend == 0) | (blend > 1e-5)).all()


def run(optimizer, lr, settings, shape):
    p = torch.nn.Parameter(parameter(shape))
    package = timm.optim if optimizer in ("Lion", "Lamb") else torch.optim
    opt = getattr(package, optimizer)([p], lr=lr, **settings)
    for t in range(STEPS):
        opt.param_groups[0]["lr"] = lr * (STEPS - t) / STEPS
        p.grad = gradient(shape, t)
        if optimizer == "Lion":
            check_signs(opt.param_groups[0], opt.state[p], p.grad)
        opt.step()
    return p.detach()


def run_muon_in_f64(lr, settings, shape):
    with mock.patch.object(torch, "bfloat16", torch.float64):
        exact = torch.optim._muon._zeropower_via_newtonschulz(gradient(shape, 0), (3.4445, -4.775, 2.0315), 5, 1e-7)
        assert exact.dtype == torch.float64, "torch.optim.Muon of this version casts by another name"
        return run("Muon", lr, settings, shape)


def cosine_rates(max_lr, min_lr, warmup_steps, total_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=max_lr)
    cosine = CosineAnnealingLR(optimizer, total_steps - warmup_steps, eta_min=min_lr)
    if warmup_steps == 0:
        schedule = cosine
    else:
        warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
        schedule = SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])
    rates = []
    for _ in range(total_steps + 1):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def print_values(tensors):
    for tensor in tensors:
        values = [repr(v) for v in tensor.flatten().tolist()]
        rows = [", ".join(values[i:i + 5]) for i in range(0, len(values), 5)]
        print("        {" + ",\n         ".join(rows) + "},")


print("#pragma once\n")
print(f"// Written by tests/references/optim_pytorch.py with PyTorch {torch.__version__}; its text says what they are.")
print(f"// Lion and LAMB are of timm {timm.__version__}.")
print("// clang-format off\n\n#include <vector>\n\nnamespace tessera::optim::reference {\n")
print("struct PyTorchValues {\n  const char* name;\n  std::vector<std::vector<double>> after_20_steps;  // for each size\n};\n")
print(f"inline const std::vector<int> kPyTorchSizes{{{', '.join(map(str, SIZES))}}};\n")
print("inline const std::vector<PyTorchValues> kPyTorchValues{")
for name, optimizer, lr, settings in CASES:
    print(f'    {{"{name}", {{')
    print_values(run(optimizer, lr, settings, (n,)) for n in SIZES)
    print("    }},")
print("};\n")

print("struct PyTorchMuonValues {\n  const char* name;\n"
      "  std::vector<std::vector<double>> after_20_steps;  // for each shape\n"
      "  std::vector<double> bf16_distances;  // for each shape: how far PyTorch as it is goes astray, in an element\n};\n")
print("inline const std::vector<std::vector<int>> kPyTorchMuonShapes{"
      + ", ".join(f"{{{rows}, {columns}}}" for rows, columns in SHAPES) + "};\n")
print("inline const std::vector<PyTorchMuonValues> kPyTorchMuonValues{")
for name, lr, settings in MUON_CASES:
    exact = [run_muon_in_f64(lr, settings, shape) for shape in SHAPES]
    released = [run("Muon", lr, settings, shape) for shape in SHAPES]
    distances = [f"{(a - b).abs().max().item():.1g}" for a, b in zip(exact, released)]
    print(f'    {{"{name}", {{')
    print_values(exact)
    print(f"    }}, {{{', '.join(distances)}}}}},")
print("};\n")

print("struct PyTorchSchedule {\n  const char* name;\n  double max_lr, min_lr;\n  int warmup_steps, total_steps;\n"
      "  std::vector<double> lr;  // by step\n};\n")
print("inline const std::vector<PyTorchSchedule> kPyTorchCosines{")
for name, *settings in COSINES:
    rates = [repr(rate) for rate in cosine_rates(*settings)]
    rows = [", ".join(rates[i:i + 5]) for i in range(0, len(rates), 5)]
    print(f'    {{"{name}", {", ".join(map(repr, settings))},\n     {{' + ",\n      ".join(rows) + "}},")
print("};\n\n}  // namespace tessera::optim::reference")
