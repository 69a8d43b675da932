"""Matrices in int8, one scale for each output channel: a quarter of fp32's memory and reading.

int8:         weights alone, by the device's own operation
int8-dynamic: inputs as integers too, each row by its largest element; on CPUs, by torch's integer kernels
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from jumar.device import Ops
from jumar.schema.errors import Exit, ToolError

KINDS = ("int8", "int8-dynamic")
Matrix = Callable[[Tensor], Tensor]


def check_kind(kind: str, device: str) -> str:
    """One line on what is done. Raises ToolError (2) for what does not exist on the device."""
    if kind not in KINDS:
        raise ToolError(f"there is no quantisation {kind!r}", hint=f"choose among {', '.join(KINDS)}", code=Exit.USAGE)
    if kind == "int8-dynamic" and device != "cpu":
        raise ToolError(f"int8-dynamic has no kernel on {device}", hint="choose --quantize int8", code=Exit.USAGE)
    if kind == "int8" and device == "cpu":
        return "int8 weights, which this CPU multiplies more slowly than fp32: int8-dynamic is faster"
    return f"{kind} matrices of the layers and of the output"


def quantised(kind: str, weight: Tensor, bias: Tensor | None, ops: Ops) -> Matrix:
    """x W^T + bias with W [out, in] in int8."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    whole = (weight.float() / scales[:, None]).round().to(torch.int8)
    return _dynamic(whole, scales, bias) if kind == "int8-dynamic" else _weights_alone(whole, scales, bias, ops)


def _weights_alone(whole: Tensor, scales: Tensor, bias: Tensor | None, ops: Ops) -> Matrix:
    def apply(x: Tensor) -> Tensor:
        out = ops.int8_matmul(x, whole, scales)
        return out if bias is None else out + bias

    return apply


STEP = 2 / 127
"""Of torch's kernel for inputs between -1 and 1, at 7 bits (the kernels of CPUs without VNNI add pairs of products in 16)."""
INNER = 0.97  # rows are brought to this size, so that no element stands at the end of the range
FINER = 64


def _dynamic(whole: Tensor, scales: Tensor, bias: Tensor | None) -> Matrix:
    """Inputs as two integers each, a coarse one and what it leaves, multiplied in one pass over the weights: 7 bits alone would
    cost a tenth of a model's perplexity, whose rows have a few elements that are far larger than the others.

    torch's kernel takes one scale for all rows of x. Rows are brought to one size, and a row that holds 1 and -1 goes along: the
    scale is then the same always, and a row's product does not depend on the others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this API will move to torchao
        held = torch._make_per_channel_quantized_tensor(whole, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0)
        packed = torch.ops.quantized.linear_prepack(held, None)
    frame = torch.zeros(1, whole.shape[1])
    frame[0, 0], frame[0, -1] = 1, -1

    def apply(x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / INNER
        x = x / largest
        coarse = (x / STEP).round() * STEP
        rows = torch.cat((coarse, (x - coarse) * FINER, frame))
        first, second = torch.ops.quantized.linear_dynamic(rows, packed, True)[:-1].chunk(2)
        out: Tensor = (first + second / FINER) * largest
        return out if bias is None else out + bias

    return apply
