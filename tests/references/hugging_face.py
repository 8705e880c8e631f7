"""Writes tests/dist/hugging_face_values.h: small models as transformers stores them, and their logits in f32.

README.md beside this file has the command.

Of each file of weights the header is kept as it was written; the elements follow from the tensor's name as it is
stored. With k the sum of the name's bytes, element i in the order of the file is
    ((37 i + 11 k) mod 19 - 9) / 64,   plus 1 for the gains of norms.
So the test makes the file again to the byte, which a hash (FNV-1a) confirms.
"""

import json
import struct
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

IDS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 0, 10]]


def pattern(name, shape):
    k = sum(name.encode())
    gain = name.endswith("weight") and ("ln_" in name or "norm" in name)
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return (((37 * i + 11 * k) % 19 - 9).float() / 64 + (1 if gain else 0)).reshape(shape)


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def fill(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(pattern(name, parameter.shape))
    return model.eval()


def raw(text):
    return 'R"json(' + text + ')json"'


def write_case(name, model, logits, **save):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder, **save)
        config = json.loads((folder / "config.json").read_text())
        index = folder / "model.safetensors.index.json"
        files = sorted(folder.glob("*.safetensors"))
        print(f'    {{.name = "{name}",\n     .config = {raw(json.dumps(config))},')
        print(f"     .index = {raw(json.dumps(json.loads(index.read_text()))) if index.exists() else 'nullptr'},")
        print("     .files = {", end="")
        for file in files:
            data = file.read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            for key, value in load_file(file).items():
                assert torch.equal(value, pattern(key, value.shape)), key
            print(f'{{"{file.name}", 0x{fnv1a(data):016x}U,\n                {raw(data[8:8 + size].decode())}}},')
        print("              },")
        flat = ", ".join(f"{x:.9g}" for x in logits.flatten().tolist())
        print(f"     .logits = {{{flat}}}}},")


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def hidden_logits_of(model, embedding):
    with torch.no_grad():
        return model(torch.tensor(IDS)).last_hidden_state @ embedding.weight.T


gpt2 = dict(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.25, embd_pdrop=0.25,
            attn_pdrop=0.25, attn_implementation="eager", bos_token_id=10, eos_token_id=10)
llama = dict(vocab_size=11, max_position_embeddings=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, attn_implementation="eager",
             bos_token_id=1, eos_token_id=10)
llama3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)

print(f"""// Made by tests/references/hugging_face.py with transformers {sys.modules['transformers'].__version__}; not for editing.
#pragma once

#include <cstdint>
#include <vector>

namespace tessera::dist {{

struct HuggingFaceCase {{
  struct File {{
    const char* name;
    std::uint64_t hash;
    const char* header;
  }};
  const char* name;
  const char* config;
  const char* index;
  std::vector<File> files;
  std::vector<double> logits;  // [2, 7, 11]
}};

// clang-format off
inline const std::vector<std::vector<std::int64_t>> kHuggingFaceIds = {{{', '.join('{' + ', '.join(map(str, row)) + '}' for row in IDS)}}};
inline const std::vector<HuggingFaceCase> kHuggingFaceCases = {{""")
model = fill(GPT2LMHeadModel(GPT2Config(**gpt2)))
write_case("GPT-2", model, logits_of(model))
model = fill(GPT2Model(GPT2Config(**gpt2)))
write_case("GPT-2 without its head", model, hidden_logits_of(model, model.wte))
model = fill(LlamaForCausalLM(LlamaConfig(**llama)))
write_case("Llama", model, logits_of(model))
write_case("Llama in parts", model, logits_of(model), max_shard_size="6KB")
model = fill(LlamaForCausalLM(LlamaConfig(**llama, rope_parameters=llama3, tie_word_embeddings=True)))
write_case("Llama 3.1, tied", model, logits_of(model))
model = fill(LlamaModel(LlamaConfig(**llama, tie_word_embeddings=True)))
write_case("Llama without its head", model, hidden_logits_of(model, model.embed_tokens))
print("};\n// clang-format on\n\n}  // namespace tessera::dist")
