"""Writes tests/nn/sampling_values.h: probabilities after the logits processors of transformers, in f64.

README.md beside this file has the command.
"""

import sys

import torch
from transformers import (LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
                          TopKLogitsWarper, TopPLogitsWarper)

# No penalty makes two of them equal, of which top-k would keep both there and one here.
LOGITS = {
    "spread": [2.5, -1.0, 0.25, 3.0, -0.5, 1.75, -3.0, 0.0, 1.0],
    "close": [0.1, 0.2, 0.15, 0.123, 0.11, 0.18, 0.05, 0.19, 0.14],
    "one ahead": [0.0, 9.0, 1.0, -2.0, 0.5, 2.0, -7.0, 3.0, 0.25],
}
SEEN = [3, 1, 3, 7]
SETTINGS = [(t, k, p, r) for t in (0.5, 1.0, 1.5) for k in (0, 1, 4, 20) for p in (1.0, 0.9, 0.5, 0.05)
            for r in (1.0, 1.3, 0.8)]

print(f"""// Made by tests/references/sampling_transformers.py with transformers {sys.modules['transformers'].__version__}; not for editing.
#pragma once

#include <cstdint>
#include <vector>

namespace tessera::nn {{

struct SamplingCase {{
  const char* name;
  std::vector<double> logits;
  double temperature;
  std::int64_t top_k;
  double top_p, repetition_penalty;
  std::vector<double> probabilities;
}};

// clang-format off
inline const std::vector<std::int64_t> kSamplingSeen = {{{', '.join(map(str, SEEN))}}};
inline const std::vector<SamplingCase> kSamplingCases = {{""")
for name, logits in LOGITS.items():
    for number, (temperature, top_k, top_p, penalty) in enumerate(SETTINGS):
        if number % 3 != len(name) % 3 and top_p in (1.0, 0.05):
            continue  # a part of the table will do
        processors = LogitsProcessorList()
        if penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        processors.append(TemperatureLogitsWarper(temperature))
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            processors.append(TopPLogitsWarper(top_p))
        scores = processors(torch.tensor([SEEN]), torch.tensor([logits], dtype=torch.float64))
        probabilities = torch.softmax(scores, -1)[0].tolist()
        print(f'    {{"{name}", {{{", ".join(map(str, logits))}}}, {temperature}, {top_k}, {top_p}, {penalty},')
        print(f'     {{{", ".join(repr(p) for p in probabilities)}}}}},')
print("};\n// clang-format on\n\n}  // namespace tessera::nn")
