"""How matrices are held and multiplied: in the form that is fast on the device for so many rows, or in int8.

plain:        as they are
packed:       fp32 on CPUs, in oneDNN's own blocks: a row's product does not depend on how many rows there are, nor on the threads
alone:        fp32 on CPUs, for one row at a time: wide ones transposed, so that a row reads them from end to end
int8:         weights alone, one scale for each output channel, by the accelerator's own operation; on CPUs rounded, but in fp32
int8-dynamic: inputs as integers too, each row by its largest element; on CPUs, by torch's integer kernels
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device import Device, Ops
from jumar.schema.errors import Exit, ToolError

KINDS = ("int8", "int8-dynamic")
Matrix = Callable[[Tensor], Tensor]
"""[rows, in] -> [rows, out]"""


@dataclass(frozen=True, slots=True)
class Matrices:
    """Makes the matrices of a model.

    quantize: None, or one of KINDS
    alone:    one row at a time is what counts
    """

    ops: Ops
    device: torch.device
    quantize: str | None = None
    alone: bool = False

    def __call__(self, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> Matrix:
        """x W^T + bias with W [out, in]. exact: not in int8, whatever is asked for."""
        cpu = self.device.type == "cpu"
        if self.quantize is not None and not exact:
            whole, scales = in_int8(weight)
            if self.quantize == "int8-dynamic":
                return _dynamic(whole, scales, bias)
            if not cpu:
                return _weights_alone(whole, scales, bias, self.ops)
            weight = (whole * scales[:, None]).to(weight.dtype)
        if cpu and weight.dtype == torch.float32 and torch._C._has_mkldnn:
            return _for_a_row(weight, bias) if self.alone else _packed(weight, bias)
        return _plain(weight, bias)

    def grouped(self, weights: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """Of experts: (rows sorted by expert, int64 counts of rows for each) -> the products, in the order of the rows."""
        if self.device.type != "cpu":
            return lambda rows, counts: self.ops.grouped_matmul(rows, weights, counts)
        made = [self(weight, exact=True) for weight in weights]

        def apply(rows: Tensor, counts: Tensor) -> Tensor:
            parts = torch.split(rows, counts.tolist())
            return torch.cat([matrix(part) for matrix, part in zip(made, parts, strict=True) if len(part)])

        return apply

    def of_heads(self, weights_NOI: Tensor) -> Matrix:
        """One matrix for each head: [T, N, in] -> [T, N, out]."""
        if self.device.type != "cpu":
            return lambda x: torch.einsum("tni,noi->tno", x, weights_NOI)
        made = [self(weight.contiguous(), exact=True) for weight in weights_NOI]
        return lambda x: torch.stack([matrix(part) for matrix, part in zip(made, x.unbind(1), strict=True)], 1)


def check_kind(kind: str, device: Device, dtype: torch.dtype) -> str:
    """One line on what is done. Raises ToolError (2) for what does not exist on the device, or in the dtype."""
    if kind not in KINDS:
        raise ToolError(f"there is no quantisation {kind!r}", hint=f"choose among {', '.join(KINDS)}", code=Exit.USAGE)
    if kind == "int8-dynamic" and not device.host:
        raise ToolError(f"int8-dynamic has no kernel on {device.name}", hint="choose --quantize int8", code=Exit.USAGE)
    if kind == "int8-dynamic" and dtype != torch.float32:
        raise ToolError("int8-dynamic is computed in fp32 beside its integers", hint="leave --dtype out", code=Exit.USAGE)
    if kind == "int8" and device.host:
        return (
            "weights rounded to int8 and held in the dtype, to see what an accelerator would say: int8-dynamic is small and fast"
        )
    return f"{kind} matrices of the layers and of the output"


def in_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W [out, in] as int8, and the float32 scales [out] that it is multiplied with."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def _plain(weight: Tensor, bias: Tensor | None) -> Matrix:
    return lambda x: F.linear(x, weight, bias)


def _packed(weight: Tensor, bias: Tensor | None) -> Matrix:
    """By the operations that torch.compile gives linear layers on a CPU; the blocks are those that are best for a few rows."""
    held = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
    apply = torch.ops.mkldnn._linear_pointwise
    return lambda x: apply(x, held, bias, "none", [], "")


def _for_a_row(weight: Tensor, bias: Tensor | None) -> Matrix:
    if weight.shape[0] <= weight.shape[1]:
        return _plain(weight, bias)
    turned = weight.t().contiguous()
    return (lambda x: torch.mm(x, turned)) if bias is None else (lambda x: torch.addmm(bias, x, turned))


def _weights_alone(whole: Tensor, scales: Tensor, bias: Tensor | None, ops: Ops) -> Matrix:
    def apply(x: Tensor) -> Tensor:
        out = ops.int8_matmul(x, whole, scales)
        return out if bias is None else out + bias

    return apply


STEPS = 63
"""On either side of 0: on CPUs without VNNI torch's kernels add pairs of products in 16 bits, which inputs of 7 bits fit into."""


def _dynamic(whole: Tensor, scales: Tensor, bias: Tensor | None) -> Matrix:
    """Inputs as two integers each, a coarse one and what it leaves, multiplied in one pass over the weights: 7 bits alone would
    cost a tenth of a model's perplexity, whose rows have a few elements that are far larger than the others.

    Each row is counted in steps of its own first: one scale is right for all then, and a row's product does not depend on others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this API will move to torchao
        held = torch._make_per_channel_quantized_tensor(whole, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0)
        packed = torch.ops.quantized.linear_prepack(held, None)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    # tensors: a number in an operation is made one each time, which for one row takes as long as the operation
    each, least, finer = torch.tensor(1 / STEPS), torch.tensor(1e-30), torch.tensor(2.0 * STEPS)

    def apply(x: Tensor) -> Tensor:
        step = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True).mul_(each).clamp_min_(least)
        x = x / step
        coarse = x.round()
        rows = torch.cat((coarse, x.sub_(coarse).mul_(finer)))
        first, second = multiply(rows, 1.0, STEPS + 1, packed).chunk(2)
        out: Tensor = torch.add(first, second, alpha=1 / (2 * STEPS)).mul_(step)
        return out if bias is None else out + bias

    return apply
