"""Writes layers.txt: outputs and gradients of PyTorch's layers and losses, one case for each of Tessera's.

README.md beside this file has the command, stored_values.py the format. In each case parameter k of Tessera's list is
noise(k) of stored_values.py (1 + noise(k) for the gains of norms), input i is noise(100 + i), and the gradient of the
output is noise(200). Sizes are odd, so that no loop ends with a whole vector. Where PyTorch has no such layer, or only
one with other parameters, its functions stand here.
"""

import pathlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from stored_values import DTYPES, Writer, noise, whole_numbers

CASES = {}


def case(name, inputs, parameters=(), scale=1.0):
    """A function of inputs and parameters; `inputs` are shapes, or tensors of ids. `scale` multiplies inputs."""
    def add(function):
        CASES[name] = (function, inputs, parameters, scale)
        return function
    return add


def module(make):
    """A function of PyTorch's own module, with the parameters in its order."""
    def function(*arguments):
        layer = make().to(arguments[-1].dtype)
        names = [name for name, _ in layer.named_parameters()]
        inputs, parameters = arguments[:len(arguments) - len(names)], arguments[len(arguments) - len(names):]
        return torch.func.functional_call(layer, dict(zip(names, parameters)), inputs)
    return function


def gain(*shape):
    return ("gain", shape)


# --- Layers

case("linear", [(2, 3, 7)], [(5, 7), (5,)])(module(lambda: nn.Linear(7, 5)))
case("linear_without_bias", [(2, 3, 7)], [(5, 7)])(module(lambda: nn.Linear(7, 5, bias=False)))
case("linear_wide", [(5, 37)], [(11, 37), (11,)])(module(lambda: nn.Linear(37, 11)))
case("layer_norm", [(3, 37)], [gain(37), (37,)])(module(lambda: nn.LayerNorm(37)))
case("layer_norm_without_bias", [(2, 3, 5)], [gain(5)])(module(lambda: nn.LayerNorm(5, eps=0.01, bias=False)))
case("rms_norm", [(3, 37)], [gain(37)])(module(lambda: nn.RMSNorm(37, eps=1e-5)))


@case("add_layer_norm", [(3, 19), (3, 19)], [gain(19), (19,)])
def add_layer_norm(x, residual, weight, bias):
    total = x + residual
    return torch.cat([total, F.layer_norm(total, (19,), weight, bias)])


case("embedding", [whole_numbers(100, (3, 5), 13)], [(13, 7)])(module(lambda: nn.Embedding(13, 7)))
for name, layer in {"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(),
                    "gelu": nn.GELU("tanh"), "gelu_erf": nn.GELU()}.items():
    case(name, [(3, 13)], scale=16.0)(layer)
case("softmax", [(3, 5, 7)], scale=8.0)(nn.Softmax(1))
case("log_softmax", [(3, 37)], scale=8.0)(nn.LogSoftmax(-1))
case("sequential", [(3, 7)], [(5, 7), (5,), (3, 5), (3,)])(
    module(lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))))
case("mlp", [(2, 3, 7)], [(11, 7), (11,), (7, 11), (7,)])(
    module(lambda: nn.Sequential(nn.Linear(7, 11), nn.GELU("tanh"), nn.Linear(11, 7))))


@case("swiglu", [(2, 3, 7)], [(11, 7), (11, 7), (7, 11)])
def swiglu(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


@case("rotary", [(2, 5, 3, 6)])
def rotary(x):  # channels k and k + 3 are real and imaginary part; position 5 + t
    exact = x if x.dtype == torch.float64 else x.float()
    angle = (5 + torch.arange(5))[:, None] * 100.0 ** (-2 * torch.arange(3).double() / 6)
    turned = torch.complex(exact[..., :3], exact[..., 3:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


# --- Pictures

case("conv2d", [(2, 3, 7, 5)], [(5, 3, 3, 3), (5,)])(module(lambda: nn.Conv2d(3, 5, 3, padding=1)))
case("conv2d_with_everything", [(3, 4, 9, 8)], [(6, 2, 3, 2)])(
    module(lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 3), groups=2, bias=False)))
case("max_pool2d", [(2, 3, 7, 5)])(nn.MaxPool2d(2))
case("max_pool2d_with_everything", [(2, 3, 7, 9)])(nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, dilation=(1, 3)))
case("max_pool2d_of_zeros", [(2, 3, 7, 9)], scale=0.0)(nn.MaxPool2d((3, 2), stride=(2, 1), padding=1))
case("avg_pool2d", [(2, 3, 7, 5)])(nn.AvgPool2d((3, 2), stride=(2, 1), padding=1))
case("batch_norm", [(3, 5, 3, 7)], [gain(5), (5,)])(module(lambda: nn.BatchNorm2d(5, eps=0.01)))


