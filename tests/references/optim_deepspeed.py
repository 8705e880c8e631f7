"""Writes tests/optim/deepspeed_values.h: learning rates, momenta and loss scales of DeepSpeed.

README.md beside this file has the command.

Row `step` holds what the optimizer has when it does update number `step` (from 0): the scheduler is constructed, and
stepped after each update, as DeepSpeed's engine does.
"""

import contextlib
import io
import sys

import torch

with contextlib.redirect_stdout(io.StringIO()):
    import deepspeed
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.fp16 import loss_scaler

lr_schedules.logger.disabled = True
loss_scaler.logger.disabled = True
loss_scaler.dist.get_rank = lambda: 0

STEPS = 24
BASE_LR = 0.5
SCHEDULES = [  # name, type, parameters
    ("range_test", "LRRangeTest", {"lr_range_test_min_lr": 1e-3, "lr_range_test_step_size": 5,
                                   "lr_range_test_step_rate": 2.0}),
    ("range_test_staircase", "LRRangeTest", {"lr_range_test_min_lr": 1e-3, "lr_range_test_step_size": 5,
                                             "lr_range_test_step_rate": 2.0, "lr_range_test_staircase": True}),
    ("one_cycle", "OneCycle", {"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 6,
                               "cycle_second_step_size": 9}),
    ("one_cycle_decay", "OneCycle", {"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 4,
                                     "decay_step_size": 3, "decay_lr_rate": 0.5, "cycle_min_mom": 0.7,
                                     "cycle_max_mom": 0.95, "decay_mom_rate": 0.001}),
    ("warmup_log", "WarmupLR", {"warmup_min_lr": 0.01, "warmup_max_lr": 0.2, "warmup_num_steps": 10}),
    ("warmup_linear", "WarmupLR", {"warmup_min_lr": 0.01, "warmup_max_lr": 0.2, "warmup_num_steps": 10,
                                   "warmup_type": "linear"}),
    ("warmup_of_one_step", "WarmupLR", {"warmup_max_lr": 0.2, "warmup_num_steps": 1}),
    ("warmup_decay_log", "WarmupDecayLR", {"total_num_steps": 20, "warmup_min_lr": 0.01, "warmup_max_lr": 0.2,
                                           "warmup_num_steps": 6}),
    ("warmup_decay_linear", "WarmupDecayLR", {"total_num_steps": 20, "warmup_max_lr": 0.2, "warmup_num_steps": 6,
                                              "warmup_type": "linear"}),
    ("warmup_cosine_log", "WarmupCosineLR", {"total_num_steps": 23, "warmup_min_ratio": 0.1, "warmup_num_steps": 6,
                                             "cos_min_ratio": 0.05}),
    ("warmup_cosine_linear", "WarmupCosineLR", {"total_num_steps": 23, "warmup_num_steps": 6,
                                                "warmup_type": "linear"}),
]
OVERFLOWS = [  # name, initial power, window, hysteresis, least scale, consecutive, script (x overflow, . none)
    ("hysteresis_2", 4, 3, 2, 1.0, False, "....x.x.x....xx........x....xxxx......"),
    ("hysteresis_1", 4, 3, 1, 1.0, False, "....x.x.x....xx........x....x......"),
    ("consecutive", 4, 3, 2, 1.0, True, "....x.x.x....xx........x....xxxx......"),
    ("first_step", 6, 2, 2, 4.0, False, "xxx.xx....x..x......x.x.x"),
    ("stuck", 3, 4, 2, 2.0, False, "..xx.x.xx.x"),
]


def schedule_rows(kind, parameters):
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([p], lr=BASE_LR)
    scheduler = getattr(lr_schedules, kind)(optimizer, **parameters)
    lrs, momenta = [], []
    for _ in range(STEPS):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        momenta.append(float(optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        scheduler.step()
    return lrs, momenta if kind == "OneCycle" else []


def replay(power, window, hysteresis, least, consecutive, overflows):
    """Scale after each step, shorter than the script if DeepSpeed gives up."""
    scaler = loss_scaler.DynamicLossScaler(init_scale=2.0**power, scale_window=window, min_scale=least,
                                           delayed_shift=hysteresis, consecutive_hysteresis=consecutive)
    scales = []
    for overflow in overflows:
        try:
            scaler.update_scale(overflow)
        except Exception:
            break
        scales.append(scaler.loss_scale)
    return scales


def array(values, indent, per_row=6):
    rows = [", ".join(repr(v) for v in values[i:i + per_row]) for i in range(0, len(values), per_row)]
    return "{" + (",\n" + " " * (indent + 1)).join(rows) + "}"


def cpp(value):
    if isinstance(value, bool):
        return "1"
    return repr(value)


print("#pragma once\n")
print(f"// Written by tests/references/optim_deepspeed.py with DeepSpeed {deepspeed.__version__.strip()}; its text says what they are.")
print("// clang-format off\n\n#include <cstdint>\n#include <map>\n#include <string>\n#include <utility>\n#include <vector>\n")
print("namespace tessera::optim::reference {\n")
print(f"inline constexpr double kBaseLr = {BASE_LR};\n")
print("struct ScheduleValues {\n  const char* name;\n  const char* type;\n  std::map<std::string, double> params;\n"
      "  const char* warmup_type;\n  std::vector<double> lr;        // by step\n  std::vector<double> momentum;  // by step\n};\n")
print("inline const std::vector<ScheduleValues> kScheduleValues{")
for name, kind, parameters in SCHEDULES:
    numbers = {k: v for k, v in parameters.items() if k != "warmup_type"}
    lrs, momenta = schedule_rows(kind, parameters)
    pairs = ", ".join(f'{{"{k}", {cpp(v)}}}' for k, v in numbers.items())
    print(f'    {{"{name}", "{kind}",\n     {{{pairs}}}, "{parameters.get("warmup_type", "log")}",')
    print(f"     {array(lrs, 5)},\n     {array(momenta, 5)}}},")
print("};\n")

print("struct LossScaleValues {\n  const char* name;\n  int initial_scale_power;\n  std::int64_t loss_scale_window;\n"
      "  int hysteresis;\n  double min_loss_scale;\n  bool consecutive_hysteresis;\n  const char* overflows;      // x: overflow\n"
      "  std::vector<double> scales;  // after each step; shorter if DeepSpeed gives up\n};\n")
print("inline const std::vector<LossScaleValues> kLossScaleValues{")
for name, power, window, hysteresis, least, consecutive, script in OVERFLOWS:
    scales = replay(power, window, hysteresis, least, consecutive, [c == "x" for c in script])
    print(f'    {{"{name}", {power}, {window}, {hysteresis}, {least}, {str(consecutive).lower()},\n     "{script}",')
    print(f"     {array(scales, 5, 12)}}},")
print("};\n")

at = [3, 4, 5, 1200, 2300, 2301, 5000, 5001, 5002, 5003, 5004, 5005]
scales = replay(16, 1000, 2, 1.0, False, [i in at for i in range(8000)])
changes = [(i, s) for i, s in enumerate(scales) if s != (scales[i - 1] if i else 65536.0)]
print("/// DeepSpeed's defaults (2^16, window 1000, hysteresis 2) over 8000 steps: overflows, and each change.")
print(f"inline const std::vector<std::int64_t> kLongRunOverflows{{{', '.join(map(str, at))}}};")
print("inline const std::vector<std::pair<std::int64_t, double>> kLongRunChanges{"
      + ", ".join(f"{{{i}, {s}}}" for i, s in changes) + "};\n")
print("}  // namespace tessera::optim::reference")
