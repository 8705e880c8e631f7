"""Writes gpt2.txt and llama.txt: GPT2LMHeadModel and LlamaForCausalLM of transformers, with random weights.

README.md beside this file has the command, stored_values.py the format. Stored are, in f64: logits, loss and the
gradient of every parameter for a batch; then losses, norms of gradients and the parameters after 20 steps of AdamW.

Parameters are noise(k) of stored_values.py, k their place among their sorted names, and 1 + noise(k) for the gains of norms.
Tokens are whole_numbers(1000 + step); a few targets are left out. A step is one of Llama 2's training: gradients
clipped to a global norm of 1, AdamW with betas 0.9 and 0.95, epsilon 1e-5 and a weight decay of 0.1 (on matrices
alone), and a rate that falls, here linearly from 1/512. With epsilon at 1e-8 the steps of elements whose gradient is
almost 0, such as biases of keys, would be those of rounding, in PyTorch as here.

transformers computes some things in f32 whatever the dtype: the sums of squares of LlamaRMSNorm, the angles of
LlamaRotaryEmbedding, and the loss. The last is PyTorch's own on f64 logits here, where the model is in f64; with the
others the values of Llama are within some 1e-7 of what f64 throughout would give.
"""

import pathlib

import torch
import torch.nn.functional as F
import transformers

from stored_values import DTYPES, Writer, noise, whole_numbers

BATCH, TIME, STEPS, LR = 2, 11, 20, 1 / 512
FOLDER = pathlib.Path(__file__).parent


def gpt2():
    config = transformers.GPT2Config(vocab_size=97, n_positions=13, n_embd=15, n_layer=2, n_head=3, resid_pdrop=0.0,
                                     embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_new",
                                     bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config), "transformer."


def llama():
    config = transformers.LlamaConfig(vocab_size=73, hidden_size=24, intermediate_size=29, num_hidden_layers=2,
                                      num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=13,
                                      rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None,
                                      eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    return transformers.LlamaForCausalLM(config), "model."


def is_gain(name):
    return "norm" in name or "ln_" in name and name.endswith("weight")


def is_turned(module):
    """GPT-2's matrices are stored [inputs, outputs], Tessera's [outputs, inputs]."""
    return isinstance(module, transformers.pytorch_utils.Conv1D)


class Model:
    def __init__(self, make, dtype):
        self.model, prefix = make()
        self.model = self.model.to(dtype)
        self.dtype = dtype
        self.parameters = []  # Tessera's name, parameter, whether it is turned
        for name, parameter in self.model.named_parameters():
            owner = self.model.get_submodule(name.rpartition(".")[0])
            self.parameters.append((name.removeprefix(prefix), parameter, is_turned(owner) and parameter.dim() == 2))
        self.parameters.sort(key=lambda p: p[0])
        with torch.no_grad():
            for k, (name, parameter, turned) in enumerate(self.parameters):
                shape = parameter.shape[::-1] if turned else parameter.shape
                values = noise(k, shape, 1.0 if is_gain(name) else 0.0)
                parameter.copy_(values.T if turned else values)

    def loss(self, step):
        ids = whole_numbers(1000 + step, (BATCH, TIME), self.model.config.vocab_size)
        labels = ids.clone()  # transformers itself moves them on by one
        labels[1, 3 + step % 5] = -100
        output = self.model(input_ids=ids, labels=labels, use_cache=False)
        if self.dtype != torch.float64:
            return output.logits, output.loss
        # The same sum, without transformers' conversion to f32.
        return output.logits, F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def values(self):
        logits, loss = self.loss(0)
        loss.backward()
        tensors = {"logits": logits.detach(), "loss": loss.detach()}
        for name, parameter, turned in self.parameters:
            tensors["gradient:" + name] = (parameter.grad.T if turned else parameter.grad).clone()
        self.model.zero_grad()
        return tensors

    def training(self):
        decayed = [p for _, p, _ in self.parameters if p.dim() >= 2]
        others = [p for _, p, _ in self.parameters if p.dim() < 2]
        optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                       {"params": others, "weight_decay": 0.0}], lr=LR, betas=(0.9, 0.95), eps=1e-5)
        losses, norms = [], []
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LR * (STEPS - step) / STEPS
            optimizer.zero_grad()
            _, loss = self.loss(step % 4)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
            losses.append(loss.detach())
            optimizer.step()
        tensors = {"losses": torch.stack(losses), "norms": torch.stack(norms)}
        for name, parameter, turned in self.parameters:
            tensors["trained:" + name] = (parameter.T if turned else parameter).detach()
        return tensors


def write(name, make):
    writer = Writer(FOLDER / f"{name}.txt", 23,
                    [f"Written by tests/references/{pathlib.Path(__file__).name} with PyTorch {torch.__version__}",
                     f"and transformers {transformers.__version__}; its text says what they are."])
    def values(what, dtypes):
        exact = what(Model(make, torch.float64))
        others = {dtype: what(Model(make, DTYPES[dtype])) for dtype in dtypes}
        for key in exact:
            writer.tensor(key, exact[key], {dtype: tensors[key] for dtype, tensors in others.items()})

    values(Model.values, DTYPES)
    values(Model.training, ["f32"])


torch.use_deterministic_algorithms(True)
write("gpt2", gpt2)
write("llama", llama)