@case("batch_norm_in_evaluation", [(2, 5, 3, 7)], [gain(5), (5,)])
def batch_norm_in_evaluation(x, weight, bias):
    """After two batches in training mode; momentum 0.25."""
    layer = nn.BatchNorm2d(5, momentum=0.25).to(torch.float64)
    layer(noise(310, (3, 5, 3, 7)))
    layer(noise(311, (2, 5, 1, 3)))
    mean, var = layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype)
    y = F.batch_norm(x, mean, var, weight, bias)
    return torch.cat([y.flatten(), mean, var])


# --- Attention

def heads(x, count):
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def attend(q, k, v, num_heads, kv_heads, **options):
    o = F.scaled_dot_product_attention(heads(q, num_heads), heads(k, kv_heads), heads(v, kv_heads),
                                       enable_gqa=True, **options)
    return o.transpose(1, 2).flatten(2)


@case("causal_self_attention", [(2, 7, 15)], [(45, 15), (45,), (15, 15), (15,)])
def causal_self_attention(x, *parameters):
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(15, 3, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    return module(Causal)(x, *parameters)


@case("attention_of_all", [(2, 7, 15)], [(15, 15), (15,)] * 4)
def attention_of_all(x, wq, bq, wk, bk, wv, bv, wo, bo):
    return F.linear(attend(F.linear(x, wq, bq), F.linear(x, wk, bk), F.linear(x, wv, bv), 3, 3), wo, bo)


@case("grouped_attention", [(2, 5, 18)], [(18, 18), (6, 18), (6, 18), (18, 18)])
def grouped_attention(x, wq, wk, wv, wo):
    return F.linear(attend(F.linear(x, wq), F.linear(x, wk), F.linear(x, wv), 6, 2, is_causal=True), wo)


# The queries are the last 5 of 9 positions; heads of width 7.
@case("attention_after_a_cache", [(2, 5, 6, 7), (2, 9, 2, 7), (2, 9, 2, 7)])
def attention_after_a_cache(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(5, 9), scale=0.5, enable_gqa=True)
    return o.transpose(1, 2)


# --- Losses

TARGETS = whole_numbers(300, (7,), 97)
TARGETS[2] = -100
for reduction in ("mean", "sum", "none"):
    for smoothing in (0.0, 0.1):
        case(f"cross_entropy_{reduction}_{smoothing}", [(7, 97)], scale=8.0)(
            lambda x, r=reduction, s=smoothing: F.cross_entropy(x, TARGETS, label_smoothing=s, reduction=r))
    case(f"mse_{reduction}", [(5, 13), (5, 13)])(nn.MSELoss(reduction=reduction))
    case(f"bce_{reduction}", [(5, 13)], scale=16.0)(
        lambda x, r=reduction: F.binary_cross_entropy_with_logits(x, noise(301, (5, 13), 0.5).to(x.dtype), reduction=r))
    case(f"kl_{reduction}", [(5, 13)], scale=8.0)(
        lambda x, r=reduction: F.kl_div(x, noise(301, (5, 13), 0.5).to(x.dtype), reduction=r))


# --- Output

def run(name, dtype):
    function, shapes, parameter_shapes, scale = CASES[name]
    inputs = [shape if isinstance(shape, torch.Tensor) else
              (noise(100 + i, shape) * scale).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    parameters = [(noise(k, shape[1], 1.0) if shape[0] == "gain" else noise(k, shape)).to(dtype).requires_grad_()
                  for k, shape in enumerate(parameter_shapes)]
    y = function(*inputs, *parameters)
    y.backward(noise(200, y.shape).to(y.dtype))
    values = {f"{name}:y": y.detach()}
    for i, x in enumerate(inputs):
        if x.requires_grad:
            values[f"{name}:input{i}"] = x.grad
    for k, parameter in enumerate(parameters):
        values[f"{name}:parameter{k}"] = parameter.grad
    return values


writer = Writer(pathlib.Path(__file__).parent / "layers.txt", 40,
                [f"Written by tests/references/layers_pytorch.py with PyTorch {torch.__version__}; its text says what they are."])
for name in CASES:
    exact = run(name, torch.float64)
    others = {dtype: run(name, DTYPES[dtype]) for dtype in DTYPES}
    for key in exact:
        writer.tensor(key, exact[key], {dtype: values[key] for dtype, values in others.items()})
